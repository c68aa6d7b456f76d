"""Sparse probing of the SAEs of a source: its model is read once, then every SAE is probed on the same texts.

On atlas, for an SAE of 4096 latents on one core: 2 to 4 s with whole documents (2,880 of them, 222,000 tokens), 1 to 2
s with the first 16 tokens of 7,200. Whole documents of atlas repeat their class's words so often that one latent of an
untrained SAE tells 94 % of them; 16 tokens ask more of it (76 %).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float16, Int
from scipy import sparse
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saecore.activations import models
from saecore.activations.rows import call_positions
from saecore.metrics import probing
from saecore.metrics.evaluate import BATCH
from saecore.metrics.probing import KS, Binary
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.sources.probing import (
    SAEBENCH,
    Examples,
    LabelledSet,
    LabelledSetError,
    atlas_sets,
    csv_set,
    hub_set,
    hub_sets,
)
from saecore.spec import ActivationSpec, one_of, require
from saecore.studies.examine import read

EXPERIMENT = "sparse_probing"
ON_TEXTS = "sparse_probing_texts"
"""What is measured on texts that a user names: ``probing_top<k>_<Texts.name>``."""
SHORT_TEXTS = 200, 200
"""Texts of a task for training and for the test, half of them of its class, where texts are short."""
SHORT_CONTEXT = 16
HUB_CONTEXT = 128
"""SAEBench's tokens of a text."""
MOST = 5000
"""Texts of a named table at most, as many as a task of SAEBench has."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Scaled rows of the tokens of some texts that count; text i holds rows ``ends[i]`` to ``ends[i + 1]``."""

    x: Float16[Tensor, "tokens d_model"]
    ends: Int[np.ndarray, "texts_plus_one"]


@dataclass(frozen=True)
class NamedTask:
    """A task on the rows of the texts, with where it came from."""

    family: str
    set: str
    task: str
    binary: Binary


@dataclass(frozen=True)
class Prober:
    """Labelled texts as a source's model reads them: made once, used for every SAE on it.

    ``content``: a number for each text, equal where the tokens that are read are equal.
    """

    source: Source
    rows: tuple[Rows, ...]
    content: Int[np.ndarray, "texts"]
    asked: tuple[NamedTask, ...]
    ks: tuple[int, ...]
    name: str = "probing"

    def measure(self, sae: SAE) -> dict[str, float]:
        """``<name>_top<k>`` and ``<name>_top<k>_<family>``: mean test accuracy (metrics.probing.summary)."""
        return probing.summary(self.tasks(sae), self.name)

    def tasks(self, sae: SAE) -> pd.DataFrame:
        """Test accuracy of every task: columns family, set, task, k, accuracy. Raises ValueError as encode does."""
        codes = self.codes(sae)
        return self._table(lambda task: probing.sparse_accuracies(codes, task, self.ks))

    def fresh(self) -> Prober:
        """Without test texts whose tokens are those of a training text of the same task, as short texts may be."""
        asked = (replace(task, binary=probing.unseen(task.binary, self.content)) for task in self.asked)
        return replace(self, asked=tuple(asked))

    def best(self, sae: SAE, task: str) -> pd.DataFrame:
        """The test texts of a task: the mean ``activation`` of its best ``latent``, and whether the class ``holds``.

        Raises SpecError for an unknown task, ValueError as encode does.
        """
        one_of("task", task, tuple(asked.task for asked in self.asked))
        binary = next(asked.binary for asked in self.asked if asked.task == task)
        codes = self.codes(sae)
        latent = int(probing.best_latents(codes, binary, 1)[0])
        means = codes[binary.test][:, [latent]].toarray()[:, 0]
        return pd.DataFrame({"latent": latent, "activation": means, "holds": binary.test_labels == 1})

    @torch.no_grad()
    def codes(self, sae: SAE) -> sparse.csr_array:
        """Means of the latents over the tokens of each text, (texts, n_latents)."""
        parts = []
        for rows in self.rows:
            codes = sae.encode_sparse(rows.x.to(self.source.device).float())
            parts.append(probing.pool(codes, rows.ends, sae.spec.n_latents))
        return sparse.csr_array(sparse.vstack(parts))

    @cached_property
    def residual(self) -> Float[np.ndarray, "texts d_model"]:
        """Means of the residual stream over the tokens of each text."""
        return np.concatenate([probing.averaging(rows.ends) @ rows.x.float().numpy() for rows in self.rows])

    def references(self) -> dict[str, dict[str, float]]:
        """:meth:`measure` without an SAE; k means nothing to ``majority`` and ``dense_probe``.

        ``neurons``: the best k dimensions of the residual stream. ``pca``: the best k of its principal components.
        """
        return {name: probing.summary(table, self.name) for name, table in self.reference_tasks().items()}

    def reference_tasks(self) -> dict[str, pd.DataFrame]:
        """:meth:`tasks` without an SAE."""
        x, components = self.residual, self._components()
        found: dict[str, Callable[[Binary], list[float]]] = {
            "majority": lambda task: [probing.majority_accuracy(task)] * len(self.ks),
            "neurons": lambda task: probing.sparse_accuracies(x, task, self.ks),
            "pca": lambda task: probing.sparse_accuracies(components, task, self.ks),
            "dense_probe": lambda task: [probing.dense_accuracy(x, task)] * len(self.ks),
        }
        return {name: self._table(score) for name, score in found.items()}

    def _components(self) -> Float[np.ndarray, "texts d_model"]:
        directions = torch.linalg.eigh(self.source.covariance().double()).eigenvectors
        return (self.residual - self.source.start_bias().cpu().numpy()) @ directions.float().cpu().numpy()

    def _table(self, score: Callable[[Binary], list[float]]) -> pd.DataFrame:
        rows = [
            {"family": t.family, "set": t.set, "task": t.task, "k": k, "accuracy": accuracy}
            for t in self.asked
            for k, accuracy in zip(self.ks, score(t.binary), strict=True)
        ]
        return pd.DataFrame(rows)


