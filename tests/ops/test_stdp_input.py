"""What the operator takes, in which precision it answers, and how it refuses the rest."""

from __future__ import annotations

import pytest
import torch

from s2tdpt.errors import InputError, S2tdptError
from s2tdpt.ops import StdpWindow, stdp_attention, stdp_event_counts, stdp_weights

from .cases import assert_close, spikes

FORMS = ("dense", "table", "event")
WINDOW = StdpWindow()


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3)])
def test_any_number_of_leading_dimensions(implementation: str, lead: tuple[int, ...]) -> None:
    query, key, value = (spikes(*lead, *size, density=0.5) for size in ((7, 4), (5, 4), (5, 3)))
    out = stdp_attention(query, key, value, WINDOW, implementation=implementation)  # type: ignore
    assert out.shape == (*lead, 7, 3)
    assert stdp_weights(query, key, WINDOW).shape == (*lead, 7, 5)


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64])
def test_spikes_may_be_bool_or_integers(implementation: str, kind: torch.dtype) -> None:
    inputs = [spikes(2, 6, 4, density=0.5, seed=s) for s in range(3)]
    expected = stdp_attention(*inputs, WINDOW, implementation=implementation)  # type: ignore
    out = stdp_attention(*(x.to(kind) for x in inputs), WINDOW, implementation=implementation, check=True)  # type: ignore
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), expected, atol=1e-5)


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.bfloat16])
def test_precision_is_that_of_the_value(implementation: str, kind: torch.dtype) -> None:
    """Spikes are exact in any dtype, so narrow queries and keys must not coarsen a float64 answer."""
    query, key, value = (spikes(2, 9, 5, density=0.5, seed=s) for s in range(3))
    expected = stdp_attention(query, key, value, WINDOW, implementation="dense")
    assert_close(stdp_attention(query.to(kind), key.to(kind), value, WINDOW, implementation=implementation), expected)  # type: ignore
    narrow = stdp_attention(query, key, value.float(), WINDOW, implementation=implementation)  # type: ignore
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize(("kind", "more", "fewer"), [(torch.bfloat16, 257, 256), (torch.float16, 2049, 2048)])
def test_counts_stay_exact_in_half_precision(implementation: str, kind: torch.dtype, more: int, fewer: int) -> None:
    """Half precision cannot tell these counts apart, yet one is potentiation and the other depression."""
    many, few = torch.zeros(2, 1, more + 1, dtype=kind)
    many[..., :more], few[..., :fewer] = 1, 1
    assert many.sum(dtype=torch.float32).to(kind) == few.sum(dtype=torch.float32).to(kind)  # the trap
    one = torch.ones(1, 1, dtype=kind)
    first = stdp_attention(many, few, one, WINDOW, implementation=implementation).item()  # type: ignore
    second = stdp_attention(few, many, one, WINDOW, implementation=implementation).item()  # type: ignore
    assert first > 0.9
    assert second < 0.1


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_those_of_float64_to_half_precision(kind: torch.dtype) -> None:
    inputs = [spikes(2, 20, 8, density=0.5, seed=s) for s in range(3)]
    grads = {}
    for dtype in (kind, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        stdp_attention(*leaves, WINDOW, implementation="table").sum().backward()
        assert all(x.grad is not None and x.grad.dtype == dtype for x in leaves)
        grads[dtype] = [x.grad.double() for x in leaves]  # type: ignore
    for half, exact in zip(grads[kind], grads[torch.float64], strict=True):
        assert (half - exact).abs().max() <= 4 * torch.finfo(kind).eps * exact.abs().max()


@pytest.mark.parametrize("implementation", [*FORMS, "auto"])
@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize(("bad", "message"), [(0.5, "other than 0 and 1"), (2.0, "other than"), (float("nan"), "NaN")])
def test_check_refuses_what_is_not_a_spike(implementation: str, which: str, bad: float, message: str) -> None:
    inputs = {name: spikes(2, 6, 4, density=0.5) for name in ("query", "key", "value")}
    stdp_attention(**inputs, window=WINDOW, implementation=implementation, check=True)  # type: ignore
    inputs[which][0, 3, 2] = bad
    with pytest.raises(InputError, match=f"{which} holds .*{message}") as caught:
        stdp_attention(**inputs, window=WINDOW, implementation=implementation, check=True)  # type: ignore
    assert "\n" not in str(caught.value)


def test_check_sees_the_input_before_it_is_rounded() -> None:
    query, value = torch.full((1, 1), 1 + 1e-12, dtype=torch.float64), torch.ones(1, 1)
    with pytest.raises(InputError, match="query holds"):
        stdp_attention(query, query, value, WINDOW, check=True)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        ((0, 4), (3, 4), (3, 4), "no tokens"),
        ((3, 4), (0, 4), (0, 4), "no tokens"),
        ((3, 0), (3, 0), (3, 4), "no tokens or features"),
        ((0, 3, 4), (0, 3, 4), (0, 3, 4), "no tokens"),
        ((4,), (3, 4), (3, 4), "at least"),
        ((3, 4), (3, 5), (3, 4), "query .*Nq, D"),
        ((3, 4), (3, 4), (2, 4), "key .*Nk, D"),
        ((2, 3, 4), (3, 4), (3, 4), "leading dimensions differ"),
        ((2, 3, 4), (2, 3, 4), (1, 3, 4), "leading dimensions differ"),
    ],
)
def test_shapes_that_do_not_fit(query: tuple, key: tuple, value: tuple, message: str) -> None:
    inputs = [torch.zeros(shape) for shape in (query, key, value)]
    for implementation in (*FORMS, "auto"):
        with pytest.raises(InputError, match=message) as caught:
            stdp_attention(*inputs, WINDOW, implementation=implementation)  # type: ignore
        assert str(tuple(query)) in str(caught.value)
    with pytest.raises(InputError, match=message):
        stdp_event_counts(*inputs)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (3, 2, 3, 4)])
