"""STDPAttention alone: what it computes, and that it fits into somebody else's network."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import neuron as sj
from torch import Tensor, nn

from s2tdpt import LIF, PLIF, STDPAttention, StdpWindow
from s2tdpt.attention import ATTENTIONS, SpikingSelfAttention, build_attention
from s2tdpt.errors import InputError, ModelError
from s2tdpt.normalisation import BatchNorm
from s2tdpt.ops import lif, observe, stdp_attention

from .cases import HEADS, B, D, N, T, fires, record_inputs, seasoned, spikes

WINDOW = StdpWindow(a_plus=(0.1, 0.45, 0.3), tau_minus=11.0)


def norm_by_hand(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("implementation", ["auto", "dense", "table"])
def test_equals_its_parts_put_together_by_hand(implementation: str) -> None:
    """Eqs 14-23, head by head."""
    layer = seasoned(STDPAttention(D, HEADS, window=WINDOW, gain=6.0, implementation=implementation))
    x, size = spikes(), D // HEADS
    w_q, w_k, w_v = layer.qkv.weight.split(D)
    projected = norm_by_hand(torch.cat([x @ w.T for w in (w_q, w_k, w_v)], -1), layer.qkv_norm)
    query, key, value = lif(projected)[0].split(D, -1)
    mixed = torch.zeros(T, B, N, D, dtype=torch.float64)
    for h in range(HEADS):
        mine = slice(h * size, (h + 1) * size)
        window = StdpWindow(a_plus=WINDOW.a_plus[h], tau_minus=11.0)  # type: ignore
        mixed[..., mine] = stdp_attention(
            query[..., mine], key[..., mine], value[..., mine], window, scale=6.0 / N, implementation="dense"
        )
    fired = lif(mixed, v_threshold=0.5)[0]
    expected = norm_by_hand(fired @ layer.proj.weight.T + layer.proj.bias, layer.proj_norm)
    assert all(map(fires, (query, key, value, fired)))
    assert (layer(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_linear_layer_sees_spikes_and_the_answer_is_a_membrane(name: str) -> None:
    layer = seasoned(build_attention(name, D, HEADS, window=StdpWindow(), gain=8.0, neuron=LIF))
    seen = record_inputs(layer, nn.Linear)
    out = layer(spikes())
    assert out.shape == (T, B, N, D)
    assert "proj" in seen
    assert all(map(fires, seen.values())), name


@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 100])
def test_any_number_of_tokens_and_the_scale_follows_it(tokens: int) -> None:
    layer = seasoned(STDPAttention(D, HEADS, gain=5.0))
    scales = []
    with observe.observe(lambda name, info: scales.append(info.get("scale"))):
        assert layer(spikes(tokens=tokens)).shape == (T, B, tokens, D)
    assert [s for s in scales if s is not None] == [pytest.approx(5.0 / tokens)]


def test_tokens_exchange_information_within_an_image_and_not_across() -> None:
    layer = seasoned(STDPAttention(D, HEADS))
    x = spikes()
    changed = x.clone()
    changed[:, 0, 0] = 1 - changed[:, 0, 0]
    moved = (layer(x) - layer(changed)).abs().amax((0, 3)) > 1e-9  # [B, N]
    assert moved[0, 1:].any()
    assert not moved[1].any()


def test_time_runs_forward_only() -> None:
    layer = seasoned(STDPAttention(D, HEADS))
    x = spikes()
    later = x.clone()
    later[-1] = 1 - later[-1]
    assert torch.allclose(layer(x)[:-1], layer(later)[:-1], atol=1e-12)
    assert not torch.allclose(layer(x)[-1], layer(later)[-1])


def test_the_window_adds_no_weight_and_nothing_is_remembered() -> None:
    layer = seasoned(STDPAttention(D, HEADS))
    assert sum(p.numel() for p in layer.parameters()) == 4 * D * D + D + 2 * 4 * D
    first = layer(spikes())
    layer(spikes(seed=5))
    assert torch.equal(layer(spikes()), first)


def test_norm_takes_its_statistics_over_everything_but_channels() -> None:
    norm = BatchNorm(D).double()
    x = torch.randn(T, B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    expected = (x - x.mean((0, 1, 2))) / (x.var((0, 1, 2), unbiased=False) + norm.eps).sqrt()
    assert (norm(x) - expected).abs().max() < 1e-12
    assert (norm(x.transpose(1, 2)) - expected.transpose(1, 2)).abs().max() < 1e-12


class TheirBlock(nn.Module):
    """A residual spiking block in SpikingJelly's manner, with its own neurons outside and inside our layer."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.sn1 = sj.LIFNode(step_mode="m", detach_reset=True)
        self.attention = attention
        self.sn2 = sj.LIFNode(step_mode="m", detach_reset=True)
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.sn1(x))
        return x + self.fc(self.sn2(x))


def test_as_a_layer_in_a_spikingjelly_network() -> None:
    torch.manual_seed(0)
    inside = STDPAttention(D, HEADS, neuron=partial(sj.LIFNode, step_mode="m", detach_reset=True))
    nn.init.constant_(inside.qkv_norm.weight, 3.0)  # loud enough for every neuron to fire from the start
    theirs, mixed = TheirBlock(inside).double(), TheirBlock(STDPAttention(D, HEADS)).double()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    x = torch.randn(T, B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    losses = []
    for _ in range(4):
        functional.reset_net(theirs)
        functional.reset_net(mixed)
        out = theirs(x)
        mixed.load_state_dict(theirs.state_dict())
        functional.reset_net(theirs)
        assert (mixed(x) - theirs(x)).abs().max() < 1e-12  # SpikingJelly's neurons and ours inside are the same
        loss = (out - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in theirs.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    seen = record_inputs(mixed, nn.Linear)
    functional.reset_net(mixed)
    mixed(x)
    assert set(seen) == {"attention.qkv", "attention.proj", "fc"}
    assert all(map(fires, seen.values()))


def test_neurons_of_the_callers_choice() -> None:
    layer = STDPAttention(D, HEADS, neuron=partial(PLIF, 3.0, surrogate="atan"))
    assert isinstance(layer.mix_neuron, PLIF)
    assert layer.mix_neuron.v_threshold == 0.5
    assert layer.qkv_neuron.surrogate == "atan"
    layer(spikes().float()).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("shape", [(N, D), (B, N, D), (T, B, N, D + 1), (T, B, HEADS, N, D)])
def test_wrong_shapes(name: str, shape: tuple[int, ...]) -> None:
    layer = build_attention(name, D, HEADS, window=StdpWindow(), gain=8.0, neuron=LIF)
    with pytest.raises(InputError, match=rf"takes spikes \[T, B, N, {D}\], got \({shape[0]},"):
        layer(torch.zeros(shape))


def test_refusals() -> None:
    with pytest.raises(InputError, match="embed_dim 24 does not divide into 5 heads"):
        STDPAttention(24, 5)
    with pytest.raises(InputError, match="2 heads"):
        STDPAttention(D, HEADS, window=StdpWindow(a_plus=(0.1, 0.2)))(spikes().float())
    with pytest.raises(ModelError, match="'softmax' is unknown: use one of stdp, mean, identity, random"):
        build_attention("softmax", D, HEADS, window=StdpWindow(), gain=8.0, neuron=LIF)
    with pytest.raises(TypeError, match="abstract"):
        SpikingSelfAttention(D, HEADS)  # type: ignore
