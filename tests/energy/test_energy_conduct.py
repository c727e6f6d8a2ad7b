"""What counting leaves behind, what it sees through, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import s2tdpt
from s2tdpt.energy import count
from s2tdpt.errors import InputError

from .nets import IMAGES, Net


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        self.fc(x)
        raise KeyError("broken")


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = nn.Sequential(Net(s2tdpt.LIF()), Broken() if fails else nn.Identity()).train()
    model[0].norm.eval()
    flags = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(KeyError, match="broken"):
            count(model, IMAGES)
    else:
        count(model, IMAGES)
    assert [m.training for m in model.modules()] == flags
    assert model[0].seen_training is False
    assert hooks(model) == 0
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert model[0](IMAGES).requires_grad


def test_a_model_that_mends_a_part_that_failed_is_still_attributed():
    class Mends(nn.Module):
        def __init__(self):
            super().__init__()
            self.broken, self.fc = Broken(), nn.Linear(5, 3)

        def forward(self, x):
            try:
                self.broken(x)
            except KeyError:
                x = x + 1
            return x @ self.fc.weight.t() + self.fc(x)

    report = count(Mends(), torch.rand(1, 5))
    assert [r.name for r in report.layers] == ["broken.fc", "(Mends)", "fc"]


def test_hooks_that_raise_before_a_part_is_entered():
    class Mends(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            try:
                self.fc(x)
            except KeyError:
                return x @ self.fc.weight.t()

    def refuse(module, args):
        raise KeyError("not now")

    model = Mends()
    model.fc.register_forward_pre_hook(refuse)
    assert [r.name for r in count(nn.Sequential(model), torch.rand(1, 5)).layers] == ["0"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_same_in_every_gradient_mode(net, context):
    expected = count(net, IMAGES, exact=True).to_dict()
    with context():
        assert count(net, IMAGES, exact=True).to_dict() == expected


def test_compiled_and_scripted_parts_are_seen_through():
    def refuse(graph, example_inputs):
        raise AssertionError("the compiled form hides its operators")

    inner = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    compiled = nn.Sequential(torch.compile(inner, backend=refuse), nn.Linear(3, 2))
    assert [(r.name, r.nominal_macs) for r in count(compiled, torch.rand(2, 4)).layers] == [("0.0", 12), ("1", 6)]
    scripted = nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.Linear(3, 2))
    assert [(r.name, r.nominal_macs) for r in count(scripted, torch.rand(2, 4)).layers] == [
        ("(Sequential)", 12),
        ("1", 6),
    ]
    assert count(torch.jit.trace(inner, torch.rand(2, 4)), torch.rand(2, 4)).nominal_macs == 12


def test_inputs_of_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, scale=1.0):
            return {"out": (self.fc(x) * scale,)}

    x = torch.rand(3, 4)
    for inputs in (x, (x, 2.0), [x], {"x": x, "scale": 2.0}):
        report = count(Two(), inputs)
        assert (report.images, report.nominal_macs) == (3, 8)
    assert count(Two(), x, batch_size=1).nominal_macs == 24


def test_mistakes_get_one_line():
    fc = nn.Linear(2, 2)
    for call, words in (
        (lambda: count(F.relu, torch.rand(1, 2)), "torch.nn.Module"),  # pyright: ignore[reportArgumentType]
        (lambda: count(fc, ()), "no tensor"),
        (lambda: count(fc, torch.rand(0, 2)), r"at least one image.*\(0, 2\)"),
        (lambda: count(fc, torch.rand(1, 2), batch_size=0), "at least one image"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
