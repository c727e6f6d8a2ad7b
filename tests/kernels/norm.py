"""One call of the fused norm and neuron, and the same through the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from s2tdpt.ops.lif import reference as lif_reference
from s2tdpt.ops.norm_lif import NormLif, reference
from s2tdpt.ops.norm_lif.triton import norm_lif, unpack

from .cases import ROUNDING, assert_close, distance_to_threshold, fenced, noise

INV_TAU = 0.37


@dataclass
class Inputs:
    y: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    inv_tau: Tensor
    residual: Tensor | None

    def leaves(self, dtype: torch.dtype | None, learn_tau: bool) -> Inputs:
        """Copies, in another dtype if one is given, that collect gradients; the running statistics never do."""
        copies: dict[str, Tensor | None] = {}
        for field in fields(self):
            x = getattr(self, field.name)
            learnt = field.name not in ("mean", "var") and (learn_tau or field.name != "inv_tau")
            copies[field.name] = None if x is None else x.detach().to(dtype or x.dtype).requires_grad_(learnt)
        return Inputs(**copies)  # type: ignore[arg-type]

    def learnt(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: x for name, x in values.items() if x is not None and x.requires_grad}

    def as_arguments(self) -> tuple[Tensor | None, ...]:
        return self.y, self.weight, self.bias, self.mean, self.var, self.inv_tau, self.residual


def neuron_of(spec: NormLif) -> dict[str, object]:
    names = ("v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha")
    return {name: getattr(spec, name) for name in names}


def make_inputs(
    spec: NormLif, rows: int, channels: int, *, dtype: torch.dtype = torch.float32, shared: bool = False,
    residual: bool = False, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Random inputs such that no neuron that fires comes so near its threshold that rounding decides."""
    steps = 1 if shared else spec.time_steps
    inputs = Inputs(
        y=noise(steps, rows, channels, seed=seed, dtype=dtype),
        weight=fenced(1.5 * (noise(channels, seed=seed + 1).abs() + 0.3) * noise(channels, seed=seed + 2).sign()),
        bias=fenced(0.5 + 0.5 * noise(channels, seed=seed + 3)),
        mean=noise(channels, seed=seed + 4),
        var=fenced(noise(channels, seed=seed + 5).square() + 0.3),
        inv_tau=torch.tensor(INV_TAU, device=noise(1, seed=0).device),
        residual=noise(spec.time_steps, rows, channels, seed=seed + 6, dtype=dtype) if residual else None,
    )
    if not spec.fire:
        return inputs
    for attempt in range(100):
        wide = inputs.leaves(torch.float64, False)
        current = reference.norm_lif(*wide.as_arguments(), _silent(spec))[1].detach()
        near = (distance_to_threshold(current, INV_TAU, neuron_of(spec)) < 1e-4).nonzero().tolist()
        if not near:
            return inputs
        fresh = noise(*inputs.y.shape, seed=1000 + attempt, dtype=dtype)
        for m, c in near:
            inputs.y[:, m, c] = fresh[:, m, c]
    raise AssertionError("every draw has a neuron at its threshold")


def _silent(spec: NormLif) -> NormLif:
    return replace(spec, fire=False, membrane=True, pool=None)


def expected(inputs: Inputs, spec: NormLif, membrane: Tensor | None) -> tuple[Tensor, ...]:
    """The reference in float64. A membrane that was rounded when it was stored is what its neurons integrate."""
    if membrane is None or not spec.fire:
        return reference.norm_lif(*inputs.as_arguments(), spec)
    _, x, mean, var = reference.norm_lif(*inputs.as_arguments(), _silent(spec))
    x = x + (membrane.detach().double() - x).detach()
    rest = torch.full_like(x[0], spec.v_reset or 0.0)
    return lif_reference.lif(x, rest, tau=1 / inputs.inv_tau, **neuron_of(spec))[0], x, mean, var


def check(spec: NormLif, inputs: Inputs, *, learn_tau: bool = True) -> None:
    """Outputs and every gradient of the kernels are those of the reference."""
    dtype = inputs.y.dtype
    ours, theirs = inputs.leaves(None, learn_tau), inputs.leaves(torch.float64, learn_tau)
    spikes, membrane, mean, var, bits = norm_lif(*ours.as_arguments(), spec)
    want_spikes, want_membrane, want_mean, want_var = expected(theirs, spec, membrane if spec.membrane else None)
    outputs, wants, gradients = [], [], []
    if spec.fire:
        assert spikes.dtype == dtype
        assert torch.equal(spikes.double(), want_spikes)
        assert 0 < float(spikes.detach().float().mean()) < 1, "a case without spikes or without silence shows little"
        outputs, wants, gradients = [spikes], [want_spikes], [noise(*spikes.shape, seed=77, dtype=dtype)]
    if spec.membrane:
        assert membrane.dtype == dtype
        plain = reference.norm_lif(*theirs.as_arguments(), _silent(spec))[1]
        assert_close(membrane, plain, ROUNDING[dtype], "membrane")
        outputs, wants = [*outputs, membrane], [*wants, want_membrane]
        gradients.append(noise(*membrane.shape, seed=78, dtype=dtype))
    if spec.bits:
        assert torch.equal(unpack(bits, spikes.shape, dtype), spikes)
    assert_close(mean, want_mean, 1e-5, "mean")
    assert_close(var, want_var, 1e-5, "variance")
    got = torch.autograd.grad(outputs, list(ours.learnt().values()), gradients)
    want = torch.autograd.grad(wants, list(theirs.learnt().values()), [g.double() for g in gradients])
    for (name, leaf), g, w in zip(ours.learnt().items(), got, want, strict=True):
        assert g.dtype == leaf.dtype
        cancels = 10 if name == "inv_tau" else 1  # one sum over all neurons
        if name == "y" and leaf.shape[0] * leaf.shape[1] <= 2:
            cancels = 10  # of two rows hardly anything is left beside their mean and x̂
        assert_close(g, w, cancels * ROUNDING[leaf.dtype], f"gradient of {name}")
