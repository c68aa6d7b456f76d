"""Sparse codes of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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


@dataclass
class DeviceCodes:
    """The same on a GPU, in arrays of a fixed size, so that nobody waits to learn how many entries there are.

    Entries from ``indptr[-1]`` on are void: row ``batch``, latent ``n_latents``, value 0.
    """

    indptr: Int32[Tensor, "batch_plus_one"]
    rows: Int32[Tensor, "capacity"]
    indices: Int32[Tensor, "capacity"]
    values: Float32[Tensor, "capacity"]

    @property
    def batch(self) -> int:
        return len(self.indptr) - 1

    def to_host(self) -> SparseCodes:
        """The entries that are not void; waits for the device."""
        indptr = self.indptr.cpu().numpy().astype(np.int64)
        whole = slice(0, int(indptr[-1]))
        return SparseCodes(indptr, self.indices[whole].cpu().numpy(), self.values[whole].cpu().numpy())


def row_starts(rows: Int32[Tensor, "capacity"], batch: int) -> Int32[Tensor, "batch_plus_one"]:
    """``indptr`` of ascending row numbers; void entries, whose row is ``batch``, are not counted."""
    return torch.searchsorted(rows, torch.arange(batch + 1, dtype=torch.int32, device=rows.device), out_int32=True)
