"""GPU path: an exact radix threshold on bit patterns, found among the few blocks of latents that can matter.

The ``need`` largest of a group lie in the ``need`` blocks with the largest maxima, both ranked by value and then by
place (each of those blocks holds one element at least that outranks all of any other block). So one pass over the dense
scores takes the maximum of every ``WIDTH`` latents, the blocks are chosen, and the same selection chooses among their
elements. Positive floats order like their bit patterns: the threshold is found digit by digit, 8 bits at a time, from
histograms. Nothing is sorted, and nothing is read by the host.

Traffic at the paper's Gemma shape (4096 x 73,728 bfloat16, L0 160): the scores once. The candidates, a seventh of
them, are read by ``_gather``, written, and read four times more, by ``_histogram`` twice, ``_tally`` and ``_place``.
"""

# Triton's types know neither launches nor constexpr:
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Float32, Int32
from torch import Tensor

from saecore.kernels import launch
from saecore.kernels.sparse_codes.codes import DeviceCodes, row_starts

WIDTH = 64
"""Latents for which one maximum is kept."""
HEIGHT = 32
"""Blocks of latents that a program reads at once."""
CHUNK = 4096
"""Values that a program counts at once."""
TILE = 64, 64, 32
"""Rows, latents and dimensions of a tile of :func:`encode_above`."""


