"""Triton kernels: batch normalisation (+ residual) + LIF over T (+ max-pool), forward."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _affine, _charge, _reset


@triton.jit
def _store_bits(bits, spike, start, stop, BLOCK: tl.constexpr):
    """Eight neighbouring spikes a byte, the first one lowest; start and stop are multiples of 8."""
    eights = tl.reshape(spike.to(tl.int32), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    at = start // 8 + tl.arange(0, BLOCK // 8)
    tl.store(bits + at, tl.sum(eights, 1).to(tl.uint8), mask=at < stop // 8)


@triton.jit
def unpack_kernel(bits, out, n, BLOCK: tl.constexpr):
    """The spikes that `_store_bits` packed."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    byte = tl.load(bits + offset // 8, mask=mask, other=0).to(tl.int32)
    tl.store(out + offset, ((byte >> (offset % 8).to(tl.int32)) & 1).to(tl.float32).to(out.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    y, weight, bias, mean, var, inv_tau, residual, spikes, membrane, bits,
    n, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr, EPS: tl.constexpr,
    RESIDUAL: tl.constexpr, MEMBRANE: tl.constexpr, FIRE: tl.constexpr, PACK: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """spikes = LIF(BN(y) (+ residual)) over T for BLOCK elements of [M, C]; SHARED: y is one step, shown T times."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    a, b, _, _ = _affine(weight, bias, mean, var, offset % C, mask, EPS)
    k = tl.load(inv_tau)
    v = tl.full([BLOCK], REST, tl.float32)
    for t in tl.static_range(T):
        x = tl.load(y + (0 if SHARED else t) * n + offset, mask=mask, other=0.0).to(tl.float32) * a + b
        if RESIDUAL:
            x += tl.load(residual + t * n + offset, mask=mask, other=0.0).to(tl.float32)
        if MEMBRANE:
            stored = x.to(membrane.dtype.element_ty)
            tl.store(membrane + t * n + offset, stored, mask=mask)
            x = stored.to(tl.float32)  # so that the backward pass, which reads it, integrates the same numbers
        if FIRE:
            h = _charge(v, x, k, REST, DECAY_INPUT)
            spike = (h >= THRESHOLD).to(tl.float32)
            tl.store(spikes + t * n + offset, spike.to(spikes.dtype.element_ty), mask=mask)
            if PACK:
                _store_bits(bits, spike, first + t * n, n + t * n, BLOCK)
            v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)


@triton.jit
def forward_pool_kernel(
    y, weight, bias, mean, var, inv_tau, spikes, index, bits,
    n, n_in, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    T: tl.constexpr, SHARED: tl.constexpr, EPS: tl.constexpr, PACK: tl.constexpr, LARGEST: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Max-pool (3, stride 2, padding 1) of LIF(BN(y)); index = which of the 9 places the gradient goes to.

    That is the first spike, or the first place where none fired; LARGEST: the largest charge.

    The neurons of the nine places are integrated once for each window that they are in: arithmetic is cheap here,
    writing the unpooled spikes is not.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    n_in += first * 0
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    c = offset % C
    a, b, _, _ = _affine(weight, bias, mean, var, c, mask, EPS)
    k = tl.load(inv_tau)
    q = (offset // C) % WP
    p = (offset // (C * WP)) % HP
    image = offset // (C * WP * HP)
    fired = ()
    place = ()
    charge = ()
    for t in tl.static_range(T):
        charge = charge + (tl.full([BLOCK], -float("inf"), tl.float32),)
        fired = fired + (tl.zeros([BLOCK], tl.int32),)
        place = place + (tl.full([BLOCK], 9, tl.int32),)
    for s in tl.static_range(9):
        i = 2 * p + (s // 3 - 1)
        j = 2 * q + (s % 3 - 1)
        inside = mask & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        at = ((image * H + i) * W + j) * C + c
        v = tl.full([BLOCK], REST, tl.float32)
        fired_now = ()
        place_now = ()
        charge_now = ()
        for t in tl.static_range(T):
            x = tl.load(y + (0 if SHARED else t) * n_in + at, mask=inside, other=0.0).to(tl.float32) * a + b
            h = _charge(v, x, k, REST, DECAY_INPUT)
            v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
            here = inside & (h >= THRESHOLD)
            if LARGEST:
                picked = inside & ((place[t] == 9) | (h > charge[t]))
                charge_now = charge_now + (tl.where(picked, h, charge[t]),)
            else:
                picked = (inside & (place[t] == 9)) | (here & (fired[t] == 0))  # the first maximum in reading order
                charge_now = charge_now + (charge[t],)
            place_now = place_now + (tl.where(picked, s, place[t]),)
            fired_now = fired_now + (fired[t] | here.to(tl.int32),)
        fired = fired_now
        place = place_now
        charge = charge_now
    for t in tl.static_range(T):
        tl.store(spikes + t * n + offset, fired[t].to(tl.float32).to(spikes.dtype.element_ty), mask=mask)
        tl.store(index + t * n + offset, place[t].to(tl.uint8), mask=mask)
        if PACK:
            _store_bits(bits, fired[t], first + t * n, n + t * n, BLOCK)
