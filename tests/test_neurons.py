"""LIF and PLIF: equal to SpikingJelly's in every cell of the grid, in one go or step by step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron as sj
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from s2tdpt import LIF, PLIF
from s2tdpt.errors import InputError
from s2tdpt.ops import lif

ORACLE_SURROGATE = {"sigmoid": sj_surrogate.Sigmoid, "atan": sj_surrogate.ATan}
TAU = 1.7  # not the default, and not a power of two


def current(T: int, seed: int = 0) -> Tensor:
    """Input that makes about half of the neurons fire, with silent and always firing ones among them."""
    x = torch.randn(T, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    x[:, 0, 0], x[:, 0, 1] = -5, 50
    return x


def outer_gradient(like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(9))


def oracle(kind: str, options: dict[str, Any], alpha: float | None = None) -> Any:
    """SpikingJelly's neuron with the same options, in float64, multi-step."""
    options = dict(options)
    surrogate = ORACLE_SURROGATE[options.pop("surrogate", "sigmoid")]
    options["surrogate_function"] = surrogate() if alpha is None else surrogate(alpha=alpha)
    if kind == "lif":
        return sj.LIFNode(tau=TAU, step_mode="m", **options)
    return sj.ParametricLIFNode(init_tau=TAU, step_mode="m", **options).double()


def ours(kind: str, options: dict[str, Any], alpha: float | None = None) -> LIF:
    return (LIF if kind == "lif" else PLIF)(TAU, alpha=alpha, **options).double()


def forward_and_gradients(node: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    spikes = node(x)
    return spikes.detach(), list(torch.autograd.grad(spikes, [x, *node.parameters()], outer_gradient(spikes)))


def assert_same(mine: nn.Module, theirs: nn.Module, x: Tensor, *, tau_matters: bool = True) -> None:
    (spikes, grads), (their_spikes, their_grads) = forward_and_gradients(mine, x), forward_and_gradients(theirs, x)
    assert torch.equal(spikes, their_spikes)
    assert 0.05 < spikes.mean() < 0.95
    assert len(grads) == len(their_grads)
    for grad, their_grad in zip(grads, their_grads, strict=True):
        assert (their_grad.abs().max() > 0) == (tau_matters or grad.ndim > 0)
        assert (grad - their_grad).abs().max() <= 1e-12 * max(1.0, float(their_grad.abs().max()))


@pytest.mark.parametrize("kind", ["lif", "plif"])
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
def test_equal_to_spikingjelly(
    surrogate: str, v_reset: float | None, detach_reset: bool, decay_input: bool, T: int, kind: str
) -> None:
    options = {"surrogate": surrogate, "v_reset": v_reset, "detach_reset": detach_reset, "decay_input": decay_input}
    mine, theirs = ours(kind, options), oracle(kind, options)
    nothing_leaked = T == 1 and not decay_input  # the one cell in which tau has no say
    assert_same(mine, theirs, current(T), tau_matters=not nothing_leaked)


@pytest.mark.parametrize("kind", ["lif", "plif"])
@pytest.mark.parametrize(("surrogate", "alpha"), [("sigmoid", 2.5), ("atan", 5.0)])
@pytest.mark.parametrize("v_threshold", [0.5, 1.3])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_equal_to_spikingjelly_with_another_threshold_and_sharpness(
    kind: str, surrogate: str, alpha: float, v_threshold: float, v_reset: float | None
) -> None:
    options = {"surrogate": surrogate, "v_threshold": v_threshold, "v_reset": v_reset, "detach_reset": False}
    assert_same(ours(kind, options, alpha), oracle(kind, options, alpha), current(4) * v_threshold)


@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_gradient_of_the_membrane_handed_in(v_reset: float | None, detach_reset: bool) -> None:
    x, start = current(4), torch.linspace(-1, 2, 120, dtype=torch.float64).view(3, 40)
    theirs = oracle("lif", {"v_reset": v_reset, "detach_reset": detach_reset})
    their_start = start.clone().requires_grad_()
    theirs.v = their_start
    expected = theirs(x)
    my_start = start.clone().requires_grad_()
    spikes, last = lif(x, my_start, tau=TAU, v_reset=v_reset, detach_reset=detach_reset)
    assert torch.equal(spikes, expected)
    assert torch.allclose(last, theirs.v, atol=1e-14, rtol=0)
    both = [
        torch.autograd.grad((out, v), begin, (outer_gradient(out), outer_gradient(v)))[0]
        for out, v, begin in ((spikes, last, my_start), (expected, theirs.v, their_start))
    ]
    assert (both[0] - both[1]).abs().max() <= 1e-12
    assert both[1].abs().max() > 0


@pytest.mark.parametrize("kind", ["lif", "plif"])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_single_steps_with_the_state_handed_on_are_one_multi_step(kind: str, v_reset: float | None) -> None:
    node, x = ours(kind, {"v_reset": v_reset, "detach_reset": False}), current(4)
    together, grads = forward_and_gradients(node, x)

    leaf, v, spikes = x.clone().requires_grad_(), None, []
    for step in leaf:
        spike, v = node.step(step, v)
        spikes.append(spike)
    one_by_one = torch.stack(spikes)
    assert torch.equal(one_by_one, together)
    stepped = torch.autograd.grad(one_by_one, [leaf, *node.parameters()], outer_gradient(one_by_one))
    for a, b in zip(stepped, grads, strict=True):
        assert (a - b).abs().max() <= 1e-12
    assert v is not None
    assert torch.equal(v, lif(x, tau=node.tau, v_reset=v_reset)[1])


def test_nothing_is_remembered_between_calls() -> None:
    node, x = LIF().double(), current(4)
    first = node(x)
    node(current(4, seed=1))
    node.step(x[0])
    assert torch.equal(node(x), first)
    assert not node.state_dict()


def test_defaults_are_those_of_the_field() -> None:
    node = LIF()
    assert (node.tau, node.v_threshold, node.v_reset, node.decay_input, node.detach_reset) == (
        2.0,
        1.0,
        0.0,
        True,
        True,
    )
    assert (node.surrogate, node.alpha, LIF(surrogate="atan").alpha) == ("sigmoid", 4.0, 2.0)


def test_a_neuron_shows_its_constants() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "tau=3, v_threshold=0.5, v_reset=None" in repr(PLIF(3.0, v_threshold=0.5, v_reset=None))


def test_a_membrane_exactly_at_the_threshold_fires() -> None:
    x = torch.tensor([[2.0, math.nextafter(2.0, 0), 0.0]], dtype=torch.float64)
    assert lif(x)[0].tolist() == [[1, 0, 0]]
    assert lif(x * 0 + 0.5, v_threshold=0.5, decay_input=False)[0].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("v_reset", "after"), [(0.0, 0.0), (-0.5, -0.5), (None, 0.75)])
