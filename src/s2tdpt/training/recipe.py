"""Everything that defines a training run, as frozen dataclasses that read and write YAML."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite

from s2tdpt.data.augment import Augment
from s2tdpt.errors import RecipeError
from s2tdpt.training import _yaml
from s2tdpt.training._rules import refuse_impossible_values

RUNS = "runs"
"""The folder that runs go to where no other is named."""


@dataclass(frozen=True)
class ModelRecipe:
    """Arguments of `s2tdpt.create_model`; classes and channels come from the data."""

    name: str
    attention: str = "stdp"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecipe:
    """Arguments of `s2tdpt.data.load`. `holdout` training images, if any, stand in for the test set."""

    name: str
    batch_size: int = 128
    eval_batch_size: int = 500
    holdout: int = 0


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW for all weights, or Muon for the inner matrices with AdamW at `adamw_lr` for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    adamw_lr: float = 1e-3
    momentum: float = 0.95
    ns_steps: int = 5
    clip_grad_norm: float | None = None


@dataclass(frozen=True)
class ScheduleRecipe:
    """See `s2tdpt.training.schedule.Schedule`; `warmup` is a fraction of the run, the rates are fractions of `lr`."""

    time_steps: str = "4:20"
    warmup: float = 0.05
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    switch_lr: float = 0.25
    final_lr: float = 0.0


@dataclass(frozen=True)
class DistillRecipe:
    """A trained teacher (MODEL.TAG, a run's folder or a .safetensors file), and how much of the loss is its.

    `views`: after so many epochs the augmented images repeat, and the teacher need not look again; 0: they never do.
    """

    teacher: str
    weight: float = 0.5
    temperature: float = 2.0
    views: int = 0


@dataclass(frozen=True)
class Recipe:
    """One training run. Every value is checked on construction; RecipeError names the dotted key.

    What each option does and costs is written down in docs/training.md.
    """

    name: str
    model: ModelRecipe
    data: DataRecipe
    augment: Augment = field(default_factory=Augment)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    norm_batches: int = 0
    initial_weights: str | None = None
    distill: DistillRecipe | None = None
    spike_cost: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    eval_precision: Literal["float32", "bfloat16"] | None = None
    implementation: Literal["auto", "plain", "fused"] = "auto"
    compile: bool = False
    cuda_graph: bool = True
    max_minutes: float | None = None
    deterministic: bool = False
    seed: int = 0
    eval_every: int = 1
    checkpoint_every_minutes: float = 2.0

    def __post_init__(self) -> None:
        refuse_impossible_values(self)

    @classmethod
    def from_dict(cls, values: Any) -> Recipe:
        """Build from nested dictionaries, as YAML gives them."""
        if not isinstance(values, Mapping):
            raise RecipeError("a recipe is a mapping of keys to values")
        _refuse_unknown_keys(cls, values, "")
        config = dacite.Config(type_hooks={float: _as_float, int: _as_int, tuple[float, float]: _as_pair}, strict=True)
        try:
            return dacite.from_dict(cls, values, config)
        except dacite.MissingValueError as error:
            raise RecipeError(f"{error.field_path}: missing") from None
        except dacite.WrongTypeError as error:
            wanted, value = error.field_type, error.value
            hint = _suggest(value, [str(a) for a in typing.get_args(wanted)]) if isinstance(value, str) else ""
            if error.field_path == "schedule.time_steps":
                hint = ": time steps and epochs, as in '4:20'"
            raise RecipeError(f"{error.field_path}: must be {_describe(wanted)}, not {value!r}{hint}") from None

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values; `from_dict` gives the same recipe back."""
        return _plain(dataclasses.asdict(self))

    @property
    def scored_in(self) -> str:
        """The precision of evaluations: `eval_precision`, or that of training where none is named."""
        return self.eval_precision or self.precision

    def to_yaml(self) -> str:
        """The recipe as YAML, every key written out."""
        return _yaml.dump(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to a file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some values changed, by dotted key: `recipe.replace(**{"optimizer.lr": 0.1, "seed": 1})`."""
        values = self.to_dict()
        for dotted, value in changes.items():
            *parents, key = dotted.split(".")
            target = values
            for parent in parents:
                if target.get(parent) is None:
                    target[parent] = {}
                target = target[parent]
                if not isinstance(target, dict):
                    raise RecipeError(f"{dotted}: {parent} has no keys of its own")
            target[key] = value
        return Recipe.from_dict(values)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` strings, values as YAML, into the keywords of `Recipe.replace`."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (key.strip() and equals):
            raise RecipeError(f"{assignment!r}: overrides are written KEY=VALUE, as in optimizer.lr=0.1")
        changes[key.strip()] = _yaml.parse(value, assignment)
    return changes


def recipe_folders() -> list[Path]:
    """Where named recipes live: in the installed package, or in the checkout."""
    here = Path(__file__).resolve()
    return [folder for folder in (here.parents[1] / "recipes", here.parents[3] / "recipes") if folder.is_dir()]


def list_recipes() -> list[str]:
    """Names that `load_recipe` takes."""
    return sorted({path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")})


def load_recipe(path_or_name: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or by the bare name of one that comes with the package. Raises RecipeError."""
    path = _find(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: cannot be read: {reason}") from None
    values = _yaml.parse(text, str(path))
    try:
        return Recipe.from_dict(values)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != str(path_or_name):
        return path
    for folder in recipe_folders():
        if (folder / f"{path.name}.yaml").is_file():
            return folder / f"{path.name}.yaml"
    names = list_recipes()
    hint = _suggest(path.name, names) or f" (there are: {', '.join(names)})"
    raise RecipeError(f"{path.name}: no such recipe{hint}")


def _as_float(value: Any) -> Any:
    if isinstance(value, bool):  # an int to Python, but never a number to a person
        raise dacite.WrongTypeError(field_type=float, value=value)
    return float(value) if isinstance(value, int) else value


def _as_int(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(field_type=int, value=value)
    return value


def _as_pair(value: Any) -> Any:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise dacite.WrongTypeError(field_type=tuple[float, float], value=value)
    return tuple(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse_unknown_keys(cls: type, values: Mapping[Any, Any], prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            elsewhere = [known for known in _keys(Recipe) if known.rpartition(".")[2] == key]
            hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else _suggest(str(key), list(hints))
            raise RecipeError(f"{prefix}{key}: unknown key{hint}")
        nested = _nested(hints[key])
        if nested is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(nested, value, f"{prefix}{key}.")


def _nested(hint: Any) -> type | None:
    """The dataclass that a field holds, alone or beside None."""
    found = [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)]
    return typing.cast(type, found[0]) if found else None


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys below `cls`."""
    for key, hint in typing.get_type_hints(cls).items():
        nested = _nested(hint)
        yield f"{prefix}{key}"
        if nested is not None:
            yield from _keys(nested, f"{prefix}{key}.")


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _describe(wanted: Any) -> str:
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union:
        return " or ".join(_describe(option) for option in typing.get_args(wanted))
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(wanted)))
    if dataclasses.is_dataclass(wanted):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(wanted))
    if typing.get_origin(wanted) is dict:
        return "a mapping"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(wanted, "two numbers")
