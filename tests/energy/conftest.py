"""A net by hand, with a neuron of ours and with somebody else's."""

from __future__ import annotations

import pytest
import torch

import s2tdpt

from .nets import IntegrateAndFire, Net


@pytest.fixture(params=["own", "foreign"])
def net(request) -> Net:
    torch.manual_seed(0)
    return Net(s2tdpt.LIF(v_threshold=0.3) if request.param == "own" else IntegrateAndFire())
