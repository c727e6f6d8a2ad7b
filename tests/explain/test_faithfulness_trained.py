"""On the model that ships, Grad-CAM finds what decides: it beats a random ranking of the patches by a margin."""

from __future__ import annotations

from s2tdpt import data
from s2tdpt.data import DeviceLoader
from s2tdpt.explain import faithfulness, grad_cam
from s2tdpt.models import load_model

MARGIN = 0.05  # mean probability of the predicted class over the deletion and insertion curves


def test_grad_cam_of_the_shipped_digits_model_beats_a_random_ranking():
    model, _ = load_model("s2tdpt_tiny.digits")
    x, _ = next(DeviceLoader(data.load("digits", "test", limit=16), 16, device="cpu").epoch(0))
    found = faithfulness(model, x, grad_cam(model, x).maps, draws=4)
    backwards = faithfulness(model, x, -grad_cam(model, x).maps, draws=4)
    assert found["margin"] > MARGIN
    assert backwards["margin"] < 0
