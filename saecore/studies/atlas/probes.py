"""Linear probes: which of the generator's concepts a straight line reads off the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from jaxtyping import Float

from saecore.activations.models import ResidualModel
from saecore.sources.atlas import Document, documents, token_labels
from saecore.sources.atlas.cities import city

WHOLE = ("kind", "text_language", "programming_language", "profession", "gender", "product", "sentiment", "topic")
"""Concepts of a whole document, read off the mean of its tokens, as SAEBench does; the language of small talk only."""
IMPLIED = ("city_country", "city_continent", "city_language", "city_currency", "city_time_zone", "city_capital")
"""Concepts that a city implies, read off the last token of the first one's name, and tested on other cities."""
ASKED = "attribute"
"""What a sentence is about to state, read off the token before the first value."""
CONCEPTS = (*WHOLE, *IMPLIED, ASKED)
BATCH = 256
TEST_EVERY = 4
"""Documents with a number that this divides are for the test, where a concept is not one of a city."""


@dataclass
class Rows:
    """What a probe of one concept sees: activations, labels, and which rows it is tested on."""

    x: list[Float[np.ndarray, "d_model"]] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    test: list[bool] = field(default_factory=list)

    def add(self, x: Float[np.ndarray, "d_model"], label: str, test: bool) -> None:
        self.x.append(x)
        self.label.append(label)
        self.test.append(test)


@dataclass(frozen=True)
class Place:
    """The tokens whose mean tells a concept of a document, its label, and the city that it is a concept of."""

    label: str
    tokens: slice
    city: str = ""


@dataclass(frozen=True)
class Probe:
    """Accuracy on rows that the probe did not learn from, and that of the commonest label there."""

    accuracy: float
    floor: float


def probes(model: ResidualModel, n: int = 12_000) -> list[dict[str, Probe]]:
    """For each layer a probe of each concept on the residual stream that leaves it, from ``n`` test documents."""
    return [{concept: fit(found) for concept, found in rows.items()} for rows in collect(model, n)]


def collect(model: ResidualModel, n: int) -> list[dict[str, Rows]]:
    """For each layer the rows of each concept, at most one a document; BOS belongs to none.

    A concept of a city is tested on cities that the probe never saw (``City.split``), so that it cannot learn names.
    """
    rows = [{concept: Rows() for concept in CONCEPTS} for _ in range(model.n_layers)]
    every = list(islice(documents("test"), n))
    for first in range(0, n, BATCH):
        part = every[first : first + BATCH]
        told = model.tokenizer(
            [document.text for document in part], padding=True, return_tensors="pt", return_offsets_mapping=True
        )
        tokens = model.from_ids(told["input_ids"], told["attention_mask"].bool())
        streams = [model.residual(tokens, layer).cpu().numpy() for layer in range(model.n_layers)]
        for place, document in enumerate(part):
            length = int(tokens.attention[place].sum())
            offsets = [(int(a), int(b)) for a, b in told["offset_mapping"][place][:length]]
            where = places(document, offsets)
            for layer, x in zip(rows, streams, strict=True):
                for concept, found in where.items():
                    held_out = city(found.city).split == "test" if found.city else (first + place) % TEST_EVERY == 0
                    layer[concept].add(x[place, found.tokens].mean(0), found.label, held_out)
    return rows


def fit(rows: Rows) -> Probe:
    """Logistic regression on standardised activations."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, label, test = np.stack(rows.x), np.array(rows.label), np.array(rows.test)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    regression.fit(x[~test], label[~test])
    counts = np.unique(label[test], return_counts=True)[1]
    return Probe(float(regression.score(x[test], label[test])), float(counts.max() / counts.sum()))


def places(document: Document, offsets: Sequence[tuple[int, int]]) -> dict[str, Place]:
    """Where each concept that the document has is told."""
    text = slice(1, len(offsets))
    found = {concept: Place(document.labels[concept], text) for concept in WHOLE if concept in document.labels}
    if document.labels["kind"] != "talk":
        found.pop("text_language", None)  # nearly all other text is English
    labels = token_labels(document, offsets)
    names = labels["entity"]
    ends = [i for i, name in enumerate(names[:-1]) if name and names[i + 1] != name]
    for i in ends[:1]:
        found |= {concept: Place(str(labels[concept][i]), slice(i, i + 1), str(names[i])) for concept in IMPLIED}
    values = [i for i, value in enumerate(labels["value"]) if value]
    for i in values[:1]:
        found[ASKED] = Place(str(labels[ASKED][i - 1]), slice(i - 1, i))
    return found
