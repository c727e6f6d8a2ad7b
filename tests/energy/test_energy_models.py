"""Figures of whole models: this package's, and SpikingJelly's Spikformer as somebody else's."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import s2tdpt
from s2tdpt.energy import EnergyReport, count

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make_it_fire(model: nn.Module, forget=lambda model: None) -> None:
    """Batch statistics for running ones, so that an untrained network fires in evaluation mode."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None
    model.train()
    with torch.no_grad():
        model(IMAGES)
    forget(model)


def in_millions(report: EnergyReport, *names: str) -> float:
    """Nominal MACs of the layers whose names begin so, products of attention included."""
    return sum(r.nominal_macs for r in report.layers if r.name.startswith(names)) / 1e6


@pytest.fixture(scope="module")
def spiking() -> EnergyReport:
    torch.manual_seed(0)
    model = s2tdpt.create_model("s2tdpt_4_384")
    make_it_fire(model)
    return count(model, IMAGES, exact=True)


def test_the_ann_twin_costs_what_the_method_says():
    for images in (IMAGES, torch.zeros(1, 3, 32, 32)):
        report = count(s2tdpt.create_model("vit_4_384"), images)
        assert report.counts.macs == report.nominal_macs == pytest.approx(0.9340e9, rel=1e-4)
        assert report.energy_mj("paper") == pytest.approx(4.297, abs=5e-4)
        assert report.counts.sops == report.counts.neuron_updates == report.mean_firing_rate == 0
        assert report.uncounted == ()


def test_macs_of_the_spiking_transformer(spiking):
    T = 4
    stem = [r.nominal_macs / 1e6 for r in spiking.layers if r.name.startswith("stem")]
    assert stem == pytest.approx([1.33, T * 42.5, T * 169.9, T * 169.9, T * 84.9], rel=3e-3)  # the first one once
    for i in range(4):
        qkv, proj = in_millions(spiking, f"blocks.{i}.attn.qkv"), in_millions(spiking, f"blocks.{i}.attn.proj")
        assert qkv + proj == pytest.approx(T * 37.7, rel=3e-3)
        assert in_millions(spiking, f"blocks.{i}.mlp") == pytest.approx(T * 75.5, rel=3e-3)
        (attention,) = (r for r in spiking.layers if r.name == f"blocks.{i}.attn")
        assert attention.op == "stdp_attention"
        assert attention.nominal_macs == T * 64 * 64 * 384
        assert attention.counts.table_reads == T * 64 * 64 * 12
    assert in_millions(spiking, "head") == 384 * 10 / 1e6


def test_the_spiking_transformer_is_binary_but_for_pixels_and_head(spiking):
    assert [(e.name, e.what) for e in spiking.non_binary_edges] == [("stem.conv.0", "pixels"), ("head", "membrane")]
    assert spiking.counts.macs == pytest.approx(32 * 32 * 48 * 27 + 3840)
    assert spiking.counts.integer_macs == 0
    assert spiking.uncounted == ()


def test_the_energy_follows_the_equation(spiking):
    rows = [r for r in spiking.layers if r.name not in ("stem.conv.0", "head")]
    sops = sum(r.rate * r.nominal_macs for r in rows)
    first, head = spiking.layers[0].nominal_macs, 3840
    assert spiking.energy_mj("paper") == pytest.approx((0.9 * sops + 4.6 * (first + head)) * 1e-9)
    assert spiking.mean_firing_rate == pytest.approx(sops / sum(r.nominal_macs for r in rows))
    assert 0.01 < spiking.mean_firing_rate < 0.5


def test_every_neuron_of_the_spiking_transformer_is_updated_once_a_step(spiking):
    stem, block = 48 * 1024 + 96 * 1024 + 192 * 1024 + 384 * 256, 64 * (384 + 3 * 384 + 384 + 384 + 1536)
    assert spiking.counts.neuron_updates == 4 * (stem + 4 * block)
    assert len(spiking.neurons) == 4 + 4 * 5
    assert all(n.firing_rate is not None for n in spiking.neurons)


