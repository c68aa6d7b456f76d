"""The five concept families in the embedded world's own text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saecore.sources import atlas
from saecore.sources.atlas.families import FAMILIES
from saecore.sources.probing.base import LabelledSet, one_vs_rest, per_class

TRAIN, TEST = 80, 80
"""Texts of one task, where SAEBench has 4000 and 1000: 37 tasks on 2,880 documents, 222,000 tokens."""


@dataclass(frozen=True)
class Kind:
    """Documents of ``kind`` by their label of ``concept``; ``balance`` is held equally often in every class."""

    name: str
    family: str
    kind: str
    concept: str
    balance: str = ""

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Name of the set, class and value of ``balance``."""
        concepts = FAMILIES[self.kind].concepts
        return (
            (self.name, label, value) for label in concepts[self.concept] for value in concepts.get(self.balance, [""])
        )


KINDS = (
    Kind("profession", "profession", "bio", "profession", balance="gender"),
    Kind("product", "product_sentiment", "review", "product", balance="sentiment"),
    Kind("sentiment", "product_sentiment", "review", "sentiment"),
    Kind("language", "language", "talk", "text_language"),
    Kind("programming_language", "programming_language", "code", "programming_language"),
    Kind("news_topic", "news_topic", "news", "topic"),
)
"""Professions are balanced by gender and products by sentiment, as in SAEBench."""


def atlas_sets(train: int = TRAIN, test: int = TEST, seed: int = 1) -> tuple[LabelledSet, ...]:
    """Six sets of five families, every class against the others, from the generator's train and test splits.

    ``seed`` chooses the documents and the negatives. The model and the SAEs have read the documents of seed 0. No text
    is in both parts. Raises LabelledSetError for sizes that are no multiple of 4.
    """
    rng, seen = np.random.default_rng([0x9B0B, seed]), set[str]()
    learnt, asked = (_collect(split, n, seed, seen) for split, n in (("train", train), ("test", test)))
    return tuple(one_vs_rest(kind.name, kind.family, learnt[kind.name], asked[kind.name], rng) for kind in KINDS)


def _collect(split: str, size: int, seed: int, seen: set[str]) -> dict[str, dict[str, list[str]]]:
    """The first documents of a split, for each set and class; ``seen`` are left out, and grow.

    One document may serve two sets.
    """
    quota = {
        cell: per_class("atlas", size, split, 4) * (1 if kind.balance else 2) for kind in KINDS for cell in kind.cells()
    }
    found: dict[str, dict[str, list[str]]] = {kind.name: defaultdict(list) for kind in KINDS}
    for document in atlas.documents(split, seed):
        if document.text in seen:
            continue
        for kind in KINDS:
            if document.labels["kind"] != kind.kind:
                continue
            label = document.labels[kind.concept]
            cell = kind.name, label, document.labels.get(kind.balance, "")
            if cell in quota:
                found[kind.name][label].append(document.text)
                seen.add(document.text)
                quota[cell] -= 1
                if not quota[cell]:
                    del quota[cell]
        if not quota:
            break
    return {name: {c: by_class[c] for c in sorted(by_class)} for name, by_class in found.items()}
