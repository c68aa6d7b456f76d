"""GPU path of decoding and of the gradients of the squared error: the quantities of ``cpu.py``, on the device.

Decoding goes by rows: a program gathers the decoder rows of one sample's codes, once. Everything after it goes by
latents: dL/dcode of an entry is an inner product of the latent's own decoder row, which the program holds, with the
row of dL/dx_hat of the entry's sample, and the gradients are sums of such rows: in bfloat16 19 MB at the paper's Gemma
shape, 57 MB with three prefixes, most of which an H200's cache of 50 MB should hold (not measured). Decoder rows and
dL/dx_hat may be bfloat16, sums are float32, and each has one owner and a fixed order: equal inputs give equal bits.
"""

# Triton's types know neither launches nor constexpr:
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int32, Int64, Shaped
from torch import Tensor

from saecore.kernels import launch
from saecore.kernels.sparse_codes.codes import DeviceCodes

BLOCK = 512
"""Dimensions that a program takes at once."""
TILE = 4096
"""Numbers gathered at once: the more, the fewer rounds for a latent that fires in every row. Twice as many would take
168 registers of a Hopper GPU's thread instead of 79 (``_fused_unit_step`` at 2304 dimensions)."""


@dataclass
class DeviceBackward:
    """What one batch says, as ``cpu.Backward``; ``bias_grad`` is dL/db_dec through the decoder."""

    losses: Float32[Tensor, "batch"]
    errors: Float32[Tensor, "batch d_model"]
    pulls: Float[Tensor, "groups batch d_model"]
    bias_grad: Float32[Tensor, "d_model"]


@dataclass
class ByLatent:
    """The order of latents: entry ``where[i]`` comes i-th; those of latent j are ``starts[j]`` to ``starts[j + 1]``.

    Rows of a latent ascend. ``order`` names the latents with most entries first: one that always fires should not be
    started last.
    """

    starts: Int32[Tensor, "n_latents_plus_one"]
    where: Int64[Tensor, "capacity"]
    order: Int32[Tensor, "n_latents"]

    @property
    def counts(self) -> Int32[Tensor, "n_latents"]:
        return self.starts.diff()

    def sort(self, values: Shaped[Tensor, "capacity"]) -> Shaped[Tensor, "capacity"]:
        """What stands for each entry, in this order."""
        return values.index_select(0, self.where)


@dataclass
class Entries:
    """In the order of latents, for each entry the row of ``source`` that it takes and what it multiplies it by."""

    by: ByLatent
    source: Float[Tensor, "n d_model"]
    rows: Int32[Tensor, "capacity"]
    coefficients: Float32[Tensor, "capacity"]


def decode(
    W_dec: Float[Tensor, "n_latents d_model"], b_dec: Float32[Tensor, "d_model"], codes: DeviceCodes
) -> Float32[Tensor, "batch d_model"]:
    """x_hat = codes @ W_dec + b_dec."""
    return _prefixes(None, W_dec, b_dec, codes, (len(W_dec),))[0]


def backward(
    x: Float32[Tensor, "batch d_model"],
    W_dec: Float[Tensor, "n_latents d_model"],
    b_dec: Float32[Tensor, "d_model"],
    codes: DeviceCodes,
    ends: tuple[int, ...],
) -> DeviceBackward:
    """Decode, compare with ``x`` and pull back to the reconstruction; ``pulls`` has the type of ``W_dec``."""
    errors = _prefixes(x, W_dec, b_dec, codes, ends)
    scale = 2.0 / (len(x) * len(ends))
    pulls = errors if len(ends) == 1 else errors.flip(0).cumsum(0).flip(0)
    losses = errors.square().sum(2).mean(0)
    return DeviceBackward(losses, errors[-1], (scale * pulls).to(W_dec.dtype), scale * pulls[0].sum(0))


