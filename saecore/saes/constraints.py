"""Where the weights start, for each initialisation and constraint (paper, Sec. 4.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.spec import SpecError


def iso(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """Rows uniform on the unit sphere."""
    rows = torch.randn(n, d_model, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)


def cov(n: int, covariance: Float[Tensor, "d_model d_model"], generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """Rows of a zero-mean Gaussian with the data's covariance, normalised.

    Raises SpecError where the covariance is not symmetric positive semi-definite.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    if values.min() < -1e-6 * values.max().abs():
        raise SpecError(f"init='cov' needs a positive semi-definite covariance; smallest eigenvalue {values.min():.3g}")
    root = (vectors * values.clamp_min(0).sqrt()).float()
    rows = torch.randn(n, len(covariance), generator=generator) @ root.T
    return rows / rows.norm(dim=1, keepdim=True)
