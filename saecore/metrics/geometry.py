"""Where directions lie: how far they moved, interfere, what chance allows (paper, Sec. 4.1, App. E)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize, special
from torch import Tensor

from saecore.metrics.recovery import CHUNK, unit


def cosine_to_start(
    W: Float[Tensor, "n_latents d_model"], start: Float[Tensor, "n_latents d_model"]
) -> Float[Tensor, "n_latents"]:
    """Cosine of each row to where it started. Raises ValueError on NaN."""
    return (unit(W, "W") * unit(start, "start")).sum(1)


def interference(
    features: Float[Tensor, "n_features d_model"], pairs: int, generator: torch.Generator
) -> Float[Tensor, "pairs"]:
    """Cosines of random pairs of different features; random directions: mean 0, deviation 1/sqrt(d_model)."""
    n = len(features)
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    rows = unit(features, "features").cpu()
    return (rows[first] * rows[second]).sum(1)


def coherence(features: Float[Tensor, "n_features d_model"]) -> Float[Tensor, "n_features"]:
    """Cosine of each feature to its nearest other feature."""
    rows = unit(features, "features")
    nearest = []
    for start in range(0, len(rows), CHUNK):
        cosines = rows[start : start + CHUNK] @ rows.T
        cosines.diagonal(offset=start).fill_(-torch.inf)
        nearest.append(cosines.max(1).values)
    return torch.cat(nearest)


def log10_cap_bound(d_model: int, tau: float) -> float:
    """log10 of the paper's bound exp(-d_model tau^2 / 2) on the probability of :func:`log10_cap_probability`.

    A logarithm, because the paper's own case, 6.36e-321 at d_model 2304 and tau 0.8, is near float64's end.
    """
    return -d_model * tau**2 / 2 / np.log(10)


def log10_cap_probability(d_model: int, tau: float) -> float:
    """log10 of P(cosine of a random direction to a given one >= tau) = I_{1-tau^2}((d_model-1)/2, 1/2) / 2.

    Where the regularised incomplete beta function underflows, its hypergeometric series gives the logarithm.
    Raises ValueError outside 0 <= tau <= 1 and below two dimensions.
    """
    if not 0 <= tau <= 1 or d_model < 2:
        raise ValueError(f"tau={tau}, d_model={d_model}: need 0 <= tau <= 1 and d_model >= 2")
    a, x = (d_model - 1) / 2, 1 - tau**2
    if x == 0:
        return -np.inf
    share = special.betainc(a, 0.5, x)
    if share > 1e-290:
        return float(np.log10(share / 2))
    series = np.log(special.hyp2f1(a + 0.5, 1, a + 1, x))
    log = a * np.log(x) + np.log(tau) - np.log(a) - special.betaln(a, 0.5) + series
    return float((log - np.log(2)) / np.log(10))


def typical_best(d_model: int, n_directions: int) -> float:
    """Median of the largest cosine of one random direction to ``n_directions`` others.

    The cosine c at which (1 - P(cosine >= c))^n = 1/2, with P of :func:`log10_cap_probability`. Raises ValueError for
    fewer than one direction.
    """
    if n_directions < 1:
        raise ValueError(f"n_directions={n_directions} must be at least 1")
    log_share = np.log10(-np.expm1(-np.log(2) / n_directions))
    root: Any = optimize.brentq(lambda c: log10_cap_probability(d_model, c) - log_share, 0.0, 1 - 1e-9)
    return float(root)


def reach(cosine: float, tau: float) -> float:
    """The largest cosine to a target that a direction can have which stays within cosine ``tau`` of a start,
    where the start itself has ``cosine`` to the target: cos(arccos(cosine) - arccos(tau)), or 1 inside the cone.
    Raises ValueError where one of them is no such cosine.
    """
    if not (0 <= tau <= 1 and -1 <= cosine <= 1):
        raise ValueError(f"cosine={cosine}, tau={tau}: need -1 <= cosine <= 1 and 0 <= tau <= 1")
    return 1.0 if cosine >= tau else float(np.cos(np.arccos(cosine) - np.arccos(tau)))
