"""Listeners hear of every operator once, before it runs, and can tell its inside from the outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2tdpt.ops import StdpWindow, lif, observe, stdp_attention

from .cases import spikes

QUERY, KEY, VALUE = (spikes(2, 5, 4, density=0.5, seed=s) for s in range(3))


class Heard(list[tuple[str, dict[str, Any]]]):
    def __call__(self, name: str, info: dict[str, Any]) -> None:
        self.append((name, info))


@pytest.mark.parametrize("implementation", ["dense", "table", "event"])
def test_attention_is_announced_once(implementation: str) -> None:
    heard, window = Heard(), StdpWindow(offset=0.3)
    with observe.observe(heard):
        stdp_attention(QUERY, KEY, VALUE, window, scale=0.25, implementation=implementation)  # type: ignore
    ((name, info),) = heard
    assert name == "stdp_attention"
    assert set(info) == {"query", "key", "value", "window", "scale", "implementation"}
    assert torch.equal(info["query"], QUERY)
    assert torch.equal(info["key"], KEY)
    assert torch.equal(info["value"], VALUE)
    assert (info["window"], info["scale"], info["implementation"]) == (window, 0.25, implementation)


def test_auto_is_announced_as_what_it_chose() -> None:
    heard = Heard()
    with observe.observe(heard):
        stdp_attention(QUERY, KEY, VALUE, StdpWindow())
    assert heard[0][1]["implementation"] in ("dense", "table")


def test_lif_is_announced_once() -> None:
    heard, current = Heard(), torch.rand(3, 4)
    with observe.observe(heard):
        lif(current, v_threshold=0.7)
    ((name, info),) = heard
    assert name == "lif"
    assert set(info) == {"current", "v_threshold"}
    assert info["current"] is current
    assert info["v_threshold"] == 0.7


class Places(TorchDispatchMode):
    """Whether each tensor operation ran inside an announced operator."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.inside.append(observe.inside())
        return func(*args, **(kwargs or {}))


def test_inside_is_true_exactly_while_the_operator_runs() -> None:
    current, membrane = torch.rand(3, 4), torch.zeros(4)
    with observe.observe(Heard()), Places() as before:
        torch.relu(current)
    with observe.observe(Heard()), Places() as during:
        lif(current, membrane)
    assert set(before.inside) == {False}
    assert set(during.inside) == {True}
    assert not observe.inside()


def test_listeners_stack_and_leave() -> None:
    outer, inner = Heard(), Heard()
    current = torch.rand(3, 4)
    with observe.observe(outer):
        lif(current)
        with observe.observe(inner):
            lif(current)
        lif(current)
    lif(current)
    assert (len(outer), len(inner)) == (3, 1)


def test_an_operator_inside_an_operator_is_announced_with_it() -> None:
    heard = Heard()
    with observe.observe(heard):
        observe.call("fused", {}, lambda: lif(torch.rand(3, 4)))
    assert [name for name, _ in heard] == ["fused"]


def test_a_failing_listener_or_body_leaves_no_trace() -> None:
    def fails(name: str, info: dict[str, Any]) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError), observe.observe(fails):
        lif(torch.rand(3, 4))
    assert not observe.inside()
    heard = Heard()
    with observe.observe(heard):
        lif(torch.rand(3, 4))
    assert len(heard) == 1
