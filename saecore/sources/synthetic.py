"""Synthetic superposition with known truth (paper, Sec. 3.1 and App. B)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saecore.sources.base import EVALUATION as EVALUATION
from saecore.sources.base import TRAINING
from saecore.spec import SourceSpec


@dataclass(frozen=True)
class SyntheticBatch:
    """Samples with the sparse codes that made them (CSR: row r holds entries ``indptr[r]:indptr[r + 1]``)."""

    x: Float[Tensor, "batch d_model"]
    indptr: Int[Tensor, "batch_plus_one"]
    indices: Int[Tensor, "n_active"]
    values: Float[Tensor, "n_active"]

    def dense_codes(self, n_features: int) -> Float[Tensor, "batch n_features"]:
        rows = torch.repeat_interleave(torch.arange(len(self.x), device=self.x.device), self.indptr.diff())
        codes = self.x.new_zeros(len(self.x), n_features)
        codes[rows, self.indices] = self.values
        return codes


class Superposition:
    """x = sum_i b_i c_i f_i with b_i ~ Bernoulli(p_i), c_i ~ LogNormal(0, sigma), f_i uniform on the unit sphere.

    Bernoulli variables are drawn exactly without visiting every feature of every row: a unit-rate Poisson process
    runs over cells of length -log(1 - p_i), and a feature fires in a row when its cell is hit at least once.
    Randomness is counter-based: a batch depends on (seed, stream, step) alone, so a resumed run sees the same samples.
    """

    scale = 1.0

    def __init__(self, spec: SourceSpec, device: str | torch.device = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        rng = np.random.default_rng([spec.seed, 0x5AE])
        directions = rng.standard_normal((spec.n_features, spec.d_model))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        if spec.probability == "constant":
            p = np.full(spec.n_features, spec.expected_l0 / spec.n_features)
        else:
            p = np.sort(np.exp(rng.uniform(np.log(spec.p_min), np.log(spec.p_max), spec.n_features)))[::-1].copy()
        self.features: Float[Tensor, "n_features d_model"] = torch.from_numpy(directions.astype(np.float32)).to(device)
        self.probabilities: Float[Tensor, "n_features"] = torch.from_numpy(p)
        self._ends = np.cumsum(-np.log1p(-p))

    def batch(self, n: int, step: int, stream: int = TRAINING) -> SyntheticBatch:
        """``n`` samples; the same (n, step, stream) gives the same samples."""
        rng = np.random.Generator(np.random.Philox(key=[(self.spec.seed << 8) | stream, step]))
        rows, active = self._fire(n, rng)
        values = torch.from_numpy(np.exp(self.spec.sigma * rng.standard_normal(len(active), dtype=np.float32)))
        indptr = torch.from_numpy(np.searchsorted(rows, np.arange(n + 1)))
        indices = torch.from_numpy(active)
        if self.device.type != "cpu":
            indptr, indices, values = (t.to(self.device, non_blocking=True) for t in (indptr, indices, values))
        x = F.embedding_bag(
            indices, self.features, indptr, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        return SyntheticBatch(x, indptr, indices, values)

    def _fire(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Row and feature of every b_i = 1, in row order."""
        per_row = self._ends[-1]
        total = n * per_row
        times = rng.random(rng.poisson(total)) * total
        times.sort()
        rows = np.minimum(times // per_row, n - 1).astype(np.int64)
        active = np.searchsorted(self._ends, times - rows * per_row, side="right")
        active = np.minimum(active, self.spec.n_features - 1)
        cells = rows * self.spec.n_features + active
        keep = np.ones(len(cells), dtype=bool)
        np.not_equal(cells[1:], cells[:-1], out=keep[1:])
        cells = cells[keep]
        if self.spec.correlation:
            cells = self._correlate(cells, rng)
        return cells // self.spec.n_features, cells % self.spec.n_features

    def _correlate(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Let the odd feature of each pair copy the even one with probability ``correlation``.

        With equal probabilities the marginals stay p and the pair's Pearson correlation is exactly ``correlation``.
        """
        features = cells % self.spec.n_features
        even = cells[features % 2 == 0]
        even = even[even % self.spec.n_features < self.spec.n_features - 1]
        odd = cells[features % 2 == 1]
        copied = even[rng.random(len(even)) < self.spec.correlation] + 1
        with_even = np.isin(odd - 1, even, assume_unique=True)
        own = odd[with_even | (rng.random(len(odd)) >= self.spec.correlation)]
        last = cells[(features % 2 == 0) & (features == self.spec.n_features - 1)]
        return np.unique(np.concatenate([even, last, own, copied]))

    @property
    def truth(self) -> Float[Tensor, "n_features d_model"]:
        return self.features

    def start_bias(self) -> Float[Tensor, "d_model"]:
        """Zero: there is no bias in this world."""
        return self.features.new_zeros(self.spec.d_model)

    def mean(self) -> Float[Tensor, "d_model"]:
        """E x, exactly."""
        amplitude = np.exp(self.spec.sigma**2 / 2)
        return (self.probabilities * amplitude).to(self.features) @ self.features

    def covariance(self) -> Float[Tensor, "d_model d_model"]:
        """Cov x, exactly. The two features of a correlated pair add their common part."""
        first, second = np.exp(self.spec.sigma**2 / 2), np.exp(2 * self.spec.sigma**2)
        variance = (self.probabilities * second - (self.probabilities * first) ** 2).to(self.features)
        independent = (self.features * variance[:, None]).T @ self.features
        if not self.spec.correlation:
            return independent
        p, even = self.probabilities[:-1:2], self.features[:-1:2]
        shared = (self.spec.correlation * p * (1 - p) * first**2).to(self.features)
        cross = (even * shared[:, None]).T @ self.features[1::2]
        return independent + cross + cross.T
