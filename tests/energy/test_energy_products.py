"""Nominal MACs and exact events of every product, against loops that do the sums one by one."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from s2tdpt.energy import count
from s2tdpt.energy.products import is_product, read_products

MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


class Call(nn.Module):
    """A module that calls a function, with its inputs' spikes told apart from pixels by a threshold."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def spikes(*shape: int, density: float = 0.4, seed: int = 0) -> Tensor:
    """Random spikes with at least one 0 and one 1."""
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).float()
    x.view(-1)[0], x.view(-1)[-1] = 0.0, 1.0
    return x


def conv_pairs(x: Tensor, out_channels: int, kernel, stride, padding, dilation, groups) -> tuple[int, int]:
    """(all taps, taps that meet a non-zero) of a 2-D convolution, by loops."""
    B, C, H, W = x.shape
    rows = (H + 2 * padding - dilation * (kernel[0] - 1) - 1) // stride + 1
    columns = (W + 2 * padding - dilation * (kernel[1] - 1) - 1) // stride + 1
    nominal = exact = 0
    for b, o, i, j in product(range(B), range(out_channels), range(rows), range(columns)):
        group = o // (out_channels // groups)
        for c, u, v in product(range(C // groups), range(kernel[0]), range(kernel[1])):
            y, z = i * stride - padding + u * dilation, j * stride - padding + v * dilation
            nominal += 1
            if 0 <= y < H and 0 <= z < W:
                exact += int(x[b, group * (C // groups) + c, y, z] != 0)
    return nominal, exact


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    density=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_convolution_against_loops(groups, size, kernel, stride, padding, dilation, density, seed):
    if min(size[d] + 2 * padding - dilation * (kernel[d] - 1) for d in (0, 1)) < 1:
        return
    x = spikes(1, 2 * groups, *size, density=density, seed=seed)
    conv = nn.Conv2d(2 * groups, 2 * groups, kernel, stride, padding, dilation, groups)
    report = count(conv, x, exact=True)
    nominal, exact = conv_pairs(x, 2 * groups, kernel, stride, padding, dilation, groups)
    assert report.nominal_macs == nominal
    assert report.counts.sops == pytest.approx(nominal * float(x.mean()))
    assert report.exact is not None
    assert report.exact.sops == exact
    assert report.exact.macs == report.counts.macs == 0


def test_transposed_convolution_against_loops():
    x = spikes(1, 4, 3, 3)
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    report = count(conv, x, exact=True)
    exact = 0
    for c, i, j in x[0].nonzero().tolist():
        del c
        landed = sum(0 <= 2 * i - 1 + u < 5 and 0 <= 2 * j - 1 + v < 5 for u, v in product(range(3), range(3)))
        exact += landed * 3  # filters of its group
    assert report.nominal_macs == x.numel() * 3 * 9
    assert report.exact is not None
    assert report.exact.sops == exact
    assert report.layers[0].op == "conv_transpose2d"


def test_convolution_of_two_activations_counts_pairs():
    x, kernels = spikes(1, 2, 4, 4), spikes(3, 2, 3, 3, seed=1)
    report = count(Call(lambda a, b: F.conv2d(a, b, padding=1)), (x, kernels), exact=True)
    ones = F.conv2d(x, kernels, padding=1)  # of zeros and ones: the products that are not zero
    assert report.exact is not None
    assert report.exact.sops == ones.sum()


def test_exact_macs_of_pixels_leave_padding_out_but_keep_zeros():
    x = torch.rand(2, 3, 5, 5)
    x[:, :, 0] = 0
    report = count(nn.Conv2d(3, 4, 3, padding=1, bias=False), x, exact=True)
    inside, _ = conv_pairs(torch.ones(1, 3, 5, 5), 4, (3, 3), 1, 1, 1, 1)
    assert report.counts.macs == inside == 25 * 27 * 4
    assert report.exact is not None
    assert report.exact.macs == conv_pairs(torch.ones(1, 3, 5, 5), 4, (3, 3), 1, 1, 1, 1)[1] < inside


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (lambda a, b: a @ b, [(3, 4), (4, 5)], 60),
        (lambda a, b: a @ b, [(2, 3, 4), (4, 5)], 120),
        (lambda a, b: a @ b, [(2, 6, 3, 4), (2, 6, 4, 5)], 720),
        (lambda a, b: a @ b, [(2, 1, 3, 4), (1, 6, 4, 5)], 720),
        (lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b), [(2, 3, 4, 5), (2, 3, 6, 5)], 720),
        (lambda a, b: torch.baddbmm(torch.ones(2, 3, 5), a, b), [(2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: torch.addbmm(torch.ones(3, 5), a, b), [(2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: torch.addmm(torch.ones(5), a, b), [(3, 4), (4, 5)], 60),
        (lambda a, b: torch.ones(3, 5).addmm_(a, b), [(3, 4), (4, 5)], 60),
        (lambda a, b: torch.addmv(torch.ones(3), a, b), [(3, 4), (4,)], 12),
        (lambda a, b: torch.mv(a, b), [(3, 4), (4,)], 12),
        (lambda a, b: torch.dot(a, b), [(4,), (4,)], 4),
        (lambda a, b: F.linear(a, b), [(2, 3, 4), (5, 4)], 120),
        (lambda a, b: F.conv1d(a, b, padding=1), [(2, 3, 4), (5, 3, 3)], 2 * 4 * 5 * 9),
        (lambda a, b: F.conv3d(a, b), [(2, 3, 4, 4, 4), (5, 3, 3, 3, 3)], 2 * 8 * 5 * 81),
    ],
)
def test_nominal_macs_in_every_mode(mode, function, shapes, macs):
    inputs = [torch.randn(shape) for shape in shapes]
    with MODES[mode]():
        report = count(Call(function), inputs, batch_size=1)
    assert (report.counts.macs, report.nominal_macs, report.counts.sops) == (macs, macs, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (2, 3, 4, 6)])
def test_linear_layers_in_every_mode(mode, bias, shape):
    x = spikes(*shape)
    with MODES[mode]():
        report = count(nn.Linear(6, 5, bias=bias), x, batch_size=1, exact=True)
    (layer,) = report.layers
    assert (layer.op, layer.operands) == ("linear", ("binary", "weight"))
    assert layer.nominal_macs == x.numel() * 5
    assert layer.counts.sops == pytest.approx(x.sum().item() * 5)
    assert layer.exact is not None
    assert layer.exact.sops == x.sum() * 5


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 4), st.floats(0.05, 0.9), st.integers(0, 99))
def test_product_of_spikes_with_spikes(m, k, n, density, seed):
    a, b = spikes(2, m, k, density=density, seed=seed), spikes(2, k, n, density=0.5, seed=seed + 100)
    report = count(Call(torch.matmul), (a, b), exact=True)
    pairs = sum(int(a[z, i, j] * b[z, j, o]) for z, i, j, o in product(range(2), range(m), range(k), range(n)))
    assert report.exact is not None
    assert report.exact.sops * 2 == pairs
    assert report.counts.sops == pytest.approx(m * k * n * min(a.mean().item(), b.mean().item()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_attention_counts_both_products(mode, masked):
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    bias = torch.randn(5, 7) if masked else None
    with MODES[mode]():
        report = count(Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias)), (q, k, v))
    assert report.counts.macs == 3 * 5 * 7 * (8 + 4)
    assert len(report.layers) == 2


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
def test_attention_backends_agree(backend):
    x = torch.randn(2, 3, 5, 8)
    with nn.attention.sdpa_kernel(getattr(nn.attention.SDPBackend, backend)):
        assert count(Call(F.scaled_dot_product_attention), (x, x, x)).counts.macs == 2 * 3 * 5 * 5 * 8


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn", "fused"])
def test_attention_kernels_of_gpus_are_known(kernel):
    name = f"_scaled_dot_product_{kernel}_attention{'_overrideable' if kernel == 'fused' else ''}"
    func = getattr(torch.ops.aten, name).default
    q, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 4)
    assert is_product(func)
    assert [p.macs for p in read_products(func, (q, q, v), {}, None)] == [2 * 3 * 5 * 5 * 8, 2 * 3 * 5 * 5 * 4]


def test_grouped_queries_count_every_query_head():
    q, kv = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    report = count(Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)), (q, kv, kv))
    assert report.counts.macs == 2 * 4 * 5 * 5 * 8


