"""How well and how sparsely an SAE rebuilds its input.

Two definitions of explained variance are in use. ``explained_variance`` is a ratio of sums: the paper's; SAELens' since
its pull requests 443 and 665; SAEBench's code since its pull request 61; ``1 - FVU`` of sparsify; dictionary_learning's
``frac_variance_explained`` but for its averaging over batches and for leaving out the mean of the error.
``explained_variance_per_row`` is a mean of ratios: SAELens' and SAEBench's ``explained_variance_legacy``, which
SAEBench's paper reports (its issue 76). Rows near the mean weigh far more in the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saecore.kernels.sparse_codes.codes import SparseCodes


@dataclass
class Reconstruction:
    """Sums over all rows seen, in float64; the answer does not depend on how rows were batched.

    ``centre`` is the mean of the data as known beforehand; without it there is no :meth:`explained_variance_per_row`.
    """

    centre: Float[Tensor, "d_model"] | None = None
    rows: int = 0
    active: int = 0
    squared_error: float = 0.0
    square: float = 0.0
    unexplained: float = 0.0  # sum over rows of |x - x_hat|^2 / |x - centre|^2
    total: Tensor | None = None  # (d_model,) sum of x
    _firings: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def update(
        self, x: Float[Tensor, "batch d_model"], x_hat: Float[Tensor, "batch d_model"], codes: SparseCodes
    ) -> None:
        wide = x.double()
        self.rows += len(x)
        self.active += len(codes.indices)
        errors = (wide - x_hat).square().sum(1)
        self.squared_error += float(errors.sum())
        if self.centre is not None:
            self.unexplained += float((errors / (wide - self.centre).square().sum(1)).sum())
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

    def explained_variance_per_row(self) -> float:
        """1 - mean of |x - x_hat|^2 / |x - centre|^2 over rows. Raises ValueError where that is undefined."""
        if self.centre is None or not self.rows:
            raise ValueError("explained variance per row needs rows and Reconstruction(centre=the mean of the data)")
        if not np.isfinite(self.unexplained):
            raise ValueError("a row equals the centre and has no variance to explain; leave such rows out")
        return 1 - self.unexplained / self.rows

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
