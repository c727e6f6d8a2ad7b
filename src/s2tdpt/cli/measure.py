"""`evaluate`, `predict` and `energy`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from s2tdpt.cli import options
from s2tdpt.cli.options import BatchSize, Data, DataRoot, Device, Json, Limit, Model, Pictures, TimeSteps

PRECISIONS = ("auto", "float32", "bfloat16")


def evaluate(
    model: Model,
    data: Data = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test or train.")] = "test",
    limit: Limit = None,
    data_root: DataRoot = None,
    device: Device = None,
    batch_size: BatchSize = 500,
    time_steps: TimeSteps = None,
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, float32 or bfloat16.")] = "auto",
    json: Json = None,
) -> None:
    """Measure accuracy, loss and firing rates on a labelled data set.

    \b
    Examples:
      s2tdpt evaluate s2tdpt_tiny.digits
      s2tdpt evaluate runs/cifar10_fast --data cifar10 --time-steps 1 --json one_step.json
      s2tdpt evaluate runs/cifar10_fast --data folder:~/pictures@32 --limit 1000
    """
    from s2tdpt.cli import subject
    from s2tdpt.errors import ModelError
    from s2tdpt.inference import accelerate
    from s2tdpt.training import evaluate as measured
    from s2tdpt.training.numerics import scoring

    if precision not in PRECISIONS:
        known = "auto (int8 where that is faster), float32 or bfloat16"
        raise ModelError(f"precision {precision!r} is unknown: use {known}")
    net, card = subject.load(model, device, time_steps)
    images = subject.load_images(net, card, data, split, data_root, limit)
    quick = net
    if precision == "auto":
        quick, precision = accelerate(net, subject.first_batch(net, images, 4), len(images)), "float32"
    started = time.perf_counter()
    with options.progress(quick, len(images), "evaluating"):
        figures = measured.evaluate(
            quick, images, batch_size=batch_size, device=subject.device_of(net), precision=precision
        )
    seconds = time.perf_counter() - started
    with scoring(subject.device_of(net), precision):
        rates = measured.firing_rates(net, subject.first_batch(net, images, min(batch_size, 100)))
    precision = getattr(quick, "precision", precision)
    figures |= rates | {"time_steps": net.time_steps, "precision": precision}
    figures["images_per_second"] = len(images) / seconds
    with options.saved(json, {"model": model, "data": images.name, "split": split, **figures}):
        print(f"{model} on {images.name} ({split}, {len(images):,} images, T = {net.time_steps})")
        print(f"  top-1 accuracy  {figures['top1']:8.2%}")
        print(f"  top-5 accuracy  {figures['top5']:8.2%}")
        print(f"  cross-entropy   {figures['loss']:8.4f}")
        if figures["mean_firing_rate"] is not None:
            blocks = ", ".join(f"{rate:.1%}" for rate in figures["attention_firing_rate"])
            print(f"  neurons firing  {figures['mean_firing_rate']:8.2%}   (attention neuron of each block: {blocks})")
        where = f"{subject.device_of(net)} in {precision}"
        print(f"  speed           {figures['images_per_second']:8.1f} images/s on {where}")


def predict(
    model: Model,
    files: Pictures,
    top: Annotated[int, typer.Option(metavar="K", min=1, help="How many classes to name.")] = 3,
    device: Device = None,
    batch_size: BatchSize = 100,
    time_steps: TimeSteps = None,
    json: Json = None,
) -> None:
    """Name what is in pictures.

    A picture that cannot be read is reported on stderr, the others are still answered, and the exit code is 2.

    \b
    Examples:
      s2tdpt predict s2tdpt_tiny.digits seven.png
      s2tdpt predict runs/cifar10_fast cat.jpg ~/pictures --top 5 --json answers.json
    """
    import torch

    from s2tdpt.cli import subject
    from s2tdpt.errors import DataError
    from s2tdpt.inference import accelerate

    net, card = subject.load(model, device, time_steps)
    classes = subject.classes(net, card)
    answers: list[dict[str, Any]] = []
    unreadable = 0
    paths = subject.expand(files)
    quick = accelerate(net, subject.noise(net, 4, *subject.training_data(card)["image_size"]), len(paths))
    with options.progress(quick, len(paths), "predicting"):
        for start in range(0, len(paths), batch_size):
            pictures: list[tuple[Path, torch.Tensor]] = []
            for path in paths[start : start + batch_size]:
                try:
                    pictures.append((path, subject.read(net, card, path)))
                except DataError as error:
                    print(f"error: {error}", file=sys.stderr)
                    unreadable += 1
            if pictures:
                x = subject.normalise(net, card, torch.stack([picture for _, picture in pictures]))
                with torch.no_grad():
                    best = quick(x).float().softmax(-1).topk(min(top, len(classes)))
                ranks = zip(pictures, best.values.tolist(), best.indices.tolist(), strict=True)
                for (path, _), values, indices in ranks:
                    ranked = [{"class": classes[i], "probability": p} for p, i in zip(values, indices, strict=True)]
                    answers.append({"file": str(path), **ranked[0], "top": ranked})
    width = max((len(answer["file"]) for answer in answers), default=0)
    with options.saved(json, {"model": model, "time_steps": net.time_steps, "predictions": answers}):
        for answer in answers:
            print(answer["file"].ljust(width), "  ".join(f"{t['class']} {t['probability']:.1%}" for t in answer["top"]))
    if unreadable:
        raise typer.Exit(2)


def energy(
    model: Model,
    data: Data = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Use N images, evenly spaced over the set.")] = 100,
    table: Annotated[
        str, typer.Option(metavar="NAME", help="Prices of the operations.", autocompletion=options.complete_tables)
    ] = "paper",
    exact: Annotated[bool, typer.Option("--exact", help="Count single events too; slower.")] = False,
    data_root: DataRoot = None,
    device: Device = None,
    time_steps: TimeSteps = None,
    json: Json = None,
) -> None:
    """Count the operations of one image and price them.

    An untrained name works too: the ANN twin costs the same whatever its weights are, and a spiking model is then run
    on random pixels, which says little.

    \b
    Examples:
      s2tdpt energy s2tdpt_tiny.digits
      s2tdpt energy vit_4_384
      s2tdpt energy runs/cifar10_fast --limit 500 --time-steps 2 --json energy.json
    """
    from s2tdpt.cli import subject
    from s2tdpt.energy import cost_table, count

    prices = cost_table(table)
    net, card = subject.load(model, device, time_steps, allow_untrained=True)
    x = subject.inputs(net, card, data, data_root, limit)
    report = count(net, x, exact=exact)
    with options.saved(json, report.to_dict(prices) | {"model": model, "time_steps": net.time_steps}):
        print(report.format(prices))
