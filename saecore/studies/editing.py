"""Causal editing of what a model knows of entities, through an SAE's latents (paper, Sec. 4.2; RAVEL, SAEBench).

The edit is made at the last token of the base's name, with what the model has at the last token of the source's.
SAEBench splits pairs at random; here entities and wordings of the test are none of the training's (``held_out``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saecore.activations import models
from saecore.metrics import editing
from saecore.metrics.editing import Coordinates, Mask, Outcomes, Subspace
from saecore.report import inference
from saecore.saes.base import SAE
from saecore.saes.constraints import components
from saecore.sources.base import Source
from saecore.sources.entities import SPLITS, Entities, open_entities
from saecore.spec import ActivationSpec
from saecore.studies.facts import BATCH, EditingError, Pairs, Pool, Speaker

EXPERIMENT = "causal_editing"
METRIC = "editing_disentanglement"
FLOORS = ("no_edit", "swap_all")
PROMPTS = {"train": 500, "test": 250}
"""Prompts asked for each attribute; pairs are drawn from those that the model knows."""
PAIRS = {"train": 800, "test": 256}
"""Cause pairs of an attribute, and as many Isolation pairs."""
TRAINED = 32
"""Pairs in a training step."""
WINDOW = 8 * TRAINED
"""Pairs that are sorted by length before they are batched, which saves padding."""
CEILING_EPOCHS = 10
"""MDAS is a ceiling, so it trains on; a mask over latents gains little from that."""
SMALL = "causal_editing_small"
"""The check with masks that pay for their size."""
PRICES = (0.003, 0.01, 0.03, 0.1)
"""Of a latent in a mask, in nats of the answer's cross-entropy."""
AT = "_at_"
"""Between a metric of ``SMALL`` and the price of its masks."""

Fitted = tuple[str, Coordinates, Bool[Tensor, "coordinates"]]
"""An attribute, the coordinates that it is edited in, and the mask."""


@dataclass(frozen=True)
class Outcome:
    """Of one mask: the attribute it is for, its size, what came of its edits."""

    attribute: str
    size: int
    result: Outcomes