def prepare(
    source: Source,
    sets: Sequence[LabelledSet] | None = None,
    ks: Sequence[int] = KS,
    context: int | None = None,
    name: str = "probing",
) -> Prober:
    """Read the texts of ``sets`` (default on atlas: its own six) with the source's model, up to its layer and context.

    Only a text's first ``context`` tokens are read (default: the source's), and of these only those that count: no
    special tokens, no padding, nothing at position 0, no massive row. Rows are kept in half precision, 2 ``d_model``
    bytes a token, so large sets are better taken one by one. ``name`` is what metrics start with. Raises SpecError for
    a source without a model, no sets or no k, ModelError where the model cannot be read or has no such context.
    """
    spec = source.spec
    require(
        isinstance(spec, ActivationSpec), f"source {spec.name!r} is no model's; texts can be probed in a model only"
    )
    require(sets is not None or spec.dataset == "atlas", f"dataset={spec.dataset!r} has no labelled sets; give sets=")
    sets = atlas_sets() if sets is None else tuple(sets)
    require(bool(sets), "sets is empty; give at least one labelled set")
    require(bool(ks) and min(ks) >= 1, f"ks={tuple(ks)} must be one number of latents or more, each at least 1")
    model = models.load(spec.model, weights=spec.weights, device=source.device)
    places: dict[str, int] = {}
    tasks = []
    for held in sets:
        for task in held.tasks:
            train, test = (_places(part, places) for part in (task.train, task.test))
            binary = Binary(train, task.train.labels, test, task.test.labels)
            tasks.append(NamedTask(held.family, held.name, task.name, binary))
    rows, content = _read(model, source, list(places), context or spec.context)
    return Prober(source, rows, content, tuple(tasks), tuple(ks), name)


