"""CPU path of decoding and of the gradients of the squared error; cost grows with active codes, not with latents.

The loss is L = (1 / G) sum_g mean_rows |x_hat_g - x|^2, where x_hat_g decodes the latents below ``ends[g]``
(one prefix for ordinary SAEs, G nested ones for Matryoshka). The plain definition is training/loss.py under autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float32, Int64

from saecore.kernels.jit import kernel
from saecore.kernels.sparse_codes.codes import SparseCodes


@dataclass
class Backward:
    """What one batch says: loss per row, the residuals, and dL/dcode per entry."""

    losses: Float32[np.ndarray, "batch"]  # sum of squared errors, averaged over prefixes
    errors: Float32[np.ndarray, "batch d_model"]  # x_hat - x of the whole dictionary
    pulls: Float32[np.ndarray, "groups batch d_model"]  # dL/dx_hat seen by the latents of group g
    code_grads: Float32[np.ndarray, "n_active"]


def backward(
    x: Float32[np.ndarray, "batch d_model"],
    W_dec: Float32[np.ndarray, "n_latents d_model"],
    b_dec: Float32[np.ndarray, "d_model"],
    codes: SparseCodes,
    ends: Int64[np.ndarray, "groups"],
) -> Backward:
    """Decode, compare with ``x`` and pull back to the codes."""
    batch, d = x.shape
    out = Backward(
        np.empty(batch, dtype=np.float32),
        np.empty((batch, d), dtype=np.float32),
        np.empty((len(ends), batch, d), dtype=np.float32),
        np.empty(len(codes.values), dtype=np.float32),
    )
    _backward(
        x, W_dec, b_dec, codes.indptr, codes.indices, codes.values, ends,
        out.losses, out.errors, out.pulls, out.code_grads,
    )  # fmt: skip
    return out


def weight_grads(
    centred: Float32[np.ndarray, "batch d_model"],
    pulls: Float32[np.ndarray, "groups batch d_model"],
    codes: SparseCodes,
    pre_grads: Float32[np.ndarray, "n_active"],
    ends: Int64[np.ndarray, "groups"],
    grad_enc: Float32[np.ndarray, "n_latents d_model"] | None,
    grad_dec: Float32[np.ndarray, "n_latents d_model"] | None,
    grad_bias: Float32[np.ndarray, "n_latents"],
) -> Int64[np.ndarray, "n_latents"]:
    """Gradients of encoder rows, decoder rows and encoder biases, written in place; returns firings per latent.

    ``centred`` is what the encoder saw, ``pre_grads`` dL/dpre-activation per entry. A weight given as None is frozen.
    """
    n_latents = len(grad_bias)
    starts, rows, where = _by_latent(codes.indptr, codes.indices, n_latents)
    empty = np.empty((0, centred.shape[1]), dtype=np.float32)
    _weight_grads(
        centred, pulls, starts, rows, where, codes.values, pre_grads, ends,
        empty if grad_enc is None else grad_enc, empty if grad_dec is None else grad_dec, grad_bias,
    )  # fmt: skip
    return np.diff(starts)


def decode(
    W_dec: Float32[np.ndarray, "n_latents d_model"], b_dec: Float32[np.ndarray, "d_model"], codes: SparseCodes
) -> Float32[np.ndarray, "batch d_model"]:
    """x_hat = codes @ W_dec + b_dec."""
    out = np.empty((len(codes.indptr) - 1, W_dec.shape[1]), dtype=np.float32)
    _decode(W_dec, b_dec, codes.indptr, codes.indices, codes.values, out)
    return out


@kernel
def _decode(W_dec, b_dec, indptr, indices, values, out):
    d = W_dec.shape[1]
    for r in numba.prange(out.shape[0]):
        for c in range(d):
            out[r, c] = b_dec[c]
        for e in range(indptr[r], indptr[r + 1]):
            w, z = W_dec[indices[e]], values[e]
            for c in range(d):
                out[r, c] += z * w[c]


@kernel
def _backward(x, W_dec, b_dec, indptr, indices, values, ends, losses, errors, pulls, code_grads):
    batch, d = x.shape
    groups = ends.shape[0]
    scale = np.float32(2.0 / (batch * groups))
    for r in numba.prange(batch):
        for c in range(d):
            errors[r, c] = b_dec[c] - x[r, c]
        e, total = indptr[r], np.float32(0)
        for g in range(groups):
            while e < indptr[r + 1] and indices[e] < ends[g]:
                w, z = W_dec[indices[e]], values[e]
                for c in range(d):
                    errors[r, c] += z * w[c]
                e += 1
            square = np.float32(0)
            for c in range(d):
                square += errors[r, c] * errors[r, c]
                pulls[g, r, c] = scale * errors[r, c]
            total += square
        losses[r] = total / groups
        for g in range(groups - 2, -1, -1):
            for c in range(d):
                pulls[g, r, c] += pulls[g + 1, r, c]
        e = indptr[r]
        for g in range(groups):
            pull = pulls[g, r]
            while e < indptr[r + 1] and indices[e] < ends[g]:
                w, total = W_dec[indices[e]], np.float32(0)
                for c in range(d):
                    total += w[c] * pull[c]
                code_grads[e] = total
                e += 1


@numba.njit(cache=True, nogil=True)
def _by_latent(indptr, indices, n_latents):
    """CSR to CSC by counting: starts per latent, row and entry of each, rows ascending."""
    starts = np.zeros(n_latents + 1, dtype=np.int64)
    for e in range(len(indices)):
        starts[indices[e] + 1] += 1
    for j in range(n_latents):
        starts[j + 1] += starts[j]
    at = starts[:-1].copy()
    rows = np.empty(len(indices), dtype=np.int32)
    where = np.empty(len(indices), dtype=np.int32)
    for r in range(len(indptr) - 1):
        for e in range(indptr[r], indptr[r + 1]):
            j = indices[e]
            rows[at[j]] = r
            where[at[j]] = e
            at[j] += 1
    return starts, rows, where


@kernel
def _weight_grads(centred, pulls, starts, rows, where, values, pre_grads, ends, grad_enc, grad_dec, grad_bias):
    d = centred.shape[1]
    for j in numba.prange(starts.shape[0] - 1):
        g = 0
        while j >= ends[g]:
            g += 1
        bias = np.float32(0)
        if grad_dec.shape[0]:
            for c in range(d):
                grad_dec[j, c] = 0
            for e in range(starts[j], starts[j + 1]):
                z, pull = values[where[e]], pulls[g, rows[e]]
                for c in range(d):
                    grad_dec[j, c] += z * pull[c]
        if grad_enc.shape[0]:
            for c in range(d):
                grad_enc[j, c] = 0
            for e in range(starts[j], starts[j + 1]):
                h, seen = pre_grads[where[e]], centred[rows[e]]
                for c in range(d):
                    grad_enc[j, c] += h * seen[c]
        for e in range(starts[j], starts[j + 1]):
            bias += pre_grads[where[e]]
        grad_bias[j] = bias
