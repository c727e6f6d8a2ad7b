"""The price of spikes in the fused forward pass: kernel against reference, gradients against the plain model's."""

from __future__ import annotations

import struct

import pytest
import torch

from s2tdpt.ops.charge.reference import add_constant
from s2tdpt.ops.charge.triton import add_constant_op
from s2tdpt.training.spike_cost import put_price

from .cases import DEVICE, assert_close, describe, noise
from .models import call, certain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=describe)
def test_kernel_equals_reference(dtype: torch.dtype) -> None:
    x = noise(3, 700, seed=1, dtype=dtype)
    for constant in (1e-4, -0.3):
        assert torch.equal(add_constant_op(x, constant), add_constant(x, constant))
    turned = x.t()
    assert torch.equal(add_constant_op(turned, 0.1), add_constant(turned.contiguous(), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=describe)
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    """Also where its bits are all ones, as those of a GPU's own NaN are: training stops at a NaN in a gradient."""
    x = noise(5, 1000, seed=1, dtype=dtype)
    x[0], x[1], x[2] = float("nan"), float("inf"), -float("inf")
    (all_ones,) = struct.unpack("d", struct.pack("Q", 2**63 - 1))
    for add in (add_constant, add_constant_op):
        got = add(x, 0.1)
        assert got[0].isnan().all()
        assert (got[1] > 3e38).all()
        assert (got[2] < -3e38).all()
        assert got[3:].isfinite().all()
        assert add(x, all_ones).isnan().all()


class TestRegistration:
    @pytest.fixture(autouse=True)
    def poisoned_memory(self) -> None:
        """Not here: `opcheck` compares where in their memory tensors start."""

    def test_operator(self) -> None:
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(add_constant_op, (noise(3, 5, seed=1), 0.5), test_utils=checks)


@pytest.mark.parametrize("stages", [False, True])
def test_fused_gradients_equal_plain_ones(stages: bool) -> None:
    options = {"stage_widths": (12,), "stage_depths": (1,), "stage_mixers": ("dwconv",)} if stages else {}
    size = (2, 3, 8, 8) if stages else (2, 3, 4, 8)
    model, x = certain(*size, train=True, time_steps=2, **options)
    put_price(model, 5.0, torch.zeros(1, *size[1:], device=DEVICE))
    fused, plain = call(model, x, "fused"), call(model, x, "plain")
    for name, want in plain.gradients.items():
        if not name.endswith(("proj.bias", "fc1.bias", "fc2.bias")):
            assert_close(fused.gradients[name], want, 1e-4, f"gradient of {name}")
    for module in model.modules():
        module.__dict__.pop("spike_cost", None)
    assert not torch.allclose(call(model, x, "plain").gradients["images"], plain.gradients["images"])