@dataclass(frozen=True)
class Editor:
    """A model and the edits to be made in it: made once per source, used for every SAE on it.

    ``rows``: the residual stream at the entity of each prompt of the pool, in the model's own units. ``tasks``: pairs
    by attribute, then by split. ``principal``: the data's principal components, as rows. ``entities``: whose name
    stands in each prompt.
    """

    speaker: Speaker
    rows: Float[Tensor, "prompts d_model"]
    entities: tuple[str, ...]
    tasks: Mapping[str, Mapping[str, Pairs]]
    principal: Float[Tensor, "d_model d_model"]
    counts: Mapping[str, float]
    seed: int = 0

    def measure(self, sae: SAE) -> dict[str, float]:
        """Every metric of an SAE by its name in the ledger.

        ``editing_cause``, ``editing_isolation``, ``editing_disentanglement`` and ``editing_mask_size`` (in latents) are
        means over attributes; ``_<attribute>`` at the end makes them those of one. Other endings compare: with
        ``_with_error`` the reconstruction's error stays in place, ``_random`` is a mask of equal size over the latents
        that fire on entities, ``_no_edit`` and ``_swap_all`` are none and all of them. ``editing_share`` is the
        disentanglement as a share of the range from floor (the better of no edit and everything swapped, without an
        SAE) to ceiling (MDAS); it is left out where there is no such range.
        """
        return self._with_share(_values(self.outcomes(self._masks(editing.latents(sae, self.rows)))))

    def references(self) -> dict[str, dict[str, float]]:
        """Floors and ceilings without an SAE, by their names in the ledger; what the model knew, under ``model``."""
        found = self.floors | {"mdas": self._mdas}
        found |= {name: _values(self.outcomes(self._masks(space))) for name, space in self.given.items()}
        return {name: self._with_share(values) for name, values in found.items()} | {"model": dict(self.counts)}

    @property
    def given(self) -> dict[str, Coordinates]:
        """Coordinates without an SAE, by their names in the ledger."""
        return {"neurons": self._neurons, "pca": editing.rotated(self.rows, self.principal)}

    @cached_property
    def floors(self) -> dict[str, dict[str, float]]:
        """What a mask that does nothing reaches, and one that swaps everything, without an SAE."""
        found = {}
        for name in FLOORS:
            mask = torch.full((self.rows.shape[1],), name == "swap_all", device=self.rows.device)
            results = [Outcome(a, int(mask.sum()), self.score(a, self._neurons, mask)) for a in self.tasks]
            found[name] = _values({"": results})
        return found

    def told(self, saes: Mapping[str, SAE], attribute: str, n: int = 3) -> pd.DataFrame:
        """What the model says of the first ``n`` test pairs for Cause and as many for Isolation, a row each.

        Columns: the prompt, the entity that the edit is taken from, what should be said, what the model says by itself,
        with the source's whole residual stream in place, and with that attribute's mask over each SAE's latents.
        """
        pairs, every = self.tasks[attribute]["test"], self._neurons
        edits = {"everything swapped": (every, torch.ones(every.codes.shape[1]).to(every.codes))}
        for name, sae in saes.items():
            space = editing.latents(sae, self.rows)
            edits[name] = (space, self._mask(attribute, space).to(space.codes))
        rows = []
        for which in torch.cat([pairs.cause.nonzero()[:n], (~pairs.cause).nonzero()[:n]]):
            asked = pairs.sequences.of(pairs.row[which])
            base, source = pairs.base[which], pairs.source[which]
            prompt, wanted = self.speaker.texts(asked)
            put = {name: space.edited(base, source, mask) for name, (space, mask) in edits.items()}
            put = {"the model itself": self.rows[base], **put}
            said = {name: self.speaker.goes_on(asked, row) for name, row in put.items()}
            rows.append({"prompt": prompt, "source": self.entities[int(source)], "should say": wanted, **said})
        return pd.DataFrame(rows)

    def outcomes(self, fitted: Iterator[Fitted]) -> dict[str, list[Outcome]]:
        """By the endings of :meth:`measure`: what masks did, and what they are compared with, for each attribute."""
        found: dict[str, list[Outcome]] = {}
        generator = torch.Generator().manual_seed(self.seed)
        for attribute, space, chosen in fitted:
            for ending, mask, with_error in _compared(space, chosen, generator):
                result = self.score(attribute, space, mask, with_error)
                found.setdefault(ending, []).append(Outcome(attribute, int(mask.sum()), result))
        return found

    @torch.no_grad()
    def score(
        self, attribute: str, space: Coordinates, mask: Bool[Tensor, "coordinates"], with_error: bool = False
    ) -> Outcomes:
        """What a mask does to the test pairs of an attribute."""
        pairs = self.tasks[attribute]["test"]
        edited = space.edited(pairs.base, pairs.source, mask.to(space.codes), with_error)
        right = torch.zeros_like(pairs.cause)
        for which in pairs.sequences.stop[pairs.row].argsort().split(BATCH):
            right[which] = self.speaker.right(pairs.sequences.of(pairs.row[which]).put(edited[which]))
        return Outcomes(pairs.cause, right)

    def fit(self, attribute: str, edit: Mask, epochs: int = editing.EPOCHS) -> None:
        """Train a mask on the training pairs of an attribute: cross-entropy of the answer's first token, and its cost.

        Model and SAE stay as they are.
        """
        pairs = self.tasks[attribute]["train"]

        def loss(edited: Float[Tensor, "batch d_model"], which: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
            asked = pairs.sequences.of(pairs.row[which], prompt_only=True).put(edited)
            last = asked.positions == asked.start[:, None]
            logits = self.speaker.model.logits_from(asked.tokens, self.speaker.layer, asked.stream, last)
            return F.cross_entropy(logits.float(), pairs.label[which])

        editing.train(edit, pairs.base, pairs.source, _batches(pairs, self.seed), loss, epochs)

    def priced(self, space: Coordinates, attributes: Sequence[str], price: float) -> dict[str, float]:
        """Scores and sizes of masks whose every latent costs ``price``, by the first names of :meth:`measure`."""
        results = []
        for attribute in attributes:
            chosen = self._mask(attribute, space, price)
            results.append(Outcome(attribute, int(chosen.sum()), self.score(attribute, space, chosen)))
        return _values({"": results})

    @cached_property
    def heights(self) -> dict[str, float]:
        """As the function of this name, of the attributes of the tasks."""
        return heights(self.floors | {"mdas": self._mdas}, self.tasks)

    def _masks(self, space: Coordinates) -> Iterator[Fitted]:
        """A mask for each attribute, all in the same coordinates."""
        for attribute in self.tasks:
            yield attribute, space, self._mask(attribute, space)

    def _mask(self, attribute: str, space: Coordinates, price: float = 0.0) -> Bool[Tensor, "coordinates"]:
        mask = Mask(space, price)
        self.fit(attribute, mask)
        return mask.chosen()

    def _subspaces(self) -> Iterator[Fitted]:
        """A mask for each attribute, in coordinates learned with it."""
        for attribute in self.tasks:
            subspace = Subspace(self.rows)
            self.fit(attribute, subspace, CEILING_EPOCHS)
            yield attribute, subspace.found(), subspace.chosen()

    @cached_property
    def _neurons(self) -> Coordinates:
        return editing.rotated(self.rows, torch.eye(self.rows.shape[1]).to(self.rows))

    @cached_property
    def _mdas(self) -> dict[str, float]:
        return _values(self.outcomes(self._subspaces()))

    def _with_share(self, values: dict[str, float]) -> dict[str, float]:
        floor = max(found[METRIC] for found in self.floors.values())
        share = editing.share(values[METRIC], floor, self._mdas[METRIC])
        return values if share is None else values | {"editing_share": share}


@dataclass(frozen=True)
class Small:
    """Edits by masks that pay for their size, as a check of its own: what do a few latents do?

    ``attributes``: those that can be edited on their own (:func:`separable`). Metrics are the first names of
    Editor.measure, with ``AT`` and the price at the end.
    """

    editor: Editor
    attributes: tuple[str, ...]
    prices: tuple[float, ...] = PRICES

    @staticmethod
    def of(editor: Editor) -> Small:
        """Raises EditingError where no attribute can be edited on its own."""
        found = separable(editor.heights)
        if not found:
            told = ", ".join(f"{attribute} {height:+.3f}" for attribute, height in editor.heights.items())
            raise EditingError(
                f"MDAS lies no more than {inference.margin(METRIC).value} above the floor for any attribute ({told}): "
                "nothing can be edited on its own here; choose other attributes"
            )
        return Small(editor, tuple(found))

    def measure(self, sae: SAE) -> dict[str, float]:
        return self._measure(editing.latents(sae, self.editor.rows))

    def references(self) -> dict[str, dict[str, float]]:
        """Neurons and principal components, with the same prices."""
        return {name: self._measure(space) for name, space in self.editor.given.items()}

    def _measure(self, space: Coordinates) -> dict[str, float]:
        return {
            f"{name}{AT}{price:g}": value
            for price in self.prices
            for name, value in self.editor.priced(space, self.attributes, price).items()
        }


def heights(references: Mapping[str, Mapping[str, float]], attributes: Iterable[str]) -> dict[str, float]:
    """How far MDAS lies above the better floor in disentanglement, for each attribute.

    ``references``: metrics by name, of ``mdas`` and of ``FLOORS``.
    """
    names = {attribute: f"{METRIC}_{_plain(attribute)}" for attribute in attributes}
    return {a: references["mdas"][n] - max(references[floor][n] for floor in FLOORS) for a, n in names.items()}


def separable(above: Mapping[str, float]) -> list[str]:
    """The attributes that MDAS edits on their own: by more than the margin above the better floor (``heights``)."""
    return [attribute for attribute, height in above.items() if height > inference.margin(METRIC).value]


def prepare_small(source: Source) -> Small:
    """As :func:`prepare`, with atlas' facts. Raises EditingError."""
    return Small.of(prepare(source))


def _compared(
    space: Coordinates, chosen: Bool[Tensor, "coordinates"], generator: torch.Generator
) -> Iterator[tuple[str, Bool[Tensor, "coordinates"], bool]]:
    """A mask and what it is read against: the ending of its metrics, the mask, whether the error stays in place."""
    yield "", chosen, False
    yield "_random", editing.shuffled(chosen, generator), False
    if space.rebuilt is not space.rows:
        yield "_with_error", chosen, True
        yield "_no_edit", torch.zeros_like(chosen), False
        yield "_swap_all", torch.ones_like(chosen), False


def _values(found: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Means over attributes, and of the trained masks also each attribute's own."""
    values: dict[str, float] = {}
    for ending, outcomes in found.items():
        scores = [outcome.result.scores() for outcome in outcomes]
        for name in scores[0]:
            values[f"editing_{name}{ending}"] = sum(score[name] for score in scores) / len(scores)
        if not ending:
            values["editing_mask_size"] = sum(outcome.size for outcome in outcomes) / len(outcomes)
            for outcome, score in zip(outcomes, scores, strict=True):
                own = score | {"mask_size": float(outcome.size)}
                values |= {f"editing_{name}_{_plain(outcome.attribute)}": value for name, value in own.items()}
    return values


def _plain(attribute: str) -> str:
    """RAVEL's names have capitals and spaces."""
    return attribute.lower().replace(" ", "_")


def _batches(pairs: Pairs, seed: int) -> list[Int[Tensor, "batch"]]:
    """A random order; within windows of it pairs of like length stand together, which saves padding."""
    generator = torch.Generator().manual_seed(seed)
    length = pairs.sequences.start[pairs.row]
    order = torch.randperm(len(pairs.base), generator=generator).to(length.device)
    windows = [window[length[window].argsort()] for window in order.split(WINDOW)]
    return [batch for window in windows for batch in window.split(TRAINED)]


def prepare(
    source: Source,
    dataset: str = "atlas",
    attributes: Sequence[str] | None = None,
    prompts: Mapping[str, int] = PROMPTS,
    pairs: Mapping[str, int] = PAIRS,
    held_out: bool = True,
    name_tokens: int | None = 1,
    seed: int = 0,
) -> Editor:
    """The model of a source, and edits of what it knows of the entities of a data set (sources.entities).

    ``attributes``: of all that the data set has, those to edit, at least two. ``prompts`` and ``pairs``: how many, by
    split. ``held_out``: entities and wordings of the test are none of the training's; without it both come from all, as
    in SAEBench. ``name_tokens``: the most tokens that an entity's name may have, None for any, as in SAEBench. The edit
    is made at the last one, and of a longer name the model can still read the others: on atlas, putting in all of the
    source's residual stream then reaches 55 % of the answers, and 99 % with names of one token. Raises EditingError
    where there is nothing to edit, and what reading model and entities raises.
    """
    speaker, data = _speaker_and_facts(source, dataset, attributes, name_tokens)
    rng = np.random.default_rng(seed)
    pool = Pool.of(speaker, data, prompts, held_out, rng)
    tasks = {a: {split: pool.pairs(a, split, pairs[split], rng) for split in SPLITS} for a in pool.attributes}
    counts = pool.counts() | {"editing_test_pairs": float(sum(len(task["test"].base) for task in tasks.values()))}
    rows, entities = pool.sequences.rows, tuple(prompt.entity.name for prompt in pool.prompts)
    principal = components(source.covariance())[: speaker.model.d_model].to(rows)
    return Editor(speaker, rows, entities, tasks, principal, counts, seed)


def known(
    source: Source,
    dataset: str = "atlas",
    attributes: Sequence[str] | None = None,
    prompts: Mapping[str, int] = PROMPTS,
    held_out: bool = True,
    name_tokens: int | None = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """What the model of a source knows of what :func:`prepare` would ask it, a row for each attribute (Pool.known).

    A model that knows nothing is a result here. Raises as :func:`prepare`, but not for what is unknown.
    """
    speaker, data = _speaker_and_facts(source, dataset, attributes, name_tokens)
    return Pool.ask(speaker, data, prompts, held_out, np.random.default_rng(seed)).known()


def _speaker_and_facts(
    source: Source, dataset: str, attributes: Sequence[str] | None, name_tokens: int | None
) -> tuple[Speaker, Entities]:
    """The model of a source, and of a data set what it can be asked."""
    spec = source.spec
    if not isinstance(spec, ActivationSpec):
        raise EditingError(f"source {spec.name!r} is drawn, not read from a model: it knows no facts; give a model's")
    data = _chosen(open_entities(dataset), attributes)
    speaker = Speaker.of(models.load(spec.model, weights=spec.weights, device=source.device), spec)
    return speaker, data if name_tokens is None else speaker.short_names(data, name_tokens)


def _chosen(data: Entities, attributes: Sequence[str] | None) -> Entities:
    """The data set with templates of these attributes alone. Raises EditingError where they cannot be edited."""
    wanted = data.attributes if attributes is None else tuple(attributes)
    if len(set(wanted)) < 2 or not set(wanted) <= set(data.attributes):
        raise EditingError(
            f"attributes {list(wanted)}: choose two or more of {', '.join(data.attributes)}, which {data.name} has; "
            "Isolation is measured on the others"
        )
    for attribute in wanted:
        values = {entity.values[attribute] for entity in data.entities if attribute in entity.values}
        if len(values) < 2:
            raise EditingError(
                f"attribute {attribute!r} has the one value {values.pop()!r} in {data.name}: there is nothing to "
                "change it to; leave it out of attributes"
            )
    return replace(data, templates=tuple(t for a in wanted for t in data.templates if t.attribute == a))
