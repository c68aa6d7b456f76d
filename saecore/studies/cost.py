"""What the reconstruction study takes on a card, by arithmetic alone: nothing here was timed on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from saecore.metrics.language import CHUNK, POSITIONS

GIB = 2**30
FLOAT, HALF = 4, 2
COPIES = 5
"""Of both weight matrices: the weights, their gradients, Adam's two moments, and where they began."""
CODE_COPIES = 4
"""Of a batch's dense codes: pre-activations, codes, and their gradients."""
LOGIT_COPIES, CHUNK_COPIES = 2, 5
"""Where a reconstruction is judged (metrics.language): of a batch's logits, the model's own and the spliced ones; in
float32, of a chunk's: both logarithms, one exponential, their difference and the product."""
FLOPS_PER_WEIGHT = 6
"""Of a matrix in a row's step: a multiplication and an addition forward, twice that for the gradients."""
UTILISATION = 0.4
"""Share of a card's float32 peak that such large matrix products are assumed to reach."""
ROOM = 0.9
"""Share of a card's memory that may be filled."""


@dataclass(frozen=True)
class Card:
    """``gib`` of memory; ``tflops``: float32 peak without tensor cores, from NVIDIA's data sheets."""

    name: str
    gib: float
    tflops: float
    halves: bool = True


@dataclass(frozen=True)
class Setup:
    """A model, the block of ``n_layers`` whose residual stream is read, and SAEs of ``width`` latents a dimension.

    ``vocabulary``: tokens that the model predicts; None where it is not stated.
    """

    model: str
    parameters: float
    d_model: int
    layer: int
    n_layers: int
    width: int = 32
    vocabulary: int | None = None

    @property
    def matrix(self) -> int:
        """Weights of the encoder, or of the decoder."""
        return self.width * self.d_model**2


T4, A10, A100 = Card("T4 (Colab)", 15, 8.1, halves=False), Card("A10, 24 GB", 22.5, 31.2), Card("A100, 80 GB", 79, 19.5)


def model_gib(setup: Setup, card: Card) -> float:
    """The model's weights: bfloat16 on a card that computes in it, float32 elsewhere (activations.models.load)."""
    return setup.parameters * (HALF if card.halves else FLOAT) / GIB


def sae_gib(setup: Setup) -> float:
    """One SAE in training. The soft-frozen one, the largest, keeps its decoder's start once more for its cone."""
    return (2 * COPIES + 1) * setup.matrix * FLOAT / GIB


def codes_gib(setup: Setup, batch: int) -> float:
    return CODE_COPIES * batch * setup.width * setup.d_model * FLOAT / GIB


def logits_gib(setup: Setup, card: Card) -> float:
    """While a reconstruction is judged in the model; NaN where the vocabulary is not stated."""
    if setup.vocabulary is None:
        return math.nan
    batch = LOGIT_COPIES * POSITIONS * (HALF if card.halves else FLOAT)
    return (batch + CHUNK_COPIES * CHUNK * FLOAT) * setup.vocabulary / GIB


def store_gib(setup: Setup, rows: int) -> float:
    """Rows in half precision, on the disk."""
    return rows * setup.d_model * HALF / GIB


def sae_hours(setup: Setup, card: Card, rows: int) -> float:
    """To train one SAE on so many rows."""
    return FLOPS_PER_WEIGHT * 2 * setup.matrix * rows / (UTILISATION * card.tflops * 1e12) / 3600


def harvest_hours(setup: Setup, card: Card, rows: int) -> float:
    """To run the model up to the layer on so many tokens: two operations a weight."""
    share = (setup.layer + 1) / setup.n_layers
    return 2 * setup.parameters * share * rows / (UTILISATION * card.tflops * 1e12) / 3600


def at_once(setup: Setup, card: Card, batch: int) -> int:
    """SAEs that fit beside the model, which stays in memory to be judged in; 0 where not even one does.

    Codes of training and logits of judging are never there together; logits count where the vocabulary is stated.
    """
    codes, logits = codes_gib(setup, batch), logits_gib(setup, card)
    left = ROOM * card.gib - model_gib(setup, card) - (codes if math.isnan(logits) else max(codes, logits))
    return max(0, int(left / sae_gib(setup)))


def table(plans: Iterable[tuple[Setup, Card]], rows: int, batch: int, variants: int) -> pd.DataFrame:
    """A line per model and card: memory, how many SAEs fit at once, disk, and hours for ``variants`` SAEs."""
    lines = []
    for setup, card in plans:
        lines.append(
            {
                "model, layer": f"{setup.model}, {setup.layer}",
                "width": setup.width,
                "card": card.name,
                "model (GiB)": model_gib(setup, card),
                "an SAE (GiB)": sae_gib(setup),
                "codes (GiB)": codes_gib(setup, batch),
                "logits (GiB)": logits_gib(setup, card),
                "SAEs at once": at_once(setup, card, batch),
                "rows on disk (GiB)": store_gib(setup, rows),
                "harvest (h)": harvest_hours(setup, card, rows),
                "training (h)": variants * sae_hours(setup, card, rows),
            }
        )
    return pd.DataFrame(lines)
