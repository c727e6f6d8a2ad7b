"""The hierarchical model: its geometry, spikes, neighbourhoods, and what the rest of the package makes of it."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from s2tdpt import LIF, create_model, load_model
from s2tdpt.energy import count
from s2tdpt.errors import InputError, ModelError
from s2tdpt.inference import compile_for_inference, gpu
from s2tdpt.models import ModelConfig, SpikingTransformer, save_weights
from s2tdpt.models.stages import HierarchicalStem

from .cases import HIERARCHY, images, is_binary, seasoned, small

NAME, TWIN = "s2tdpt_h_384", "vit_h_384"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small(NAME, **HIERARCHY)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mixing(mixer: str, width: int) -> int:
    return {"none": 0, "dwconv": 9 * width + 2 * width, "conv": 9 * width**2 + 2 * width}[mixer]


def mlp(width: int, ratio: int) -> int:
    return 2 * ratio * width**2 + 3 * ratio * width + 3 * width


def by_formula(c: ModelConfig) -> int:
    """Weights: convolutions without bias, two numbers a channel for each norm, linear layers with bias but for QKV."""
    stem = sum(9 * a * b + 2 * b for a, b in pairwise((c.in_channels, *c.stem_channels, c.stage_widths[0])))
    stages = 0
    ways = pairwise((*c.stage_widths, c.embed_dim))
    for (a, b), depth, mixer in zip(ways, c.stage_depths, c.stage_mixers, strict=True):
        stages += depth * (mixing(mixer, a) + mlp(a, c.mlp_ratio))
        stages += 9 * a * b + 9 * b * b + 4 * a * b + 3 * 2 * b
    d = c.embed_dim
    block = mixing(c.mixer, d) + (3 * d * d + 6 * d) + (d * d + 3 * d) + mlp(d, c.mlp_ratio)
    return stem + stages + c.depth * block + d * c.num_classes + c.num_classes


@pytest.fixture(scope="module")
def twin() -> nn.Module:
    return small(TWIN, **HIERARCHY | {"time_steps": 1})


@pytest.mark.parametrize(("classes", "weights"), [(10, 8_931_034), (100, 8_965_684)])
def test_weights(classes: int, weights: int) -> None:
    model = create_model(NAME, num_classes=classes)
    assert parameters(model) == by_formula(cast(ModelConfig, model.config)) == weights < 10_000_000


@pytest.mark.parametrize("mixer", ["none", "dwconv", "conv"])
def test_weights_follow_from_the_configuration(mixer: str) -> None:
    options = HIERARCHY | {"mixer": mixer, "stage_mixers": (mixer, "none")}
    model = create_model(NAME, **options)
    assert parameters(model) == by_formula(cast(ModelConfig, model.config))


def test_a_stage_without_blocks_is_the_way_down_alone() -> None:
    model = small(NAME, **HIERARCHY | {"stage_depths": (0, 1)})
    assert parameters(model) == by_formula(cast(ModelConfig, model.config))
    x = images(2, 3, 8, 12)
    (first, _), grids = model.stem.stages, model.stem.grids(8, 12)
    u = images(3, 2, 8 * 12, 8)
    assert torch.equal(first(u, grids[0]), first.down(u, grids[0]))
    assert model(x).shape == (2, 5)


def test_products_and_edges() -> None:
    model = create_model(NAME, time_steps=1)
    report = count(model, torch.randn(1, 3, 32, 32))
    stem = 1024 * 9 * (3 * 48 + 48 * 96)
    stages = 1024 * 8 * 96**2 + 256 * 2 * (9 * 192 + 8 * 192**2)
    down = sum(n * 9 * a * 2 * a + n // 4 * (9 * 4 * a * a + 8 * a * a) for n, a in ((1024, 96), (256, 192)))
    block = 64 * (9 * 384 + 12 * 384**2 + 64 * 384)
    assert report.nominal_macs == stem + stages + down + 3 * block + 3840
    assert 1.15e9 < report.nominal_macs < 1.3e9
    assert [(e.name, e.what) for e in report.non_binary_edges] == [("stem.conv.0", "pixels"), ("head", "membrane")]
    assert report.uncounted == ()


def test_edges_while_it_fires(model: nn.Module) -> None:
    report = count(model, images(2, 3, 8, 12))
    assert [(e.name, e.what) for e in report.non_binary_edges] == [("stem.conv.0", "pixels"), ("head", "membrane")]
    assert 0.01 < report.mean_firing_rate < 0.6
    neurons = {n.name for n in report.neurons}
    assert neurons == {name for name, m in model.named_modules() if isinstance(m, LIF)}


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (20, 8)])
def test_any_size_that_the_stem_divides(model: nn.Module, size: tuple[int, int]) -> None:
    assert isinstance(model.stem, HierarchicalStem)
    assert (model.stem.stride, model.stem.grid(*size)) == (4, (size[0] // 4, size[1] // 4))
    assert model.stem.grids(*size) == [size, (size[0] // 2, size[1] // 2)]
    assert model.forward_features(images(2, 3, *size)).shape == (3, 2, size[0] * size[1] // 16, 24)
    assert model(images(5, 2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("size", [(6, 8), (8, 9)])
def test_images_that_do_not_fit(model: nn.Module, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"multiples of 4, got {size[0]} x {size[1]}"):
        model(images(2, 3, *size))


def test_a_film_of_one_picture_is_the_picture(model: nn.Module) -> None:
    x = images(2, 3, 8, 12)
    assert torch.allclose(model(x), model(x.expand(3, -1, -1, -1, -1)), atol=1e-12)
    assert torch.allclose(model(x)[1:], model(x[1:]), atol=1e-12)


@pytest.mark.parametrize("mixer", ["dwconv", "conv"])
def test_every_convolution_and_linear_layer_sees_spikes(mixer: str) -> None:
    model = small(NAME, **HIERARCHY | {"mixer": mixer, "stage_mixers": (mixer, "none")})
    rates: dict[str, float] = {}
    real: list[str] = []

    def look(name: str, x: Tensor) -> None:
        rates[name] = x.count_nonzero().item() / x.numel()
        if not is_binary(x):
            real.append(name)

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    for name, part in layers.items():
        part.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
    model(images(4, 3, 8, 12))
    assert rates.keys() == layers.keys()
    assert real == ["stem.conv.0", "head"]
    assert all(0.01 < rate < 0.99 for name, rate in rates.items() if name not in real), rates


@pytest.mark.parametrize("name", ["model", "twin"])
@pytest.mark.parametrize("place", [(0, 0), (3, 6), (9, 13)])
def test_tokens_lie_where_their_pixels_do(request: Any, name: str, place: tuple[int, int]) -> None:
    """A changed pixel moves tokens around its own place and no others, through all stages."""
    stem, rows, columns, reach = request.getfixturevalue(name).stem, 10, 14, 5  # of nine 3x3 windows, on finer grids
    (row, column), x = place, images(1, 3, 4 * rows, 4 * columns)
    changed = x.clone()
    changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 20
    moved = (stem(x, 2) - stem(changed, 2)).abs().amax((0, 1, 3)) > 1e-9
    at = [divmod(token, columns) for token in moved.nonzero().flatten().tolist()]
    assert place in at
    assert all(max(abs(r - row), abs(c - column)) <= reach for r, c in at), at


def test_attention_sees_the_neighbours_through_its_mixer(model: nn.Module) -> None:
    block, u = model.blocks[0], images(3, 2, 6, 24) * 2
    x = block.mixer.neuron(u).transpose(2, 3).reshape(6, 24, 2, 3)
    mixed = nn.functional.conv2d(x, block.mixer.conv.weight, padding=1, groups=24)
    expected = u + block.mixer.norm(mixed.flatten(2).transpose(1, 2).unflatten(0, (3, 2)))
    expected = expected + block.attn(block.neuron(expected))
    assert torch.allclose(block(u, (2, 3)), expected + block.mlp(expected), atol=1e-12)
    with pytest.raises(InputError, match="takes the grid"):
        block(u)


def test_the_twin_has_the_same_skeleton_with_relu_for_neurons(model: nn.Module, twin: nn.Module) -> None:
    def skeleton(net: nn.Module) -> dict[str, torch.Size]:
        return {n: p.shape for n, p in net.named_parameters() if n.startswith("stem") or ".mixer." in n}

    assert skeleton(twin) == skeleton(model)
    assert not [m for m in twin.modules() if isinstance(m, LIF)]
    assert count(twin, images(2, 3, 8, 12)).uncounted == ()
    block, u = twin.blocks[0], images(2, 6, 24) * 2
    x = u.relu().transpose(1, 2).reshape(2, 24, 2, 3)
    mixed = nn.functional.conv2d(x, block.mixer.conv.weight, padding=1, groups=24)
    expected = u + block.mixer.norm(mixed.flatten(2).transpose(1, 2))
    expected = expected + block.attn(block.norm1(expected))
    assert torch.allclose(block(u, (2, 3)), expected + block.mlp(block.norm2(expected)), atol=1e-12)


@pytest.mark.parametrize(("name", "neuron"), [(NAME, "lif"), (NAME, "plif"), (TWIN, "lif")])
def test_every_weight_learns(name: str, neuron: str) -> None:
    torch.manual_seed(0)
    steps = {"time_steps": 1} if name == TWIN else {}
    model = seasoned(create_model(name, **HIERARCHY | steps, neuron=neuron)).train()
    nn.functional.cross_entropy(model(images(8, 3, 8, 12)), torch.arange(8) % 5).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        before_norm = name.endswith(("proj.bias", "fc1.bias", "fc2.bias"))  # BatchNorm takes their effect away again
        assert before_norm or p.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("time_steps", [1, 4])
def test_every_neuron_can_fire_before_any_training(time_steps: int) -> None:
    """With the statistics of the batch: in training mode, where learning starts. Pictures have patches, as photos."""
    torch.manual_seed(0)
    model = create_model(NAME, time_steps=time_steps).train()
    rates: dict[str, float] = {}
    for name, part in model.named_modules():
        if isinstance(part, LIF):
            part.register_forward_hook(lambda _, args, fired, name=name: rates.__setitem__(name, float(fired.mean())))
    patches, noise = images(6, 3, 4, 4).float(), images(6, 3, 32, 32, seed=1).float()
    with torch.no_grad():
        model(nn.functional.interpolate(patches, size=(32, 32), mode="bilinear") + 0.3 * noise)
    assert len(rates) == 1 + (2 + 2) + (2 * 3 + 2) + 3 * 6
    attention = {name: rate for name, rate in rates.items() if name.endswith("mix_neuron")}
    assert all(0.005 < rate < 0.5 for rate in attention.values()), attention
    assert all(0.01 < rate < 0.5 for name, rate in rates.items() if name not in attention), rates


def test_the_whole_model_compiles_without_a_break() -> None:
    torch.compiler.reset()
    model = small(NAME, **HIERARCHY | {"depth": 1, "time_steps": 1}).train()
    x = images(2, 3, 8, 8)
    eager = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.compiler.reset()
    assert torch.allclose(compiled, eager, atol=1e-12)


def test_weights_on_disk(tmp_path: Path, model: nn.Module) -> None:
    model = copy.deepcopy(model).float()
    save_weights(model, tmp_path / "model", meta={"model": NAME})
    loaded, card = load_model(tmp_path)
    assert isinstance(loaded, SpikingTransformer)
    assert (loaded.config, card["model"]) == (model.config, NAME)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    x = images(2, 3, 8, 8).float()
    assert torch.equal(loaded(x), model(x))


def test_explanations(model: nn.Module) -> None:
    explain = pytest.importorskip("s2tdpt.explain")
    pytest.importorskip("captum")
    x = images(2, 3, 8, 12)
    found = explain.firing_rates(model, x)
    assert found.maps.shape == (2, 2, 3)
    assert len(found.attention) == 2
    for site in ("block", "attention"):
        maps = explain.grad_cam(model, x, site=site)
        assert (maps.per_step.shape, maps.upsampled.shape) == ((3, 2, 2, 3), (2, 8, 12))
        assert maps.maps.abs().max() > 0
    assert [record.grid for record in explain.record_attention(model, x)] == [(2, 3)] * 2


def test_engines_say_whether_they_know_it(model: nn.Module) -> None:
    """On a CPU there is one (tests/inference/test_engine.py), on a GPU there is none yet."""
    assert compile_for_inference(model, precision="float32").precision == "float32"
    assert gpu.obstacle(model) == "stem is a HierarchicalStem, which it does not know"


def test_the_command_line_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    from s2tdpt.cli.models import models

    models()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{NAME} ")]
    assert "8,931,034" in row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_depths": (1,)}, "one entry a stage each"),
        ({"stage_depths": (1, -1)}, "stage_depths at least 0"),
        ({"stage_widths": (0, 16)}, "stage_widths must be at least 1 each"),
        ({"stage_depths": (1, 1.5)}, "stage_depths must be a list of int"),
        ({"stage_mixers": ("none", "attention")}, "mixer 'attention' is unknown: use one of none, dwconv, conv"),
        ({"mixer": "pool"}, "mixer 'pool' is unknown"),
        ({"pool_gradient": "last"}, "pool_gradient 'last' is unknown: use first or largest"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(NAME, **options)
