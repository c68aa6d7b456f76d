"""Sparse codes of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class SparseCodes:
    """CSR: row r holds entries ``indptr[r]:indptr[r + 1]``, latents ascending.

    indptr int64 (batch + 1), indices int32 (n_active), values float32 (n_active).
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    def dense(self, n_latents: int) -> np.ndarray:
        """Codes as a (batch, n_latents) float32 array."""
        out = np.zeros((len(self.indptr) - 1, n_latents), dtype=np.float32)
        out[np.repeat(np.arange(len(out)), np.diff(self.indptr)), self.indices] = self.values
        return out

    @staticmethod
    def from_dense(codes) -> SparseCodes:
        """From a dense (batch, n_latents) tensor; zeros are left out."""
        rows, latents = codes.nonzero(as_tuple=True)
        indptr = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows.cpu().numpy(), minlength=len(codes)), out=indptr[1:])
        return SparseCodes(indptr, latents.int().cpu().numpy(), codes[rows, latents].float().cpu().numpy())
