"""The frozen baselines on one small example of activations: how far rows move, what a start has seen, what is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saecore.metrics import language
from saecore.metrics.evaluate import evaluate, reconstruct
from saecore.metrics.geometry import cosine_to_start
from saecore.report import ledger
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.spec import DICTIONARIES, ActivationSpec
from saecore.studies.examine import Examiner
from saecore.studies.live import Variant

TRAINED = ("free", "soft_frozen_decoder", "frozen_decoder", "frozen_encoder")
"""The paper's variants, whose rows may start from either init."""
BANDWIDTH = 0.3
"""JumpReLU's straight-through window on activations, about half of its thresholds there."""
SIDES = {"encoder": "W_enc", "decoder": "W_dec"}


def activation_spec(model: str, layer: int, dataset: str, rows: int, context: int = 128) -> ActivationSpec:
    """The spec of a model's activations, with ``d_model`` from its config. Raises ModelError."""
    from saecore.activations.pretrained import locate, read_config

    return ActivationSpec(model, layer, dataset, int(read_config(locate(model)).hidden_size), rows, context)


def paper_l0(d_model: int) -> int:
    """The paper's middle L0: 160, or as many for each dimension as in Gemma-2-2B's 2304 where there are fewer."""
    return min(160, max(1, round(160 / 2304 * d_model)))


def aux_k(d_model: int) -> int:
    """Dead latents that the auxiliary loss asks: the power of two nearest to d_model / 2 (Gao et al. 2024, A.2)."""
    return 2 ** round(math.log2(d_model / 2))


def grid(base: Mapping[str, Any], architectures: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The paper's variants from both starts and our controls, in fields of ``sweep.make``.

    ``base``: fields that all share. The two dictionaries, which have no seed and a width of their own, come once.
    """
    cells = [{"constraint": c, "constraint.init": i} for c, i in product(TRAINED, ("iso", "cov"))]
    cells += [{"constraint": c} for c in ("both_frozen", "untrained")]
    own: dict[str, dict[str, Any]] = {"jump_relu": {"sae.bandwidth": BANDWIDTH}}
    runs = [
        {**base, **own.get(name, {}), **cell, "architecture": name, "seed": seed}
        for seed, name, cell in product(seeds, architectures, cells)
    ]
    narrow = {name: value for name, value in base.items() if name != "sae.n_latents"}
    return runs + [{**narrow, "architecture": "topk", "constraint": c, "seed": seeds[0]} for c in DICTIONARIES]


@torch.no_grad()
def compare_variants(variants: Sequence[Variant], at_hand: Examiner, rows: int = 8192) -> pd.DataFrame:
    """Every metric of every variant, and the floors and ceilings without an SAE, as rows of the ledger."""
    found: list[dict] = []
    for variant in variants:
        values = evaluate(variant.sae, at_hand.source, rows, start=variant.start.W_dec.detach())
        if at_hand.text is not None and at_hand.bounds is not None:
            values |= at_hand.bounds.values(at_hand.text.spliced(variant.sae))
        found += variant.rows(values)
    first = variants[0].run
    where = at_hand.source.device
    found += ledger.references(first.source, at_hand.references(), where, first.training.seed, first.training.steps)
    return pd.DataFrame(found, columns=pd.Index(ledger.COLUMNS))


@torch.no_grad()
def rows_moved(variants: Sequence[Variant], source: Source, rows: int = 8192) -> pd.DataFrame:
    """The cosine of each latent's encoder and decoder row to its start: constraint, init, side, live, cosine.

    ``live``: whether the latent fires on the first ``rows`` held-out rows. The controls that never train are left out.
    """
    parts = []
    for variant in variants:
        run, n = variant.run, variant.run.sae.n_latents
        if not run.constraint.trains_anything:
            continue
        live = reconstruct(variant.sae, source, rows).firings(n) > 0
        for side, name in SIDES.items():
            now, before = (getattr(sae, name).detach() for sae in (variant.sae, variant.start))
            cosine = cosine_to_start(now, before).clamp(-1, 1).cpu().numpy()
            same = {"constraint": run.constraint.name, "init": run.constraint.init, "side": side}
            parts.append(pd.DataFrame({**same, "live": live, "cosine": cosine}))
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def continuations(text: language.HeldOutText, prompts: Sequence[str], saes: Mapping[str, SAE]) -> pd.DataFrame:
    """What the model says after each prompt, and what it says with the residual stream replaced: a row per prompt.

    Each column holds the likeliest next token and its probability: of the model, with each SAE's reconstruction in
    place, and with the mean. Massive rows stay as they are.
    """
    model, mean = text.model, text.mean
    replaced: dict[str, Any] = {"the model itself": lambda rows: rows}
    replaced |= {name: sae.rebuild for name, sae in saes.items()} | {"mean ablation": mean.expand_as}
    told: dict[str, dict[str, str]] = {}
    for prompt in prompts:
        tokens = model.tokenize([prompt], model.context)
        told[prompt] = {}
        for name, replace in replaced.items():
            chances = model.logits_with(tokens, text.layer, text.usual(replace))[0, -1].float().softmax(0)
            word = model.tokenizer.decode([int(chances.argmax())]).strip()
            told[prompt][name] = f"{word} ({float(chances.max()):.2f})"
    return pd.DataFrame.from_dict(told, orient="index")


def principal_shares(
    directions: Float[Tensor, "n d_model"], covariance: Float[Tensor, "d_model d_model"]
) -> Float[np.ndarray, "d_model"]:
    """Mean share of the directions' squared norm within the data's first 1, 2, ... d_model principal components."""
    _, vectors = torch.linalg.eigh(covariance.double())
    inside = (directions.detach().double() @ vectors.flip(1)).square().sum(0)
    return (inside.cumsum(0) / inside.sum()).cpu().numpy()


def variance_shares(covariance: Float[Tensor, "d_model d_model"]) -> Float[np.ndarray, "d_model"]:
    """Share of the data's variance within its first 1, 2, ... d_model principal components."""
    values = torch.linalg.eigvalsh(covariance.double()).flip(0).clamp_min(0)
    return (values.cumsum(0) / values.sum()).cpu().numpy()


def effective_dimensions(covariance: Float[Tensor, "d_model d_model"]) -> float:
    """(sum of eigenvalues)^2 / sum of their squares: how many equal components would spread as much."""
    values = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    return float(values.sum() ** 2 / values.square().sum())
