"""CPU path: a bfloat16 matmul screens, float32 decides.

The matmul in bfloat16 (five times as fast as float32 on processors with AVX512-BF16) only proposes candidates, with a
margin above its rounding error; each candidate's pre-activation is then computed in float32 and the selection is made
on those. No full sort, no dense float32 scores. Positive bfloat16 bit patterns order like signed 16-bit integers, so
the screen compares integers.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int16, Int32, Int64
from torch import Tensor

from saecore.kernels.jit import helper, kernel
from saecore.kernels.sparse_codes.codes import SparseCodes

MARGIN = 0.02
"""Candidates may fall short of the cut by this share of it; bfloat16 rounding is at most 2**-8 per operand."""
EXACT_SHARE = 1 / 8
"""Above this share of latents asked for, the cut comes so near to zero that bfloat16 rounding, which is in proportion
to the vectors' norms, exceeds the margin: the screen is then made in float32."""
BLOCK = 32
"""Scores tested at once when candidates are collected; about one block in six holds any at the paper's density."""


def scores_bits(
    x: Float[Tensor, "batch d_model"], weight: Float[Tensor, "n_latents d_model"]
) -> Int16[np.ndarray, "batch n_latents"]:
    """``x @ weight.T`` in bfloat16, viewed as bit patterns."""
    scores = torch.mm(x.bfloat16(), weight.bfloat16().T)
    return scores.view(torch.int16).numpy()


def exact_bits(
    x: Float[Tensor, "batch d_model"], weight: Float[Tensor, "n_latents d_model"]
) -> Int16[np.ndarray, "batch n_latents"]:
    """As :func:`scores_bits`, but from a float32 matmul, cut to bfloat16 afterwards: off by at most 2**-7 of itself."""
    return _bits(torch.mm(x, weight.T).numpy())