def test_a_window_for_other_heads(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    window = StdpWindow(a_plus=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match="3 heads"):
        stdp_attention(x, x, x, window)
    with pytest.raises(InputError, match="3 heads"):
        stdp_weights(x, x, window)


def test_an_unknown_implementation_is_refused_with_the_known_ones() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(InputError, match="'fast' is unknown: use one of auto, dense, table, event"):
        stdp_attention(x, x, x, WINDOW, implementation="fast")  # type: ignore


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"a_plus": (0.1, 0.2), "offset": (0.5,)}, "disagree"),
        ({"tau_plus": 0.0}, "tau_plus .*> 0"),
        ({"tau_minus": (20.0, -1.0)}, "tau_minus .*> 0"),
        ({"t_max": -40.0}, "t_max .*> 0"),
        ({"a_minus": float("nan")}, "a_minus must be finite"),
        ({"offset": float("inf")}, "offset must be finite"),
        ({"a_plus": ()}, "a_plus must be finite numbers"),
        ({"a_plus": "strong"}, "a_plus must be finite numbers"),
        ({"jump": 1}, "jump must be true or false"),
        ({"a_plus": ["strong"]}, "a_plus must be finite numbers"),
    ],
)
def test_a_window_that_cannot_be(constants: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StdpWindow(**constants)


def test_a_window_is_a_value() -> None:
    assert StdpWindow(a_plus=[0.1, 0.2]) == StdpWindow(a_plus=(0.1, 0.2))  # type: ignore
    assert hash(StdpWindow(a_plus=[0.1, 0.2])) == hash(StdpWindow(a_plus=(0.1, 0.2)))  # type: ignore
    assert StdpWindow(offset=(0.1, 0.2)).num_heads == 2
    assert StdpWindow().num_heads is None
    assert issubclass(InputError, S2tdptError)
    assert issubclass(InputError, ValueError)
