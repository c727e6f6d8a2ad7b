"""Weights ship with the figures of the very file, by one command, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from results import card, measure, rows, ship, tables
from s2tdpt import data
from s2tdpt.cli.app import app
from s2tdpt.models import create_model, list_models, load_weights, registry, save_weights
from s2tdpt.models.weights import read_card
from s2tdpt.training.evaluate import evaluate

DIGITS = Path(__file__).parents[2] / "weights" / "s2tdpt_tiny.digits"
NAME = "s2tdpt_tiny.copy"
QUICK = ["--device", "cpu", "--energy-images", "40"]

MakeWeights = Callable[..., Path]


@pytest.fixture
def make_weights(tmp_path: Path) -> MakeWeights:
    """`make_weights(gain=0.01)`: the shipped digits' weights in a run's folder, with another configuration or card."""

    def make(recipe: dict[str, Any] | None = None, model: Any = None, **overrides: Any) -> Path:
        net, meta = load_weights(DIGITS, **overrides)
        meta["recipe"] = {**meta["recipe"], **(recipe or {})}
        if model is not None:
            meta["model"] = "vit_tiny"
        save_weights(model or net, tmp_path / "run" / "model", meta=meta)
        return tmp_path / "run"

    return make


def run_ship(run: Path | str, out: Path, *options: str, name: str = NAME) -> int:
    return ship.main([str(run), "--name", name, "--out", str(out), *QUICK, *options])


def test_a_run_becomes_files_that_hold_what_they_say(make_weights, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "weights"
    assert run_ship(make_weights(), out) == 0
    assert {path.name for path in out.iterdir()} == {f"{NAME}{end}" for end in (".safetensors", ".json", ".md")}
    monkeypatch.setattr(registry, "_weights_dirs", lambda: [out])
    assert list_models(pretrained=True) == [NAME]
    model = create_model(NAME, pretrained=True)
    figures = read_card(out / NAME)["metrics"]
    test = data.load("digits", "test")
    expected = evaluate(model, test, device="cpu", precision="float32")
    assert figures["top1"] == pytest.approx(expected["top1"], abs=1 / 360)
    assert figures["top5"] == pytest.approx(expected["top5"], abs=1 / 360)
    assert (figures["n"], figures["precision"], figures["evaluated_on"]) == (360, "float32", "test")
    assert read_card(out / NAME)["stored_dtype"] == "int8"

    words = ["evaluate", NAME, "--data", "digits", "--precision", "float32", "--json", str(tmp_path / "f.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    again = json.loads((tmp_path / "f.json").read_text())
    assert again["top1"] == pytest.approx(figures["top1"], abs=1 / 360)

    text = (out / f"{NAME}.md").read_text()
    for content in (read_card(out / NAME)["sha256"], f"{100 * figures['top1']:.2f} %", "| blocks.1 |", "| 9 |"):
        assert content in text


def test_a_card_says_what_the_run_started_from(make_weights, tmp_path: Path) -> None:
    assert run_ship(make_weights(recipe={"initial_weights": "vit_tiny.other"}), tmp_path / "weights") == 0
    text = (tmp_path / "weights" / f"{NAME}.md").read_text()
    assert "| initial weights | of `vit_tiny.other`; their minutes are not below |" in text
    assert "nothing else" not in text


def test_weights_whose_attention_is_silent_do_not_ship(make_weights, tmp_path: Path, capsys) -> None:
    assert run_ship(make_weights(gain=0.001), tmp_path / "weights") == 2
    assert "its attention neurons fire 0.00%, 0.00%, not 0.5 to 50 % each" in capsys.readouterr().err
    assert list((tmp_path / "weights").iterdir()) == []


def test_figures_from_another_machine(make_weights, tmp_path: Path, monkeypatch, capsys) -> None:
    run, out, figures = make_weights(), tmp_path / "weights", tmp_path / "figures.json"
    assert run_ship(run, out) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert measure.main([str(out / f"{NAME}.safetensors"), "--out", str(figures), *QUICK]) == 0
    monkeypatch.setattr(ship, "measure", lambda *_: pytest.fail("measured again"))
    assert run_ship(run, out, "--measured", str(figures)) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert run_ship(run, out, "--measured", str(figures), "--dtype", "float16") == 2
    assert "measured on other weights" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_weights_that_ship_can_ship_again(make_weights, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_ship(make_weights(), first, "--commit", "1234567", "--command", "s2tdpt train it") == 0
    assert run_ship(first / f"{NAME}.safetensors", second) == 0
    for ending in (".json", ".md", ".safetensors"):
        assert (second / f"{NAME}{ending}").read_bytes() == (first / f"{NAME}{ending}").read_bytes()


@pytest.mark.parametrize("name", ["s2tdpt_tiny", "tiny.digits", "s2tdpt_tiny."])
def test_names(name: str, make_weights, tmp_path: Path, capsys) -> None:
    assert run_ship(make_weights(), tmp_path / "weights", name=name) == 2
    assert "MODEL.TAG" in capsys.readouterr().err


def test_too_large_a_file_is_refused(make_weights, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ship, "LARGEST", 100_000)
    assert run_ship(make_weights(), tmp_path / "weights") == 2
    assert "at most 100,000" in capsys.readouterr().err


def test_held_out_images_stand_in_for_the_test_set(make_weights, tmp_path: Path, capsys) -> None:
    recipe = read_card(DIGITS)["recipe"]
    run = make_weights(recipe={"data": {**recipe["data"], "holdout": 50}})
    assert measure.main([str(run), *QUICK]) == 0
    figures = json.loads((run / "measured.json").read_text())
    assert (figures["n"], figures["evaluated_on"], figures["energy_images"]) == (50, "holdout", 40)
    assert run_ship(run, tmp_path / "weights", "--measured", str(run / "measured.json"), "--dtype", "float32") == 2
    assert "cannot ship" in capsys.readouterr().err


def test_an_ann_has_no_firing_rates(make_weights, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = make_weights(model=create_model("vit_tiny", in_channels=1, num_classes=10))
    assert run_ship(run, tmp_path / "weights", name="vit_tiny.digits") == 0
    text = (tmp_path / "weights/vit_tiny.digits.md").read_text()
    assert "firing" not in text
    assert "STDP" not in text


def test_accuracy_at_other_time_steps(make_weights) -> None:
    run = make_weights()
    assert measure.main([str(run), "--also-at", "1", *QUICK]) == 0
    figures = json.loads((run / "measured.json").read_text())
    net, _ = load_weights(run / "model", time_steps=1)
    expected = evaluate(net, data.load("digits", "test"), device="cpu", precision="float32")["top1"]
    assert figures["top1_at"] == {"1": pytest.approx(expected, abs=1 / 360)}
    assert figures["time_steps"] == 4
    assert figures["top1_at"]["1"] != figures["top1"]


def test_scores_and_confusion() -> None:
    labels = torch.tensor([0, 1, 1, 6])
    logits = torch.zeros(4, 7)
    logits[0, 0] = logits[1, 1] = logits[2, 5] = 2.0  # right, right, class 5 instead of 1 (which is second by order)
    logits[2, 1] = 1.0
    logits[3, :6] = torch.arange(6.0) + 1  # the true class comes last
    found = measure.scores(logits, labels)
    assert (found["n"], found["top1"], found["top5"]) == (4, 0.5, 0.75)
    counts = measure.confusion(logits, labels)
    assert (counts[0][0], counts[1][1], counts[1][5], counts[6][5]) == (1, 1, 1, 1)
    assert sum(map(sum, counts)) == 4


def test_many_classes_show_the_worst_pairs(make_weights, tmp_path: Path) -> None:
    assert run_ship(make_weights(), tmp_path) == 0
    told = read_card(tmp_path / NAME)
    counts = torch.eye(20, dtype=torch.int64) * 90
    counts[3, 7], counts[5, 6] = 9, 4
    told["data"]["classes"] = [f"class{i}" for i in range(20)]
    told["confusion"] = [" ".join(map(str, line)) for line in counts.tolist()]
    text = card.text(NAME, told, 1000)
    assert text.index("| class3 | class7 | 9 of 99 |") < text.index("| class5 | class6 | 4 of 94 |")
    assert "Least often right: class3 (91%), class5 (96%)" in text


def test_the_card_knows_the_other_seeds(make_weights, make_run, tmp_path: Path) -> None:
    assert run_ship(make_weights(), tmp_path / "weights") == 0
    root = tmp_path / "checkout"
    shutil.copytree(tmp_path / "weights", root / "weights")
    (root / "results").mkdir()
    for name in ("goals.csv", "published.csv"):
        shutil.copy(rows.RESULTS / name, root / "results")
    for seed, top1 in enumerate((0.9, 0.92)):
        run = make_run(f"{seed}", recipe="digits", seed=seed, top1=top1)
        (root / f"results/digits/seed{seed}").parent.mkdir(exist_ok=True)
        shutil.copytree(run, root / f"results/digits/seed{seed}")
    rows.update(root / "results")
    assert tables.main(["--root", str(root)]) == 0
    assert "seeds 0, 1 of this recipe: 91.00 ± 1.41 %" in (root / f"weights/{NAME}.md").read_text()
