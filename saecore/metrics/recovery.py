"""Which true features an SAE found, as directions and as codes (paper, Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.saes.constraints import iso

RECOVERED = 0.8
"""Cosine above which the paper counts a feature as recovered."""
CHUNK = 1024
"""Features compared with all latents at once."""


@dataclass(frozen=True)
class Matches:
    """For each feature a latent and the cosine of the two; latent -1 and cosine 0 where it has none."""

    cosine: Float[Tensor, "n_features"]
    latent: Int[Tensor, "n_features"]


def best_match(
    features: Float[Tensor, "n_features d_model"], directions: Float[Tensor, "n_latents d_model"]
) -> Matches:
    """Per feature the largest cosine to any latent, as the paper counts; a latent may serve many features.

    On the device of ``features``. Raises ValueError on NaN.
    """
    features, directions = unit(features, "features"), unit(directions, "directions")
    best = [(chunk @ directions.T).max(1) for chunk in features.split(CHUNK)]
    return Matches(torch.cat([b.values for b in best]), torch.cat([b.indices for b in best]))


def one_to_one(
    features: Float[Tensor, "n_features d_model"], directions: Float[Tensor, "n_latents d_model"]
) -> Matches:
    """The assignment of latents to features, none used twice, with the largest sum of cosines (Hungarian).

    With fewer latents than features, those left over have latent -1 and cosine 0. About a second at 3200, on the CPU.
    Raises ValueError on NaN.
    """
    features, directions = unit(features, "features"), unit(directions, "directions")
    cosines = torch.cat([chunk @ directions.T for chunk in features.split(CHUNK)]).cpu()
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    latent = torch.full((len(features),), -1)
    latent[rows] = columns
    cosine = torch.zeros(len(features))
    cosine[rows] = cosines[rows, columns].float()
    return Matches(cosine, latent)


def recovered(cosine: Float[Tensor, "n_features"], threshold: float = RECOVERED) -> int:
    """Features with a cosine above ``threshold``."""
    return int((cosine > threshold).sum())


def chance_level(
    n_features: int, n_latents: int, d_model: int, generator: torch.Generator
) -> Float[Tensor, "n_features"]:
    """Best cosines of ``n_features`` random directions to ``n_latents`` others: what is found by chance."""
    return best_match(iso(n_features, d_model, generator), iso(n_latents, d_model, generator)).cosine


@dataclass(frozen=True)
class FrequencyBin:
    """Features with log10 p in [low, high)."""

    low: float
    high: float
    n_features: int
    recovered: float  # share; NaN without features
    mean_cosine: float


def by_frequency(
    cosine: Float[Tensor, "n_features"],
    probabilities: Float[Tensor, "n_features"],
    bins: int = 8,
    bounds: tuple[float, float] | None = None,
    threshold: float = RECOVERED,
) -> list[FrequencyBin]:
    """Recovery by how often features fire, in bins of equal width in log p, rarest first.

    ``bounds`` are the smallest and the largest p (default: as found); those outside fall in the outer bins.
    One bin where all features are equally frequent.
    """
    log_p = np.log10(probabilities.cpu().numpy().astype(np.float64))
    low, high = np.log10(bounds) if bounds else (log_p.min(), log_p.max())
    if high - low < 1e-9:
        bins = 1
    edges = np.linspace(low, high, bins + 1)
    place = np.digitize(log_p, edges[1:-1])
    found = cosine.cpu().numpy().astype(np.float64)
    rows = []
    for i in range(bins):
        inside = found[place == i]
        share, mean = ((inside > threshold).mean(), inside.mean()) if len(inside) else (np.nan, np.nan)
        rows.append(FrequencyBin(float(edges[i]), float(edges[i + 1]), len(inside), float(share), float(mean)))
    return rows


@dataclass
class CodeScores:
    """How well latents tell which true features fire: a latent that fires says that its feature fires.

    ``latent`` gives each feature its latent, none used twice, or -1. A code of a latent that no feature has
    is a false positive of the micro scores (it tells of nothing real); the macro score has no feature to charge
    it to. A feature without a latent is never told. Counts lie on the CPU, whatever device the rows were on.
    Raises ValueError where a latent belongs to two features.
    """

    latent: Int[Tensor, "n_features"]
    n_latents: int
    codes: int = 0
    hits: Int[np.ndarray, "n_features"] = field(init=False)  # fired and told
    told: Int[np.ndarray, "n_features"] = field(init=False)  # its latent fired
    fired: Int[np.ndarray, "n_features"] = field(init=False)  # it fired
    _feature: Int[np.ndarray, "n_latents"] = field(init=False, repr=False)  # each latent's, or -1

    def __post_init__(self) -> None:
        latent = self.latent.cpu().numpy()
        matched = np.flatnonzero(latent >= 0)
        if len(np.unique(latent[matched])) < len(matched):
            raise ValueError("latent gives one latent to several features; use the matches of one_to_one")
        self._feature = np.full(self.n_latents, -1, dtype=np.int64)
        self._feature[latent[matched]] = matched
        self.hits, self.told, self.fired = (np.zeros(len(latent), dtype=np.int64) for _ in range(3))

    def update(
        self, indptr: Int[Tensor, "batch_plus_one"], indices: Int[Tensor, "n_active"], codes: SparseCodes
    ) -> None:
        """Add rows: the features that truly fire (CSR) and the codes that the SAE gave them.

        Raises ValueError where the two differ in the number of rows.
        """
        starts, true = indptr.cpu().numpy(), indices.cpu().numpy()
        if len(starts) != len(codes.indptr):
            raise ValueError(f"{len(starts) - 1} true rows, {len(codes.indptr) - 1} rows of codes; pass the same rows")
        n = len(self.fired)
        feature = self._feature[codes.indices]
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(codes.indptr))
        told = (rows * n + feature)[feature >= 0]
        truth = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * n + true
        self.codes += len(feature)
        self.told += np.bincount(told % n, minlength=n)
        self.fired += np.bincount(true, minlength=n)
        self.hits += np.bincount(told[np.isin(told, truth, assume_unique=True)] % n, minlength=n)

    def precision(self) -> float:
        """Share of all codes whose feature fired; 0 without codes."""
        return float(self.hits.sum() / max(self.codes, 1))

    def recall(self) -> float:
        """Share of all firings whose latent fired."""
        return float(self.hits.sum() / max(self.fired.sum(), 1))

    def micro_f1(self) -> float:
        """2 hits / (codes + firings)."""
        return float(2 * self.hits.sum() / max(self.codes + self.fired.sum(), 1))

    def macro_f1(self) -> float:
        """Mean of 2 hits / (told + fired) over the features that fired on these rows."""
        seen = self.fired > 0
        return float((2 * self.hits[seen] / (self.told[seen] + self.fired[seen])).mean()) if seen.any() else 0.0


def unit(rows: Float[Tensor, "n d_model"], name: str) -> Float[Tensor, "n d_model"]:
    """Rows of norm one; a zero row stays zero and so has cosine 0 to everything. Raises ValueError on NaN."""
    rows = rows.detach()
    norms = rows.norm(dim=1, keepdim=True)
    if not torch.isfinite(norms).all():
        bad = int((~torch.isfinite(norms)).sum())
        raise ValueError(f"{bad} of {len(rows)} rows of {name} hold NaN or infinity; train the SAE again")
    return rows / norms.clamp_min(1e-12)
