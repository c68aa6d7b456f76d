"""What raw activations are multiplied by, and which of them are left out: estimated once, applied to every variant."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.spec import require

MASSIVE = 10.0
"""A row is massive, and left out, where its norm exceeds this many times the median norm of the first rows.

A few positions of a language model carry norms a hundred times the others' (Sun et al. 2024, "Massive activations");
they would make up most of the variance that an SAE is asked to explain.
"""


@dataclass(frozen=True)
class InputScale:
    """Raw rows are multiplied by ``scale``; those whose raw norm exceeds ``norm_limit`` are left out."""

    scale: float
    norm_limit: float
    rows: int  # from how many rows both were estimated

    def apply(self, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "kept d_model"]:
        """The rows that are not massive, scaled, in half precision. Raises SpecError where rows are not finite."""
        _check_finite(rows)
        scaled = (rows[rows.norm(dim=1) <= self.norm_limit] * self.scale).half()
        require(
            bool(scaled.isfinite().all()),
            f"activations exceed half precision ({torch.finfo(torch.float16).max:.0f}) after scaling by "
            f"{self.scale:.3g}; run the model in another precision, or take another layer",
        )
        return scaled


def estimate(rows: Float[Tensor, "n d_model"]) -> InputScale:
    """The scale at which centred rows have mean squared norm d_model: sqrt(d_model / E|x - E x|^2).

    Massive rows are left out of it. Raises SpecError where rows are not finite or do not vary.
    """
    _check_finite(rows)
    norms = rows.norm(dim=1)
    limit = MASSIVE * float(norms.median())
    kept = rows[norms <= limit].double()
    spread = float((kept - kept.mean(0)).square().sum(1).mean()) if len(kept) else math.nan
    require(
        math.isfinite(spread) and spread > 0,
        f"the first {len(rows)} activations have E|x - mean|^2 = {spread}: they do not vary; check the model's weights "
        "and the layer",
    )
    return InputScale(math.sqrt(rows.shape[1] / spread), limit, len(rows))


def _check_finite(rows: Float[Tensor, "n d_model"]) -> None:
    wrong = int((~rows.isfinite().all(1)).sum())
    require(
        not wrong,
        f"{wrong} of {len(rows)} rows of activations hold NaN or infinity; check the model's weights, run the model in "
        "another precision, or take another layer",
    )


def mean(batches: Iterable[Float[Tensor, "_ d_model"]]) -> Float[Tensor, "d_model"]:
    """E x over all rows, summed in float64."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for x in batches:
        count, total = count + len(x), total.to(x.device) + x.sum(0, dtype=torch.float64)
    return (total / count).float()


def covariance(
    batches: Iterable[Float[Tensor, "_ d_model"]], centre: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """E (x - centre)(x - centre)^T over all rows; products in float32, their sum over batches in float64."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for x in batches:
        centred = x - centre
        count, total = count + len(x), total.to(x.device) + (centred.T @ centred).double()
    return (total / count).float()
