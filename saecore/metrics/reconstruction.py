"""How well and how sparsely an SAE rebuilds its input."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saecore.kernels.sparse_codes.codes import SparseCodes


@dataclass
class Reconstruction:
    """Sums over all rows seen, in float64; the answer does not depend on how rows were batched."""

    rows: int = 0
    active: int = 0
    squared_error: float = 0.0
    square: float = 0.0
    total: Tensor | None = None  # (d_model,) sum of x
    _firings: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def update(
        self, x: Float[Tensor, "batch d_model"], x_hat: Float[Tensor, "batch d_model"], codes: SparseCodes
    ) -> None:
        wide = x.double()
        self.rows += len(x)
        self.active += len(codes.indices)
        self.squared_error += float((wide - x_hat).square().sum())
        self.square += float(wide.square().sum())
        self.total = wide.sum(0) + (0 if self.total is None else self.total)
        self._firings = self.firings(int(codes.indices.max(initial=-1)) + 1)
        self._firings += np.bincount(codes.indices, minlength=len(self._firings))

    def explained_variance(self) -> float:
        """1 - sum |x - x_hat|^2 / sum |x - mean x|^2 over all rows. Raises ValueError if x does not vary."""
        if self.total is None or self.rows < 2:
            raise ValueError(f"explained variance needs at least 2 rows, got {self.rows}; call update first")
        variation = self.square - float(self.total.square().sum()) / self.rows
        if not variation > 1e-12 * self.square:
            raise ValueError(f"all {self.rows} rows are equal: no variance to explain; pass rows that differ")
        return 1 - self.squared_error / variation

    def l0(self) -> float:
        """Codes per row."""
        return self.active / self.rows

    def firings(self, n_latents: int) -> Int[np.ndarray, "n_latents_or_more"]:
        """Rows on which each latent fired."""
        missing = max(n_latents - len(self._firings), 0)
        return np.concatenate([self._firings, np.zeros(missing, dtype=np.int64)])

    def dead_share(self, n_latents: int) -> float:
        """Share of latents that fired on none of the rows."""
        return float((self.firings(n_latents) == 0).mean())


def explained_variance(x: Float[Tensor, "batch d_model"], x_hat: Float[Tensor, "batch d_model"]) -> float:
    """:meth:`Reconstruction.explained_variance` of one batch."""
    nothing = SparseCodes(
        np.zeros(len(x) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    )
    sums = Reconstruction()
    with torch.no_grad():
        sums.update(x, x_hat, nothing)
    return sums.explained_variance()