def select_ranked(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    budget: int,
    rows: int,
    guess: float | None = None,
    weighting: Float[Tensor, "batch"] | None = None,
) -> tuple[SparseCodes, float]:
    """The ``budget * rows`` largest positive ``x @ weight.T`` of each group of ``rows`` rows, and a guess for the next.

    ``guess`` (a cut that about suits these data) saves passes and never changes the result. ``weighting`` multiplies a
    row's scores for the ranking only; the codes returned are the plain pre-activations.
    """
    ranked = x if weighting is None else x * weighting[:, None]
    exact = budget > EXACT_SHARE * len(weight)
    bits = exact_bits(ranked, weight) if exact else scores_bits(ranked, weight)
    groups = -(-len(x) // rows)
    need = np.full(groups, budget * rows, dtype=np.int64)
    need[-1] = budget * (len(x) - rows * (groups - 1))
    if guess is None:
        guess = _first_guess(bits, budget)
    cuts = _find_cuts(bits, rows, need, _bits(guess))
    if not exact and not cuts.all():
        bits = exact_bits(ranked, weight)
        cuts = _find_cuts(bits, rows, need, _bits(guess))
    floors = np.maximum(_floats(cuts) * (1 - MARGIN), 0).astype(np.float32)
    counts, indices = _collect(bits, np.repeat(_bits(floors), rows)[: len(x)])
    indptr = np.zeros(len(x) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    values = _dot(ranked.numpy(), weight.numpy(), indptr, indices)
    keep_counts, keep = _keep_best(indptr, values, rows, need)
    kept = np.zeros(len(x) + 1, dtype=np.int64)
    np.cumsum(keep_counts, out=kept[1:])
    chosen, chosen_values = _compress(indptr, indices, values, keep, kept)
    if weighting is not None:
        chosen_values /= np.repeat(weighting.numpy(), keep_counts)
    return SparseCodes(kept, chosen, chosen_values), float(np.median(_floats(cuts)))


def select_above(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    threshold: Float[Tensor, "n_latents"],
    limit: int | None = None,
) -> SparseCodes | None:
    """Pre-activations ``x @ weight.T + bias`` above ``threshold``; None when more than ``limit`` candidates."""
    bits = scores_bits(x, weight)
    cut = (threshold - bias).numpy()
    longest = float(x.square().mean(1).max().sqrt())
    slack = MARGIN * (np.abs(cut) + longest * weight.norm(dim=1).numpy())
    counts = _count_keys(bits, _keys(_bits(cut - slack)))
    if limit is not None and counts.sum() > limit:
        return None
    indptr = np.zeros(len(x) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices = _collect_keys(bits, _keys(_bits(cut - slack)), indptr)
    values = _dot(x.numpy(), weight.numpy(), indptr, indices)
    keep_counts, keep = _keep_above(indptr, indices, values, bias.numpy(), threshold.numpy())
    kept = np.zeros(len(x) + 1, dtype=np.int64)
    np.cumsum(keep_counts, out=kept[1:])
    chosen, chosen_values = _compress(indptr, indices, values, keep, kept)
    return SparseCodes(kept, chosen, chosen_values)


def nearest(rows: Float[Tensor, "n d_model"]) -> Int64[np.ndarray, "n"]:
    """Index of each row's largest inner product with another row, to bfloat16 precision."""
    bits = scores_bits(rows, rows)
    out = np.empty(len(rows), dtype=np.int64)
    _nearest_into(bits, out)
    return out


@kernel
def _nearest_into(bits, out):
    for r in numba.prange(bits.shape[0]):
        row = bits[r]
        row[r] = np.int16(-1)  # the most negative key: never the nearest
        best = np.int16(-32768)
        for j in range(row.shape[0]):
            best = max(best, row[j] ^ ((row[j] >> 15) & np.int16(0x7FFF)))
        for j in range(row.shape[0]):
            if (row[j] ^ ((row[j] >> 15) & np.int16(0x7FFF))) == best:
                out[r] = j
                break


def _bits(value):
    """bfloat16 bit pattern (truncated) of float32 values, as int16."""
    return (np.asarray(value, dtype=np.float32).view(np.int32) >> 16).astype(np.int16)


def _floats(bits: Int16[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The numbers of bfloat16 bit patterns."""
    return (np.asarray(bits).astype(np.int32) << 16).view(np.float32)


def _keys(bits: Int16[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    """Bit patterns to integers in the order of the numbers, negative ones too."""
    return bits ^ ((bits >> 15) & np.int16(0x7FFF))


def _first_guess(bits: Int16[np.ndarray, "batch n_latents"], budget: int) -> float:
    """A cut that leaves about ``budget`` scores a row above it, from the first rows."""
    sample = bits[: min(len(bits), 64)]
    place = min(sample.size - 1, budget * len(sample))
    cut = np.partition(sample.reshape(-1), sample.size - 1 - place)[sample.size - 1 - place]
    return float(_floats(np.maximum(cut, np.int16(0))))


@helper
def _above(bits, key):
    """Whether a bit pattern, taken as a number of either sign, lies above a key of :func:`_keys`."""
    return (bits ^ ((bits >> 15) & np.int16(0x7FFF))) > key


@helper
def _count_row(row, cut):
    total = np.int32(0)
    for j in range(row.shape[0]):
        total += np.int32(row[j] > cut)
    return total


@kernel
def _count_rows(bits, cut, out):
    for r in numba.prange(bits.shape[0]):
        out[r] = _count_row(bits[r], cut)


@kernel
def _cuts_by_group(bits, rows, need, guess, cuts):
    """Per group, a cut with at least ``need`` scores above it and not many more (or 0). Bisection on the integers."""
    for g in numba.prange(need.shape[0]):
        first, last = g * rows, min((g + 1) * rows, bits.shape[0])
        slack = max(np.int64(4), need[g] // 8)
        low, high, cut, reach = np.int32(0), np.int32(0x7F80), np.int32(guess), np.int32(24)
        while True:
            count = np.int64(0)
            for r in range(first, last):
                count += _count_row(bits[r], np.int16(cut))
            if count < need[g]:
                high = cut
            elif count > need[g] + slack:
                low = cut
            else:
                low = cut
                break
            if high - low <= 1:
                break
            step = (low + high) // 2
            near = cut - reach if count < need[g] else cut + reach
            cut, reach = near if low < near < high else step, 2 * reach
        cuts[g] = np.int16(low)


def _find_cuts(
    bits: Int16[np.ndarray, "batch n_latents"],
    rows: int,
    need: Int64[np.ndarray, "groups"],
    guess: Int16[np.ndarray, ""],
) -> Int16[np.ndarray, "groups"]:
    """As :func:`_cuts_by_group`; a single group is shared out among the threads by rows."""
    cuts = np.zeros(len(need), dtype=np.int16)
    if len(need) > 1:
        _cuts_by_group(bits, rows, need, np.int16(max(int(guess), 0)), cuts)
        return cuts
    counts = np.empty(len(bits), dtype=np.int32)
    low, high, cut, reach = 0, 0x7F80, max(int(guess), 0), 4
    while True:
        _count_rows(bits, np.int16(cut), counts)
        total = int(counts.sum())
        if total < need[0]:
            high, near = cut, cut - reach
        elif total > need[0] + need[0] // 8:
            low, near = cut, cut + reach
        else:
            low = cut
            break
        if high - low <= 1:
            break
        cut, reach = near if low < near < high else (low + high) // 2, 2 * reach
    cuts[0] = low
    return cuts


@kernel
def _collect_into(bits, cuts, indptr, out):
    m = bits.shape[1]
    full = m // BLOCK * BLOCK
    for r in numba.prange(bits.shape[0]):
        row, cut, at, end = bits[r], cuts[r], indptr[r], indptr[r + 1]
        for start in range(0, full, BLOCK):
            found = np.int16(0)
            for j in range(BLOCK):
                found |= np.int16(row[start + j] > cut)
            if found:
                for j in range(start, start + BLOCK):
                    if at < end:
                        out[at] = j
                    at += np.int64(row[j] > cut)
        for j in range(full, m):
            if row[j] > cut:
                out[at] = j
                at += 1


@kernel
def _count_each(bits, cuts, out):
    for r in numba.prange(bits.shape[0]):
        out[r] = _count_row(bits[r], cuts[r])


def _collect(
    bits: Int16[np.ndarray, "batch n_latents"], cuts: Int16[np.ndarray, "batch"]
) -> tuple[Int64[np.ndarray, "batch"], Int32[np.ndarray, "candidates"]]:
    """How many scores of each row lie above its cut, and their latents, row by row."""
    counts = np.empty(len(bits), dtype=np.int64)
    _count_each(bits, cuts, counts)
    indptr = np.zeros(len(bits) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices = np.empty(indptr[-1], dtype=np.int32)
    _collect_into(bits, cuts, indptr, indices)
    return counts, indices


@kernel
def _count_keys_into(bits, cuts, out):
    for r in numba.prange(bits.shape[0]):
        row = bits[r]
        total = np.int32(0)
        for j in range(row.shape[0]):
            total += np.int32(_above(row[j], cuts[j]))
        out[r] = total


def _count_keys(
    bits: Int16[np.ndarray, "batch n_latents"], cuts: Int16[np.ndarray, "n_latents"]
) -> Int64[np.ndarray, "batch"]:
    """How many scores of each row lie above their latent's key."""
    counts = np.empty(len(bits), dtype=np.int64)
    _count_keys_into(bits, cuts, counts)
    return counts


@kernel
def _collect_keys_into(bits, cuts, indptr, out):
    m = bits.shape[1]
    full = m // BLOCK * BLOCK
    for r in numba.prange(bits.shape[0]):
        row, at, end = bits[r], indptr[r], indptr[r + 1]
        for start in range(0, full, BLOCK):
            found = np.int16(0)
            for j in range(BLOCK):
                found |= np.int16(_above(row[start + j], cuts[start + j]))
            if found:
                for j in range(start, start + BLOCK):
                    if at < end:
                        out[at] = j
                    at += np.int64(_above(row[j], cuts[j]))
        for j in range(full, m):
            if _above(row[j], cuts[j]):
                out[at] = j
                at += 1


def _collect_keys(
    bits: Int16[np.ndarray, "batch n_latents"],
    cuts: Int16[np.ndarray, "n_latents"],
    indptr: Int64[np.ndarray, "batch_plus_one"],
) -> Int32[np.ndarray, "candidates"]:
    """The latents that :func:`_count_keys` counted, row by row."""
    indices = np.empty(indptr[-1], dtype=np.int32)
    _collect_keys_into(bits, cuts, indptr, indices)
    return indices


@kernel
def _dot_into(x, weight, indptr, indices, out):
    d = x.shape[1]
    for r in numba.prange(x.shape[0]):
        for e in range(indptr[r], indptr[r + 1]):
            w = weight[indices[e]]
            total = np.float32(0)
            for c in range(d):
                total += x[r, c] * w[c]
            out[e] = total


def _dot(
    x: Float32[np.ndarray, "batch d_model"],
    weight: Float32[np.ndarray, "n_latents d_model"],
    indptr: Int64[np.ndarray, "batch_plus_one"],
    indices: Int32[np.ndarray, "candidates"],
) -> Float32[np.ndarray, "candidates"]:
    """Pre-activations of the candidates, in float32."""
    values = np.empty(len(indices), dtype=np.float32)
    _dot_into(x, weight, indptr, indices, values)
    return values


@kernel
def _keep_groups(indptr, values, rows, need, keep, counts):
    n = indptr.shape[0] - 1
    for g in numba.prange(need.shape[0]):
        first, last = g * rows, min((g + 1) * rows, n)
        a, b = indptr[first], indptr[last]
        tau = np.float32(0)
        if b - a > need[g]:
            tau = np.partition(values[a:b], b - a - need[g])[b - a - need[g]]
        if tau < 0:
            tau = np.float32(0)
        above = np.int64(0)
        for e in range(a, b):
            above += values[e] > tau
        ties = need[g] - above if tau > 0 else np.int64(0)
        for r in range(first, last):
            kept = 0
            for e in range(indptr[r], indptr[r + 1]):
                chosen = values[e] > tau
                if not chosen and ties > 0 and values[e] == tau:
                    chosen = True
                    ties -= 1
                keep[e] = chosen
                kept += chosen
            counts[r] = kept


def _keep_best(
    indptr: Int64[np.ndarray, "batch_plus_one"],
    values: Float32[np.ndarray, "candidates"],
    rows: int,
    need: Int64[np.ndarray, "groups"],
) -> tuple[Int64[np.ndarray, "batch"], Bool[np.ndarray, "candidates"]]:
    """How many candidates each row keeps, and which: the ``need`` largest positive ones of each group of rows."""
    keep, counts = np.empty(len(values), dtype=np.bool_), np.empty(len(indptr) - 1, dtype=np.int64)
    _keep_groups(indptr, values, rows, need, keep, counts)
    return counts, keep


@kernel
def _keep_above_into(indptr, indices, values, bias, threshold, keep, counts):
    for r in numba.prange(indptr.shape[0] - 1):
        kept = 0
        for e in range(indptr[r], indptr[r + 1]):
            values[e] += bias[indices[e]]
            keep[e] = values[e] > threshold[indices[e]]
            kept += keep[e]
        counts[r] = kept


def _keep_above(
    indptr: Int64[np.ndarray, "batch_plus_one"],
    indices: Int32[np.ndarray, "candidates"],
    values: Float32[np.ndarray, "candidates"],
    bias: Float32[np.ndarray, "n_latents"],
    threshold: Float32[np.ndarray, "n_latents"],
) -> tuple[Int64[np.ndarray, "batch"], Bool[np.ndarray, "candidates"]]:
    """Add the bias to ``values`` in place; how many of them each row keeps, and which: those above the threshold."""
    keep, counts = np.empty(len(values), dtype=np.bool_), np.empty(len(indptr) - 1, dtype=np.int64)
    _keep_above_into(indptr, indices, values, bias, threshold, keep, counts)
    return counts, keep


@kernel
def _compress_into(indptr, indices, values, keep, kept, out_indices, out_values):
    for r in numba.prange(indptr.shape[0] - 1):
        at = kept[r]
        for e in range(indptr[r], indptr[r + 1]):
            if keep[e]:
                out_indices[at] = indices[e]
                out_values[at] = values[e]
                at += 1


def _compress(
    indptr: Int64[np.ndarray, "batch_plus_one"],
    indices: Int32[np.ndarray, "candidates"],
    values: Float32[np.ndarray, "candidates"],
    keep: Bool[np.ndarray, "candidates"],
    kept: Int64[np.ndarray, "batch_plus_one"],
) -> tuple[Int32[np.ndarray, "n_active"], Float32[np.ndarray, "n_active"]]:
    """Latents and values of what is kept; ``kept`` is its ``indptr``."""
    out_indices = np.empty(kept[-1], dtype=np.int32)
    out_values = np.empty(kept[-1], dtype=np.float32)
    _compress_into(indptr, indices, values, keep, kept, out_indices, out_values)
    return out_indices, out_values