def test_the_exact_count_is_a_little_below_the_nominal_one(spiking):
    exact = {r.name: r.exact for r in spiking.layers}
    for row in spiking.layers:
        if row.op == "linear":  # no padding: the two counters agree
            assert exact[row.name].sops + exact[row.name].macs == pytest.approx(row.counts.sops + row.counts.macs)
    assert exact["stem.conv.0"].macs == 48 * 3 * (32 * 3 - 2) ** 2
    assert 0.90 < spiking.exact.sops / spiking.counts.sops < 0.99


@pytest.mark.parametrize("attention", ["mean", "identity", "random"])
def test_controls_have_no_stray_edges(attention):
    model = s2tdpt.create_model("s2tdpt_tiny", attention=attention)
    make_it_fire(model)
    report = count(model, IMAGES)
    assert [e.what for e in report.non_binary_edges] == ["pixels", "membrane"]
    attended = [r for r in report.layers if r.op == "stdp_attention"]
    assert len(attended) == (2 if attention == "random" else 0)


@pytest.mark.parametrize("time_steps", [1, 2])
def test_all_time_steps_are_counted(time_steps):
    model = s2tdpt.create_model("s2tdpt_tiny", time_steps=time_steps)
    still = count(model, IMAGES)
    moving = count(model, torch.rand(time_steps, 2, 3, 32, 32))
    first = still.layers[0].nominal_macs
    rest = count(s2tdpt.create_model("s2tdpt_tiny", time_steps=1), IMAGES).nominal_macs - first - 640
    assert still.nominal_macs == first + time_steps * rest + 640
    assert moving.nominal_macs == time_steps * (first + rest) + 640
    assert moving.images == 2


class TestSpikformer:
    """SpikingJelly's: residual sums of spikes make integers, which its linear layers multiply."""

    @pytest.fixture(scope="class")
    def report(self) -> EnergyReport:
        spikformer = pytest.importorskip("spikingjelly.activation_based.model.spikformer")
        functional = pytest.importorskip("spikingjelly.activation_based.functional")
        torch.manual_seed(0)
        model = spikformer.spikformer_cifar10()
        make_it_fire(model, functional.reset_net)
        report = count(model, IMAGES)
        functional.reset_net(model)
        folded = count(model, IMAGES.expand(4, -1, -1, -1, -1))  # its other way of taking images
        assert folded.images == 2
        assert folded.nominal_macs == report.nominal_macs
        return report

    def test_macs(self, report):
        products = sum(r.nominal_macs for r in report.layers if r.op == "matmul")
        first = report.layers[0].nominal_macs
        assert report.layers[0].operands == ("pixels", "weight")
        step = (report.nominal_macs - products - first) / 4 + first
        assert step / 1e6 == pytest.approx(921.5, abs=0.1)
        assert products == 4 * 4 * 2 * 64 * 32 * 384  # as it runs: Q (K^T V), 32 features a head
        assert report.uncounted == ()

    def test_integer_edges(self, report):
        edges = [e for e in report.non_binary_edges if e.what == "integer" and e.name != "head"]
        multiplied = [e for e in edges if e.multiplies]
        assert sum(e.nominal_macs for e in multiplied) / 4e6 == pytest.approx(264, abs=0.5)
        assert Counter(e.name.split(".")[2] for e in multiplied) == {"attn": 4, "mlp": 4}
        assert {e.op for e in edges if not e.multiplies} == {"matmul"}  # counts of coincident spikes, added up by V
        assert report.counts.integer_macs > 0
        assert {r.name for r in report.layers if r.counts.macs} <= {report.layers[0].name, "head"}

    def test_neurons(self, report):
        stem, block = 48 * 1024 + 96 * 1024 + 192 * 256 + 2 * 384 * 64, 64 * (3 * 384 + 384 + 384 + 1536 + 384)
        assert report.counts.neuron_updates == 4 * (stem + 4 * block)
        assert not any("surrogate" in n.name for n in report.neurons)
