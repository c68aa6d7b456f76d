"""All that is measured on a finished SAE of a model: on rows, in the model itself, against the labels of its text."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saecore.activations import models
from saecore.metrics import concepts, language, lazy
from saecore.metrics.evaluate import BATCH, evaluate, rebuild
from saecore.saes.base import SAE
from saecore.sources import atlas
from saecore.sources.base import Source
from saecore.sources.synthetic import Superposition
from saecore.spec import ActivationSpec, RunSpec

log = logging.getLogger(__name__)

LABELLED_DOCUMENTS = 400
"""Labelled documents on which concepts are looked for, about 20,000 tokens of atlas."""


@dataclass(frozen=True)
class Labelled:
    """Rows of labelled text, scaled as the SAE sees them."""

    x: Float[Tensor, "rows d_model"]
    concepts: concepts.Concepts


@dataclass(frozen=True)
class Examiner:
    """A source with what is needed to measure SAEs on it: made once, used for every SAE.

    ``text`` and ``bounds`` are there for language models, ``labelled`` where the text has labels.
    """

    source: Source
    text: language.HeldOutText | None = None
    bounds: language.Bounds | None = None
    labelled: Labelled | None = None

    @torch.no_grad()
    def measure(self, sae: SAE, start: SAE, run: RunSpec) -> dict[str, float]:
        """Every metric by its name in the ledger. ``start`` is the SAE before training."""
        values = evaluate(sae, self.source, start=start.W_dec.detach())
        if self.text is not None and self.bounds is not None:
            values |= self.bounds.values(self.text.spliced(sae))
        if self.labelled is not None:
            values |= concept_recovery(sae, self.labelled)
        if (
            not isinstance(self.source, Superposition)
            and run.constraint.trains_encoder
            and run.constraint.trains_decoder
        ):
            values |= lazy.swaps(sae, start, self.source)
        return values

    def references(self) -> dict[str, dict[str, float]]:
        """Floors and ceilings that need no SAE, by the name that the ledger has under ``constraint``."""
        found: dict[str, dict[str, float]] = {}
        if self.bounds is not None:
            for name in ("model", "mean_ablation", "zero_ablation"):
                found[name] = self.bounds.values(getattr(self.bounds, name))
        if self.labelled is not None:
            found["always"] = concepts.always(self.labelled.concepts).values()
            found["probe"] = concepts.probe(self.labelled.concepts, self.labelled.x).values()
        return found


def examiner(source: Source, tokens: int = language.TOKENS, documents: int = LABELLED_DOCUMENTS) -> Examiner:
    """For a synthetic source its metrics alone; for activations the model is loaded and read on held-out text.

    ``tokens``: predictions on which a reconstruction is judged; ``documents``: labelled ones, of atlas, or none.
    """
    spec = source.spec
    if not isinstance(spec, ActivationSpec):
        return Examiner(source)
    model = models.load(spec.model, weights=spec.weights, device=source.device)
    text = bounds = None
    if model.has_logits:
        text = language.held_out(model, source, tokens)
        bounds = text.bounds()
    found = labelled(model, source, documents) if spec.dataset == "atlas" and documents else None
    return Examiner(source, text, bounds, found)


@torch.no_grad()
def labelled(model: models.ResidualModel, source: Source, documents: int) -> Labelled | None:
    """The rows of atlas' first held-out documents that fit one row of tokens, with what holds for each.

    None, with a warning, where these are too few for any concept.
    """
    rows, owner, labels = [], [], {concept: [] for concept in atlas.CONCEPTS}
    for index in range(documents):
        document = atlas.document("test", index)
        tokens = model.tokenize([document.text], source.spec.context)
        if len(tokens.ids) > 1:
            continue
        stream, counts = read(model, source, tokens)
        rows.append(stream[counts])
        keep = counts[0].tolist()
        owner += [index] * sum(keep)
        for concept, told in atlas.token_labels(document, offsets(model, document.text, tokens)).items():
            labels[concept] += [label for label, kept in zip(told, keep, strict=True) if kept]
    if not rows:
        context = source.spec.context
        log.warning("%s: no document fits context=%d, so no concept is looked for; raise it", source.spec.name, context)
        return None
    try:
        found = concepts.Concepts.of(labels, owner)
    except ValueError as error:
        log.warning("%s at context=%d: no concept is looked for: %s", source.spec.name, source.spec.context, error)
        return None
    return Labelled(torch.cat(rows), found)


def read(
    model: models.ResidualModel, source: Source, tokens: models.TokenBatch
) -> tuple[Float[Tensor, "batch seq d_model"], Bool[Tensor, "batch seq"]]:
    """The residual stream of a source, scaled as its SAEs see it, and which positions count: all kept but massive rows.

    Rows that are not finite count, for the SAE to refuse.
    """
    stream = model.residual(tokens, source.spec.layer)
    norms = stream.norm(dim=-1)
    massive = (norms > language.norm_limit(source)) & norms.isfinite()
    return stream * source.scale, tokens.keep & ~massive


def offsets(model: models.ResidualModel, text: str, tokens: models.TokenBatch) -> list[tuple[int, int]]:
    """Characters [start, end) of each position of a text's only row; (0, 0) for tokens put before or after it.

    Raises ValueError where the row does not hold the text's own tokens.
    """
    plain = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, own = tokens.ids[0].tolist(), plain["input_ids"]
    for before in range(len(ids) - len(own) + 1):
        if ids[before : before + len(own)] == own:
            after = len(ids) - len(own) - before
            return [(0, 0)] * before + [tuple(pair) for pair in plain["offset_mapping"]] + [(0, 0)] * after
    raise ValueError(
        f"the {len(own)} tokens of {text[:40]!r} are not in its row of {len(ids)}: labels cannot be placed"
    )


def concept_recovery(sae: SAE, text: Labelled) -> dict[str, float]:
    """How well single latents of an SAE tell the concepts."""
    codes = (rebuild(sae, part)[1] for part in text.x.split(BATCH))
    return concepts.best_latents(text.concepts, concepts.firing(codes, sae.spec.n_latents)).values()