def pull_rows(codes: DeviceCodes, ends: tuple[int, ...]) -> Int32[Tensor, "capacity"]:
    """For each entry the row of ``pulls`` (as one table of groups * batch rows) that its latent sees."""
    if len(ends) == 1:
        return codes.rows
    inner = _bounds(ends, codes.rows.device)[1:-1]
    group = torch.searchsorted(inner, codes.indices, right=True, out_int32=True)
    return group * codes.batch + codes.rows


def by_latent(indices: Int32[Tensor, "capacity"], n_latents: int) -> ByLatent:
    """Void entries (latent ``n_latents``) come last and are nobody's."""
    ordered, where = torch.sort(indices, stable=True)
    bounds = torch.arange(n_latents + 1, dtype=torch.int32, device=indices.device)
    starts = torch.searchsorted(ordered, bounds, out_int32=True)
    order = torch.argsort(starts.diff(), descending=True, stable=True)
    return ByLatent(starts, where, order.int())


def sum_by_latent(values: Float32[Tensor, "capacity"], by: ByLatent) -> Float32[Tensor, "n_latents"]:
    """The sum of each latent's entries, which are given in the order of latents."""
    out = launch.empty((len(by.order),), torch.float32, values)
    _sums[(len(out),)](values, by.starts, out, CHUNK=128, num_warps=1)
    return out


def code_grads(W_dec: Float[Tensor, "n_latents d_model"], entries: Entries) -> Float32[Tensor, "capacity"]:
    """dL/dcode of each entry; ``source`` holds dL/dx_hat. Void entries have 0."""
    out = torch.zeros_like(entries.coefficients)
    block, _, chunk, warps = row_settings(W_dec.shape[1])
    _code_grads[(len(entries.by.order),)](
        W_dec, entries.source, entries.rows, entries.coefficients, entries.by.starts, entries.by.order, out,
        D=W_dec.shape[1], BLOCK=block, CHUNK=chunk, num_warps=warps,
    )  # fmt: skip
    return out


def weight_grads(entries: Entries, out: Float32[Tensor, "n_latents d_model"]) -> None:
    """Each latent's sum of coefficient times row, into ``out``."""
    block, blocks, chunk, warps = row_settings(out.shape[1])
    _weight_grads[(len(out), blocks)](
        entries.source, entries.rows, entries.coefficients, entries.by.starts, entries.by.order, out,
        D=out.shape[1], BLOCK=block, CHUNK=chunk, num_warps=warps,
    )  # fmt: skip


