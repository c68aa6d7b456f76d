"""Which features fire in a sample, read off with the true directions at hand: what the best SAE could do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from saecore.metrics.detection import Detection, nonnegative_lasso
from saecore.sources.synthetic import EVALUATION, Superposition

EDGES = np.arange(-4.0, 8.0, 0.01)
"""Thresholds tried on a dot product."""
PENALTY = 0.1
"""Weight of the codes' sum in :func:`saecore.metrics.detection.nonnegative_lasso`."""


def compare_readings(world: Superposition, rows: int = 2048, slow_rows: int = 128) -> pd.DataFrame:
    """Precision, recall and F1 of five ways to read a sample, and what the features they name can explain.

    ``f1_error`` is the standard error that comes from the number of rows. ``explained_variance`` gives the named
    features the amplitudes that fit best. It, and the two iterative ways, are measured on the first ``slow_rows`` rows.
    """
    batch = world.batch(rows, 0, EVALUATION)
    scores, fired = batch.x @ world.features.T, batch.dense_codes(len(world.features)) > 0
    few = batch.x[:slow_rows]
    k = round(float(world.probabilities.sum()))
    told = {
        "one threshold": _above_best(scores, fired),
        "largest dot products of each sample": _largest(scores, k),
        "best single step": _largest(best_step(world, batch.x), k),
        "one feature at a time (matching pursuit)": _pursued(few, world.features, k),
        "all at once, until it settles": _largest(nonnegative_lasso(few, world.features, PENALTY), k),
    }
    return pd.DataFrame(
        [
            {"way": way, **_scores(mask, fired[: len(mask)]), "explained_variance": fitted(few, world.features, mask)}
            for way, mask in told.items()
        ]
    )


def best_step(world: Superposition, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_features"]:
    """Log odds that each feature fires, from the best linear detector of each and from how often it fires.

    The detector of f is proportional to C^-1 f, with C the covariance of x, and answers 1 to f itself. Its answer s is
    taken as Gaussian around 0 (silent) or 1 (firing), with the variance v that comes from all other features:
    (s - 1/2) / v + log(p / (1 - p)).
    """
    covariance, p = world.covariance(), world.probabilities
    first, second = np.exp(world.spec.sigma**2 / 2), np.exp(2 * world.spec.sigma**2)
    weights = world.features @ torch.linalg.inv(covariance)
    weights = weights / (weights * world.features).sum(1, keepdim=True)
    own = (p * second - (p * first) ** 2).to(weights)
    variance = ((weights @ covariance * weights).sum(1) - own).clamp_min(1e-6)
    answers = (x - world.mean()) @ weights.T + (p * first).to(weights)
    return (answers - 0.5) / variance + torch.log(p / (1 - p)).to(weights)


def fitted(
    x: Float[Tensor, "batch d_model"],
    directions: Float[Tensor, "n_features d_model"],
    mask: Bool[Tensor, "more n_features"],
) -> float:
    """Explained variance when each row takes the features of its mask with the amplitudes of least squares."""
    left = 0.0
    for row, chosen in zip(x.double(), mask[: len(x)], strict=True):
        basis = directions[chosen].double().T
        fit = basis @ torch.linalg.lstsq(basis, row).solution if chosen.any() else torch.zeros_like(row)
        left += float((row - fit).square().sum())
    return 1 - left / float((x - x.mean(0)).double().square().sum())


def _above_best(
    scores: Float[Tensor, "batch n_features"], fired: Bool[Tensor, "batch n_features"]
) -> Bool[Tensor, "batch n_features"]:
    found = Detection(EDGES)
    found.update(scores, fired)
    return scores >= found.best().threshold


def _largest(scores: Float[Tensor, "batch n_features"], k: int) -> Bool[Tensor, "batch n_features"]:
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, 1).indices, True)


def _pursued(
    x: Float[Tensor, "batch d_model"], directions: Float[Tensor, "n_features d_model"], k: int
) -> Bool[Tensor, "batch n_features"]:
    wide = directions.double()
    gram, dots = (wide @ wide.T).cpu().numpy(), (wide @ x.double().T).cpu().numpy()
    with warnings.catch_warnings():  # it warns where fewer than k features explain a row fully, and stops there
        warnings.simplefilter("ignore", RuntimeWarning)
        codes: Any = orthogonal_mp_gram(gram, dots, n_nonzero_coefs=k)
    return torch.from_numpy(codes.T != 0).to(x.device)


def _scores(told: Bool[Tensor, "batch n_features"], fired: Bool[Tensor, "batch n_features"]) -> dict[str, float]:
    hits, n_told, n_fired = (mask.sum(1).double() for mask in (told & fired, told, fired))
    each = 2 * hits / (n_told + n_fired).clamp_min(1)
    return {
        "codes": float(n_told.mean()),
        "precision": float(hits.sum() / n_told.sum().clamp_min(1)),
        "recall": float(hits.sum() / n_fired.sum().clamp_min(1)),
        "f1": float(2 * hits.sum() / (n_told.sum() + n_fired.sum()).clamp_min(1)),
        "f1_error": float(each.std() / len(each) ** 0.5),
    }