def select_ranked(
    scores: Float[Tensor, "batch n_latents"], budget: int, rows: int
) -> tuple[DeviceCodes, Float[Tensor, ""]]:
    """The entries that ``reference.select_ranked`` marks, and the smallest score kept, averaged over groups.

    ``scores`` (contiguous) are float32 or bfloat16, and are the codes. Capacity is ``budget * batch``. The smallest
    score is 0 where nothing is kept. Raises ValueError where ``budget * batch`` blocks of latents are too many to count
    in 32 bits.
    """
    batch, m = scores.shape
    blocks = launch.parts(m, WIDTH)
    some = min(budget, blocks)
    if some * batch * WIDTH >= 1 << 31:
        raise ValueError(f"{batch} rows with {budget} codes each exceed what a selection counts; take smaller batches")
    maxima = launch.empty((batch, blocks), scores.dtype, scores)
    _maxima[(batch, launch.parts(blocks, HEIGHT))](scores, maxima, m, blocks, WIDTH=WIDTH, HEIGHT=HEIGHT)
    live = _largest(maxima, some, rows)[0]
    candidates = launch.empty((len(live), WIDTH), scores.dtype, scores)
    _gather[(launch.parts(len(live), HEIGHT),)](
        scores, live, candidates, len(live), m, blocks, WIDTH=WIDTH, HEIGHT=HEIGHT
    )
    places, taken, cuts = _largest(candidates.view(batch, some * WIDTH), budget, rows, close=True)
    void = places < 0
    known = places.clamp_min(0)
    block = live.index_select(0, known // WIDTH)
    found_rows = torch.where(void, batch, block // blocks)
    indices = torch.where(void, m, block % blocks * WIDTH + known % WIDTH)
    values = torch.where(void, 0, candidates.view(-1).index_select(0, known).float())
    kept = taken > 0
    smallest = torch.where(kept, cuts.view(torch.float32), 0).sum() / kept.sum().clamp_min(1)
    return DeviceCodes(row_starts(found_rows, batch), found_rows, indices, values), smallest


def select_above(
    scores: Float[Tensor, "batch n_latents"],
    bias: Float[Tensor, "n_latents"],
    threshold: Float[Tensor, "n_latents"],
    capacity: int,
) -> tuple[DeviceCodes, Bool[Tensor, ""]]:
    """The entries of ``scores + bias`` above their latent's threshold, and whether there are more than ``capacity``.

    Where there are more, the first ones in the order of rows are kept.
    """
    batch, m = scores.shape
    chunks = launch.parts(m, CHUNK)
    counts = launch.empty((batch, chunks), torch.int32, scores)
    settings = {"CHUNK": CHUNK, "num_warps": launch.warps(CHUNK)}
    _count_above[(batch, chunks)](scores, bias, threshold, counts, m, chunks, **settings)
    ends = counts.view(-1).cumsum(0)
    starts = (ends - counts.view(-1)).view(batch, chunks)
    rows = torch.full((capacity,), batch, dtype=torch.int32, device=scores.device)
    indices, values = torch.full_like(rows, m), torch.zeros_like(rows, dtype=torch.float32)
    _place_above[(batch, chunks)](
        scores, bias, threshold, starts, rows, indices, values, m, chunks, capacity, **settings
    )
    return DeviceCodes(row_starts(rows, batch), rows, indices, values), ends[-1] > capacity


def encode_above(
    x: Float32[Tensor, "batch d_model"],
    weight: Float32[Tensor, "n_latents d_model"],
    bias: Float32[Tensor, "n_latents"],
    threshold: Float32[Tensor, "n_latents"],
    capacity: int,
) -> tuple[DeviceCodes, Bool[Tensor, ""]]:
    """:func:`select_above` of ``x @ weight.T``, which is never written; codes are right to float32.

    A tile's entries go where a counter says, and are put in order afterwards, so that the same codes come out whatever
    the order of the tiles. Where there are more than ``capacity``, those that found room are kept.
    """
    (batch, d), m = x.shape, len(weight)
    high, wide, deep = TILE
    rows = torch.full((capacity,), batch, dtype=torch.int32, device=x.device)
    indices, values = torch.full_like(rows, m), torch.zeros_like(rows, dtype=torch.float32)
    count = torch.zeros(1, dtype=torch.int64, device=x.device)
    _encode[(launch.parts(m, wide) * launch.parts(batch, high),)](
        x.contiguous(), weight, bias, threshold, count, rows, indices, values, batch, m, capacity,
        launch.parts(batch, high), D=d, HIGH=high, WIDE=wide, DEEP=deep, num_warps=4,
    )  # fmt: skip
    order = torch.argsort(rows.long() * (m + 1) + indices)
    rows, indices, values = (t.index_select(0, order) for t in (rows, indices, values))
    return DeviceCodes(row_starts(rows, batch), rows, indices, values), count[0] > capacity


def _largest(
    values: Float[Tensor, "batch columns"], each: int, rows: int, close: bool = False
) -> tuple[Int32[Tensor, "capacity"], Int32[Tensor, "groups"], Int32[Tensor, "groups"]]:
    """Places in ``values`` of the ``each * rows`` largest positive ones of each group of rows; ties to the first.

    Also how many that are in each group, and the bit pattern of the smallest. Places ascend. A group's begin where
    the budgets of those before it end, or with ``close`` where their places do; what is left over is -1.
    """
    batch, columns = values.shape
    groups, size = launch.parts(batch, rows), rows * columns
    need = torch.full((groups,), each * rows, dtype=torch.int32, device=values.device)
    need[-1:].fill_(each * (batch - rows * (groups - 1)))
    chunk = launch.power(size, 16, CHUNK)
    chunks = launch.parts(size, chunk)
    grid, shape = (groups * chunks,), (values.numel(), size, chunks)
    settings = {"CHUNK": chunk, "num_warps": launch.warps(chunk)}
    cut, left, taken = torch.zeros_like(need), need.clone(), launch.empty((groups,), torch.int32, need)
    digits = (24, 16) if values.dtype == torch.bfloat16 else (24, 16, 8, 0)
    for shift in digits:
        counts = torch.zeros(groups, 256, dtype=torch.int32, device=need.device)
        _histogram[grid](values, cut, counts, *shape, SHIFT=shift, **settings)
        _narrow[(groups,)](counts, cut, left, taken, FIRST=shift == digits[0])
    cut <<= digits[-1]
    above, ties = (launch.empty((groups, chunks), torch.int32, need) for _ in range(2))
    _tally[grid](values, cut, above, ties, *shape, **settings)
    above_before, ties_before = ((t.cumsum(1) - t).int() for t in (above, ties))
    filled = taken if close else need
    base = (filled.cumsum(0) - filled).int()
    places = torch.full((each * batch,), -1, dtype=torch.int32, device=need.device)
    _place[grid](values, cut, left, base, above_before, ties_before, places, *shape, **settings)
    return places, taken, cut


@triton.jit
def _key(value):
    """The bit pattern of a positive number, which orders as the number does; 0 for all others, NaN included."""
    value = value.to(tl.float32)
    return tl.where(value > 0, value.to(tl.int32, bitcast=True), 0)


@triton.jit
def _maxima(scores, out, m, blocks, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    """The largest positive score of every ``WIDTH`` latents of a row, or 0."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    latent = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    score = tl.load(scores + row * m + latent, mask=latent < m, other=0).to(tl.float32)
    largest = tl.max(tl.where(score > 0, score, 0.0), axis=1)
    tl.store(out + row * blocks + block, largest.to(out.dtype.element_ty), mask=block < blocks)


@triton.jit
def _gather(scores, live, out, n, m, blocks, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    """The scores of the chosen blocks, side by side; zeros where a place is -1."""
    slot = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    block = tl.load(live + slot, mask=slot < n, other=-1)
    row = (block // blocks).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    latent = (block % blocks)[:, None] * WIDTH + lane[None, :]
    known = (block >= 0)[:, None] & (latent < m)
    score = tl.load(scores + row[:, None] * m + latent, mask=known, other=0)
    tl.store(out + slot.to(tl.int64)[:, None] * WIDTH + lane[None, :], score, mask=(slot < n)[:, None])


@triton.jit
def _keys_of(values, pid, n, size, chunks, CHUNK: tl.constexpr):
    """A chunk's places and keys; those past the end of its group have key 0."""
    inside = pid % chunks * CHUNK + tl.arange(0, CHUNK)
    place = (pid // chunks).to(tl.int64) * size + inside
    return place, _key(tl.load(values + place, mask=(inside < size) & (place < n), other=0))


@triton.jit
def _histogram(values, prefix, counts, n, size, chunks, SHIFT: tl.constexpr, CHUNK: tl.constexpr):
    """Counts the next 8 bits of the keys that begin with their group's prefix."""
    pid = tl.program_id(0)
    group = pid // chunks
    place, key = _keys_of(values, pid, n, size, chunks, CHUNK)
    found = (key > 0) & (((key >> SHIFT) >> 8) == tl.load(prefix + group))
    counted = tl.histogram(tl.where(found, (key >> SHIFT) & 255, 0), 256, mask=found)
    tl.atomic_add(counts + group * 256 + tl.arange(0, 256), counted, mask=counted > 0)


@triton.jit
def _narrow(counts, prefix, left, taken, FIRST: tl.constexpr):
    """Adds to the prefix the digit in which the wanted place falls, and leaves what is wanted of that digit."""
    group = tl.program_id(0)
    bins = tl.arange(0, 256)
    counted = tl.load(counts + group * 256 + bins)
    total = tl.sum(counted, axis=0)
    wanted = tl.load(left + group)
    if FIRST:
        wanted = tl.minimum(wanted, total)
        tl.store(taken + group, wanted)
    at_least = total - tl.cumsum(counted, axis=0) + counted
    digit = tl.sum((at_least >= wanted).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where(bins > digit, counted, 0), axis=0)
    tl.store(left + group, wanted - above)
    tl.store(prefix + group, tl.load(prefix + group) * 256 + digit)


@triton.jit
def _ranks(key, bound):
    """1 where a key lies above the cut, and 1 where on it. The cut of a group without keys means nothing."""
    return ((key > bound) & (key > 0)).to(tl.int32), ((key == bound) & (key > 0)).to(tl.int32)


@triton.jit
def _tally(values, cut, above, ties, n, size, chunks, CHUNK: tl.constexpr):
    """How many keys of each chunk lie above their group's cut, and how many on it."""
    pid = tl.program_id(0)
    place, key = _keys_of(values, pid, n, size, chunks, CHUNK)
    more, tie = _ranks(key, tl.load(cut + pid // chunks))
    tl.store(above + pid, tl.sum(more, axis=0))
    tl.store(ties + pid, tl.sum(tie, axis=0))


@triton.jit
def _place(values, cut, quota, base, above, ties, out, n, size, chunks, CHUNK: tl.constexpr):
    """Writes the places of the keys above the cut, and of the first ``quota`` on it, in their order."""
    pid = tl.program_id(0)
    group = pid // chunks
    place, key = _keys_of(values, pid, n, size, chunks, CHUNK)
    allowed = tl.load(quota + group)
    more, tie = _ranks(key, tl.load(cut + group))
    ties_before = tl.load(ties + pid) + tl.cumsum(tie, axis=0) - tie
    above_before = tl.load(above + pid) + tl.cumsum(more, axis=0) - more
    slot = tl.load(base + group) + above_before + tl.minimum(ties_before, allowed)
    keep = (more > 0) | ((tie > 0) & (ties_before < allowed))
    tl.store(out + slot, place.to(tl.int32), mask=keep)


@triton.jit
def _above(scores, bias, threshold, m, CHUNK: tl.constexpr):
    """A chunk of a row: its latents, its values, and which lie above the threshold."""
    latent = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = latent < m
    value = tl.load(scores + tl.program_id(0).to(tl.int64) * m + latent, mask=inside, other=0).to(tl.float32)
    value += tl.load(bias + latent, mask=inside, other=0)
    return latent, value, (value > tl.load(threshold + latent, mask=inside, other=0)) & inside


@triton.jit
def _count_above(scores, bias, threshold, counts, m, chunks, CHUNK: tl.constexpr):
    latent, value, keep = _above(scores, bias, threshold, m, CHUNK)
    tl.store(counts + tl.program_id(0) * chunks + tl.program_id(1), tl.sum(keep.to(tl.int32), axis=0))


@triton.jit
def _place_above(scores, bias, threshold, starts, rows, indices, values, m, chunks, capacity, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0), tl.program_id(1)
    latent, value, keep = _above(scores, bias, threshold, m, CHUNK)
    kept = keep.to(tl.int32)
    slot = tl.load(starts + row * chunks + chunk) + tl.cumsum(kept, axis=0) - kept
    keep &= slot < capacity
    tl.store(rows + slot, row + tl.zeros_like(latent), mask=keep)
    tl.store(indices + slot, latent, mask=keep)
    tl.store(values + slot, value, mask=keep)


@triton.jit
def _encode(
    x, weight, bias, threshold, count, rows, indices, values, batch, m, capacity, tiles,
    D: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """One tile of pre-activations. Tiles of the same latents run side by side, so that the weights are read once."""
    pid = tl.program_id(0)
    row = pid % tiles * HIGH + tl.arange(0, HIGH)
    latent = pid // tiles * WIDE + tl.arange(0, WIDE)
    at_row, at_latent = row.to(tl.int64)[:, None] * D, latent.to(tl.int64)[:, None] * D
    total = tl.zeros([HIGH, WIDE], tl.float32)
    for first in range(0, D, DEEP):
        column = first + tl.arange(0, DEEP)[None, :]
        left = tl.load(x + at_row + column, mask=(row < batch)[:, None] & (column < D), other=0)
        right = tl.load(weight + at_latent + column, mask=(latent < m)[:, None] & (column < D), other=0)
        total = tl.dot(left, tl.trans(right), total, input_precision="tf32x3")
    total += tl.load(bias + latent, mask=latent < m, other=0)[None, :]
    bound = tl.load(threshold + latent, mask=latent < m, other=0)[None, :]
    keep = (total > bound) & (row < batch)[:, None] & (latent < m)[None, :]
    kept = keep.to(tl.int32)
    in_row = tl.sum(kept, axis=1)
    base = tl.atomic_add(count, tl.sum(in_row, axis=0).to(tl.int64))
    slot = base + (tl.cumsum(in_row, axis=0) - in_row)[:, None] + tl.cumsum(kept, axis=1) - kept
    keep &= slot < capacity
    tl.store(rows + slot, row[:, None] + tl.zeros_like(kept), mask=keep)
    tl.store(indices + slot, latent[None, :] + tl.zeros_like(kept), mask=keep)
    tl.store(values + slot, total, mask=keep)
