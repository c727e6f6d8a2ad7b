"""The model card of weights that ship: weights/NAME.md, written from NAME.json and the other seeds' rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from results.blocks import table
from results.goals import DATA, groups
from results.rows import ENERGY_RULE, Row, inexact
from s2tdpt.training.recipe import Recipe

PAIRS = 15
LIMITS = """\
- It knows the {classes} classes of {data} and names one of them for any picture, squeezed to {side}; what is not an
  object in the middle, as in {data}, it has never seen. Its probabilities are not calibrated.
- The score is that of one training run on one test set. What bias the training images have, it has too; it must not
  decide about people.
- Energy is a count of operations times published prices, not a measurement."""
SPIKING_LIMITS = """
- On another CPU or GPU rounding flips single spikes: expect the accuracy within 0.1 points on 10,000 images, not the
  same bits; on GPUs without TF32, which PyTorch allows for convolutions."""
STDP_LIMITS = """
- STDP attention compares how many features of two tokens fire, not which; how much of the accuracy is due to it, only
  the controls tell (`attention="mean"`, `"identity"`, `"random"`)."""


def text(name: str, card: Mapping[str, Any], size: int, runs: Iterable[Row] = ()) -> str:
    """The card as Markdown. `size`: bytes of the tensor file; `runs`: rows of accuracy.csv."""
    data, figures, run = card["data"], card["metrics"], card["run"]
    title, spiking = DATA.get(data["name"], data["name"]), card["config"]["family"] == "spiking"
    classes = len(data["classes"])
    channels = card["config"]["in_channels"]
    side = "×".join(map(str, data["image_size"]))
    sections = [
        f"# {name}",
        (
            f"A spiking vision Transformer with `{run['attention']}` attention"
            if spiking
            else "An ordinary vision Transformer"
        )
        + f" for {title}: {classes} classes, images of {side}, {run['parameters']:,} weights"
        + (f", T = {figures['time_steps']}." if spiking else "."),
        f'```python\nimport s2tdpt\n\nmodel, card = s2tdpt.load_model("{name}")  # in evaluation mode\n'
        f'picture = s2tdpt.data.read_image("photo.png", size={tuple(data["image_size"])}, channels={channels})\n'
        'logits = model(s2tdpt.data.normalise(picture[None], card["data"]["mean"], card["data"]["std"]))\n```\n\n'
        f"```sh\ns2tdpt predict {name} photo.png\n"
        f"s2tdpt evaluate {name} --data {data['name']} --json figures.json\n```",
        "## This file, measured\n\n" + _measured(card, size),
        "## How it was trained\n\n" + _training(card, list(runs)),
    ]
    if figures["firing_rates"]:
        sections.append("## How often its neurons fire\n\n" + _rates(figures["firing_rates"]))
    confused = [[int(count) for count in line.split()] for line in card["confusion"]]
    sections.append("## What it confuses\n\n" + _confusion(confused, data["classes"]))
    limits = LIMITS.format(classes=classes, data=title, side=side) + (SPIKING_LIMITS if spiking else "")
    sections.append("## Limits\n\n" + limits + (STDP_LIMITS if spiking and run["attention"] == "stdp" else ""))
    return "\n\n".join(sections) + "\n"


def _measured(card: Mapping[str, Any], size: int) -> str:
    figures = card["metrics"]
    rule = ENERGY_RULE.format(table=figures["energy_table"], images=figures["energy_images"])
    lines = [
        [
            "top-1 accuracy",
            f"**{100 * figures['top1']:.2f} %** of {figures['n']:,} test images, {figures['precision']}",
        ],
        ["top-5 accuracy", f"{100 * figures['top5']:.2f} %"],
        ["cross-entropy", f"{figures['loss']:.4f}"],
        ["energy of an image", f"{figures['energy_mj']:.3g} mJ: {rule}"],
    ]
    if figures["firing_rates"]:
        rates = ", ".join(f"{100 * rate:.1f}" for rate in figures["attention_firing_rate"])
        lines += [
            ["firing rate, weighted by MACs", f"{100 * figures['synaptic_firing_rate']:.1f} %"],
            ["firing rate, plain", f"{100 * figures['mean_firing_rate']:.1f} % of neurons and steps"],
            ["attention neuron of each block", f"{rates} %"],
        ]
    lines.append(["file", f"{size / 1e6:.2f} MB, stored in {card['stored_dtype']}; sha256 `{card['sha256']}`"])
    return table(["figure", "value"], lines)


def _training(card: Mapping[str, Any], runs: Sequence[Row]) -> str:
    run, recipe = card["run"], card["recipe"]
    device, count = run["hardware"]["device"], run["hardware"]["count"]
    which = "the moving average of the weights" if card["weights"] == "ema" else "the weights"
    lines = [
        ["data", f"{DATA.get(run['data'], run['data'])}, its training set, nothing else"],
        ["recipe", f"`{recipe['name']}`, {run['epochs']} epochs, {run['steps']:,} steps"],
        ["command", f"`{card['command']}`"],
        ["commit", f"`{run['commit']}`"],
        ["seed", f"{recipe['seed']}{_seeds(card, runs)}"],
        ["weights", f"{which} after the last epoch"],
        [
            "the run's own score",
            f"{100 * run['top1']:.2f} % (in {Recipe.from_dict(recipe).scored_in}, before the file was made)",
        ],
        ["time", f"{run['train_seconds'] / 60:.1f} minutes on {device}" + (f" x {count}" if count > 1 else "")],
        ["versions", ", ".join(f"{package} {version}" for package, version in run["versions"].items())],
    ]
    own = (recipe["name"], "", recipe["seed"], run["data"], run["last_epoch_top1"])
    notes = [row.note for row in runs if (row.recipe, row.variant, row.seed, row.data, row.top1_last) == own]
    if note := next(filter(None, notes), inexact(run)):
        lines.append(["note on the run", note])
    if recipe.get("initial_weights"):
        lines[0][1] = lines[0][1].replace("nothing else", "and what the initial weights have seen")
        lines.insert(2, ["initial weights", f"of `{recipe['initial_weights']}`; their minutes are not below"])
    if recipe.get("distill"):
        lines.insert(2, ["teacher", f"`{recipe['distill']['teacher']}`"])
    return table(["", ""], lines)


def _seeds(card: Mapping[str, Any], runs: Sequence[Row]) -> str:
    """Mean and spread over the seeds of the recipe."""
    recipe, run = card["recipe"], card["run"]
    own = (run["data"], recipe["name"], "", "test", Recipe.from_dict(recipe).scored_in)
    group = next((group for group in groups(runs) if group.first.group == own), None)
    if group is None or group.top1.n < 2:
        return ""
    seeds = ", ".join(str(row.seed) for row in group.rows)
    return f"; seeds {seeds} of this recipe: {group.top1.text()} % after the last epoch"


def _rates(rates: Mapping[str, float]) -> str:
    """A row for the stem and each block, in percent."""
    parts: dict[str, list[str]] = {}
    for name, rate in rates.items():
        place = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]
        short = name.removeprefix(place).strip(".")
        parts.setdefault(place, []).append(f"`{short}` {100 * rate:.1f}")
    lines = [[place, ", ".join(entries)] for place, entries in parts.items()]
    return table(["place", "neurons, % of steps"], lines)


def _confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The whole matrix for few classes; else the most confused pairs and the classes that are hardest."""
    if len(classes) <= 10:
        head = ["is \\ taken for", *classes]
        return table(head, [[name, *map(str, line)] for name, line in zip(classes, counts, strict=True)])
    pairs = sorted(
        ((counts[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j), reverse=True
    )
    lines = [[classes[i], classes[j], f"{n} of {sum(counts[i])}"] for n, i, j in pairs[:PAIRS] if n]
    right = sorted(
        (line[i] / max(1, sum(line)), name) for i, (line, name) in enumerate(zip(counts, classes, strict=True))
    )
    hardest = ", ".join(f"{name} ({share:.0%})" for share, name in right[:8])
    easiest = ", ".join(f"{name} ({share:.0%})" for share, name in right[:-9:-1])
    below = f"Least often right: {hardest}. Most often right: {easiest}."
    return table(["is", "taken for", "how often"], lines) + "\n\n" + below
