"""Which parts of an SAE carry what training gained over where it began (the paper's lazy training, Sec. 4.2)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch

from saecore.metrics.evaluate import BATCH, reconstruct
from saecore.saes.base import SAE
from saecore.sources.base import TRAINING, Source

PARTS = {"encoder": ("W_enc",), "decoder": ("W_dec",), "biases": ("b_enc", "threshold")}
"""``b_dec`` stands twice in an SAE: what the encoder subtracts goes with the encoder, what is added at the end with the
biases. Swapped as one it would move every pre-activation, and what is lost then is no part's.
"""


@torch.no_grad()
def swaps(sae: SAE, start: SAE, source: Source, rows: int = 16_384, batch: int = BATCH) -> dict[str, float]:
    """Explained variance with parts of a trained SAE put back to where they began, and each part's share of the gain.

    ``swapped_<parts>`` for every set of ``PARTS`` (``swapped_none``: as trained; ``swapped_encoder_decoder_biases``: as
    at the start). Whatever is put back, one common threshold is moved so that L0 is the trained SAE's; otherwise L0
    and not the part would decide. ``gain_<part>`` is the part's Shapley value: what it adds to the explained
    variance, averaged over the orders in which the parts can come in; the three sum to the whole gain.
    """
    trained = reconstruct(sae, source, rows, batch)
    found = {frozenset(): trained.explained_variance()}
    for parts in _subsets(1):
        mixed = copy.deepcopy(sae)
        for name in itertools.chain.from_iterable(PARTS[part] for part in parts):
            getattr(mixed, name).copy_(getattr(start, name).nan_to_num(0))  # BatchTopK starts without a threshold
        centre, bias = (start.b_dec if part in parts else sae.b_dec for part in ("encoder", "biases"))
        mixed.b_dec.copy_(centre)
        match_l0(mixed, source, trained.l0())
        found[frozenset(parts)] = reconstruct(mixed, source, rows, batch, bias - centre).explained_variance()
    named = {f"swapped_{'_'.join(p for p in PARTS if p in parts) or 'none'}": ev for parts, ev in found.items()}
    return named | {f"gain_{part}": gain for part, gain in shapley(found).items()}


def shapley(found: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Per part the mean fall of ``found`` (by the set of parts put back) when it is put back, over all orders."""
    n, gains = len(PARTS), {}
    for part in PARTS:
        gains[part] = 0.0
        for others in _subsets(0):
            if part not in others:
                weight = math.factorial(len(others)) * math.factorial(n - len(others) - 1) / math.factorial(n)
                before, after = frozenset(others), frozenset(others) | {part}
                gains[part] += weight * (found[before] - found[after])
    return gains


@torch.no_grad()
def match_l0(sae: SAE, source: Source, l0: float, rows: int = BATCH) -> None:
    """Move all thresholds (for ReLU, all encoder biases) by one number so that training rows have ``l0`` codes a row.

    Thresholds stop at zero. TopK has its L0 by construction.
    """
    if sae.selects_per_row:
        return
    x = source.batch(rows, 0, TRAINING).x
    scores, weight = sae.preactivations(x), sae.ranking_weight(x)
    margin = ((scores if weight is None else scores * weight[:, None]) - sae.checked_threshold()).flatten()
    kept = min(round(l0 * len(x)), len(margin) - 1)
    cut = float(np.partition(margin.cpu().numpy(), len(margin) - 1 - kept)[len(margin) - 1 - kept])
    if sae.spec.architecture == "relu":
        sae.b_enc.data.sub_(cut)
    else:
        sae.threshold.add_(cut).clamp_(min=0)


def _subsets(least: int) -> list[tuple[str, ...]]:
    return [parts for size in range(least, len(PARTS) + 1) for parts in itertools.combinations(PARTS, size)]
