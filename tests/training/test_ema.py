"""The weight average against its definition."""

import pytest
import torch
from torch import nn

from s2tdpt.errors import CheckpointError
from s2tdpt.training.ema import Ema


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _walk(model):
    """Move every weight and statistic, and say what they are."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) if tensor.is_floating_point() else 1)
    return _snapshot(model)


def _snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_average_is_the_weighted_mean_of_the_updates_alone():
    model = _model()
    ema = Ema(model, decay=0.9)
    history = []
    for _ in range(5):
        history.append(_walk(model))
        ema.update()
    weights = torch.tensor([0.9**age for age in reversed(range(5))])
    for name, average in ema.state_dict().items():
        if name != "updates":
            values = torch.stack([moment[name] for moment in history])
            torch.testing.assert_close(average, torch.tensordot(weights / weights.sum(), values, dims=1))


def test_restart_forgets():
    model = _model()
    ema = Ema(model, decay=0.9)
    _walk(model)
    ema.update()
    ema.restart()
    now = _walk(model)
    ema.update()
    assert all(torch.equal(average, now[name]) for name, average in ema.state_dict().items() if name != "updates")


def test_swap_shows_the_average_and_restores_the_weights_exactly():
    model = _model()
    ema = Ema(model, decay=0.5)
    for _ in range(3):
        own = _walk(model)
        ema.update()
    address = model[0].weight.data_ptr()

    def fail_inside_swap():
        with ema.swap():
            assert model[0].weight.data_ptr() == address
            assert torch.equal(model[0].weight, ema.state_dict()["0.weight"])
            assert torch.equal(model[1].running_mean, ema.state_dict()["1.running_mean"])
            model[1].reset_running_stats()
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail_inside_swap()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model[0].weight, ema.state_dict()["0.weight"])


def test_state_round_trip_is_exact():
    model = _model()
    ema = Ema(model, decay=0.7)
    _walk(model)
    ema.update()
    kept = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    other = Ema(model, decay=0.7)
    other.load_state_dict(kept)
    _walk(model)
    ema.update()
    other.update()
    for name, tensor in ema.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not torch.equal(kept["0.weight"], other.state_dict()["0.weight"])


def test_another_models_averages_are_refused():
    with pytest.raises(CheckpointError, match="not this model's"):
        Ema(_model(), 0.9).load_state_dict(Ema(nn.Linear(3, 4), 0.9).state_dict())
    with pytest.raises(ValueError, match="decay"):
        Ema(_model(), 1.0)
