"""GPU path: each row is read and written once, and its gradient, where it comes from entries alone, never is.

:func:`step` takes a gradient from memory, :func:`fused_step` sums it from a latent's entries and steps at once, which
at 73,728 latents of 2304 dimensions saves writing and reading 0.7 GB for each of the two weights. Both can keep a
bfloat16 shadow of the weights, which decoding and the encoder's matmul read. ``go`` is a number on the device: where it
is 0 nothing is updated, so that a step that must not be taken is not, and the host need not know.
"""

# Triton's types know neither launches nor constexpr:
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Int
from torch import Tensor

from saecore.kernels import launch
from saecore.kernels.sparse_codes.triton import Entries, dotted, gathered, row_settings

BLOCK = 1024
"""Numbers that a program steps where rows do not matter."""


@dataclass(frozen=True)
class Adam:
    """The numbers of one step. ``count`` is 1 at the first. With ``unit`` rows stay unit; ``tau`` is the cone's."""

    rate: float
    beta1: float
    beta2: float
    count: int
    unit: bool = False
    tau: float = 0.0

    def scalars(self) -> tuple[float, ...]:
        """What the kernels take: both corrections for the start are in the rate and in epsilon."""
        correction = (1 - self.beta2**self.count) ** 0.5
        rate, side = self.rate * correction / (1 - self.beta1**self.count), (1 - self.tau**2) ** 0.5
        return rate, self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, 1e-8 * correction, self.tau, side


@dataclass(frozen=True)
class Rows:
    """A weight with its moments; ``start`` (unit rows) adds the cone, ``shadow`` is rewritten from the result."""

    W: Float32[Tensor, "*shape"]
    m: Float32[Tensor, "*shape"]
    v: Float32[Tensor, "*shape"]
    start: Float32[Tensor, "*shape"] | None = None
    shadow: Tensor | None = None

    def pointers(self) -> tuple[Tensor, ...]:
        start, shadow = (self.W if t is None else t for t in (self.start, self.shadow))
        return self.W, self.m, self.v, start, shadow

    def flags(self) -> dict[str, bool]:
        return {"CONE": self.start is not None, "SHADOW": self.shadow is not None}


def step(rows: Rows, grad: Float32[Tensor, "*shape"], adam: Adam, go: Int[Tensor, "1"]) -> None:
    """Adam in place on a weight of any shape; with ``adam.unit`` on unit rows, as ``reference.unit_rows_step``."""
    n, d = rows.W.shape if adam.unit else (1, rows.W.numel())
    if adam.unit:
        block, _, _, warps = row_settings(d)
        settings = {"D": d, "BLOCK": block, "num_warps": warps}
        _unit_step[(n,)](*rows.pointers(), grad, go, *adam.scalars(), **rows.flags(), **settings)
        return
    block = min(launch.power(d), BLOCK)
    _step[(launch.parts(d, block),)](
        *rows.pointers(), grad, go, *adam.scalars(), d, SHADOW=rows.shadow is not None, BLOCK=block, num_warps=4
    )


def fused_step(rows: Rows, entries: Entries, adam: Adam, go: Int[Tensor, "1"]) -> Float32[Tensor, "capacity"] | None:
    """:func:`step` with the gradient that ``weight_grads`` gives; on unit rows returns what ``code_grads`` gives."""
    by, coefficients = entries.by, entries.coefficients
    n, d = rows.W.shape
    block, blocks, chunk, warps = row_settings(d)
    given = (entries.source, entries.rows, coefficients, by.starts, by.order)
    settings = {"D": d, "BLOCK": block, "CHUNK": chunk, "num_warps": warps}
    if adam.unit:
        dots = torch.zeros_like(coefficients)
        _fused_unit_step[(n,)](*rows.pointers(), *given, dots, go, *adam.scalars(), **rows.flags(), **settings)
        return dots
    _fused_step[(n, blocks)](*rows.pointers(), *given, go, *adam.scalars(), SHADOW=rows.shadow is not None, **settings)
    return None


@triton.jit
def _moved(w, g, m, v, place, inside, rate, beta1, rest1, beta2, rest2, eps):
    """Some weights by one step of Adam; the moments are written."""
    first = beta1 * tl.load(m + place, mask=inside, other=0) + rest1 * g
    second = beta2 * tl.load(v + place, mask=inside, other=0) + rest2 * g * g
    tl.store(m + place, first, mask=inside)
    tl.store(v + place, second, mask=inside)
    return tl.where(inside, w - rate * first / (tl.sqrt(second) + eps), 0.0)


@triton.jit
def _written(w, W, shadow, place, inside, SHADOW: tl.constexpr):
    tl.store(W + place, w, mask=inside)
    if SHADOW:
        tl.store(shadow + place, w.to(shadow.dtype.element_ty), mask=inside)


