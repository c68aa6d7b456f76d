"""Automated interpretability of an SAE's latents on text that it was not trained on.

With the oracle (atlas only) an SAE takes seconds; with a language model it takes three questions a latent:
:meth:`Reader.plan` says how many tokens that is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from saecore.activations import models
from saecore.judges import Endpoint, Judge, LanguageJudge, Oracle, Plan
from saecore.judges.base import ask
from saecore.judges.endpoint import MODEL
from saecore.metrics.autointerp import LATENTS, SPREADS, WIDTH, Chosen, Judged, Text, choose
from saecore.metrics.evaluate import BATCH
from saecore.saes.base import SAE
from saecore.sources import atlas
from saecore.sources.base import Source
from saecore.sources.text import documents
from saecore.spec import ActivationSpec, SourceSpec, one_of, require
from saecore.studies.examine import offsets, read

log = logging.getLogger(__name__)

EXPERIMENT = "interpretability"
TOKENS = 200_000
"""Held-out tokens that are read, about 2,500 documents of atlas."""
AT_ONCE = 64
"""Documents to a forward pass."""
GOOD = 0.9
"""Accuracy from which a latent counts as told well."""
BINS = 20
"""``autointerp_bin_<i>`` is the share of latents with an accuracy in the i-th of so many equal parts of 0 to 1."""
EVERY = 450
"""A latent of the floor fires on one token in so many: about as often as one of 4096 with an L0 of 9."""
HOLDS = 65
"""Positions that a label of the ceiling needs."""

Labels = Mapping[str, Sequence[str | None]]


@dataclass(frozen=True)
class Reading:
    """An SAE's latents as a judge reads them."""

    judged: tuple[Judged, ...]
    chosen: Chosen = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each latent. ``accuracy`` is NaN where the judge did not answer; ``same_token`` is the share of the
        hard silent sequences around a token at which the top ones peak."""
        columns = ("latent", "description", "accuracy", "accuracy_hard", "frequency", "same_token")
        rows = [
            (j.trial.latent, j.description, j.accuracy, j.accuracy_hard, j.trial.frequency, j.trial.same_token)
            for j in self.judged
        ]
        return pd.DataFrame(rows, columns=list(columns))

    def values(self) -> dict[str, float]:
        """By name in the ledger; accuracies only where a latent was judged, so that nothing is NaN.

        ``autointerp_left_out``: share of the latents tried that have too few sequences to be tested.
        """
        tried = len(self.judged) + self.chosen.left_out
        both = np.array([(j.accuracy, j.accuracy_hard) for j in self.judged]).reshape(-1, 2)
        found = {
            "autointerp_live": float(self.chosen.live),
            "autointerp_left_out": self.chosen.left_out / tried if tried else 0.0,
            "autointerp_scored": float((~np.isnan(both[:, 0])).sum()),
            "autointerp_unanswered": float(np.isnan(both).any(1).sum()),
        }
        for name, column in (("", both[:, 0]), ("_hard", both[:, 1])):
            told = column[~np.isnan(column)]
            if len(told):
                found[f"autointerp_accuracy{name}"] = float(told.mean())
                found[f"autointerp_std{name}"] = float(told.std())
                found[f"autointerp_share_90{name}"] = float((told >= GOOD - 1e-9).mean())
        told = both[~np.isnan(both[:, 0]), 0]
        if len(told):
            place = np.minimum((told * BINS + 1e-9).astype(int), BINS - 1)  # an edge belongs to the part above it
            shares = np.bincount(place, minlength=BINS) / len(told)
            found |= {f"autointerp_bin_{i}": float(share) for i, share in enumerate(shares)}
        if self.judged:
            found["autointerp_same_token"] = float(np.mean([j.trial.same_token for j in self.judged]))
        return found


@dataclass(frozen=True)
class Reader:
    """Held-out text with the model's scaled rows for it, and a judge: made once for a source, used for every SAE.

    Massive rows, which were left out of training, do not count: no latent fires there. ``labels`` are there for atlas.
    The latents of an SAE are drawn with ``seed``; ``spread`` says how their test sequences vary in strength
    (:mod:`saecore.metrics.autointerp`).
    """

    source: Source
    text: Text
    x: Float[Tensor, "positions d_model"] = field(repr=False)
    counts: Bool[np.ndarray, "positions"] = field(repr=False)
    judge: Judge
    labels: Labels | None = field(default=None, repr=False)
    n_latents: int = LATENTS
    seed: int = 0
    spread: str = SPREADS[0]

    def measure(self, sae: SAE) -> dict[str, float]:
        """Every metric by its name in the ledger. Raises OSError where the judge cannot be reached."""
        return self.read(sae).values()

    def latents(self, sae: SAE) -> pd.DataFrame:
        """A row for each latent that was judged."""
        return self.read(sae).table

    def read(self, sae: SAE) -> Reading:
        return self._read(self.codes(sae))

    def plan(self, sae: SAE, price_in: float = 0.0, price_out: float = 0.0) -> Plan:
        """What the judge would be asked for this SAE, without asking. Prices are per million tokens."""
        chosen = choose(self.text, self.codes(sae), self.seed, self.n_latents, self.spread)
        return self.judge.plan(chosen.trials, price_in, price_out)

    def references(self) -> dict[str, dict[str, float]]:
        """Made-up latents through the same protocol: the floor fires at random tokens, the ceiling where a label holds.

        They cost as many questions as an SAE each.
        """
        found = {"random_tokens": self._read(self._random()).values()}
        if self.labels is not None:
            found["labels"] = self._read(self._labelled(self.labels)).values()
        return found

    @torch.no_grad()
    def codes(self, sae: SAE) -> sparse.csc_array:
        """(positions, n_latents)."""
        parts = [sae.encode_sparse(part) for part in self.x.split(BATCH)]
        shapes = ((len(c.indptr) - 1, sae.spec.n_latents) for c in parts)
        rows = [sparse.csr_array((c.values, c.indices, c.indptr), shape=s) for c, s in zip(parts, shapes, strict=True)]
        return self._counting(sparse.csr_array(sparse.vstack(rows)))

    def _counting(self, codes: sparse.csr_array | sparse.coo_array | sparse.csc_array) -> sparse.csc_array:
        """Nothing fires on a row that does not count."""
        return _columns(codes.multiply(self.counts[:, None]))

    def _read(self, codes: sparse.csc_array) -> Reading:
        chosen = choose(self.text, codes, self.seed, self.n_latents, self.spread)
        if not chosen.trials:
            log.warning("%s: none of %d live latents can be tested", self.source.spec.name, chosen.live)
        return Reading(tuple(ask(self.judge, chosen.trials)), chosen)

    def _random(self) -> sparse.csc_array:
        rng, shape = np.random.default_rng(self.seed), (len(self.text.ids), self.n_latents)
        count = shape[0] * shape[1] // EVERY
        places = rng.integers(shape[0], size=count), rng.integers(shape[1], size=count)
        return self._counting(sparse.coo_array((rng.random(count, dtype=np.float32), places), shape=shape))

    def _labelled(self, labels: Labels) -> sparse.csc_array:
        rng, columns = np.random.default_rng(self.seed), []
        for told in labels.values():
            values, place = np.unique(np.asarray(["" if v is None else v for v in told]), return_inverse=True)
            columns += [np.flatnonzero(place.ravel() == i) for i, value in enumerate(values) if value]
        columns = [places for places in columns if len(places) >= HOLDS]
        ends = np.cumsum([0, *map(len, columns)])
        strengths = rng.random(ends[-1], dtype=np.float32)
        shape = (len(self.text.ids), len(columns))
        return self._counting(sparse.csc_array((strengths, np.concatenate(columns), ends), shape=shape))


def prepare(
    source: Source,
    judge: Judge | None = None,
    tokens: int = TOKENS,
    latents: int = LATENTS,
    seed: int = 0,
    spread: str = SPREADS[0],
) -> Reader:
    """Reads the model once on held-out text. ``judge``: the oracle where none is given, which needs atlas' labels.

    Raises SpecError for a source that is no text or has no labels for the oracle, ModelError and TextError as the model
    and its text do, ValueError where the text is too short.
    """
    spec = source.spec
    one_of("spread", spread, SPREADS)
    require(isinstance(spec, ActivationSpec), f"{spec.name} is no model that reads text; give activations of one")
    labelled = spec.dataset == "atlas"
    require(
        judge is not None or labelled,
        f"the oracle needs labelled text and dataset={spec.dataset!r} has no labels; set dataset='atlas' or pass a "
        "judge: LanguageJudge(Endpoint.from_environment()) or LanguageJudge(Local(name))",
    )
    model = models.load(spec.model, weights=spec.weights, device=source.device)
    rows, count = [], 0
    for row in _rows(model, source, tokens // WIDTH):
        if len(row.ids) >= WIDTH:
            rows.append(row)
            count += len(row.ids)
        if count >= tokens:
            break
    require(bool(rows), f"no row of {spec.dataset!r} has {WIDTH} tokens of {spec.model}; give longer texts or context")
    ids = np.concatenate([row.ids for row in rows])
    owner = np.repeat(np.arange(len(rows)), [len(row.ids) for row in rows])
    labels = {c: [label for row in rows for label in row.labels[c]] for c in atlas.CONCEPTS} if labelled else None
    text = Text(ids, owner, pieces(model.tokenizer, ids))
    x, counts = torch.cat([row.x for row in rows]), np.concatenate([row.counts for row in rows])
    return Reader(source, text, x, counts, judge or Oracle(text, labels or {}), labels, latents, seed, spread)


@dataclass(frozen=True)
class Readings:
    """One reader for each spread: the first under the plain names, any other under ``autointerp_<spread>``."""

    readers: tuple[Reader, ...]

    def measure(self, sae: SAE) -> dict[str, float]:
        return self._named([reader.measure(sae) for reader in self.readers])

    def references(self) -> dict[str, dict[str, float]]:
        found = [reader.references() for reader in self.readers]
        return {name: self._named([values[name] for values in found]) for name in found[0]}

    def _named(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        return found[0] | {
            name.replace("autointerp", f"autointerp_{reader.spread}", 1): value
            for reader, values in zip(self.readers[1:], found[1:], strict=True)
            for name, value in values.items()
            if "accuracy" in name or "std" in name
        }


def prepare_both(source: Source) -> Readings:
    """Both ways to vary the strength of test sequences. The oracle reads atlas, the endpoint in the environment others.

    Raises as :func:`prepare`, and EndpointError where no endpoint is set.
    """
    reader = prepare(source, judge_of(source.spec))
    return Readings(tuple(replace(reader, spread=spread) for spread in SPREADS))


def judge_of(spec: SourceSpec | ActivationSpec) -> Judge | None:
    """The endpoint in the environment, None where the oracle has labels. Raises EndpointError where none is set."""
    return LanguageJudge(Endpoint.from_environment()) if _needs_endpoint(spec) else None


def recorded_as(spec: SourceSpec | ActivationSpec) -> str:
    """The experiment under which :func:`prepare_both` is recorded: the oracle's, or one with the name of the model that
    the environment sets as the judge, so that no row stands beside one of another judge."""
    model = os.environ.get(MODEL, "") if _needs_endpoint(spec) else ""
    return by_judge(model) if model else EXPERIMENT


def by_judge(model: str) -> str:
    """The experiment of a language model's answers, such as ``interpretability_gpt_4o_mini``."""
    return f"{EXPERIMENT}_{re.sub(r'[^a-z0-9]+', '_', model.lower()).strip('_')}"


