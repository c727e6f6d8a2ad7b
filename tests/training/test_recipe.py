"""Recipes: exact round trips, and one clear line for everything that cannot be."""

import dataclasses
from pathlib import Path

import pytest

from s2tdpt.data.augment import Augment, RandAugment
from s2tdpt.errors import RecipeError
from s2tdpt.training.recipe import (
    DataRecipe,
    DistillRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    list_recipes,
    load_recipe,
    parse_overrides,
    recipe_folders,
)
from s2tdpt.training.schedule import parse_plan

MINIMAL = """
name: test
model: {name: s2tdpt_tiny}
data: {name: digits}
"""

EVERYTHING = Recipe(
    name="010",
    model=ModelRecipe("s2tdpt_tiny", "mean", {"gain": 6.5, "note": "1e3", "stem_pool": [True, False], "window": None}),
    data=DataRecipe("folder:/some where/ä", 17, 19, 100),
    augment=Augment(flip=True, shift=4, cutout=8, mixup=0.2, mix_probability=0.5, randaugment=RandAugment(num_ops=2)),
    optimizer=OptimizerRecipe("muon", 1 / 3, 1e-5, (0.8, 0.99), 3e-4, 0.9, 6, 1e22),
    schedule=ScheduleRecipe("4:20", 0.1, "linear", 0.3, 0.01),
    label_smoothing=0.1,
    ema_decay=0.998,
    norm_batches=100,
    distill=DistillRecipe("vit_4_384.cifar10", 0.7, 4.0),
    spike_cost=0.05,
    precision="bfloat16",
    implementation="fused",
    compile=True,
    max_minutes=9.6,
    deterministic=True,
    seed=2**40,
    eval_every=5,
    checkpoint_every_minutes=0.0,
)