@triton.jit
def _bounded(
    W, start, shadow, row, square, tau, side,
    CONE: tl.constexpr, SHADOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row whose squared norm is given to unit norm, and into its cone. What the program wrote it now reads."""
    scale = 1 / tl.maximum(tl.sqrt(square), 1e-12)
    cosine = tl.zeros([BLOCK], tl.float32)
    tl.debug_barrier()
    for first in tl.static_range(0, D, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside, place = column < D, row * D + column
        w = tl.load(W + place, mask=inside, other=0) * scale
        _written(w, W, shadow, place, inside, SHADOW)
        if CONE:
            cosine += w * tl.load(start + place, mask=inside, other=0)
    if CONE:
        inner = tl.sum(cosine, axis=0)
        if inner < tau:
            tl.debug_barrier()
            beside = tl.zeros([BLOCK], tl.float32)
            for first in tl.static_range(0, D, BLOCK):
                column = first + tl.arange(0, BLOCK)
                inside, place = column < D, row * D + column
                away = tl.load(W + place, mask=inside, other=0) - inner * tl.load(start + place, mask=inside, other=0)
                beside += away * away
            length = tl.sqrt(tl.sum(beside, axis=0))
            for first in tl.static_range(0, D, BLOCK):
                column = first + tl.arange(0, BLOCK)
                inside, place = column < D, row * D + column
                origin = tl.load(start + place, mask=inside, other=0)
                away = tl.load(W + place, mask=inside, other=0) - inner * origin
                edge = tau * origin + side * away / tl.maximum(length, 1e-12)
                _written(tl.where(length > 1e-6, edge, origin), W, shadow, place, inside, SHADOW)


@triton.jit
def _step(
    W, m, v, start, shadow, grad, go, rate, beta1, rest1, beta2, rest2, eps, tau, side, n,
    SHADOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(go) != 0:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < n
        w, g = tl.load(W + place, mask=inside, other=0), tl.load(grad + place, mask=inside, other=0)
        w = _moved(w, g, m, v, place, inside, rate, beta1, rest1, beta2, rest2, eps)
        _written(w, W, shadow, place, inside, SHADOW)


@triton.jit
def _unit_step(
    W, m, v, start, shadow, grad, go, rate, beta1, rest1, beta2, rest2, eps, tau, side,
    CONE: tl.constexpr, SHADOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(go) != 0:
        row = tl.program_id(0).to(tl.int64)
        along = tl.zeros([BLOCK], tl.float32)
        for first in tl.static_range(0, D, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside, place = column < D, row * D + column
            along += tl.load(W + place, mask=inside, other=0) * tl.load(grad + place, mask=inside, other=0)
        parallel = tl.sum(along, axis=0)
        square = tl.zeros([BLOCK], tl.float32)
        for first in tl.static_range(0, D, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside, place = column < D, row * D + column
            w = tl.load(W + place, mask=inside, other=0)
            g = tl.load(grad + place, mask=inside, other=0) - parallel * w
            w = _moved(w, g, m, v, place, inside, rate, beta1, rest1, beta2, rest2, eps)
            tl.store(W + place, w, mask=inside)
            square += w * w
        _bounded(W, start, shadow, row, tl.sum(square, axis=0), tau, side, CONE, SHADOW, D, BLOCK)


@triton.jit
def _fused_step(
    W, m, v, start, shadow, source, rows, coefficients, starts, order, go,
    rate, beta1, rest1, beta2, rest2, eps, tau, side,
    SHADOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    if tl.load(go) != 0:
        latent = tl.load(order + tl.program_id(0))
        first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside, place = column < D, latent.to(tl.int64) * D + column
        g = gathered(source, rows, coefficients, first, last, column, D, BLOCK, CHUNK)
        w = tl.load(W + place, mask=inside, other=0)
        w = _moved(w, g, m, v, place, inside, rate, beta1, rest1, beta2, rest2, eps)
        _written(w, W, shadow, place, inside, SHADOW)


@triton.jit
def _fused_unit_step(
    W, m, v, start, shadow, source, rows, coefficients, starts, order, dots, go,
    rate, beta1, rest1, beta2, rest2, eps, tau, side,
    CONE: tl.constexpr, SHADOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    if tl.load(go) != 0:
        latent = tl.load(order + tl.program_id(0))
        begin, last = tl.load(starts + latent), tl.load(starts + latent + 1)
        parallel = dotted(W, latent, source, rows, coefficients, begin, last, dots, D, BLOCK, CHUNK)
        row = latent.to(tl.int64)
        square = tl.zeros([BLOCK], tl.float32)
        for first in tl.static_range(0, D, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside, place = column < D, row * D + column
            w = tl.load(W + place, mask=inside, other=0)
            g = gathered(source, rows, coefficients, begin, last, column, D, BLOCK, CHUNK) - parallel * w
            w = _moved(w, g, m, v, place, inside, rate, beta1, rest1, beta2, rest2, eps)
            tl.store(W + place, w, mask=inside)
            square += w * w
        _bounded(W, start, shadow, row, tl.sum(square, axis=0), tau, side, CONE, SHADOW, D, BLOCK)
