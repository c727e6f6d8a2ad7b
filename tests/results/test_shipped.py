"""The weights in this checkout: small, whole, found offline, alive, and with a card that says where they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from results import card, rows
from results.goals import outside_band
from results.ship import LARGEST
from s2tdpt import create_model, list_models
from s2tdpt.models.weights import read_card

WEIGHTS = Path(__file__).parents[2] / "weights"
NAMES = sorted(path.name.removesuffix(".safetensors") for path in WEIGHTS.glob("*.safetensors"))


def test_all_are_found() -> None:
    assert NAMES == list_models(pretrained=True) != []
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 40_000_000
    assert {path.suffix for path in WEIGHTS.iterdir()} == {".safetensors", ".json", ".md"}


@pytest.mark.parametrize("name", NAMES)
def test_each(name: str) -> None:
    payload = (WEIGHTS / f"{name}.safetensors").read_bytes()
    card = read_card(WEIGHTS / name)
    assert len(payload) <= LARGEST
    assert hashlib.sha256(payload).hexdigest() == card["sha256"]
    figures = card["metrics"]
    assert (figures["evaluated_on"], figures["precision"]) == ("test", "float32")
    counts = [[int(count) for count in line.split()] for line in card["confusion"]]
    assert sum(map(sum, counts)) == figures["n"]
    assert sum(line[i] for i, line in enumerate(counts)) / figures["n"] == pytest.approx(figures["top1"])
    assert not outside_band(figures["attention_firing_rate"])
    assert len(card["run"]["commit"]) >= 7
    assert "s2tdpt train " in card["command"]
    model = create_model(name, pretrained=True)
    assert sum(weight.numel() for weight in model.parameters()) == card["run"]["parameters"]
    assert len(card["data"]["classes"]) == len(counts)


def test_a_card_has_the_note_of_its_run() -> None:
    name = "s2tdpt_h_384.cifar10"
    known, runs = read_card(WEIGHTS / name), rows.read(rows.RESULTS / rows.ACCURACY)
    note = "began with the weights of cifar10_t1/seed0 in 8 bits"
    assert f"| note on the run | {note} |" in card.text(name, known, 1, runs)
    assert note not in card.text(name, known | {"recipe": known["recipe"] | {"seed": 1}}, 1, runs)


def test_a_card_says_in_which_precision_its_run_was_scored() -> None:
    known = read_card(WEIGHTS / "s2tdpt_tiny.digits")
    for scored, said in ((None, "in float32, before"), ("bfloat16", "in bfloat16, before")):
        changed = known | {"recipe": known["recipe"] | {"eval_precision": scored}}
        assert said in card.text("s2tdpt_tiny.digits", changed, 1)