def _load(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("recipe", [EVERYTHING, Recipe("test", ModelRecipe("s2tdpt_tiny"), DataRecipe("digits"))])
def test_round_trip_is_exact(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.yaml")
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert isinstance(again.optimizer.betas, tuple)


def test_numbers_and_plans_are_read_as_people_write_them(tmp_path):
    text = MINIMAL + "optimizer: {lr: 1e-3, clip_grad_norm: 1, betas: [0, 0.5]}\nschedule: {time_steps: 4:20}\n"
    recipe = _load(tmp_path, text + "max_minutes: 3\n")
    assert recipe.optimizer.lr == 0.001
    assert recipe.schedule.time_steps == "4:20"
    floats = [recipe.optimizer.clip_grad_norm, recipe.max_minutes, *recipe.optimizer.betas]
    assert floats == [1, 3, 0, 0.5]
    assert all(type(value) is float for value in floats)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill: {weight: 0.5}", "distill.teacher: missing"),
        ("distill: {teacher: ''}", "distill.teacher: must be some text, not ''"),
        ("distill: {teacher: a, weight: 1.5}", "distill.weight: must be between 0 and 1, not 1.5"),
        ("distill: {teacher: a, views: -1}", "distill.views: must be at least 0, not -1"),
        ("distill: {teacher: a, temperature: 0}", "distill.temperature: must be more than 0, not 0.0"),
        ("distill: {teacher: a, temprature: 1}", "distill.temprature: unknown key (did you mean temperature?)"),
        ("distill: vit", "distill: must be a mapping with teacher, weight, temperature, views or null, not 'vit'"),
        ("spike_cost: -0.1", "spike_cost: must be at least 0, not -0.1"),
        ("norm_batches: -1", "norm_batches: must be at least 0, not -1"),
        ("norm_batches: 1.5", "norm_batches: must be a whole number, not 1.5"),
        ("optimizer: {lr: -0.1}", "optimizer.lr: must be more than 0, not -0.1"),
        ("optimizer: {lr: .nan}", "optimizer.lr: must be more than 0, not nan"),
        ("optimizer: {lr: .inf}", "optimizer.lr: must be more than 0, not inf"),
        ("optimizer: {lr: fast}", "optimizer.lr: must be a number, not 'fast'"),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate: unknown key"),
        ("optimizer: {weight_decey: 1}", "optimizer.weight_decey: unknown key (did you mean weight_decay?)"),
        ("optimizer: {name: adam}", "optimizer.name: must be one of adamw, muon, not 'adam' (did you mean adamw?)"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas: must be two numbers, not [0.9]"),
        ("optimizer: {betas: 0.9}", "optimizer.betas: must be two numbers, not 0.9"),
        ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas: must be at least 0 and below 1, not 1.0"),
        ("optimizer: {momentum: 1}", "optimizer.momentum: must be at least 0 and below 1, not 1.0"),
        ("optimizer: {ns_steps: 2.5}", "optimizer.ns_steps: must be a whole number, not 2.5"),
        ("optimizer: {clip_grad_norm: 0}", "optimizer.clip_grad_norm: must be more than 0, not 0.0"),
        ("optimizer: muon", "optimizer: must be a mapping with name, lr,"),
        ("schedule: {time_steps: 4:0}", "schedule.time_steps: must be a plan like '1:190,4:11'"),
        ("schedule: {time_steps: 4}", "schedule.time_steps: must be text, not 4: time steps and epochs, as in '4:20'"),
        ("lr: 0.1", "lr: unknown key (did you mean optimizer.lr?)"),
        ("schedule: {warmup: 1.0}", "schedule.warmup: must be at least 0 and below 1, not 1.0"),
        ("schedule: {shape: step}", "schedule.shape: must be one of cosine, linear, constant, not 'step'"),
        ("schedule: {switch_lr: 1.5}", "schedule.switch_lr: must be between 0 and 1, not 1.5"),
        ("augment: {flop: true}", "augment.flop: unknown key (did you mean flip?)"),
        ("augment: {randaugment: {num_op: 2}}", "augment.randaugment.num_op: unknown key (did you mean num_ops?)"),
        ("augment: {shift: -1}", "augment.shift"),
        ("augment: {flip: 1}", "augment.flip: must be true or false, not 1"),
        ("compile: yes please", "compile: must be true or false, not 'yes please'"),
        ("seed: true", "seed: must be a whole number, not True"),
        ("seed: -1", "seed: must be at least 0, not -1"),
        ("precision: float16", "precision: must be one of float32, bfloat16, not 'float16' (did you mean bfloat16?)"),
        ("max_minutes: 0", "max_minutes: must be more than 0, not 0.0"),
        ("max_minutes: soon", "max_minutes: must be a number or null, not 'soon'"),
        ("label_smoothing: 1", "label_smoothing: must be at least 0 and below 1, not 1.0"),
        ("eval_every: 0", "eval_every: must be at least 1, not 0"),
        ("1: 2", "1: unknown key"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_with_file_and_key(text, message, tmp_path):
    with pytest.raises(RecipeError) as caught:
        _load(tmp_path, MINIMAL + text + "\n")
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: a recipe is a mapping"),
        ("- 1", "recipe.yaml: a recipe is a mapping"),
        ("name: test", "recipe.yaml: model: missing"),
        ("name: test\nmodel: {}\ndata: {name: digits}", "recipe.yaml: model.name: missing"),
        (MINIMAL + "seed: 1\nseed: 2", "recipe.yaml:6: not valid YAML: the key 'seed' is there twice"),
        (MINIMAL + "seed: [1", "recipe.yaml:5: not valid YAML: "),
        (MINIMAL + "seed: !!python/object/apply:os.getpid []", "recipe.yaml:5: not valid YAML: "),
        (MINIMAL + "{[1]: 2}", "not valid YAML: "),
    ],
)
def test_files_that_are_not_recipes(text, message, tmp_path):
    with pytest.raises(RecipeError) as caught:
        _load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read: No such file"):
        load_recipe(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bytes\.yaml: cannot be read: not UTF-8"):
        load_recipe(tmp_path / "bytes.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_replace_takes_dotted_keys_and_checks_them():
    recipe = EVERYTHING.replace(
        **{"optimizer.lr": 1, "seed": 3, "model.options.gain": 4.0, "augment.randaugment": None, "name": "other"}
    )
    assert (recipe.optimizer.lr, recipe.seed, recipe.name) == (1.0, 3, "other")
    assert recipe.model.options == {**EVERYTHING.model.options, "gain": 4.0}
    assert recipe.augment.randaugment is None
    assert recipe.optimizer.weight_decay == EVERYTHING.optimizer.weight_decay
    assert recipe.replace(**{"augment.randaugment.magnitude": 5}).augment.randaugment == RandAugment(magnitude=5.0)
    assert EVERYTHING.seed == 2**40
    assert EVERYTHING.model.options["gain"] == 6.5
    for key, value, message in [
        ("optimizer.lrr", 1, r"optimizer\.lrr: unknown key \(did you mean lr\?\)"),
        ("optimiser.lr", 1, r"optimiser: unknown key \(did you mean optimizer\?\)"),
        ("optimizer.lr", -1, r"optimizer\.lr: must be more than 0"),
        ("name.first", "x", r"name\.first: name has no keys of its own"),
    ]:
        with pytest.raises(RecipeError, match=message):
            EVERYTHING.replace(**{key: value})


def test_overrides_are_yaml():
    changes = parse_overrides(["optimizer.lr=1e-2", "schedule.time_steps=1:3,4:2", "max_minutes=null", "name=a=b"])
    assert changes == {"optimizer.lr": 0.01, "schedule.time_steps": "1:3,4:2", "max_minutes": None, "name": "a=b"}
    assert EVERYTHING.replace(**changes).schedule.time_steps == "1:3,4:2"
    for bad in ("optimizer.lr", "=3", "seed=[1"):
        with pytest.raises(RecipeError):
            parse_overrides([bad])


def test_recipes_that_come_with_the_package_load_by_name():
    assert {"digits", "digits_vit", "cifar10_fast", "cifar100_fast"} <= set(list_recipes())
    for name in list_recipes():
        assert load_recipe(name).name == name
        assert load_recipe(recipe_folders()[0] / f"{name}.yaml") == load_recipe(name)
    with pytest.raises(RecipeError, match=r"cifar10_fats: no such recipe \(did you mean cifar10_fast\?\)"):
        load_recipe("cifar10_fats")
    with pytest.raises(RecipeError, match=r"zzz: no such recipe \(there are: .*digits"):
        load_recipe("zzz")


@pytest.mark.parametrize(
    ("name", "of"), [("digits_vit", "digits"), ("vit_cifar10", "cifar10_fast"), ("vit_cifar100", "cifar100")]
)
def test_twins_differ_in_the_model_and_the_time_steps_alone(name: str, of: str):
    spiking, twin = load_recipe(of), load_recipe(name)
    plan = twin.schedule.time_steps
    same = {"name": name, "model": dataclasses.asdict(twin.model), "schedule.time_steps": plan}
    assert spiking.replace(**same) == twin
    assert twin.model.name == spiking.model.name.replace("s2tdpt", "vit")
    assert [phase.time_steps for phase in parse_plan(plan)] == [1]
    epochs = [sum(phase.epochs for phase in parse_plan(recipe.schedule.time_steps)) for recipe in (spiking, twin)]
    assert epochs[0] == epochs[1]
