"""The operators as PyTorch sees them: schemas, shapes without data, autograd, the compiler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from s2tdpt.ops import stdp_attention
from s2tdpt.ops.norm_lif import NormLif
from s2tdpt.ops.norm_lif import triton as norm
from s2tdpt.ops.stdp import buckets, tiles
from s2tdpt.ops.stdp.launch import window_table

from .attention import make_spikes, make_window
from .cases import DTYPES, assert_close, describe, neuron_constants, noise, spikes
from .models import certain
from .norm import make_inputs

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
SPECS = {
    "spikes as bits": NormLif(time_steps=2, training=True, bits=True),
    "membrane": NormLif(time_steps=2, training=False, membrane=True),
    "membrane only": NormLif(time_steps=2, training=True, membrane=True, fire=False),
    "pooled": NormLif(time_steps=2, training=True, pool=(3, 4), bits=True),
}


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Not here: `opcheck` compares where in their memory tensors start."""


def norm_arguments(spec: NormLif, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    residual = spec.membrane and not spec.training
    inputs = make_inputs(replace(spec, **neuron_constants({})), 12, 16, dtype=dtype, residual=residual)
    return *inputs.leaves(None, True).as_arguments(), *spec.pack()


@pytest.mark.parametrize("dtype", DTYPES, ids=describe)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_norm_lif(spec: NormLif, dtype: torch.dtype) -> None:
    torch.library.opcheck(norm.norm_lif_op, norm_arguments(spec, dtype), test_utils=CHECKS)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_norm_lif_backward(spec: NormLif) -> None:
    y, weight, bias, mean, var, inv_tau, residual, *constants = (_detached(x) for x in norm_arguments(spec))
    fired, membrane, index, *stats, _ = norm.norm_lif_op(y, weight, bias, mean, var, inv_tau, residual, *constants)
    stats = stats if spec.training else [mean, var]
    gradients = noise(*fired.shape, seed=1), noise(*membrane.shape, seed=2)
    arguments = (*gradients, y, weight, bias, *stats, inv_tau, membrane, index, True, *constants)
    torch.library.opcheck(norm.norm_lif_backward_op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("dtype", DTYPES, ids=describe)
def test_unpack(dtype: torch.dtype) -> None:
    bits = spikes(24, density=0.5, seed=1).to(torch.uint8)
    torch.library.opcheck(norm.unpack, (bits, (2, 12, 8), dtype), test_utils=CHECKS)


@pytest.mark.parametrize("packed", [False, True])
def test_stdp_lif(packed: bool) -> None:
    qkv = spikes(2, 1, 5, 48, density=0.5, seed=1)
    bits = torch.zeros(2, 30 if packed else 0, dtype=torch.uint8, device=qkv.device)
    table, inv_tau = window_table(make_window("per head", 2), 2, 8, qkv.device), qkv.new_tensor(0.5)
    constants = 0.3, 2, *NormLif(time_steps=2, training=False, v_threshold=0.5).pack()
    arguments = qkv.requires_grad_(), bits, table, inv_tau.requires_grad_(), *constants
    torch.library.opcheck(tiles.stdp_lif_op, arguments, test_utils=CHECKS)
    with torch.no_grad():
        fired, current, counts = tiles.stdp_lif_op(*arguments)
    kept = bits if packed else qkv.detach()
    arguments = noise(*fired.shape, seed=2), current, counts, kept, packed, table, inv_tau.detach(), True, *constants
    torch.library.opcheck(tiles.stdp_lif_backward_op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("dtype", DTYPES, ids=describe)
def test_stdp_tile(dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in make_spikes(2, 3, 5, 8, keys=5, dtype=dtype))
    table = window_table(make_window("per head", 3), 3, 8, q.device)
    torch.library.opcheck(tiles.stdp_tile_op, (q, k, v, table, 0.5), test_utils=CHECKS)
    with torch.no_grad():
        out, counts = tiles.stdp_tile_op(q, k, v, table, 0.5)
    arguments = noise(*out.shape, seed=2, dtype=dtype), counts, v.detach(), table, 0.5
    torch.library.opcheck(tiles.stdp_tile_backward_op, arguments, test_utils=CHECKS)


def test_stdp_buckets() -> None:
    q, k, v = (x.requires_grad_() for x in make_spikes(2, 3, 7, 8, keys=5))
    table = window_table(make_window("per head", 3), 3, 8, q.device)
    torch.library.opcheck(buckets.stdp_buckets_op, (q, k, v, table, 0.5), test_utils=CHECKS)
    with torch.no_grad():
        out, *kept = buckets.stdp_buckets_op(q, k, v, table, 0.5)
    arguments = noise(*out.shape, seed=2), v.detach(), *kept, table, 0.5
    torch.library.opcheck(buckets.stdp_buckets_backward_op, arguments, test_utils=CHECKS)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def test_no_silent_second_derivative() -> None:
    arguments = norm_arguments(SPECS["spikes as bits"])
    fired = norm.norm_lif_op(*arguments)[0]
    (grad,) = torch.autograd.grad(fired.sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(grad.square().sum(), arguments[0])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("train", [True, False])
def test_the_fused_model_compiles_whole(train: bool) -> None:
    model, x = certain(2, 3, 4, 4, train=train, time_steps=2, neuron="plif")
    model.implementation = "fused"
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    logits, twins_logits = model(x), compiled(x)
    assert_close(twins_logits, logits, 1e-5, "logits")
    for run in (logits, twins_logits):
        run.square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_close(theirs.grad, ours.grad, 1e-5, f"gradient of {name}")  # type: ignore[arg-type]
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert_close(theirs, ours, 1e-5, name)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("tokens", [5, 130])
def test_attention_compiles_whole(tokens: int) -> None:
    inputs = [x.requires_grad_() for x in make_spikes(2, tokens, 8, keys=tokens)]

    def attend(*spikes: Tensor) -> Tensor:
        return stdp_attention(*spikes, make_window("per head", 2), implementation="triton")  # type: ignore[misc]

    results = []
    for run in (attend, torch.compile(attend, backend="aot_eager", fullgraph=True)):
        out = run(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(theirs, ours)