def test_hard_and_soft_reset(v_reset: float | None, after: float) -> None:
    rest = v_reset or 0.0
    x = torch.tensor([[2 * (1.75 - rest)]], dtype=torch.float64)  # charges the membrane to 1.75
    spikes, v = lif(x, v_reset=v_reset)
    assert spikes.item() == 1
    assert v.item() == pytest.approx(after, abs=1e-15)
    silent, _ = lif(x * 0, v_reset=v_reset)
    assert silent.item() == 0


def test_plif_learns_its_time_constant() -> None:
    node = PLIF(3.0).double()
    assert [name for name, _ in node.named_parameters()] == ["w"]
    assert node.w.shape == ()
    assert node.tau.item() == pytest.approx(3.0)
    x = current(4)
    before = node(x)
    node.w.data.fill_(3.0)  # 1/tau = sigmoid(w): nearly no memory
    assert node.tau.item() == pytest.approx(1 + math.exp(-3))
    assert not torch.equal(node(x), before)
    assert not list(LIF(3.0).parameters())


@pytest.mark.parametrize(("dtype", "steps"), [(torch.bfloat16, 1024), (torch.float16, 4096)])
def test_half_precision_input_is_integrated_in_float32(dtype: torch.dtype, steps: int) -> None:
    """Many small currents add up to a spike, which a membrane in half precision never reaches."""
    x = torch.full((steps + 50, 1), 1 / steps, dtype=dtype)
    assert torch.tensor(1.0, dtype=dtype) - x[0] == 1  # the trap
    spikes, v = lif(x, tau=1e9, decay_input=False)
    assert (spikes.dtype, v.dtype) == (dtype, torch.float32)
    (fired,) = spikes.flatten().nonzero().flatten().tolist()
    assert abs(fired - steps) <= 2


@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
@pytest.mark.parametrize("make", [LIF, PLIF])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_neuron_fires_where_its_charge_reaches_the_threshold(
    make: type[LIF], v_reset: float | None, dtype: torch.dtype
) -> None:
    """Also in half precision, where a pool that goes by charges would else pick neurons that have not fired."""
    x = (torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)) + 0.8).to(dtype)
    neuron = make(v_reset=v_reset)
    spikes = neuron(x)
    assert 0.05 < spikes.float().mean() < 0.6
    assert torch.equal(neuron.charged(x) >= neuron.v_threshold, spikes.bool())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(0.5), "tau must be at least 1"),
        (lambda: PLIF(1.0), "init_tau must be greater than 1"),
        (lambda: PLIF(0.5), "init_tau must be greater than 1"),
        (lambda: LIF(surrogate="relu"), "'relu' is unknown: use one of sigmoid, atan"),
        (lambda: lif(torch.zeros(2, 3), tau=0.9), "tau must be at least 1"),
        (lambda: lif(torch.zeros(2, 3), surrogate="x"), "'x' is unknown"),
        (lambda: lif(torch.zeros(0, 3)), "at least one time step"),
        (lambda: lif(torch.tensor(1.0)), "at least one time step"),
        (lambda: lif(torch.zeros(2, 3), torch.zeros(4)), r"membrane \(4,\) does not fit the current \(2, 3\)"),
        (lambda: LIF().step(torch.zeros(3), torch.zeros(1)), "membrane"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
