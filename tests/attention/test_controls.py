"""Controls are what they say: constant weights, no exchange, or frozen random queries and keys; no weight is dead."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from spikingjelly.activation_based import neuron as sj

from s2tdpt import LIF, PLIF, STDPAttention, StdpWindow
from s2tdpt.attention import (
    ATTENTIONS,
    IdentityAttention,
    MeanAttention,
    RandomAttention,
    SpikingSelfAttention,
    build_attention,
)
from s2tdpt.errors import ModelError

from .cases import HEADS, B, D, N, T, seasoned, spikes


def build(name: str) -> SpikingSelfAttention:
    torch.manual_seed(0)
    return build_attention(name, D, HEADS, window=StdpWindow(offset=0.4), gain=6.0, neuron=LIF)


@pytest.mark.parametrize("tokens", [1, 10, 64, 100])
def test_mean_is_stdp_without_plasticity(tokens: int) -> None:
    mean = seasoned(MeanAttention(D, HEADS, gain=6.0, offset=0.4))
    stdp = STDPAttention(D, HEADS, window=StdpWindow(a_plus=0.0, a_minus=0.0, offset=0.4), gain=6.0).double().eval()
    with torch.no_grad():
        stdp.qkv.weight[2 * D :] = mean.qkv.weight
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(stdp.qkv_norm, name)[2 * D :] = getattr(mean.qkv_norm, name)
    stdp.proj.load_state_dict(mean.proj.state_dict())
    stdp.proj_norm.load_state_dict(mean.proj_norm.state_dict())
    x = spikes(tokens=tokens, batch=4)
    assert (mean(x) - stdp(x)).abs().max() < 1e-12

    value = spikes(tokens=tokens).view(T, B, tokens, HEADS, -1).transpose(2, 3)
    currents = mean.mix(value), stdp.mix(1 - value, value.flip(-1), value)
    assert (currents[0] - currents[1]).abs().max() < 1e-12
    assert currents[0].max() > 0


@pytest.mark.parametrize("tau", [1.0, 2.0, 2.3, 7.7])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_identity_passes_each_spike_on(
    tau: float, decay_input: bool, v_reset: float | None, dtype: torch.dtype
) -> None:
    """At the first step always; at later ones too, unless a membrane below rest is still recovering."""
    layer = IdentityAttention(D, HEADS, neuron=partial(LIF, tau, decay_input=decay_input, v_reset=v_reset))
    value = spikes().view(T, B, N, HEADS, -1).transpose(2, 3).to(dtype)
    assert torch.equal(layer.mix_neuron(layer.mix(value)), value)


@pytest.mark.parametrize("make", [PLIF, partial(sj.LIFNode, 3.0, step_mode="m")])
def test_identity_passes_each_spike_on_through_other_neurons(make: object) -> None:
    layer = IdentityAttention(D, HEADS, neuron=make)  # type: ignore
    if isinstance(layer.mix_neuron, PLIF):
        layer.mix_neuron.w.data.fill_(-1.0)  # as training may leave it: tau is no longer what it was
    value = spikes().view(T, B, N, HEADS, -1).transpose(2, 3)
    assert torch.equal(layer.mix_neuron(layer.mix(value)), value)


def test_identity_exchanges_nothing_between_tokens() -> None:
    layer = seasoned(IdentityAttention(D, HEADS))
    x = spikes()
    changed = x.clone()
    changed[:, :, 0] = 1 - changed[:, :, 0]
    moved = (layer(x) - layer(changed)).abs().amax((0, 1, 3)) > 1e-9
    assert moved.tolist() == [True] + [False] * (N - 1)


def test_random_keeps_its_queries_and_keys_as_they_were_drawn() -> None:
    layer = build("random")
    assert isinstance(layer, RandomAttention)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.5)
    for seed in range(3):
        optimizer.zero_grad()
        layer(spikes(seed=seed).float()).square().mean().backward()
        optimizer.step()
    after = layer.state_dict()
    assert torch.equal(after["frozen_qk"], before["frozen_qk"])
    assert not torch.equal(after["qkv.weight"], before["qkv.weight"])
    assert before["frozen_qk"].std() > 0


def test_random_is_stdp_with_those_queries_and_keys() -> None:
    random = seasoned(RandomAttention(D, HEADS, gain=6.0))
    stdp = STDPAttention(D, HEADS, gain=6.0).double().eval()
    state = random.state_dict()
    state["qkv.weight"] = torch.cat([state.pop("frozen_qk"), state["qkv.weight"]])
    stdp.load_state_dict(state)
    out = stdp(spikes())
    assert (random(spikes()) - out).abs().max() < 1e-12
    assert out.std() > 0


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_parameter_is_dead(name: str) -> None:
    """Every row of every one gets a gradient: data parallel training would stop without, and unused rows only weigh."""
    layer = seasoned(build(name)).train()
    out = layer(spikes(batch=8))
    outer = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(out, list(layer.parameters()), outer, allow_unused=True)
    for (parameter, _), grad in zip(layer.named_parameters(), grads, strict=True):
        assert grad is not None, parameter
        assert grad.isfinite().all()
        # A bias before BatchNorm moves nothing: its gradient is there, and zero but for rounding.
        alive = grad.flatten(1).abs().amax(1) if grad.ndim > 1 else grad.abs()
        assert (alive > 1e-9).all() or parameter == "proj.bias", parameter


def test_weights_of_queries_and_keys_learn_in_stdp_attention() -> None:
    layer = seasoned(build("stdp"))
    layer(spikes(batch=8)).square().sum().backward()
    assert layer.qkv.weight.grad is not None
    assert all(part.abs().max() > 1e-9 for part in layer.qkv.weight.grad.split(D))


def test_mean_takes_one_offset() -> None:
    with pytest.raises(ModelError, match="one offset"):
        build_attention("mean", D, HEADS, window=StdpWindow(offset=(0.1, 0.2, 0.3)), gain=8.0, neuron=LIF)
