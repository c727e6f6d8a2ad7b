"""Firing rates and spike trains, counted a second time by hand."""

from __future__ import annotations

import pytest
import torch

from s2tdpt.errors import InputError
from s2tdpt.explain import firing_rates, spike_trains


@pytest.mark.parametrize("time_steps", [1, 3])
def test_rates_and_map(build_model, images, time_steps) -> None:
    model, x = build_model(time_steps=time_steps), images()
    with torch.no_grad():
        u = model.stem(x, time_steps)
        by_block = []
        for block in model.blocks:
            inner = {}
            handle = block.attn.mix_neuron.register_forward_hook(lambda _m, _a, out, inner=inner: inner.update(s=out))
            u = block(u)
            handle.remove()
            by_block.append(inner["s"])  # [T, B, N, D]
    rates = firing_rates(model, x)
    assert rates.attention == pytest.approx([spikes.mean().item() for spikes in by_block], abs=1e-12)
    assert max(rates.attention) > 0.01
    expected = torch.stack(by_block).mean((0, 1, 4)).view(4, 4, 6)
    torch.testing.assert_close(rates.maps.double(), expected, rtol=1e-6, atol=1e-7)
    assert next(iter(rates.layers)) == "stem.neuron.0"  # in the order of the forward pass
    assert list(rates.layers)[-1] == "blocks.1.mlp.neuron2"
    assert len(rates.layers) == 2 + 2 * 5
    trains = spike_trains(model, x)
    assert list(trains) == ["blocks.0.attn.mix_neuron", "blocks.1.attn.mix_neuron"]
    assert all(torch.equal(a, b) for a, b in zip(trains.values(), by_block, strict=True))


def test_chosen_layers(spiking, images) -> None:
    (name,) = names = ["stem.neuron.1"]
    train = spike_trains(spiking, images(), names)[name]
    assert train.mean().item() == pytest.approx(firing_rates(spiking, images()).layers[name])
    with pytest.raises(InputError, match=r"no neuron layer 'head': use one of stem\.neuron\.0"):
        spike_trains(spiking, images(), ["head"])


def test_an_ann_has_no_spikes(ann, images) -> None:
    for function in (firing_rates, spike_trains):
        with pytest.raises(InputError, match="no spiking neurons"):
            function(ann, images())
