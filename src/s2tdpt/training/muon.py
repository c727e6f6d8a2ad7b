"""Muon for matrices and convolution kernels: momentum, then an orthogonalised update.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` takes matrices
only and goes through them one by one; this one flattens kernels to [out, in * k * k] and stacks equal shapes.
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
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
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
            same_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    same_shape[len(param), param[0].numel()].append(param)
            for (rows, cols), params in same_shape.items():
                self._update(params, group, max(1.0, rows / cols) ** 0.5)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any], scale: float) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        averages = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, averages, momentum)
        update = orthogonalize(torch.stack([matrix.flatten(1) for matrix in nesterov]), group["ns_steps"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(params, [u.view(p.shape) for u, p in zip(update * (lr * scale), params, strict=True)])
