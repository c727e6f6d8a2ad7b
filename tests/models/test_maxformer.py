"""Parts of the hierarchical model against SpikingJelly's Max-Former, with the same weights."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from s2tdpt.models import ModelConfig
from s2tdpt.models.stages import Downsample

from .cases import HIERARCHY, images, small


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("spikingjelly.activation_based.model.maxformer")


def test_the_block_with_depthwise_convolution(theirs: Any) -> None:
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    torch.manual_seed(1)
    their = theirs._DWCBlock(16, 3, 4, None, {"tau": 2.0, "detach_reset": True}).double()
    functional.set_step_mode(their, "m")
    ours = cast(Any, small("s2tdpt_h_384", **HIERARCHY).stem).stages[1].blocks[0]
    pairs = [(their.dwconv, ours.mixer.conv), (their.bn, ours.mixer.norm)]
    pairs += [(getattr(their.mlp, n), getattr(ours.mlp, m)) for n, m in zip(
        ("fc1", "bn1", "fc2", "bn2"), ("fc1", "norm1", "fc2", "norm2"), strict=True)]  # fmt: skip
    with torch.no_grad():
        for their_part, our_part in pairs:
            their_part.weight.copy_(our_part.weight.view_as(their_part.weight))
            their_part.bias.zero_() if our_part.bias is None else their_part.bias.copy_(our_part.bias)
    u = images(3, 2, 12, 16) * 2
    expected = their.train()(u.transpose(2, 3).unflatten(3, (3, 4)))
    got = ours.train()(u, (3, 4))
    assert torch.allclose(got, expected.flatten(3).transpose(2, 3), atol=1e-10)
    assert got.std() > 0.1


def test_pooling_spikes_is_pooling_currents_at_one_step(theirs: Any) -> None:
    """A threshold may be taken before a maximum or after it; only resets, over several steps, tell them apart."""
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    torch.manual_seed(1)
    ours = Downsample(ModelConfig(pool_gradient="largest"), 8, 16).double().train()
    their = theirs._MaxEmbedStage(8, 16, None, {"tau": 2.0, "detach_reset": True}, bias=False).double().train()
    functional.set_step_mode(their, "m")
    with torch.no_grad():
        ours.norm1.weight.fill_(2.5)
        for our_part, their_part in ((ours.conv1, their.conv1), (ours.norm1, their.bn1), (ours.conv2, their.conv2)):
            their_part.weight.copy_(our_part.weight)
        ours.shortcut_norm.weight.zero_()
        their.shortcut[1].weight.zero_()
    for steps, same in ((1, True), (4, False)):
        u = images(steps, 2, 48, 8) * 2
        functional.reset_net(their)
        expected = their(u.transpose(2, 3).unflatten(3, (6, 8))).flatten(3).transpose(2, 3)
        got = ours(u, (6, 8))
        assert torch.allclose(got, expected, atol=1e-10) is same
        assert got.std() > 0.1
        grad = images(*got.shape, seed=1)
        (ours_learn,) = torch.autograd.grad(got, ours.conv1.weight, grad)
        (theirs_learn,) = torch.autograd.grad(expected, their.conv1.weight, grad)
        assert torch.allclose(ours_learn, theirs_learn, atol=1e-10) is same
        assert ours_learn.norm() > 0.1
