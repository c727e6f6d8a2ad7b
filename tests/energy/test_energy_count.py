"""Whole models: hand-computed figures, the time axis, and the edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import s2tdpt
from s2tdpt.energy import count

from .nets import IMAGES, Call, Net, Taps

CONV1, CONV2, HEAD = 36 * 4 * 18, 3 * 9 * 6 * 36, 30


def test_a_net_by_hand(net):
    taps: dict[str, Tensor] = {}
    for name in ("conv2", "neuron1", "neuron2"):
        net.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: taps.update({name: args[0] if name == "conv2" else out})
        )
    report = count(net, IMAGES)
    conv1, conv2, head = report.layers
    assert [(r.name, r.op) for r in report.layers] == [("conv1", "conv2d"), ("conv2", "conv2d"), ("head", "linear")]
    assert (conv1.nominal_macs, conv2.nominal_macs, head.nominal_macs) == (CONV1, CONV2, HEAD)
    rate = taps["conv2"].mean().item()
    assert 0.05 < rate < 0.95
    assert (conv1.operands, conv1.counts.macs) == (("pixels", "weight"), CONV1)
    assert conv2.operands == ("binary", "weight")
    assert conv2.rate == pytest.approx(rate)
    assert conv2.counts.sops == pytest.approx(rate * CONV2)
    assert report.mean_firing_rate == pytest.approx(rate)
    assert {n.name: n.updates for n in report.neurons} == {"neuron1": 3 * 4 * 36, "neuron2": 3 * 6 * 9}
    spikes = torch.cat([taps["neuron1"].flatten(), taps["neuron2"].flatten()])
    assert report.neuron_firing_rate == pytest.approx(spikes.mean().item())
    done = rate * CONV2 * 0.9 + (CONV1 + head.counts.macs + head.counts.integer_macs) * 4.6
    assert report.energy_mj("paper") == pytest.approx(done * 1e-9)


def test_rate_is_that_of_the_tensor_after_pooling():
    torch.manual_seed(0)
    tap = Taps()
    x = (torch.rand(1, 2, 8, 8) < 0.2).float()
    report = count(nn.Sequential(nn.MaxPool2d(2), tap, nn.Conv2d(2, 3, 3)), x)
    assert report.layers[0].rate == pytest.approx(tap.kept.mean().item())
    assert report.layers[0].rate > x.mean()


def test_edges_are_pixels_and_the_head_only(net):
    edges = count(net, IMAGES).non_binary_edges
    assert [(e.name, e.operand) for e in edges] == [("conv1", "input"), ("head", "input")]
    assert edges[0].what == "pixels"
    assert edges[1].what in ("integer", "float")  # a mean of spikes over steps and places
    assert all(e.multiplies for e in edges)


def test_figures_are_per_image_whatever_the_batch(net):
    one = count(net, IMAGES[:1].expand(1, -1, -1, -1))
    three = count(net, IMAGES[:1].expand(3, -1, -1, -1))
    assert three.images == 3
    assert three.counts.sops == pytest.approx(one.counts.sops)
    assert three.nominal_macs == one.nominal_macs


def test_a_still_image_passes_the_first_layer_once_even_where_the_model_repeats_it(net):
    once = count(net, IMAGES)
    net.repeat_input = True
    assert count(net, IMAGES).to_dict() == once.to_dict()
    batch_first = Call(lambda x, fc: fc(x.repeat_interleave(3, 0)).unflatten(0, (2, 3)).sum(1))
    assert count(batch_first, torch.rand(2, 8)).nominal_macs == 24
    repeated = count(net, IMAGES.expand(3, -1, -1, -1, -1))
    assert repeated.images == 2
    assert repeated.nominal_macs == once.nominal_macs
    assert repeated.counts.sops == pytest.approx(once.counts.sops)


def test_input_that_varies_passes_the_first_layer_at_each_step(net):
    report = count(net, torch.rand(3, 2, 2, 6, 6))
    assert report.images == 2
    assert report.layers[0].nominal_macs == 3 * CONV1


def test_a_loop_over_steps_counts_like_steps_folded_into_the_batch():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(48, 2)

        def forward(self, x):
            v, out = 0.0, 0.0
            for _ in range(4):
                v = v + self.conv(x)
                spikes = (v > 0.6).to(x)
                v = v - spikes
                out = out + self.fc(spikes.flatten(1))
            return out

    torch.manual_seed(0)
    conv, fc = count(Loop(), IMAGES).layers
    assert (conv.nominal_macs, conv.calls) == (16 * 3 * 18, 1)
    assert (fc.nominal_macs, fc.calls, fc.operands[0]) == (4 * 48 * 2, 4, "binary")


def test_frames_written_into_one_buffer_are_told_apart():
    def frames(x, fc):
        buffer, total = x.clone(), 0.0
        for shift in (0.0, 1.0, 1.0):
            buffer.copy_(x + shift)
            total = total + fc(buffer)
        return total

    assert count(Call(frames), torch.rand(2, 8)).nominal_macs == 2 * 24


def test_a_black_input_is_still_pixels_and_cutting_it_up_repeats_nothing():
    for x in (torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)):
        patches = count(Call(lambda x, fc: fc(x.view(4, 8))), x)
        assert patches.counts.macs == 4 * 24
        enlarged = count(
            Call(lambda x, fc: F.conv2d(F.interpolate(x, scale_factor=2.0), fc.weight.view(3, 2, 2, 2))), x
        )
        assert enlarged.counts.macs == 49 * 24


def test_binary_events_as_input_are_spikes():
    frames = (torch.rand(3, 2, 2, 6, 6) < 0.2).float()
    report = count(Net(s2tdpt.LIF()), frames)
    assert report.layers[0].operands == ("binary", "weight")
    assert report.layers[0].counts.sops == pytest.approx(frames.mean().item() * 3 * CONV1)


def test_integers_are_named_and_priced_as_multiplications():
    counts = torch.randint(0, 4, (2, 8), generator=torch.Generator().manual_seed(0)).float()
    report = count(Call(lambda x, fc: fc((x > 0).float() + (x > 1).float())), counts)
    (layer,) = report.layers
    density = (counts > 0).float().mean().item()
    assert layer.operands == ("integer", "weight")
    assert layer.counts.integer_macs == pytest.approx(density * 24)
    assert (layer.counts.sops, layer.counts.macs, layer.spiking_macs) == (0, 0, 0)
    assert report.energy_mj() == pytest.approx(density * 24 * 4.6e-9)
    (edge,) = report.non_binary_edges
    assert (edge.what, edge.multiplies, edge.nominal_macs) == ("integer", True, 24)


def test_ternary_spikes_are_additions_and_an_edge():
    torch.manual_seed(0)
    report = count(Call(lambda x, fc: fc((x > 0.5).float() - (x < -0.5).float())), torch.randn(4, 8))
    assert report.counts.macs == report.counts.integer_macs == 0
    assert report.counts.sops == pytest.approx(report.layers[0].rate * 24)
    assert [(e.what, e.multiplies) for e in report.non_binary_edges] == [("ternary", False)]


def test_spikes_behind_a_weight_matrix_are_its_input():
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    report = count(Call(lambda x, fc: fc.weight @ (x > 0).float().t()), x)
    assert report.layers[0].operands == ("weight", "binary")
    assert report.counts.sops == pytest.approx((x > 0).sum().item() * 3 / 4)


def test_silence_is_free_also_as_a_count_of_coincidences_or_in_a_buffer():
    def coincidences(x, fc):
        return fc((x > 2).float().t() @ (x > 2).float())

    def buffer(x, fc):
        fired = torch.empty_like(fc.weight @ x.t())
        fired.copy_((fc.weight @ x.t() > 9).float())
        return fired @ fc.weight.new_ones(4, 2)

    for function, layers in ((coincidences, 2), (buffer, 3)):
        report = count(Call(function), torch.rand(4, 8))
        assert len(report.layers) == layers
        assert report.layers[-1].operands[0] == "binary"
        assert report.layers[-1].counts.macs == report.counts.sops == 0