def _needs_endpoint(spec: SourceSpec | ActivationSpec) -> bool:
    return isinstance(spec, ActivationSpec) and spec.dataset != "atlas"


@dataclass(frozen=True)
class _Row:
    """The kept tokens of a row, scaled, whether each counts, with their labels where there are some."""

    ids: Int[np.ndarray, "n"]
    x: Float[Tensor, "n d_model"]
    counts: Bool[np.ndarray, "n"]
    labels: dict[str, list[str | None]]


def _rows(model: models.ResidualModel, source: Source, most: int) -> Iterator[_Row]:
    """Of the first ``most`` held-out documents, in their order."""
    spec = source.spec
    for labelled, tokens in _batches(model, spec, most):
        stream, counts = read(model, source, tokens)
        for place, keep in enumerate(tokens.keep):
            labels = _labels(model, labelled[place], tokens, place) if labelled else {}
            ids, usual = (t[place, keep].cpu().numpy() for t in (tokens.ids, counts))
            yield _Row(ids, stream[place, keep], usual, labels)


def _batches(
    model: models.ResidualModel, spec: ActivationSpec, most: int
) -> Iterator[tuple[Sequence[atlas.Document], models.TokenBatch]]:
    """Rows of tokens; of atlas with the document of each row, without those that are longer than a row."""
    if spec.dataset != "atlas":
        texts = islice(documents(spec.dataset, "test"), most)
        while several := list(islice(texts, AT_ONCE)):
            yield (), model.tokenize(several, spec.context)
        return
    every = islice(atlas.documents("test"), most)
    fitting = (d for d in every if len(model.tokenize([d.text], spec.context).ids) == 1)
    while labelled := list(islice(fitting, AT_ONCE)):
        yield labelled, model.tokenize([d.text for d in labelled], spec.context)


