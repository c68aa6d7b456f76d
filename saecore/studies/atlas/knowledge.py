"""What the model knows, and how near its loss comes to the entropy of the generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch

from saecore.activations.models import ResidualModel
from saecore.sources.atlas import ATTRIBUTES, City, Wording, documents, facts, wordings
from saecore.studies.atlas import tokens

T = TypeVar("T")
BATCH = 256


@dataclass(frozen=True)
class Question:
    """A prompt with its answer, and the token ids of both."""

    city: City
    wording: Wording
    ids: tuple[int, ...]
    answer: range
    """Places in ``ids`` that hold the answer; the last id is the one after it."""


def questions(
    model: ResidualModel, attribute: str, held_out: bool = True, cities: Sequence[City] | None = None
) -> list[Question]:
    """Every wording of an attribute, those that training never saw, or those that it did, for each city."""
    asked = [(city, wording) for city in cities or facts() for wording in wordings(attribute, held_out)]
    texts = [wording.text.format(city=c.name, value=getattr(c, attribute)) for c, wording in asked]
    found = model.tokenizer(texts, return_offsets_mapping=True)
    made = []
    for (city, wording), ids, offsets in zip(asked, found["input_ids"], found["offset_mapping"], strict=True):
        start = len(wording.prompt(city.name))
        end = start + 1 + len(getattr(city, attribute))
        places = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        made.append(Question(city, wording, tuple(ids[: places[-1] + 2]), range(places[0], places[-1] + 1)))
    return made


def known(model: ResidualModel, asked: Sequence[Question]) -> list[bool]:
    """Whether the greedy completion of each prompt is the fact.

    It is where the model's first choice is the right one at each token of the answer, and where its first choice
    after them starts no further letters, so that "Niger" does not pass for "Nigeria".
    """
    pad, size = model.tokenizer.pad_token_id, len(model.tokenizer)
    ends = torch.tensor([not model.tokenizer.decode([i])[:1].isalpha() for i in range(size)])
    right: list[bool] = []
    for part in _batches(asked, BATCH):
        width = max(len(question.ids) for question in part)
        ids = torch.tensor([[*q.ids, *[pad] * (width - len(q.ids))] for q in part])
        choices = model.logits(model.from_ids(ids)).argmax(-1).cpu()
        for question, row, chosen in zip(part, ids, choices, strict=True):
            first, last = question.answer.start, question.answer.stop - 1
            same = bool((chosen[first - 1 : last] == row[first : last + 1]).all())
            right.append(same and bool(ends[chosen[last]]))
    return right


def knowledge(model: ResidualModel, held_out: bool = True) -> dict[str, float]:
    """Share of the facts that the model knows, by attribute, over all cities and the wordings asked for."""
    return {a: _mean(known(model, questions(model, a, held_out))) for a in ATTRIBUTES}


def commonest(attribute: str) -> float:
    """Share of the cities that have the commonest value: the floor of :func:`knowledge`."""
    given = [getattr(city, attribute) for city in facts()]
    return max(map(given.count, given)) / len(given)


@dataclass(frozen=True)
class Surprise:
    """Nats per token on documents that training did not see: of the model, and of the generator that wrote them.

    The generator's counts every choice it drew. It is the least that any model can reach, up to texts that two
    different draws would write.
    """

    model: float
    generator: float
    tokens: int


def surprise(model: ResidualModel, n: int = 2000, split: str = "test") -> Surprise:
    """Over the first ``n`` documents of a split. Raises ValueError where one is longer than the context."""
    lost, drawn, count = 0.0, 0.0, 0
    for part in _batches(list(islice(documents(split), n)), BATCH):
        longest = max(tokens.lengths(model.tokenizer, part))
        if longest > tokens.CONTEXT:
            raise ValueError(f"a document has {longest} tokens; shorten LENGTH until all fit {tokens.CONTEXT}")
        ids, targets = tokens.batch(model.tokenizer, [document.text for document in part])
        lost += float(tokens.loss(model.logits(model.from_ids(ids)), targets.to(model.device)))
        drawn -= sum(document.log_p for document in part)
        count += int((targets != tokens.IGNORED).sum())
    return Surprise(lost / count, drawn / count, count)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
