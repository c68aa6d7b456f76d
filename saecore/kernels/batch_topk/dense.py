"""Path for dense scores on any device: the cut by ``torch.topk`` instead of a full sort."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def select_ranked(scores: Float[Tensor, "batch n_latents"], budget: int, rows: int) -> Bool[Tensor, "batch n_latents"]:
    """As ``reference.select_ranked``, ties included."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    whole = len(scores) // rows * rows
    for part, part_rows in ((slice(0, whole), rows), (slice(whole, None), len(scores) - whole)):
        if part_rows and len(scores[part]):
            groups = scores[part].reshape(-1, part_rows * scores.shape[1])
            k = min(budget * part_rows, groups.shape[1])
            cut = torch.topk(groups, k, dim=1, sorted=False).values.amin(1, keepdim=True)
            chosen, ties = groups > cut, groups == cut
            left = k - chosen.sum(1, keepdim=True)
            chosen |= ties & (ties.cumsum(1) <= left)
            mask[part] = chosen.view(-1, scores.shape[1])
    return mask & (scores > 0)
