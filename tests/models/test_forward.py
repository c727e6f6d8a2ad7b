"""From pixels to logits: shapes, time, tokens in their places, binary spikes everywhere inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2tdpt import create_model
from s2tdpt.errors import InputError, ModelError
from s2tdpt.models import SpikingTransformer, VisionTransformer
from s2tdpt.models.config import ModelConfig
from s2tdpt.models.stem import Stem

from .cases import SMALL, images, is_binary, seasoned, small


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def twin() -> nn.Module:
    return small("vit_tiny")


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (2, 2), (6, 30)])
def test_any_size_that_the_stem_divides(model: nn.Module, twin: nn.Module, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    tokens = size[0] // 2 * (size[1] // 2)
    assert model.stem.grid(*size) == (size[0] // 2, size[1] // 2)
    assert model.forward_features(x).shape == (3, 2, tokens, 24)
    assert twin.forward_features(x).shape == (2, tokens, 24)
    assert model(x).shape == twin(x).shape == (2, 5)


def test_the_papers_geometry_takes_multiples_of_four() -> None:
    model = create_model("s2tdpt_4_384", depth=1, time_steps=1).eval()
    assert model.stem.stride == 4
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 1, 64, 384)
        assert model.forward_features(torch.randn(1, 3, 40, 24)).shape == (1, 1, 60, 384)
        assert model(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 9, 8), "multiples of 2, got 9 x 8"),
        ((2, 3, 8, 7), "multiples of 2, got 8 x 7"),
        ((2, 1, 8, 8), "takes 3 channels, but the images .* have 1"),
        ((3, 2, 4, 8, 8), "takes 3 channels, but the images .* have 4"),
        ((3, 8, 8), r"\[B, C, H, W\]"),
        ((8,), r"\[B, C, H, W\]"),
        ((0, 3, 8, 8), "got \\(0, 3, 8, 8\\)"),
        ((0, 2, 3, 8, 8), "got"),
        ((2, 3, 0, 8), "got"),
    ],
)
def test_images_that_do_not_fit(model: nn.Module, twin: nn.Module, shape: tuple[int, ...], message: str) -> None:
    for each in (model, twin):
        if each is twin and len(shape) == 5:
            continue
        with pytest.raises(InputError, match=message) as caught:
            each(torch.zeros(shape, dtype=torch.float64))
        assert "\n" not in str(caught.value)


def test_images_in_bytes_are_refused(model: nn.Module, twin: nn.Module) -> None:
    for each in (model, twin):
        with pytest.raises(InputError, match="takes normalised images, floating point, not uint8"):
            each(torch.zeros((2, 3, 8, 8), dtype=torch.uint8))


def test_two_forwards_in_a_row_agree(model: nn.Module, twin: nn.Module) -> None:
    x = images(3, 3, 8, 12)
    for each in (model, twin):
        first = each(x)
        each(images(2, 3, 8, 8, seed=1) * 10)
        assert torch.equal(each(x), first)
        assert first.std() > 0


def test_a_static_image_is_the_same_image_at_each_step(model: nn.Module) -> None:
    x = images(2, 3, 8, 12)
    assert torch.allclose(model(x), model(x.expand(3, -1, -1, -1, -1)), atol=1e-12)


def test_varying_input_brings_its_own_number_of_steps(model: nn.Module) -> None:
    frames = images(5, 2, 3, 8, 12)
    features = model.forward_features(frames)
    assert features.shape == (5, 2, 24, 24)
    other = frames.clone()
    other[3] += 1
    changed = model.forward_features(other)
    assert torch.allclose(changed[:3], features[:3], atol=1e-12)  # what comes later changes nothing before
    assert not torch.allclose(changed[3], features[3])
    assert not torch.allclose(model(frames), model(frames.flip(0)))


def test_time_steps_may_be_assigned() -> None:
    model = small()
    x = images(2, 3, 8, 12)
    four = {}
    for steps in (4, 1, 2, 4):
        model.time_steps = steps
        four[steps] = model.forward_features(x)
        assert four[steps].shape[0] == steps
    assert torch.allclose(four[1], four[4][:1], atol=1e-12)
    assert torch.allclose(four[2], four[4][:2], atol=1e-12)
    assert not torch.allclose(four[4][3], four[4][2])
    for wrong in (0, 2.5, "4"):
        with pytest.raises(ModelError, match="time_steps must be a whole number, at least 1"):
            model.time_steps = wrong


def test_the_twin_has_one_step(twin: nn.Module) -> None:
    assert twin.time_steps == 1
    twin.time_steps = 1
    with pytest.raises(ModelError, match="one time step, not 4"):
        twin.time_steps = 4
    with pytest.raises(InputError, match="still images"):
        twin(images(2, 2, 3, 8, 8))
    with pytest.raises(ModelError, match="one time step, not 3"):
        VisionTransformer(ModelConfig(family="ann", time_steps=3))


def test_features_and_head_compose(model: nn.Module, twin: nn.Module) -> None:
    x = images(3, 3, 8, 12)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    by_hand = features.mean(0).mean(1) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(x), by_hand, atol=1e-12)
    assert torch.equal(twin.forward_head(twin.forward_features(x)), twin(x))


def test_images_of_a_batch_do_not_meet(model: nn.Module, twin: nn.Module) -> None:
    x = images(4, 3, 8, 12)
    for each in (model, twin):
        assert torch.allclose(each(x)[1:2], each(x[1:2]), atol=1e-12)


@pytest.mark.parametrize("attention", ["stdp", "mean", "identity", "random"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 12), (3, 4, 3, 8, 12)])
def test_every_convolution_and_linear_layer_sees_spikes(attention: str, shape: tuple[int, ...]) -> None:
    """Pixels reach the first convolution and mean membranes the head; everything between is 0 or 1, and fires."""
    model = small(attention=attention)
    rates: dict[str, float] = {}
    real: list[str] = []

    def look(name: str, x: Tensor) -> None:
        rates[name] = x.count_nonzero().item() / x.numel()
        if not is_binary(x):
            real.append(name)

    for name, part in model.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
    for b, block in enumerate(model.blocks):  # the control with frozen weights projects without a module
        block.attn.register_forward_pre_hook(lambda _, args, b=b: look(f"blocks.{b}.attn", args[0]))
    model(images(*shape))
    assert real == ["stem.conv.0", "head"]
    expected = {f"stem.conv.{i}" for i in range(3)} | {"head"}
    expected |= {f"blocks.{b}.{part}" for b in range(2) for part in ("attn", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert expected <= set(rates)
    assert all(0.01 < rate < 0.99 for name, rate in rates.items() if name not in real), rates


def test_the_first_convolution_runs_once_for_a_still_image(model: nn.Module) -> None:
    batches = []
    handle = model.stem.conv[0].register_forward_pre_hook(lambda _, args: batches.append(args[0].shape[0]))
    model(images(2, 3, 8, 8))
    model(images(3, 2, 3, 8, 8))
    handle.remove()
    assert batches == [2, 3 * 2]


@pytest.mark.parametrize("family", ["spiking", "ann"])
@pytest.mark.parametrize("place", [(0, 0), (4, 2), (2, 9), (9, 11)])
def test_a_token_depends_on_its_own_place(family: str, place: tuple[int, int]) -> None:
    """Tokens run row by row: a changed pixel moves the tokens around its own grid cell and no others."""
    name = {"spiking": "s2tdpt_tiny", "ann": "vit_tiny"}[family]
    stem = small(name).stem
    rows, columns, stride, reach = 10, 12, stem.stride, 3  # of three 3x3 convolutions and a pool
    (row, column), x = place, images(1, 3, rows * stride, columns * stride)
    changed = x.clone()
    changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] += 20
    moved = (stem(x, 2) - stem(changed, 2)).abs().amax((0, 1, 3)) > 1e-9
    assert stem.grid(*x.shape[-2:]) == (rows, columns)
    at = [divmod(token, columns) for token in moved.nonzero().flatten().tolist()]
    assert place in at
    assert all(max(abs(r - row), abs(c - column)) <= reach for r, c in at), at


def test_residuals_add_membranes(model: nn.Module) -> None:
    """U ← U + attention(SN(U)), then U ← U + MLP(U)."""
    u = images(3, 2, 10, 24) * 2
    block = model.blocks[0]
    between = u + block.attn(block.neuron(u))
    mlp = block.mlp
    hidden = mlp.norm1(mlp.fc1(mlp.neuron1(between)))
    expected = between + mlp.norm2(mlp.fc2(mlp.neuron2(hidden)))
    assert torch.allclose(block(u), expected, atol=1e-12)
    assert not torch.allclose(between, u)


def test_stem_by_hand(model: nn.Module) -> None:
    """conv-BN, then [SN, pool where configured, conv, BN], with the image's rows and columns in order."""
    stem, x = model.stem, images(2, 3, 8, 12)
    assert isinstance(stem, Stem)
    u = stem.norm[0](stem.conv[0](x)).expand(3, -1, -1, -1, -1)
    for i in (1, 2):
        spikes = stem.neuron[i - 1](u).flatten(0, 1)
        if SMALL["stem_pool"][i]:
            spikes = nn.functional.max_pool2d(spikes, 3, 2, 1)
        u = stem.norm[i](stem.conv[i](spikes)).unflatten(0, (3, 2))
    assert torch.allclose(stem(x, 3), u.flatten(3).transpose(2, 3), atol=1e-12)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_normalised_queries_and_keys_forget_their_size(qk_norm: bool) -> None:
    twin = small("vit_tiny", qk_norm=qk_norm)
    x, attn = images(2, 12, 24), twin.blocks[0].attn
    before = attn(x)
    with torch.no_grad():
        attn.qkv.weight[: 2 * 24] *= 50
    assert torch.allclose(attn(x), before, atol=1e-4) is qk_norm
    assert torch.isfinite(before).all()


