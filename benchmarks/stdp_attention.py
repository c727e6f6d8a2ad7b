"""STDP attention forward + backward, 12 heads x 32, N = 64 … 65,536 tokens with B·N = 65,536, all as CUDA graphs:
ours beside the equation in PyTorch as long as its N x N matrices fit, and beside scaled_dot_product_attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import parity
from benchmarks.common import Case, Run, needs_gpu, start
from benchmarks.limits import Ceilings, Floor, Work
from benchmarks.rows import Results
from benchmarks.timing import Contestant, graphed, prepared
from s2tdpt.ops import StdpWindow, stdp_attention
from s2tdpt.ops.stdp import reference, table

TOKENS = (64, 256, 1024, 4096, 16384, 65536)
SMOKE_TOKENS = (16, 130)  # one tile; buckets
ROWS = 65536
FIRING_RATE = 0.15
GAIN = 8.0
TOLERANCE = 1e-2  # of bfloat16 outputs and gradients
DENSE_TRUTH = 2**28  # weights; beyond, the exact table is the truth

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class KeptWindow(StdpWindow):
    """The window with its constants kept on the device: a CUDA graph cannot record their copy."""

    @cache  # noqa: B019 (one window, as long as the process)
    def _on(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        return super().constants(torch.empty(0, dtype=dtype, device=device))

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        return self._on(like.dtype, like.device)


WINDOW = KeptWindow()


@dataclass(frozen=True)
class Problem:
    """Random spikes q, k, v [B, H, N, D_h], laid out as [B, N, H, D_h], and the gradient of the output."""

    qkv: tuple[Tensor, ...]
    grad: Tensor

    @classmethod
    def draw(cls, case: Case, tokens: int) -> Problem:
        batch, heads, width = (1, 2, 8) if case.smoke else (max(1, ROWS // tokens), 12, 32)
        dtype = getattr(torch, case.precision)
        generator = torch.Generator(case.device).manual_seed(tokens)
        shape = (batch, tokens, heads, width)
        draws = [torch.rand(shape, generator=generator, device=case.device) < FIRING_RATE for _ in range(3)]
        grad = torch.randn(shape, generator=generator, device=case.device).to(dtype)
        return cls(tuple(d.to(dtype).transpose(1, 2).requires_grad_() for d in draws), grad.transpose(1, 2))

    @property
    def tokens(self) -> int:
        return self.grad.shape[-2]

    def run(self, attention: Attention) -> Run:
        """The output and the gradients of q, k, v."""

        def run() -> tuple[Tensor, ...]:
            out = attention(*self.qkv)
            return out.detach(), *torch.autograd.grad(out, self.qkv, self.grad)

        return run

    def ours(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return stdp_attention(q, k, v, WINDOW, scale=GAIN / self.tokens, implementation="triton")

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.attention(q, k, v, WINDOW, GAIN / self.tokens)

    def truth(self) -> tuple[Tensor, ...]:
        """By the equation, in float32; by the exact table where its matrices would be large."""
        wide = Problem(tuple(x.detach().float().requires_grad_() for x in self.qkv), self.grad.float())
        short = self.grad[..., 0].numel() * self.tokens <= DENSE_TRUTH
        exact = wide.dense if short else lambda q, k, v: table.attention(q, k, v, WINDOW, GAIN / self.tokens)
        with parity.exact():
            return wide.run(exact)()

    def floor(self, ceilings: Ceilings) -> Floor:
        """Forward reads q, k, v and writes the output; backward reads its gradient and v, and writes three."""
        size = self.grad.numel() * self.grad.element_size()
        return Floor.of([Work(4 * size), Work(5 * size)], ceilings)


def contestant(case: Case, name: str, problem: Problem, attention: Attention) -> Contestant:
    """Weighed run by run, raced as a CUDA graph."""
    weighed = prepared(case, name, lambda: problem.run(attention))
    return replace(weighed, run=graphed(case, weighed.run))


def softmax(case: Case, backend: SDPBackend) -> Attention:
    """scaled_dot_product_attention by that backend and no other."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend) if case.on_gpu else nullcontext():
            return scaled_dot_product_attention(q, k, v)

    return attention


def peers(case: Case) -> dict[str, Callable[[Problem], Attention]]:
    """Each peer by name; the one that is asked for by name first, the one least sure to run last."""
    return {
        "scaled_dot_product_attention, flash": lambda _: softmax(case, SDPBackend.FLASH_ATTENTION),
        "dense equation in PyTorch": lambda problem: problem.dense,
        "scaled_dot_product_attention, cuDNN": lambda _: softmax(case, SDPBackend.CUDNN_ATTENTION),
    }


def main(case: Case) -> None:
    needs_gpu(case)
    problems = [Problem.draw(case, tokens) for tokens in (SMOKE_TOKENS if case.smoke else TOKENS)]
    mine = [contestant(case, f"STDP attention fwd+bwd N={p.tokens}", p, p.ours) for p in problems]
    for problem, ours in zip(problems, mine, strict=True):
        parity.tensors(f"{ours.name} in {case.precision}", ours.run(), problem.truth(), TOLERANCE)
    results, ceilings = Results(case), Ceilings.measure(case)
    for name, attention in peers(case).items():
        for problem, ours in zip(problems, mine, strict=True):
            try:
                peer = contestant(case, name, problem, attention(problem))
            except RuntimeError as error:  # out of memory too
                print(f"{name} does not run at N={problem.tokens}: {str(error).splitlines()[0][:120]}", flush=True)
                break
            results.race([ours], peer, lambda seconds: seconds.milliseconds(), problem.floor(ceilings))


if __name__ == "__main__":
    sys.exit(start(main, "stdp_attention", __doc__))
