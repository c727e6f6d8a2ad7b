"""The tables themselves, in Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from results import rows
from results.goals import DATA, Goal, Group, Published, Spread, groups, read_goals, read_published, verdict
from results.rows import Row, read_json


@dataclass(frozen=True)
class Material:
    """What tables are made of: all runs, the ablation's, goals, peers, and the cards of the weights that ship."""

    root: Path
    runs: list[Row]
    ablation: list[Row]
    goals: list[Goal]
    published: list[Published]
    cards: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, root: Path) -> Material:
        results = root / "results"
        cards = {path.name.removesuffix(".json"): read_json(path) for path in sorted((root / "weights").glob("*.json"))}
        return cls(
            root,
            rows.read(results / rows.ACCURACY),
            rows.read(results / rows.ABLATION),
            read_goals(results),
            read_published(results),
            cards,
        )

    @property
    def tested(self) -> list[Group]:
        """Runs that were evaluated on the test set, gathered over seeds."""
        return groups(row for row in self.runs if row.evaluated_on == "test")


def summary(material: Material, _source: str) -> str:
    """A line for each recipe, of the runs that depart from it only where it has none of its own: README.md's table."""
    head = ["recipe", "data", "T", "seeds", "test top-1, last epoch", "the paper", "minutes", "attention neurons fire",
            "energy"]  # fmt: skip
    body = []
    own = {group.first.recipe for group in material.tested if not group.first.variant}
    for group in material.tested:
        run = group.first
        if run.variant and run.recipe in own:
            continue
        name = "ANN" if run.model.startswith("vit") else "S²TDPT"
        paper = next((p.top1 for p in material.published if p.data == run.data and p.name.startswith(name)), None)
        body.append(
            [
                _recipe(run),
                DATA.get(run.data, run.data),
                str(run.time_steps),
                str(group.top1.n),
                f"{group.top1.text()} %" + _averaged(group),
                "" if paper is None else f"{paper:.2f} %",
                _text(group.spread(lambda row: row.minutes), 1, deviation=False),
                _rates(group.attention),
                _energy(group),
            ]
        )
    return table(head, body)


def goals(material: Material, _source: str) -> str:
    """Every goal with the recipes that were trained for it, and whether it is met."""
    head = ["row", "what", "data", "goal (aim)", "recipe", "seeds", "top-1, last epoch", "energy", "verdict"]
    body = []
    for goal in material.goals:
        start = [goal.goal, goal.what, DATA.get(goal.data, goal.data), _wanted(goal)]
        trained = [g for g in material.tested if goal.goal in g.first.goal.split() and g.first.data == goal.data]
        for group in trained:
            top1 = f"{group.top1.text()} %{_averaged(group)}"
            results = [_recipe(group.first), str(group.top1.n), top1, _energy(group)]
            body.append([*start, *results, verdict(goal, group)])
        if not trained:
            body.append([*start, goal.recipe and f"`{goal.recipe}`", "", "", "", "not run yet"])
    return table(head, body)


def runs(material: Material, _source: str) -> str:
    """Every run."""
    head = ["run", "seed", "epochs", "T", "top-1 last", "averaged", "float32", "top-5", "best epoch*", "spikes by MACs",
            "by neurons", "attention neurons", "energy", "minutes", "hardware", "commit"]  # fmt: skip
    body = [
        [
            f"[{row.run}](../results/{row.run})"
            + (" (held-out images)" if row.evaluated_on == "holdout" else "")
            + (f" ({row.note})" if row.note else ""),
            str(row.seed),
            str(row.epochs),
            str(row.time_steps),
            _percent(row.top1_last),
            _percent(row.top1_ema),
            _percent(row.top1_float32),
            _percent(row.top5),
            _percent(row.top1_best_epoch),
            _percent(row.synaptic_firing_rate, 1),
            _percent(row.mean_firing_rate, 1),
            _rates(row.attention_firing_rate),
            _energy(Group((row,))),
            f"{row.minutes:.1f}",
            row.hardware,
            f"`{row.commit[:7]}`",
        ]
        for row in material.runs
    ]
    return table(head, body)


def commands(material: Material, _source: str) -> str:
    """How every run was trained, to be copied."""
    lines = [f"# {row.run} ({_counts_for(row)}commit {row.commit[:7]})\n{row.command}" for row in material.runs]
    return "```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def _counts_for(row: Row) -> str:
    counted = row.goal.split()
    return f"row{'s' * (len(counted) > 1)} {' and '.join(counted)}, " if counted else ""


def ablation(material: Material, _source: str) -> str:
    """What each item is worth: its runs beside those of "baseline"."""
    found = groups(material.ablation)
    if not found:
        return "Not run yet."
    baseline = next((group for group in found if group.first.variant == "baseline"), None)
    head = ["item", "what changes", "seeds", "held-out top-1", "against the baseline", "attention neurons fire"]
    body = []
    for group in sorted(found, key=lambda group: group is not baseline):
        last = "" if group.first.weights == "last" else f" (not averaged {group.top1.text()} %)"
        body.append(
            [
                group.first.variant,
                _changes(group.first, baseline.first if baseline else None),
                str(group.top1.n),
                f"{group.handed_out.text()} %{last}",
                _difference(group, baseline),
                _rates(group.attention),
            ]
        )
    return table(head, body)


