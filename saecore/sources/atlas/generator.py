"""Labelled documents about the cities and of the five concept families."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from saecore.sources.atlas.cities import ATTRIBUTES, City, facts
from saecore.sources.atlas.families import FAMILIES, Family
from saecore.sources.atlas.grammar import Span, Writer
from saecore.sources.atlas.wordings import wordings

SPLITS = ("train", "test", "unseen")
"""``test``: other documents of the same kind; ``unseen``: facts in wordings that no training document holds."""
KINDS = {"gazetteer": 0.30, "portrait": 0.20, **dict.fromkeys(FAMILIES, 0.10)}
"""Kinds of documents and their shares: ``gazetteer`` jumps from city to city, ``portrait`` stays with one."""
LENGTH = {"gazetteer": 330, "portrait": 330, "bio": 330, "review": 330, "news": 350, "talk": 220, "code": 170}
"""A document ends with the sentence that reaches this many characters, so that it fits a context of 128 tokens: the
longest of 16,000 has 125.
"""
CONCEPTS = (
    "kind",
    "entity",
    "attribute",
    "value",
    *(f"city_{attribute}" for attribute in ATTRIBUTES),
    "text_language",
    "programming_language",
    "profession",
    "gender",
    "product",
    "sentiment",
    "topic",
)
"""``entity`` is a city's name, ``attribute`` what the sentence states of it, ``value`` the words that state it.
``city_country`` and its like are what the city named last implies, from its name's end until the sentence ends.
"""


@dataclass(frozen=True)
class Document:
    """``spans`` label stretches of ``text``; ``log_p`` is the log-probability of the choices that made it, in nats.

    ``labels`` holds the labels of the whole document, by concept.
    """

    text: str
    spans: tuple[Span, ...]
    log_p: float
    labels: dict[str, str] = field(default_factory=dict)


def document(split: str, index: int, seed: int = 0) -> Document:
    """The document at a place of a stream: the same arguments always give the same one."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    writer = Writer(random.Random(f"atlas/{split}/{seed}/{index}"))
    kinds = {k: p for k, p in KINDS.items() if split != "unseen" or k not in FAMILIES}
    kind = writer.choose(tuple(kinds), tuple(kinds.values()))
    labels = {"kind": kind}
    if kind in FAMILIES:
        labels |= _family(writer, FAMILIES[kind], LENGTH[kind])
    else:
        _facts(writer, kind == "portrait", split == "unseen", LENGTH[kind])
    if kind != "code":
        labels.setdefault("text_language", "English")
    whole = tuple(Span(0, len(writer.text), concept, label) for concept, label in labels.items())
    return Document(writer.text, (*whole, *writer.spans), writer.log_p, labels)


def documents(split: str, seed: int = 0) -> Iterator[Document]:
    """Documents without end, from index 0."""
    return (document(split, index, seed) for index in itertools.count())


def token_labels(document: Document, offsets: Sequence[tuple[int, int]]) -> dict[str, list[str | None]]:
    """For each concept one label a token, None where it has none.

    ``offsets`` are the characters [start, end) of each token, as tokenizers give them; (0, 0) is a special token. A
    token takes the label of a span that it touches, the last one where there are several.
    """
    labels: dict[str, list[str | None]] = {concept: [None] * len(offsets) for concept in CONCEPTS}
    for span in document.spans:
        for place, (start, end) in enumerate(offsets):
            if start < span.end and span.start < end:
                labels[span.concept][place] = span.label
    return labels


def _facts(writer: Writer, stays: bool, held_out: bool, length: int) -> None:
    """Sentences that each state one fact: of one city, each attribute once, or of a new city every time."""
    city = writer.choose(facts()) if stays else None
    left = list(ATTRIBUTES)
    while left and len(writer.text) < length:
        attribute = writer.choose(left)
        if stays:
            left.remove(attribute)
        _fact(writer, city or writer.choose(facts()), attribute, held_out)


def _fact(writer: Writer, city: City, attribute: str, held_out: bool) -> None:
    wording = writer.choose(wordings(attribute, held_out))
    writer.write(" " if writer.text else "")
    start, mentions = len(writer.text), Mentions(writer)

    def value() -> None:
        said = getattr(city, attribute)
        writer.label(*writer.write(said), "value", said)

    writer.fill(wording.text, {}, {"city": lambda: mentions.name(city), "value": value})
    mentions.close()
    writer.label(start, len(writer.text), "attribute", attribute)


def _family(writer: Writer, family: Family, length: int) -> dict[str, str]:
    """A label for each concept of the family, then its sentences."""
    labels = {concept: writer.choose(tuple(rules)) for concept, rules in family.concepts.items()}
    rules = dict(family.shared)
    for concept, label in labels.items():
        rules.update(family.concepts[concept][label])
    rules.update({symbol: (writer.choose(rules[symbol]),) for symbol in family.once})
    mentions = Mentions(writer)
    special = {"city": lambda: mentions.name(writer.choose(facts()))}
    symbol = "opening"
    while len(writer.text) < length:
        writer.write(family.separator if writer.text else "")
        start = len(writer.text)
        writer.expand(symbol, rules, special)
        mentions.close()
        if family.prose:
            writer.capitalise(start)
        symbol = "sentence"
    return labels


class Mentions:
    """The cities that a sentence names, with what each implies from the end of its name on."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.open: tuple[int, City] | None = None

    def name(self, city: City) -> None:
        self.close()
        start, end = self.writer.write(city.name)
        self.writer.label(start, end, "entity", city.name)
        self.open = (end - 1, city)

    def close(self) -> None:
        """What the last city implies ends here."""
        if self.open is not None:
            start, city = self.open
            for attribute in ATTRIBUTES:
                self.writer.label(start, len(self.writer.text), f"city_{attribute}", getattr(city, attribute))
        self.open = None
