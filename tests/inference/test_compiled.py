"""What is chosen, what is refused, and that nothing sticks to a compiled model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from s2tdpt import create_model, data, energy
from s2tdpt.attention import STDPAttention
from s2tdpt.errors import InputError, ModelError
from s2tdpt.inference import CompiledModel, accelerate, agreement, compile_for_inference, compiled, synapses
from s2tdpt.inference.engine import Engine
from s2tdpt.neurons import LIF
from s2tdpt.training.evaluate import evaluate

from ..models.cases import images
from .cases import small


@pytest.fixture
def model() -> nn.Module:
    return small().float()


def pictures(n: int = 3) -> Tensor:
    return images(n, 3, 8, 12).float()


def fastest(name: str):
    """Timing that finds `name` the quickest."""
    return lambda runs, place: {each: 1.0 if each == name else 2.0 for each in runs}


@torch.no_grad()
def test_nothing_is_remembered_between_calls(model: nn.Module, integers) -> None:
    for precision in ("float32", "int8"):
        run = compile_for_inference(model, precision=precision)
        x = pictures()
        kept, first = x.clone(), run(x)
        run(images(5, 3, 8, 8).float() * 9)
        assert torch.equal(run(x), first)
        assert torch.equal(x, kept)
        assert not first.requires_grad


@torch.no_grad()
def test_weights_are_those_of_compiling_and_time_steps_those_of_now(model: nn.Module) -> None:
    run, x, before = compile_for_inference(model, precision="float32"), pictures(), model(pictures())
    weights = copy.deepcopy(model.state_dict())
    for weight in model.parameters():
        weight.zero_()
    torch.testing.assert_close(run(x), before, rtol=0, atol=1e-4)
    model.load_state_dict(weights)
    run.time_steps = 1
    assert model.time_steps == 1
    torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-4)
    assert run.config is model.config


def test_auto_takes_what_was_faster(model: nn.Module, monkeypatch, integers) -> None:
    monkeypatch.setattr(compiled, "_race", fastest("int8"))
    run = compile_for_inference(model)
    assert (run.precision, run.seconds) == ("int8", {"plain": 2.0, "int8": 1.0})
    monkeypatch.setattr(compiled, "_race", fastest("plain"))
    run = compile_for_inference(model, example=pictures())
    assert (run.precision, run.seconds) == ("plain", {"plain": 1.0, "int8": 2.0})
    with torch.no_grad():
        assert torch.equal(run(pictures()), model(pictures()))


def test_auto_does_without_integers(model: nn.Module, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "integer_obstacle", lambda: "none here")
    monkeypatch.setattr(compiled, "_race", fastest("float32"))
    assert compile_for_inference(model).precision == "float32"
    with pytest.raises(ModelError, match="inference in int16 is not available: none here"):
        compile_for_inference(model, precision="int16")


def test_the_race_is_run(model: nn.Module) -> None:
    run = compile_for_inference(model)
    assert set(run.seconds) == {"plain", "float32" if synapses.integer_obstacle() else "int8"}
    assert run.precision == min(run.seconds, key=lambda name: run.seconds[name])


def test_integers_need_instructions_and_right_operators(monkeypatch) -> None:
    obstacle = synapses.integer_obstacle.__wrapped__
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert "no 8-bit dot products" in obstacle()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert obstacle() is None
    right = synapses._multiply
    monkeypatch.setattr(synapses, "_multiply", lambda *given: right(*given) * 1.01)
    assert obstacle() == "this PyTorch's 8-bit products are wrong"

    def absent(*given: object) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(synapses, "_multiply", absent)
    assert obstacle() == "this PyTorch's 8-bit products do not run: no such operator"


@torch.no_grad()
def test_double_precision_stays_so(integers) -> None:
    model, x = small(), images(2, 3, 8, 8)
    assert next(model.parameters()).dtype == torch.float64
    assert compile_for_inference(model).precision in ("plain", "int8")  # by timing it, on images of its own dtype
    for precision in ("float32", "int8"):
        assert compile_for_inference(model, precision=precision)(x).dtype == torch.float64 == model(x).dtype


class OwnNeuron(LIF):
    pass


class OwnAttention(STDPAttention):
    pass


def test_models_it_does_not_know_stay_plain_or_are_refused(model: nn.Module) -> None:
    twin = create_model("vit_tiny").eval()
    model.blocks[1].neuron = OwnNeuron()
    own_attention, no_statistics = small(), small()
    own_attention.blocks[0].attn = OwnAttention(24, 3)
    no_statistics.stem.norm[1] = nn.BatchNorm2d(12, track_running_stats=False)
    for other, reason in (
        (twin, "VisionTransformer is not a spiking Transformer"),
        (model, "blocks.1.neuron is a OwnNeuron"),
        (own_attention, "blocks.0.attn is a OwnAttention"),
        (no_statistics, "stem.norm.1 has no running statistics"),
        (small().half(), "the weights are not all in float32"),
        (create_model("s2tdpt_tiny").to("meta").eval(), "not on the CPU"),
    ):
        with pytest.raises(ModelError, match=f"float32 is not available: .*{reason}"):
            compile_for_inference(other, precision="float32")
        assert compile_for_inference(other).precision == "plain"
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(compile_for_inference(twin)(x), twin(x))


def test_errors(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="'int4' is unknown: use one of auto, float32, int16, int8"):
        compile_for_inference(model, precision="int4")
    with pytest.raises(ModelError, match=r"call model\.eval\(\) first"):
        compile_for_inference(model.train())
    run = compile_for_inference(model.eval(), precision="float32")
    with pytest.raises(InputError, match="multiples of 2"):
        run(torch.randn(2, 3, 9, 8))
    with pytest.raises(InputError, match="the images are on meta, this model was compiled for the CPU"):
        run(pictures().to("meta"))
    model.train()
    with pytest.raises(ModelError, match="cannot be trained"):
        run(pictures())


CHANGES: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
    "to": ("moved or converted: move or convert", lambda run: run.to("meta")),
    "half": ("moved or converted: move or convert", lambda run: run.half()),
    "double": ("moved or converted: move or convert", lambda run: run.double()),
    "within another": ("moved or converted: move or convert", lambda run: nn.Sequential(run).bfloat16()),
    "load": ("given other weights: load them into", lambda run: run.load_state_dict(run.state_dict())),
    "train": ("trained: train", lambda run: run.train()),
}


@torch.no_grad()
@pytest.mark.parametrize("winner", ["float32", "plain"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_would_change_the_weights_is_refused(model: nn.Module, change: str, winner: str, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "integer_obstacle", lambda: "none here")
    monkeypatch.setattr(compiled, "_race", fastest(winner))
    run, x = compile_for_inference(model), pictures()
    before = run(x)
    done, make = CHANGES[change]
    with pytest.raises(ModelError, match=f"cannot be {done} the model and compile it again"):
        make(run)
    assert run.precision == winner
    assert run.float().to("cpu").eval() is run  # as it is already
    assert torch.equal(run(x), before)


@torch.no_grad()
def test_energy_and_hooks_see_the_plain_model(model: nn.Module, integers) -> None:
    run, x = compile_for_inference(model, precision="int8"), pictures()
    truth, found = energy.count(model, x), energy.count(run, x)
    assert found.energy_mj() == truth.energy_mj() > 0
    seen: list[Tensor] = []
    hook = model.blocks[0].attn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(run(x), model(x))
    assert len(seen) == 2
    hook.remove()
    shown = run(x)
    counted: list[Tensor] = []
    run.register_forward_hook(lambda module, inputs, output: counted.append(output))
    assert torch.equal(run(x), shown)  # its own hooks are called without the plain model
    assert not torch.equal(shown, model(x))
    assert len(seen) == 2
    assert len(counted) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_agreement(device: str) -> None:
    targets = torch.tensor([0, 1, 2], device=device)
    one, other = torch.eye(3, device=device), torch.eye(3, device=device)[[0, 1, 1]]
    batches = [(torch.arange(3, device=device), targets), (targets[:1], targets[1:2])]
    found = agreement(lambda x: one[x], lambda x: other[x], batches)
    assert found == {
        "n": 4,
        "changed_predictions": 0.25,
        "top1": 0.75,
        "top1_compiled": 0.5,
        "logit_change": pytest.approx(2 / 3 / 4),
    }
    with pytest.raises(InputError, match="no image"):
        agreement(lambda x: x, lambda x: x, [])


def test_accelerate_only_what_takes_long(model: nn.Module, monkeypatch) -> None:
    assert accelerate(model, pictures(), 1) is model  # few
    assert accelerate(model, pictures(), 40) is model  # soon done
    monkeypatch.setattr(compiled, "_race", fastest("plain"))
    assert accelerate(model, pictures(), 10**9) is model
    monkeypatch.setattr(compiled, "_race", lambda runs, place: {each: float(each == "plain") for each in runs})
    run = accelerate(model, pictures(), 10**9)
    assert isinstance(run, CompiledModel)
    monkeypatch.setitem(compiled._WORTHWHILE_SECONDS, "cpu", 0.0)
    assert accelerate(model, pictures(), 32) is model
    assert accelerate(model, pictures(), 33) is not model
    twin = create_model("vit_tiny").eval()
    assert accelerate(twin, pictures(), 10**9) is twin


@pytest.fixture
def noise() -> data.ImageSet:
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return data.ImageSet("noise", pixels, torch.arange(40) % 5, list("abcde"), (0.5,) * 3, (0.25,) * 3)


def test_evaluate_takes_a_compiled_model(model: nn.Module, noise: data.ImageSet) -> None:
    truth = evaluate(model, noise, batch_size=7, device="cpu")
    found = evaluate(compile_for_inference(model, precision="float32"), noise, batch_size=7, device="cpu")
    assert found["n"] == 40
    assert abs(found["top1"] - truth["top1"]) <= 0.05


def test_a_long_evaluation_compiles_by_itself(model: nn.Module, noise: data.ImageSet, monkeypatch) -> None:
    answered: list[int] = []
    answer = Engine.__call__
    monkeypatch.setattr(Engine, "__call__", lambda self, x, T: answered.append(len(x)) or answer(self, x, T))
    monkeypatch.setattr(compiled, "_race", lambda runs, place: {each: float(each == "plain") for each in runs})
    evaluate(model.train(), noise, device="cpu")
    assert answered == []  # a short one does not
    monkeypatch.setitem(compiled._WORTHWHILE_SECONDS, "cpu", 0.0)
    evaluate(model, noise, device="cpu", precision="float32")
    assert answered == []  # nor one that has to be exact
    evaluate(model, noise, device="cpu")
    assert sum(answered) == 40
    assert model.training
    assert all(part.training for part in model.modules())
