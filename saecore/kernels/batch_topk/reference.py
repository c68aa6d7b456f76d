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
    whole = len(scores) // rows * rows
    for part, part_rows in ((slice(0, whole), rows), (slice(whole, None), len(scores) - whole)):
        if part_rows and len(scores[part]):
            groups = scores[part].reshape(-1, part_rows * scores.shape[1])
            order = torch.sort(groups, dim=1, descending=True, stable=True).indices[:, : budget * part_rows]
            chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
            mask[part] = chosen.view(-1, scores.shape[1])
    return mask & (scores > 0)


def select_above(
    scores: Float[Tensor, "batch n_latents"], threshold: Float[Tensor, "n_latents"]
) -> Bool[Tensor, "batch n_latents"]:
    """Mask of the scores above their latent's threshold."""
    return scores > threshold
