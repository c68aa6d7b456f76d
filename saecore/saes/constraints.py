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
    values, vectors = _principal(covariance)
    root = (vectors * values.clamp_min(0).sqrt()).float()
    rows = torch.randn(n, len(covariance), generator=generator) @ root.T
    return rows / rows.norm(dim=1, keepdim=True)


def components(covariance: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "two_d_model d_model"]:
    """Principal components of the data as unit rows, largest variance first, then their opposites.

    Raises SpecError where the covariance is not symmetric positive semi-definite.
    """
    _, vectors = _principal(covariance)
    rows = vectors.T.flip(0).float()
    return torch.cat([rows, -rows])


def neurons(d_model: int) -> Float[Tensor, "two_d_model d_model"]:
    """The standard basis, then its opposite."""
    return torch.cat([torch.eye(d_model), -torch.eye(d_model)])


def _principal(
    covariance: Float[Tensor, "d_model d_model"],
) -> tuple[Float[Tensor, "d_model"], Float[Tensor, "d_model d_model"]]:
    """Eigenvalues, ascending, and eigenvectors as columns, in float64."""
    values, vectors = torch.linalg.eigh(covariance.double())
    if values.min() < -1e-6 * values.max().abs():
        raise SpecError(
            f"a covariance must be positive semi-definite; the smallest eigenvalue is {values.min():.3g}: "
            "check the source's covariance()"
        )
    return values, vectors