def _labels(
    model: models.ResidualModel, document: atlas.Document, tokens: models.TokenBatch, place: int
) -> dict[str, list[str | None]]:
    """For each concept a label of each kept token."""
    row = slice(place, place + 1)
    alone = models.TokenBatch(tokens.ids[row], tokens.attention[row], tokens.keep[row])
    told = atlas.token_labels(document, offsets(model, document.text, alone))
    return {concept: list(compress(labels, tokens.keep[place].tolist())) for concept, labels in told.items()}


def pieces(tokenizer: Any, ids: Int[np.ndarray, "positions"]) -> dict[int, str]:
    """What each token writes, with the blank before it where it starts a word."""
    tokens = np.unique(ids).tolist()
    names = tokenizer.convert_ids_to_tokens(tokens)
    if any(name.startswith("##") for name in names):  # WordPiece marks what continues a word
        return {t: name[2:] if name.startswith("##") else f" {name}" for t, name in zip(tokens, names, strict=True)}
    if any("\u2581" in name for name in names):  # SentencePiece's blank, which decoding a single token drops
        return {token: name.replace("\u2581", " ") for token, name in zip(tokens, names, strict=True)}
    return {token: tokenizer.decode([token]) for token in tokens}


def _columns(codes: sparse.sparray) -> sparse.csc_array:
    found = sparse.csc_array(codes)
    found.eliminate_zeros()
    found.sort_indices()
    return found
