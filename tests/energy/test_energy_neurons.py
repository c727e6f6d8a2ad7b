"""Neurons and attention, ours and others', inside models that are counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import s2tdpt
from s2tdpt.energy import count
from s2tdpt.ops import lif, stdp_event_counts

from .nets import Call


def test_membranes_are_told_from_activations():
    class Readout(nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.fc1, self.fc2, self.neuron = nn.Linear(8, 8), nn.Linear(8, 3), neuron

        def forward(self, x):
            u = self.fc1(x)
            self.neuron(u)
            return self.fc2(u)

    x = torch.randn(4, 8)
    assert [e.what for e in count(Readout(s2tdpt.LIF()), x).non_binary_edges] == ["pixels", "membrane"]
    assert [e.what for e in count(Readout(nn.ReLU()), x).non_binary_edges] == ["pixels", "float"]


def test_a_silent_layer_costs_nothing_but_a_dead_relu_does():
    x = torch.rand(2, 6)

    def after(neuron):
        first = nn.Linear(6, 6)
        nn.init.constant_(first.weight, -1.0)
        nn.init.zeros_(first.bias)
        return count(nn.Sequential(first, neuron, nn.Linear(6, 4)), x)

    silent, dead = after(s2tdpt.LIF()), after(nn.ReLU())
    assert (silent.counts.sops, silent.counts.macs, silent.layers[1].spiking_macs) == (0, 36, 24)
    assert (dead.counts.macs, dead.counts.neuron_updates) == (36 + 24, 0)


def test_weights_of_zeros_and_ones_are_no_spikes():
    fc = nn.Linear(6, 4)
    nn.init.zeros_(fc.weight)
    assert count(fc, torch.randn(2, 6)).counts.macs == 24


def test_one_neuron_is_counted_once_however_it_is_wrapped():
    class Surrogate(nn.Module):
        def forward(self, x):
            return (x >= 0).to(x)

    class Declared(nn.Module):
        def __init__(self):
            super().__init__()
            self.v_threshold, self.surrogate = 0.1, Surrogate()

        def forward(self, x):
            return self.surrogate(x - self.v_threshold)

    class Wrapper(nn.Module):
        def __init__(self, inner, v_threshold=0.1):
            super().__init__()
            self.norm, self.inner, self.v_threshold = nn.BatchNorm1d(6), inner, v_threshold

        def forward(self, x):
            return self.inner(self.norm(x))

    x = torch.randn(4, 6)
    for inner, name in ((Declared(), "inner"), (Surrogate(), "(Wrapper)"), (s2tdpt.LIF(v_threshold=0.1), "inner")):
        (neuron,) = count(Wrapper(inner), x).neurons
        assert (neuron.name, neuron.updates) == (name, 6)
        assert neuron.firing_rate is not None
        assert 0 < neuron.firing_rate < 1
    (neuron,) = count(Declared(), x).neurons
    assert (neuron.name, neuron.updates) == ("(Declared)", 6)


def test_the_functional_neuron_counts_updates():
    class Functional(nn.Module):
        def forward(self, x):
            return lif(x)[0].mean(0)

    (neuron,) = count(Functional(), torch.rand(3, 2, 5), batch_size=2).neurons
    assert (neuron.updates, neuron.firing_rate) == (15, None)


@pytest.mark.parametrize("implementation", ["dense", "table", "event"])
def test_stdp_attention_inside_somebody_elses_module(implementation):
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.mixer = s2tdpt.STDPAttention(8, 2, implementation=implementation)

        def forward(self, x):
            return self.mixer((self.embed(x) > 0).to(x))

    T, B, N = 3, 2, 5
    torch.manual_seed(0)
    theirs, x = Theirs(), torch.randn(T, B, N, 8)
    kept: dict[str, Tensor] = {}
    theirs.mixer.qkv_neuron.register_forward_hook(lambda m, args, out: kept.update(fired=out))
    nn.init.normal_(theirs.mixer.qkv_norm.bias)  # so that they fire
    report = count(theirs, x, batch_size=B, exact=True)
    query, key, value = kept["fired"].view(T, B, N, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
    (row,) = (r for r in report.layers if r.op == "stdp_attention")
    assert value.mean() > 0
    assert (row.name, row.operands, row.nominal_macs) == ("mixer", ("STDP weights", "binary"), T * N * N * 8)
    assert row.counts.sops == pytest.approx(T * N * N * 8 * value.mean().item())
    assert row.counts.table_reads == T * N * N * 2
    events = stdp_event_counts(query, key, value)
    assert row.exact is not None
    assert row.exact.sops * B == events.additions
    assert row.exact.table_reads * B == events.table_reads
    products = [r.name for r in report.layers]
    assert products == ["embed", "mixer.qkv", "mixer", "mixer.proj"]  # nothing from inside the operator
    assert report.counts.neuron_updates == T * N * (24 + 8)


def test_stdp_attention_on_real_numbers_shows():
    mixer = Call(lambda x, fc: s2tdpt.ops.stdp_attention((x > 0.5).to(x), (x > 0.5).to(x), x, s2tdpt.StdpWindow()))
    report = count(mixer, torch.rand(2, 5, 8))
    assert (report.counts.macs, report.counts.sops) == (5 * 5 * 8, 0)
    (edge,) = report.non_binary_edges
    assert (edge.operand, edge.what, edge.multiplies) == ("value", "pixels", True)
