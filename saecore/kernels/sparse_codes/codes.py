"""Sparse codes of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor


@dataclass
class SparseCodes:
    """CSR: row r holds entries ``indptr[r]:indptr[r + 1]``, latents ascending."""

    indptr: Int64[np.ndarray, "batch_plus_one"]
    indices: Int32[np.ndarray, "n_active"]
    values: Float32[np.ndarray, "n_active"]

    def dense(self, n_latents: int) -> Float32[np.ndarray, "batch n_latents"]:
        """The codes with their zeros."""
        out = np.zeros((len(self.indptr) - 1, n_latents), dtype=np.float32)
        out[np.repeat(np.arange(len(out)), np.diff(self.indptr)), self.indices] = self.values
        return out

    @staticmethod
    def from_dense(codes: Float[Tensor, "batch n_latents"]) -> SparseCodes:
        """Without the zeros, from any device."""
        rows, latents = codes.nonzero(as_tuple=True)
        indptr = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows.cpu().numpy(), minlength=len(codes)), out=indptr[1:])
        return SparseCodes(indptr, latents.int().cpu().numpy(), codes[rows, latents].float().cpu().numpy())
