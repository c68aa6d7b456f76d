"""Definition of the selections, on dense pre-activations."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def select_ranked(scores: Float[Tensor, "batch n_latents"], budget: int, rows: int) -> Bool[Tensor, "batch n_latents"]:
    """Mask of the ``budget * rows`` largest positive scores of each group of ``rows`` consecutive rows.

    A last group with fewer rows has a budget in proportion. Ties go to the lower row, then to the lower latent.
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, len(scores), rows):
        group = scores[start : start + rows].reshape(-1)
        order = torch.sort(group, descending=True, stable=True).indices[: budget * min(rows, len(scores) - start)]
        mask[start : start + rows].view(-1)[order] = True
    return mask & (scores > 0)


def select_above(
    scores: Float[Tensor, "batch n_latents"], threshold: Float[Tensor, "n_latents"]
) -> Bool[Tensor, "batch n_latents"]:
    """Mask of the scores above their latent's threshold."""
    return scores > threshold