@dataclass(frozen=True)
class Readings:
    """Several probers of one source as one check."""

    probers: tuple[Prober, ...]

    def measure(self, sae: SAE) -> dict[str, float]:
        return {name: value for prober in self.probers for name, value in prober.measure(sae).items()}

    def references(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for prober in self.probers:
            for name, values in prober.references().items():
                found[name] = found.get(name, {}) | values
        return found


def prepare_both(source: Source) -> Readings:
    """atlas' own sets read twice: whole documents (``probing``), and their first 16 tokens (``probing_short``).

    Whole documents are near the ceiling; the short reading tells variants apart. Sources on other text are read once,
    on SAEBench's eight sets from the hub. Raises as :func:`prepare` and hub_sets.
    """
    spec = source.spec
    if isinstance(spec, ActivationSpec) and spec.dataset != "atlas":
        return Readings((prepare(source, hub_sets(), context=min(HUB_CONTEXT, spec.context)),))
    short = prepare(source, atlas_sets(*SHORT_TEXTS), context=SHORT_CONTEXT, name="probing_short")
    return Readings((prepare(source), short))


@dataclass(frozen=True)
class Texts:
    """Labelled texts by where they are: one of SAEBench's sets by its name, or a table with two columns of these names.

    Raises SpecError for columns of a set of SAEBench, which has its own.
    """

    place: str
    text: str = "prompt"
    label: str = "target"

    def __post_init__(self) -> None:
        own = (Texts.text, Texts.label)
        require(
            self.place not in SAEBENCH or (self.text, self.label) == own,
            f"columns {self.text!r} and {self.label!r} are given for {self.place}, a set of SAEBench that has its own; "
            "leave them out, or measure this set by itself",
        )

    @cached_property
    def name(self) -> str:
        """As metrics have it: that of the set, or of the table's file up to its first dot, in letters and digits.

        A table's has a dot and the start of a hash of its bytes and columns, so that rows of another table, or of a
        table that has changed, are other rows.
        """
        path = Path(self.place)
        name = self.place if self.place in SAEBENCH else path.name.split(".")[0]
        name = re.sub(r"\W+", "_", name).strip("_").lower()
        if self.place in SAEBENCH or not path.is_file():
            return name
        held = hashlib.sha256(path.read_bytes())
        held.update(repr((self.text, self.label)).encode())
        return f"{name}.{held.hexdigest()[:8]}"

    @property
    def mark(self) -> str:
        """The metric that tells that they were measured."""
        return f"probing_top{KS[0]}_{self.name}"

    def open(self) -> LabelledSet:
        """SAEBench's own sizes, or ``MOST`` texts of a table. Raises LabelledSetError and TextError."""
        if self.place in SAEBENCH:
            return replace(hub_set(self.place), family=self.name)
        if not Path(self.place).is_file():
            raise LabelledSetError(
                f"texts {self.place!r} are no file and none of SAEBench's sets; give a CSV, or one of "
                f"{', '.join(SAEBENCH)}"
            )
        return csv_set(self.place, most=MOST, family=self.name, text=self.text, label=self.label)


@dataclass(frozen=True)
class OnTexts:
    """One labelled set as a check: the values of its family alone, which no other set moves."""

    prober: Prober
    family: str

    @staticmethod
    def prepare(source: Source, held: LabelledSet) -> OnTexts:
        """Raises as :func:`prepare`."""
        context = min(HUB_CONTEXT, getattr(source.spec, "context", HUB_CONTEXT))
        return OnTexts(prepare(source, [held], context=context), held.family)

    def measure(self, sae: SAE) -> dict[str, float]:
        """``probing_top<k>_<family>``."""
        return self._own(self.prober.measure(sae))

    def references(self) -> dict[str, dict[str, float]]:
        return {name: self._own(values) for name, values in self.prober.references().items()}

    def _own(self, values: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in values.items() if name.endswith(f"_{self.family}")}


def _places(part: Examples, places: dict[str, int]) -> Int[np.ndarray, "texts"]:
    """The number of each text, new ones appended: a text of several tasks is read once."""
    return np.array([places.setdefault(text, len(places)) for text in part.texts])


def _read(
    model: models.ResidualModel, source: Source, texts: Sequence[str], context: int
) -> tuple[tuple[Rows, ...], Int[np.ndarray, "texts"]]:
    """The texts in order, in parts of about ``BATCH`` rows, and a number for what each of them holds."""
    at_once = max(1, min(call_positions(model.device), BATCH) // context)
    parts, held, lengths = [], [], []
    seen: dict[tuple[int, ...], int] = {}
    content = []
    for first in range(0, len(texts), at_once):
        tokens = _first_rows(model, texts[first : first + at_once], context)
        stream, counts = read(model, source, tokens)
        held.append(stream[counts].half().cpu())
        lengths += counts.sum(1).tolist()
        own = (tuple(ids[counted].tolist()) for ids, counted in zip(tokens.ids, counts, strict=True))
        content += [seen.setdefault(kept, len(seen)) for kept in own]
        if sum(map(len, held)) >= BATCH or first + at_once >= len(texts):
            parts.append(Rows(torch.cat(held), np.cumsum([0, *lengths])))
            held, lengths = [], []
    empty = sum(int((np.diff(rows.ends) == 0).sum()) for rows in parts)
    if empty:
        log.warning("%d of %d texts have no token that counts; no latent is active in them", empty, len(texts))
    log.info("%s: %d texts, %d tokens", source.spec.name, len(texts), sum(len(rows.x) for rows in parts))
    return tuple(parts), np.array(content)


def _first_rows(model: models.ResidualModel, texts: Sequence[str], context: int) -> models.TokenBatch:
    """The first row of each text: what does not fit into ``context`` is left out."""
    rows = [model.tokenize([text], context) for text in texts]
    ids = pad_sequence([row.ids[0].cpu() for row in rows], batch_first=True)
    return model.from_ids(ids, pad_sequence([row.attention[0].cpu() for row in rows], batch_first=True))