def published(material: Material, _source: str) -> str:
    """What others have published."""
    head = ["model", "data", "top-1", "energy", "training", "what", "source"]
    body = [
        [
            peer.name,
            DATA.get(peer.data, peer.data),
            f"{peer.top1:.2f} %",
            "" if peer.energy_mj is None else f"{peer.energy_mj:g} mJ",
            "" if peer.minutes is None else f"{_minutes(peer.minutes)}, {peer.hardware}",
            peer.what,
            peer.source,
        ]
        for peer in material.published
    ]
    return table(head, body)


def weights(material: Material, source: str) -> str:
    """The weights that ship, by the figures of the files themselves."""
    up = "../" * source.count("/")
    head = ["weights", "data", "T", "test top-1 (float32, of the file)", "top-5", "energy", "file"]
    body = []
    for name, card in material.cards.items():
        figures = card["metrics"]
        file = material.root / "weights" / f"{name}.safetensors"
        energy = figures.get("energy_mj")
        body.append(
            [
                f"[`{name}`]({up}weights/{name}.md)",
                DATA.get(card["data"]["name"], card["data"]["name"]),
                str(card["config"]["time_steps"]),
                f"{figures['top1']:.2%}".replace("%", " %"),
                f"{figures['top5']:.2%}".replace("%", " %"),
                "" if energy is None else f"{energy:.3g} mJ",
                f"{file.stat().st_size / 1e6:.1f} MB, {card['stored_dtype']}",
            ]
        )
    return table(head, body)


def cat(material: Material, source: str) -> str:
    """The photograph that the shipped model names, once docs/cat_picture.py has drawn it."""
    from results.plots import described

    picture = material.root / "docs" / "img" / "cat-gradcam.png"
    answer = described(picture) if picture.exists() else {}
    if answer.get("model") not in material.cards:
        return ""
    up = "../" * source.count("/")
    return (
        f"```sh\ns2tdpt predict {answer['model']} docs/img/cat.png   # scikit-image's photograph of a cat\n"
        f"# {answer['answer']}\n```\n\n"
        f"![A photograph of a cat, as the model sees it, and the places that speak for its answer]({up}docs/img/"
        "cat-gradcam.png)"
    )


BLOCKS: dict[str, Callable[[Material, str], str]] = {
    "summary": summary,
    "goals": goals,
    "runs": runs,
    "commands": commands,
    "ablation": ablation,
    "published": published,
    "weights": weights,
    "cat": cat,
}


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _recipe(row: Row) -> str:
    return f"`{row.recipe}`" + (f", {row.variant}" if row.variant else "")


def _wanted(goal: Goal) -> str:
    parts = [
        f"{sign} {wanted:g} {unit}" + ("" if aim is None else f" ({aim:g})")
        for sign, wanted, unit, aim in (
            ("≥", goal.top1, "%", goal.top1_aim),
            ("≤", goal.energy_mj, "mJ", goal.energy_aim),
        )
        if wanted is not None
    ]
    return ", ".join(parts) or "report"


def _averaged(group: Group) -> str:
    average = group.known(lambda row: None if row.top1_ema is None else 100 * row.top1_ema)
    return "" if average is None else f" (averaged weights {average.text()} %)"


def _energy(group: Group) -> str:
    energy = group.known(lambda row: row.energy_mj)
    return "not measured" if energy is None else f"{_text(energy, 3, deviation=False)} mJ"


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{100 * rate:.{0 if rate >= 0.01 else 1}f}" for rate in rates) + " %" if rates else ""


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _text(value: Spread, digits: int, *, deviation: bool) -> str:
    return value.text(digits) if deviation else f"{value.mean:.{digits}f}"


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.1f} s" if minutes < 1 else f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.1f} min"


def _difference(group: Group, baseline: Group | None) -> str:
    if baseline is None or group is baseline:
        return ""
    ours, base = group.handed_out, baseline.handed_out
    difference = f"{ours.mean - base.mean:+.2f}"
    if ours.deviation is None or base.deviation is None:
        return difference
    error = (ours.deviation**2 / ours.n + base.deviation**2 / base.n) ** 0.5
    return f"{difference} ± {error:.2f}"


def _changes(row: Row, baseline: Row | None) -> str:
    """The settings that the item does not share with the baseline, or the recipe it trains instead."""
    own, base = _settings(row.command), _settings(baseline.command) if baseline else set()
    changed = ", ".join(f"`{setting}`" for setting in sorted(own - base))
    undone = ", ".join(f"without `{setting}`" for setting in sorted(base - own) if _key(setting) not in map(_key, own))
    recipe = "" if baseline is None or row.recipe == baseline.recipe else f"recipe `{row.recipe}`"
    return ", ".join(filter(None, [recipe, changed, undone]))


def _settings(command: str) -> set[str]:
    words = shlex.split(command)
    return {after for word, after in pairwise(words) if word == "--set"}


def _key(setting: str) -> str:
    return re.split("=", setting, maxsplit=1)[0]
