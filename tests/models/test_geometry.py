"""Parameter counts, and models made by name: what is known, what may be changed, what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import s2tdpt
from s2tdpt import PLIF, StdpWindow, create_model, list_models
from s2tdpt.errors import ModelError, S2tdptError
from s2tdpt.models import ModelConfig, SpikingTransformer, VisionTransformer, registry

from .cases import SMALL, images


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def by_formula(c: ModelConfig, qk: bool = True) -> dict[str, int]:
    """Weights by part: 3x3 convolutions without bias, two numbers a channel for each BatchNorm, biases where stated."""
    widths = (c.in_channels, *c.stem_channels, c.embed_dim)
    d, hidden, projected = c.embed_dim, c.mlp_ratio * c.embed_dim, (3 if qk else 1) * c.embed_dim
    attention = d * projected + 2 * projected + (d * d + d) + 2 * d
    mlp = (d * hidden + hidden) + 2 * hidden + (hidden * d + d) + 2 * d
    return {
        "stem": sum(9 * a * b + 2 * b for a, b in pairwise(widths)),
        "blocks": c.depth * (attention + mlp),
        "head": d * c.num_classes + c.num_classes,
    }


def test_4_384_has_exactly_the_papers_number_of_weights() -> None:
    assert parameters(create_model("s2tdpt_4_384", num_classes=10)) == 9_320_122


@pytest.mark.parametrize("name", ["s2tdpt_4_384", "s2tdpt_2_512", "s2tdpt_tiny"])
@pytest.mark.parametrize("classes", [10, 100])
def test_counts_follow_from_the_geometry(name: str, classes: int) -> None:
    model = create_model(name, num_classes=classes)
    expected = by_formula(model.config)
    assert {part: parameters(model.get_submodule(part)) for part in expected} == expected
    assert parameters(model) == sum(expected.values())


def test_the_documentation_lists_every_model_with_its_weights() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in registry.MODELS:
        with torch.device("meta"):
            ten, hundred = (parameters(create_model(name, num_classes=classes)) for classes in (10, 100))
        assert f"| `{name}` | {ten:,} / {hundred:,} |" in text


def test_geometries_are_those_of_their_names() -> None:
    configs = {name: create_model(name).config for name in list_models()}
    assert (configs["s2tdpt_4_384"].depth, configs["s2tdpt_4_384"].embed_dim) == (4, 384)
    assert (configs["s2tdpt_2_512"].depth, configs["s2tdpt_2_512"].embed_dim) == (2, 512)
    assert (configs["s2tdpt_4_384"].num_heads, configs["s2tdpt_4_384"].time_steps) == (12, 4)
    assert configs["s2tdpt_4_384"].neuron == "lif"
    for name in ("4_384", "h_384", "tiny"):
        spiking, twin = configs[f"s2tdpt_{name}"], configs[f"vit_{name}"]
        assert twin == spiking.replace(family="ann", time_steps=1)


@pytest.mark.parametrize(
    ("option", "extra"),
    [({"neuron": "plif"}, 4 + 2 * 5), ({"attention": "mean"}, None), ({"attention": "identity"}, None)],
)
def test_what_options_add_and_take(option: dict[str, Any], extra: int | None) -> None:
    """PLIF: one weight a neuron layer (3 in a stem of 4 convolutions + 2 · 5 in the blocks). No Q and K in controls."""
    plain = create_model("s2tdpt_tiny")
    model = create_model("s2tdpt_tiny", **option)
    if extra is None:
        expected = sum(by_formula(plain.config, qk=False).values())
    else:
        expected = parameters(plain) + len([m for m in model.modules() if isinstance(m, PLIF)])
        assert len([m for m in model.modules() if isinstance(m, PLIF)]) == 3 + 2 * 5
    assert parameters(model) == expected


def test_options_reach_the_model() -> None:
    window = StdpWindow(a_plus=(0.1, 0.2, 0.3, 0.4), offset=0.3)
    model = create_model(
        "s2tdpt_tiny",
        num_classes=7,
        in_channels=1,
        time_steps=2,
        window=window,
        gain=5,
        surrogate="atan",
        tau=3.0,
        v_reset=None,
        v_threshold=0.8,
        detach_reset=False,
    )
    assert isinstance(model, SpikingTransformer)
    attention, neuron = model.blocks[1].attn, model.blocks[1].neuron
    assert (model.time_steps, attention.window, attention.gain) == (2, window, 5.0)
    assert (neuron.surrogate, neuron.tau, neuron.v_reset, neuron.v_threshold) == ("atan", 3.0, None, 0.8)
    assert neuron.detach_reset is False
    assert (attention.mix_neuron.v_threshold, attention.qkv_neuron.v_threshold) == (0.5, 0.8)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 7)


def test_an_option_of_none_is_the_default_except_for_the_reset() -> None:
    model = create_model("s2tdpt_tiny", num_classes=None, in_channels=None, time_steps=None, v_reset=None)
    assert model.config == ModelConfig().replace(**{**model.config.to_dict(), "v_reset": None})
    assert (model.config.num_classes, model.config.v_reset) == (10, None)


@pytest.mark.parametrize("attention", ["stdp", "mean", "identity", "random"])
def test_every_attention_makes_a_model(attention: str) -> None:
    model = create_model("s2tdpt_tiny", attention=attention, **SMALL).double()
    model(images(2, 3, 8, 8)).sum().backward()
    assert model.config.attention == attention
    assert all(p.grad is not None for p in model.parameters())


def test_list_models_and_create_model_agree() -> None:
    names = list_models()
    assert {"s2tdpt_4_384", "s2tdpt_2_512", "s2tdpt_h_384", "s2tdpt_tiny", "vit_4_384", "vit_h_384"} <= set(names)
    assert set(list_models(pretrained=True)) <= set(names)
    for name in names:
        kind = VisionTransformer if name.startswith("vit") else SpikingTransformer
        assert isinstance(create_model(name), kind)
    assert s2tdpt.list_models is list_models


def test_a_configuration_survives_json() -> None:
    import json

    window = StdpWindow(a_plus=(0.1, 0.2, 0.3), t_max=30)
    config = ModelConfig(**SMALL, window=window, v_reset=None)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s2tdpt_4_385", {}, "'s2tdpt_4_385' is unknown: did you mean s2tdpt_4_384\\?"),
        ("S2TDPT_TINY!", {}, "is unknown: .*known are s2tdpt_4_384"),
        ("resnet", {}, "known are s2tdpt_4_384, .*vit_tiny"),
        ("", {}, "is unknown"),
        ("s2tdpt_tiny.nosuchtag", {}, "no weights ship as 's2tdpt_tiny.nosuchtag': .*are s2tdpt_tiny.digits; else"),
        ("vit_tiny.nosuchtag", {}, "'vit_tiny.nosuchtag': none do for this model: train vit_tiny, and name the run"),
        ("s2tdpt_tiny", {"attention": "softmax"}, "'softmax' is unknown: use one of stdp"),
        ("s2tdpt_tiny", {"neuron": "klif"}, "'klif' is unknown: use one of lif, plif"),
        ("s2tdpt_tiny", {"family": "rnn"}, "'rnn' is unknown"),
        ("s2tdpt_tiny", {"dim": 3}, "option 'dim' is unknown: use one of family"),
        ("s2tdpt_tiny", {"num_classes": 0}, "num_classes must be at least 1"),
        ("s2tdpt_tiny", {"time_steps": -1}, "time_steps must be at least 1"),
        ("s2tdpt_tiny", {"depth": 2.5}, "depth must be int, got 2.5"),
        ("s2tdpt_tiny", {"num_classes": "ten"}, "num_classes must be int, got 'ten'"),
        ("s2tdpt_tiny", {"num_heads": 5}, "embed_dim 64 does not divide into 5 heads"),
        ("vit_tiny", {"num_heads": 5}, "embed_dim 64 does not divide into 5 heads"),
        ("s2tdpt_tiny", {"stem_pool": (True, True)}, "stem_pool needs one flag a convolution"),
        ("s2tdpt_tiny", {"stem_pool": (True, False, False, False)}, "the first False"),
        ("s2tdpt_tiny", {"window": {"amplitude": 1.0}}, "window.amplitude is unknown"),
        ("s2tdpt_tiny", {"window": {"tau_plus": 0}}, "tau_plus .*> 0"),
        ("s2tdpt_tiny", {"surrogate": "relu"}, "'relu' is unknown"),
        ("s2tdpt_tiny", {"tau": 0.5}, "tau must be at least 1"),
        ("vit_tiny", {"time_steps": 4}, "one time step"),
        ("s2tdpt_tiny", {"qk_norm": True}, "qk_norm is for the ANN twin"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_use(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(S2tdptError, match=message) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


def test_pretrained_without_a_tag_names_the_tags_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "list_models", lambda pretrained=False: ["s2tdpt_tiny.digits"] if pretrained else [])
    with pytest.raises(
        ModelError, match=r"'s2tdpt_tiny' has no weights of its own: name its weights: s2tdpt_tiny.digits"
    ):
        create_model("s2tdpt_tiny", pretrained=True)
    with pytest.raises(ModelError, match="'vit_tiny' has no weights of its own: no weights ship for it"):
        create_model("vit_tiny", pretrained=True)