def row_settings(d: int) -> tuple[int, int, int, int]:
    """Dimensions of a block, blocks of a row, entries gathered at once, warps.

    No more than 8 blocks, which are unrolled. A block has a number for every thread: of two warps that held
    the same one, one could read what the other has just written.
    """
    block = max(min(launch.power(d), BLOCK), launch.power(launch.parts(d, 8)))
    return block, launch.parts(d, block), max(TILE // block, 2), min(max(block // 32, 1), 4)


@cache
def _bounds(ends: tuple[int, ...], device: torch.device) -> Int32[Tensor, "groups_plus_one"]:
    """Kept, because the host waits while it copies to the device."""
    return torch.tensor((0, *ends), dtype=torch.int32, device=device)


def _prefixes(
    x: Float32[Tensor, "batch d_model"] | None,
    W_dec: Float[Tensor, "n_latents d_model"],
    b_dec: Float32[Tensor, "d_model"],
    codes: DeviceCodes,
    ends: tuple[int, ...],
) -> Float32[Tensor, "groups batch d_model"]:
    """What the latents below each of ``ends`` decode to, less ``x``."""
    batch, d = codes.batch, W_dec.shape[1]
    out = launch.empty((len(ends), batch, d), torch.float32, W_dec)
    block = min(launch.power(d), BLOCK)
    bounds = _bounds(ends, W_dec.device)
    _decode[(batch, launch.parts(d, block))](
        W_dec, b_dec, b_dec if x is None else x, codes.indptr, codes.indices, codes.values, bounds, out,
        d, batch * d, GROUPS=len(ends), MINUS=x is not None, BLOCK=block, CHUNK=max(TILE // block, 2), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _decode(
    W, b, x, indptr, indices, values, ends, out, d, stride,
    GROUPS: tl.constexpr, MINUS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One block of dimensions of one row, through the prefixes one after the other."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < d
    place = row * d + column
    total = tl.load(b + column, mask=inside, other=0)
    if MINUS:
        total -= tl.load(x + place, mask=inside, other=0)
    first, last = tl.load(indptr + row), tl.load(indptr + row + 1)
    for group in tl.static_range(GROUPS):
        low, high = tl.load(ends + group), tl.load(ends + group + 1)
        at = first
        while at < last:
            entry = at + tl.arange(0, CHUNK)
            latent = tl.load(indices + entry, mask=entry < last, other=-1)
            mine = (latent >= low) & (latent < high)
            code = tl.load(values + entry, mask=mine, other=0)
            there = W + latent.to(tl.int64)[:, None] * d + column[None, :]
            weight = tl.load(there, mask=mine[:, None] & inside[None, :], other=0).to(tl.float32)
            total += tl.sum(weight * code[:, None], axis=0)
            at += CHUNK
        tl.store(out + place, total, mask=inside)
        out += stride


@triton.jit
def gathered(
    source, rows, coefficients, first, last, column, D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    """One block of the sum over one latent's entries of coefficient times source row."""
    total = tl.zeros([BLOCK], tl.float32)
    at = first
    while at < last:
        entry = at + tl.arange(0, CHUNK)
        live = entry < last
        row = tl.load(rows + entry, mask=live, other=0).to(tl.int64)
        factor = tl.load(coefficients + entry, mask=live, other=0)
        there = source + row[:, None] * D + column[None, :]
        part = tl.load(there, mask=live[:, None] & (column < D)[None, :], other=0).to(tl.float32)
        total += tl.sum(part * factor[:, None], axis=0)
        at += CHUNK
    return total


@triton.jit
def dotted(
    W, latent, source, rows, coefficients, first, last, dots,
    D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Writes each entry's inner product of its source row with the latent's; returns that of the gradient with it."""
    parallel = tl.zeros([CHUNK], tl.float32)
    at = first
    while at < last:
        entry = at + tl.arange(0, CHUNK)
        live = entry < last
        row = tl.load(rows + entry, mask=live, other=0).to(tl.int64)
        total = tl.zeros([CHUNK], tl.float32)
        for start in tl.static_range(0, D, BLOCK):
            column = start + tl.arange(0, BLOCK)
            w = tl.load(W + latent.to(tl.int64) * D + column, mask=column < D, other=0).to(tl.float32)
            there = source + row[:, None] * D + column[None, :]
            part = tl.load(there, mask=live[:, None] & (column < D)[None, :], other=0).to(tl.float32)
            total += tl.sum(part * w[None, :], axis=1)
        tl.store(dots + entry, total, mask=live)
        parallel += total * tl.load(coefficients + entry, mask=live, other=0)
        at += CHUNK
    return tl.sum(parallel, axis=0)


@triton.jit
def _code_grads(
    W, source, rows, coefficients, starts, order, dots,
    D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    latent = tl.load(order + tl.program_id(0))
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    dotted(W, latent, source, rows, coefficients, first, last, dots, D, BLOCK, CHUNK)


@triton.jit
def _weight_grads(
    source, rows, coefficients, starts, order, out, D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    latent = tl.load(order + tl.program_id(0))
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = gathered(source, rows, coefficients, first, last, column, D, BLOCK, CHUNK)
    tl.store(out + latent.to(tl.int64) * D + column, total, mask=column < D)


@triton.jit
def _sums(values, starts, out, CHUNK: tl.constexpr):
    latent = tl.program_id(0)
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros([CHUNK], tl.float32)
    at = first
    while at < last:
        slot = at + tl.arange(0, CHUNK)
        total += tl.load(values + slot, mask=slot < last, other=0)
        at += CHUNK
    tl.store(out + latent, tl.sum(total, axis=0))
