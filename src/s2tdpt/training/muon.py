"""Muon for matrices and convolution kernels: momentum, then an orthogonalised update.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` takes matrices
only and goes through them one by one; this one flattens kernels to [out, in * k * k] and stacks those of like shapes.
"""

# pyright: reportPrivateImportUsage=false
# (torch documents its _foreach_ functions, but does not export them)

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix in [..., rows, cols] near 1 (0.7 to 1.2) by Newton-Schulz steps.

    Returns the same shape and dtype. The products run in bfloat16 on CUDA, in float32 elsewhere.
    """
    a, b, c = _QUINTIC
    x = matrices if matrices.size(-2) <= matrices.size(-1) else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # all singular values at most 1
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(shape)
    return (x if matrices.size(-2) <= matrices.size(-1) else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times lr * sqrt(max(1, rows / cols)), with decoupled weight decay.

    Takes parameters of two or more dimensions. `lr` may be a 0-d tensor, which is never read back to the host, so that
    a step can be captured in a CUDA graph.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.02,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps})
        for param in (param for group in self.param_groups for param in group["params"]):
            if param.ndim < 2:
                raise ValueError(f"Muon takes matrices and kernels, not a parameter of shape {tuple(param.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients at hand; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    short, long = sorted(_matrix(param).shape)
                    alike[short, long.bit_length()].append(param)
            for params in alike.values():
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        averages = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, averages, momentum)
        updates = _updates([_matrix(tensor) for tensor in nesterov], lr, group["ns_steps"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(params, [u.reshape(p.shape) for u, p in zip(updates, params, strict=True)])


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)


def _updates(matrices: list[Tensor], lr: float | Tensor, steps: int) -> list[Tensor]:
    """lr * sqrt(max(1, rows / cols)) times each orthogonalised matrix, in one batch.

    All lie down in it, and columns of zeros, which stay zero, make them equally long.
    """
    lying = [m if m.size(0) <= m.size(1) else m.mT for m in matrices]
    batch = lying[0].new_zeros(len(lying), lying[0].size(0), max(m.size(1) for m in lying))
    torch._foreach_copy_([place[:, : m.size(1)] for place, m in zip(batch, lying, strict=True)], lying)
    done = [u[:, : m.size(1)] for u, m in zip(orthogonalize(batch, steps) * lr, lying, strict=True)]
    tall = [i for i, m in enumerate(matrices) if m.size(0) > m.size(1)]
    if tall:
        torch._foreach_mul_([done[i] for i in tall], [(matrices[i].size(0) / matrices[i].size(1)) ** 0.5 for i in tall])
    return [u if m.size(0) <= m.size(1) else u.mT for u, m in zip(done, matrices, strict=True)]
