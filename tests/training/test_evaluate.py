"""Accuracy, loss and firing rates against counts made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2tdpt.data import ImageSet
from s2tdpt.errors import InputError
from s2tdpt.models import create_model
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.neurons import LIF, PLIF
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.engine import train
from s2tdpt.training.evaluate import evaluate, evaluate_ranks, firing_rates
from s2tdpt.training.recipe import Recipe

CLASSES = 7
SMALL: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": (4, 4, 8)}


def images(n: int = 23, classes: int = CLASSES) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return ImageSet("noise", pixels, labels, [str(i) for i in range(classes)], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def reference(model: nn.Module, data: ImageSet) -> dict[str, Any]:
    """Image by image."""
    assert isinstance(data.images, Tensor)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    top1 = top5 = loss = 0.0
    for pixels, label in zip(data.images, data.labels.tolist(), strict=True):
        logits = model(((pixels / 255 - mean) / std)[None])[0]
        order = logits.argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
        loss += float(F.cross_entropy(logits, torch.tensor(label)))
    n = len(data)
    return {"top1": top1 / n, "top5": top5 / n, "loss": loss / n, "n": n}


@pytest.fixture
def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 500])
def test_scores_are_those_of_a_plain_loop(linear: nn.Module, batch_size: int) -> None:
    with torch.no_grad():
        expected = reference(linear, images())
    found = evaluate(linear, images(), batch_size=batch_size, device="cpu")
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert found == expected
    assert 0 < found["top1"] < found["top5"] < 1


def test_shares_of_ranks_add_up(linear: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(linear, images(), device="cpu")
    shares: list[list[float]] = []
    monkeypatch.setattr(Ranks, "sum", lambda ranks, values: shares.append(values) or [1.0, 1.0, 1.0, 23.0])
    for rank in range(30):  # more ranks than images
        evaluate_ranks(linear, images(), Ranks(torch.device("cpu"), rank, 30), batch_size=2, precision="float32")
    total = torch.tensor(shares, dtype=torch.float64).sum(0)
    assert total[[0, 1, 3]].tolist() == [round(whole["top1"] * 23), round(whole["top5"] * 23), 23]
    assert float(total[2] / 23) == pytest.approx(whole["loss"], rel=1e-6)


def test_an_evaluation_leaves_the_model_as_it_was() -> None:
    model = create_model("s2tdpt_tiny", num_classes=CLASSES, time_steps=1, **SMALL).train()
    model.blocks[1].eval()  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue, reportCallIssue]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    evaluate(model, images(), device="cpu")
    firing_rates(model, torch.zeros(1, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_few_classes_are_always_among_the_best_five() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    assert evaluate(model, images(classes=3), device="cpu")["top5"] == 1


def test_bfloat16_is_close_and_not_the_same(linear: nn.Module) -> None:
    full, half = (evaluate(linear, images(), device="cpu", precision=name)["loss"] for name in ("float32", "bfloat16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)


def test_no_image_is_an_error(linear: nn.Module) -> None:
    with pytest.raises(InputError, match="there is no image to evaluate on"):
        evaluate(linear, images().subset(torch.arange(0)), device="cpu")


class Attention(nn.Module):
    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.mix_neuron = neuron


class Block(nn.Module):
    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.attn = Attention(neuron)


class Known(nn.Module):
    """A first layer that fires at 3 of 4 inputs, blocks at 1 of 4 and at none; the last is a PLIF, never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LIF(v_threshold=1.0, decay_input=False)
        self.blocks = nn.ModuleList([Block(LIF(v_threshold=4.0, decay_input=False)), Block(LIF(v_threshold=9.0))])
        self.spare = PLIF()

    def forward(self, x: Tensor) -> Tensor:
        self.first(x.repeat(1, 3))  # three times as many neurons as in each of the others
        for block in self.blocks:
            block.attn.mix_neuron(x)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        return x


def test_rates_are_spikes_over_neurons_and_steps() -> None:
    rates = firing_rates(Known(), torch.tensor([[0.5, 1.0, 2.0, 4.0]]))
    assert rates["attention_firing_rate"] == [0.25, 0.0]
    assert rates["mean_firing_rate"] == (3 * 3 + 1 + 0) / (3 * 4 + 4 + 4)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    neuron = LIF(decay_input=False)
    rates = firing_rates(nn.Sequential(neuron, neuron), torch.tensor([[1.0, 0.0]]))
    assert rates == {"mean_firing_rate": 0.5, "attention_firing_rate": []}


def test_rates_of_a_real_model_and_of_its_ann_twin() -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(4, 3, 8, 8)
    model = create_model("s2tdpt_tiny", num_classes=CLASSES, time_steps=4, **SMALL)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.momentum = None
    model(x)
    rates = firing_rates(model, x)
    assert len(rates["attention_firing_rate"]) == 2
    assert 0 < rates["mean_firing_rate"] < 0.5
    twin = create_model("vit_tiny", num_classes=CLASSES, **SMALL)
    assert firing_rates(twin, x) == {"mean_firing_rate": None, "attention_firing_rate": []}


@contextmanager
def tf32() -> Iterator[None]:
    """What a run sets for its training steps on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("scored", "expected"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_a_run_trains_in_one_precision_and_is_scored_in_another(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: str | None, expected: torch.dtype
) -> None:
    """In the latter: scores, firing rates, statistics measured for them; not what BatchNorm learns at a change of T."""
    seen: set[tuple[str, torch.dtype, str]] = set()
    forward = SpikingTransformer.forward
    exact = "highest" if expected is torch.float32 else "high"
    monkeypatch.setattr("s2tdpt.training.engine.numerics", lambda *_: tf32())

    def note(model: SpikingTransformer, x: Tensor) -> Tensor:
        logits = forward(model, x)
        mode = "gradients" if torch.is_grad_enabled() else "training" if model.training else "evaluation"
        seen.add((mode, logits.dtype, torch.get_float32_matmul_precision()))
        return logits

    monkeypatch.setattr(SpikingTransformer, "forward", note)
    recipe = tiny.replace(precision="bfloat16", eval_precision=scored, norm_batches=1)
    train(recipe.replace(**{"schedule.time_steps": "1:1"}), tmp_path / "one", device="cpu", progress=False)
    assert seen == {
        ("gradients", torch.bfloat16, "high"),
        ("training", expected, exact),
        ("evaluation", expected, exact),
    }
    train(recipe.replace(**{"schedule.time_steps": "1:1,2:1"}), tmp_path / "two", device="cpu", progress=False)
    assert ("training", torch.bfloat16, "high") in seen


@pytest.mark.parametrize(("precision", "seen"), [("float32", ("highest", False)), ("bfloat16", ("high", True))])
def test_float32_scores_are_of_exact_products(precision: str, seen: tuple[str, bool]) -> None:
    """Whatever a run has set for its training steps, and it finds that again."""

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            told.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return x.flatten(1)[:, :CLASSES]

    told: list[tuple[str, bool]] = []
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        with tf32():
            evaluate(Spy(), images(), device="cpu", precision=precision)
            assert torch.get_float32_matmul_precision() == "high"
        assert told == [seen]
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