@pytest.mark.parametrize("options", [{}, {"neuron": "plif"}, {"in_channels": 1}, {"attention": "random"}])
def test_every_weight_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model("s2tdpt_tiny", **(SMALL | options))
    assert isinstance(model, SpikingTransformer)
    model = seasoned(model, options.get("in_channels", 3)).train()
    loss = nn.functional.cross_entropy(model(images(8, options.get("in_channels", 3), 8, 12)), torch.arange(8) % 5)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        before_norm = name.endswith(("proj.bias", "fc1.bias", "fc2.bias"))  # BatchNorm takes their effect away again
        assert before_norm or p.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (4, 2, 3, 16, 16)])
def test_where_a_pools_gradient_goes_changes_no_answer(shape: tuple[int, ...], neuron: str, half: bool) -> None:
    """To the last bit, so in half precision no spike is another one; the gradients do differ."""
    by_order, by_charge = (
        small(time_steps=4, neuron=neuron, pool_gradient=way).float().train() for way in ("first", "largest")
    )
    x = images(*shape).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        a, b = by_order(x), by_charge(x)
    assert torch.equal(a, b)
    a, b = (
        torch.autograd.grad(y.float().square().sum(), m.stem.conv[0].weight)[0]
        for y, m in ((a, by_order), (b, by_charge))
    )
    assert not torch.allclose(a, b)


def test_the_whole_model_compiles_without_a_break() -> None:
    torch.compiler.reset()
    model = small(depth=1, time_steps=1).train()
    x = images(2, 3, 8, 8)
    eager = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.compiler.reset()
    assert torch.allclose(compiled, eager, atol=1e-12)
