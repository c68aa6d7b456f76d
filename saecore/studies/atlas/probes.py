"""Linear probes: which of the generator's concepts a straight line reads off the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from jaxtyping import Float

from saecore.activations.models import ResidualModel
from saecore.sources.atlas import Document, documents, token_labels

WHOLE = ("kind", "text_language", "programming_language", "profession", "gender", "product", "sentiment", "topic")
"""Concepts of a whole document, read off the mean of its tokens, as SAEBench does."""
IMPLIED = ("city_country", "city_continent", "city_language", "city_currency", "city_time_zone", "city_capital")
"""Concepts that a city implies, read off the last token of its name."""
ASKED = "attribute"
"""What a sentence is about to state, read off the token before the value."""
CONCEPTS = (*WHOLE, *IMPLIED, ASKED)
BATCH = 256


@dataclass
class Rows:
    """What a probe of one concept sees: activations, labels and the number of the document of each row."""

    x: list[Float[np.ndarray, "d_model"]] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    document: list[int] = field(default_factory=list)

    def add(self, x: Float[np.ndarray, "d_model"], label: str, document: int) -> None:
        self.x.append(x)
        self.label.append(label)
        self.document.append(document)


@dataclass(frozen=True)
class Probe:
    """Accuracy on documents that the probe did not learn from, and that of the commonest label there."""

    accuracy: float
    floor: float


def probes(model: ResidualModel, layer: int, n: int = 6000) -> dict[str, Probe]:
    """A probe of each concept on the residual stream that leaves block ``layer``, from ``n`` test documents."""
    return {concept: fit(rows) for concept, rows in collect(model, layer, n).items()}


def collect(model: ResidualModel, layer: int, n: int) -> dict[str, Rows]:
    """The rows of each concept; BOS belongs to none."""
    rows = {concept: Rows() for concept in CONCEPTS}
    every = list(islice(documents("test"), n))
    for first in range(0, n, BATCH):
        part = every[first : first + BATCH]
        found = model.tokenizer(
            [document.text for document in part], padding=True, return_tensors="pt", return_offsets_mapping=True
        )
        tokens = model.from_ids(found["input_ids"], found["attention_mask"])
        x = model.residual(tokens, layer).numpy()
        for place, document in enumerate(part):
            length = int(tokens.attention[place].sum())
            offsets = [(int(a), int(b)) for a, b in found["offset_mapping"][place][:length]]
            _add(rows, document, first + place, offsets, x[place, :length])
    return rows


def fit(rows: Rows, test_share: float = 0.25) -> Probe:
    """Logistic regression on standardised activations; every fourth document is for the test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, label = np.stack(rows.x), np.array(rows.label)
    test = np.array(rows.document) % round(1 / test_share) == 0
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    regression.fit(x[~test], label[~test])
    counts = np.unique(label[test], return_counts=True)[1]
    return Probe(float(regression.score(x[test], label[test])), float(counts.max() / counts.sum()))


def _add(
    rows: dict[str, Rows],
    document: Document,
    number: int,
    offsets: Sequence[tuple[int, int]],
    x: Float[np.ndarray, "seq d_model"],
) -> None:
    mean = x[1:].mean(0)
    for concept in WHOLE:
        if concept in document.labels:
            rows[concept].add(mean, document.labels[concept], number)
    labels = token_labels(document, offsets)
    entity, value = labels["entity"], labels["value"]
    for i in range(1, len(offsets) - 1):
        if entity[i] is not None and entity[i + 1] != entity[i]:
            for concept in IMPLIED:
                rows[concept].add(x[i], str(labels[concept][i]), number)
        if value[i] is None and value[i + 1] is not None:
            rows[ASKED].add(x[i], str(labels[ASKED][i]), number)
