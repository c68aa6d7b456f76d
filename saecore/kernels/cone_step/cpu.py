"""CPU path: each row is read and written once."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Float32

from saecore.kernels.jit import kernel


def step(
    W: Float32[np.ndarray, "n_latents d_model"],
    grad: Float32[np.ndarray, "n_latents d_model"],
    m: Float32[np.ndarray, "n_latents d_model"],
    v: Float32[np.ndarray, "n_latents d_model"],
    rate: float,
    beta1: float,
    beta2: float,
    count: int,
    *,
    unit: bool,
    start: Float32[np.ndarray, "n_latents d_model"] | None = None,
    tau: float = 0.0,
) -> None:
    """Adam on the rows of ``W`` in place; with ``unit`` on unit rows, as ``reference.unit_rows_step``.

    ``count`` is 1 at the first step. ``start`` (unit rows) adds the projection to the cone of cosine ``tau``.
    """
    corrected = rate * np.sqrt(1 - beta2**count) / (1 - beta1**count)
    eps = 1e-8 * np.sqrt(1 - beta2**count)
    anchor = np.empty((0, W.shape[1]), dtype=np.float32) if start is None else start
    _step(
        W, grad, m, v, np.float32(corrected), np.float32(beta1), np.float32(beta2), np.float32(eps), unit, anchor,
        np.float32(tau), np.float32(np.sqrt(1 - tau**2)),
    )  # fmt: skip


@kernel
def _step(W, grad, m, v, rate, beta1, beta2, eps, unit, start, tau, side_length):
    d = W.shape[1]
    one = np.float32(1)
    for j in numba.prange(W.shape[0]):
        parallel = np.float32(0)
        if unit:
            for c in range(d):
                parallel += W[j, c] * grad[j, c]
        norm, cosine = np.float32(0), np.float32(0)
        for c in range(d):
            g = grad[j, c] - parallel * W[j, c]
            m[j, c] = beta1 * m[j, c] + (one - beta1) * g
            v[j, c] = beta2 * v[j, c] + (one - beta2) * g * g
            W[j, c] -= rate * m[j, c] / (np.sqrt(v[j, c]) + eps)
            norm += W[j, c] * W[j, c]
        if unit:
            scale = one / max(np.sqrt(norm), np.float32(1e-12))
            for c in range(d):
                W[j, c] *= scale
            if start.shape[0]:
                for c in range(d):
                    cosine += W[j, c] * start[j, c]
                if cosine < tau:
                    length = np.float32(0)
                    for c in range(d):
                        side = W[j, c] - cosine * start[j, c]
                        length += side * side
                    length = np.sqrt(length)
                    for c in range(d):
                        if length > np.float32(1e-6):
                            W[j, c] = tau * start[j, c] + side_length * (W[j, c] - cosine * start[j, c]) / length
                        else:
                            W[j, c] = start[j, c]