def test_softmax_attention_on_spiking_values_adds_them_up():
    q, v = torch.randn(1, 2, 5, 8), spikes(1, 2, 5, 8)
    report = count(Call(F.scaled_dot_product_attention), (q, q, v), exact=True)
    assert report.counts.macs == 2 * 5 * 5 * 8
    assert report.counts.sops == pytest.approx(5 * v.sum().item())
    assert report.exact is not None
    assert report.exact.sops == 5 * v.sum()
    weights = report.non_binary_edges[-1]
    assert (weights.operand, weights.what, weights.multiplies) == ("weights", "float", False)


@pytest.mark.parametrize("mode", MODES)
def test_transformer_layers_do_not_hide_in_the_fast_path(mode):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    enabled = torch.backends.mha.get_fastpath_enabled()
    with MODES[mode]():
        report = count(layer, torch.randn(3, 5, 8))
    assert report.counts.macs == 5 * (4 * 64 + 2 * 8 * 16) + 2 * 5 * 5 * 8
    assert report.uncounted == ()
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_opaque_operators_are_named():
    report = count(nn.LSTM(4, 3), torch.randn(2, 5, 4))
    assert report.counts.macs or report.uncounted
    report = count(Call(lambda x: torch.bilinear(x, x, torch.ones(2, 3, 3), None)), torch.randn(4, 3))
    assert report.uncounted == ("aten::_trilinear",)
    assert "aten::_trilinear" in str(report)
