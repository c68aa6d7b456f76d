"""How well the true directions tell which features fire, before any SAE is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Detected:
    """One threshold and what it tells: features with a score from ``threshold`` up are said to fire."""

    threshold: float
    f1: float
    precision: float
    recall: float


@dataclass
class Detection:
    """Scores of features that fire and of those that do not, counted in bins; a threshold is a bin's lower edge.

    Scores beyond the outer edges are counted in the outer bins. Scores may lie on any device; the counts do not.
    Raises ValueError for edges that do not rise.
    """

    edges: Float[np.ndarray, "bins_plus_one"]
    fired: Int[np.ndarray, "bins"] = field(init=False)
    silent: Int[np.ndarray, "bins"] = field(init=False)

    def __post_init__(self) -> None:
        self.edges = np.asarray(self.edges, dtype=np.float64)
        if len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"{len(self.edges)} edges: pass at least 2, each above the one before")
        self.fired, self.silent = (np.zeros(len(self.edges) - 1, dtype=np.int64) for _ in range(2))

    def update(self, scores: Float[Tensor, "batch n_features"], fired: Bool[Tensor, "batch n_features"]) -> None:
        """Add rows: the score of every feature, and whether it fires. Raises ValueError on NaN."""
        if bad := int(scores.isnan().sum()):
            raise ValueError(f"{bad} of {scores.numel()} scores are NaN; mend what they come from")
        everything, firing = self._count(scores.flatten()), self._count(scores[fired])
        self.fired += firing
        self.silent += everything - firing

    def _count(self, scores: Float[Tensor, "n"]) -> Int[np.ndarray, "bins"]:
        inner = torch.from_numpy(self.edges[1:-1]).to(scores.device)
        place = torch.bucketize(scores.double(), inner, right=True)  # a score on an edge belongs above it
        return torch.bincount(place, minlength=len(self.edges) - 1).cpu().numpy()

    def precision(self) -> Float[np.ndarray, "bins"]:
        """For each threshold, the share of told features that fire; 1 where none is told."""
        hits, told = _from_above(self.fired), _from_above(self.fired + self.silent)
        return np.where(told > 0, hits / np.maximum(told, 1), 1.0)

    def recall(self) -> Float[np.ndarray, "bins"]:
        """For each threshold, the share of firings that are told."""
        return _from_above(self.fired) / max(self.fired.sum(), 1)

    def f1(self) -> Float[np.ndarray, "bins"]:
        """For each threshold, 2 hits / (told + fired)."""
        told = _from_above(self.fired + self.silent)
        return 2 * _from_above(self.fired) / np.maximum(told + self.fired.sum(), 1)

    def best(self) -> Detected:
        """The threshold with the largest F1."""
        f1 = self.f1()
        i = int(f1.argmax())
        return Detected(float(self.edges[i]), float(f1[i]), float(self.precision()[i]), float(self.recall()[i]))


@torch.no_grad()
def nonnegative_lasso(
    x: Float[Tensor, "batch d_model"],
    directions: Float[Tensor, "n_features d_model"],
    penalty: float,
    steps: int = 300,
) -> Float[Tensor, "batch n_features"]:
    """Codes z >= 0 that minimise |x - z directions|^2 / 2 + penalty sum(z), to which no encoder in one step comes.

    Accelerated proximal gradient (FISTA; Beck and Teboulle 2009) with a restart where the momentum points uphill.
    """
    rate = 1 / float(torch.linalg.matrix_norm(directions, 2)) ** 2
    codes = momentum = x.new_zeros(len(x), len(directions))
    t = 1.0
    for _ in range(steps):
        pull = (x - momentum @ directions) @ directions.T - penalty
        new = torch.relu(momentum + rate * pull)
        uphill = float(((momentum - new) * (new - codes)).sum()) > 0
        t, before = (1.0, 1.0) if uphill else ((1 + (1 + 4 * t * t) ** 0.5) / 2, t)
        momentum = new + (before - 1) / t * (new - codes)
        codes = new
    return codes


def _from_above(counts: Int[np.ndarray, "bins"]) -> Int[np.ndarray, "bins"]:
    """How many lie in each bin and those above it."""
    return counts[::-1].cumsum()[::-1]
