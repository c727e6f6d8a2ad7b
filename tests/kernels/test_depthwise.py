"""The depth-wise convolution against PyTorch's, from dense spikes and from bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s2tdpt.ops.depthwise.triton import depthwise, depthwise_weight
from s2tdpt.ops.synapses import DepthwiseBeforeNorm

from .cases import DTYPES, ROUNDING, all_pairs, assert_close, describe, fenced, noise, spikes

SIZES = [(1, 1, 1, 8), (2, 3, 5, 16), (3, 1, 7, 24), (2, 8, 8, 20), (1, 9, 2, 96)]
CELLS = all_pairs(size=SIZES, dtype=DTYPES)


def packed(x: Tensor) -> Tensor:
    """Eight spikes a byte, the first one lowest."""
    return fenced((x.view(-1, 8).int() << torch.arange(8, device=x.device)).sum(1).to(torch.uint8))


def plain(x: Tensor, weight: Tensor) -> Tensor:
    y = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), padding=1, groups=len(weight))
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_forward_and_gradients(cell: dict) -> None:
    size, dtype = cell["size"], cell["dtype"]
    C = size[-1]
    x, weight = spikes(*size, density=0.4, seed=1, dtype=dtype), noise(C, 1, 3, 3, seed=2)
    grad = noise(*size, seed=3, dtype=dtype)
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    expected = plain(*leaves)
    expected_x, expected_weight = torch.autograd.grad(expected, leaves, grad.double())
    assert_close(depthwise(x, weight, False), expected, ROUNDING[dtype], "forward")
    assert_close(depthwise(grad, weight, True), expected_x, ROUNDING[dtype], "gradient of the input")
    assert_close(depthwise_weight(grad, x, False), expected_weight, 1e-5, "gradient of the weight")
    if x.numel() % 8 == 0:
        assert_close(depthwise_weight(grad, packed(x), True), expected_weight, 1e-5, "gradient from bits")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=describe)
@pytest.mark.parametrize("bits", [True, False])
def test_as_a_layer(bits: bool, dtype: torch.dtype) -> None:
    """The gradient of the weight has the weight's dtype, and is the same from bits as from spikes."""
    x = spikes(2, 4, 6, 16, density=0.4, seed=1, dtype=dtype).requires_grad_()
    weight = noise(16, 1, 3, 3, seed=2).requires_grad_()
    kept = packed(x.detach()) if bits else x.new_empty(0, dtype=torch.uint8)
    y = DepthwiseBeforeNorm.apply(x, kept, weight)
    assert isinstance(y, Tensor)
    assert y.dtype == dtype
    grad = noise(*y.shape, seed=3, dtype=dtype)
    got_x, got_weight = torch.autograd.grad(y, (x, weight), grad.transpose(1, 2).contiguous().transpose(1, 2))
    assert (got_x.dtype, got_weight.dtype) == (dtype, torch.float32)
    expected_weight = torch.autograd.grad(plain(x, weight), weight, grad.double())[0]
    assert_close(got_weight, expected_weight, 1e-5, "gradient of the weight")


def test_several_programs_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from s2tdpt.ops.depthwise import triton as launcher

    x, grad = spikes(3, 9, 7, 16, density=0.4, seed=1), noise(3, 9, 7, 16, seed=3)
    weight = noise(16, 1, 3, 3, seed=2).double().requires_grad_()
    (expected,) = torch.autograd.grad(plain(x, weight), weight, grad.double())
    for programs in (1, 3, 1000):
        monkeypatch.setattr(launcher, "_PROGRAMS", programs)
        assert_close(depthwise_weight(grad, x, False), expected, 1e-5, f"{programs} programs")


class TestRegistration:
    CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")

    @pytest.fixture(autouse=True)
    def poisoned_memory(self) -> None:
        """Not here: `opcheck` compares where in their memory tensors start."""

    def test_operators(self) -> None:
        x, weight = spikes(2, 3, 4, 16, density=0.4, seed=1), noise(16, 1, 3, 3, seed=2)
        torch.library.opcheck(depthwise, (x, weight, True), test_utils=self.CHECKS)
        torch.library.opcheck(depthwise_weight, (noise(2, 3, 4, 16, seed=3), x, False), test_utils=self.CHECKS)
