"""What a labelled set is: binary tasks, each with texts to learn from and others to be tested on.

Sizes count the texts of one task, as SAEBench's do: half of them are of the class, half of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

ByClass = Mapping[str, Sequence[str]]
"""Texts by the name of their class."""


class LabelledSetError(ValueError):
    """Labelled texts that cannot be used; the message names the set, the reason and the way out."""


@dataclass(frozen=True)
class Examples:
    """Texts, and 1 where the task's class holds."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "texts"]


@dataclass(frozen=True)
class Task:
    """Is a text of the class ``name``? Raises LabelledSetError where a part lacks one of the two answers."""

    name: str
    train: Examples
    test: Examples

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            held = getattr(self, part)
            yes, every = int(held.labels.sum()), len(held.labels)
            if not 0 < yes < every:
                raise LabelledSetError(
                    f"task {self.name!r}: {yes} of {every} {part} texts are of the class; give some that are and some "
                    "that are not"
                )


@dataclass(frozen=True)
class LabelledSet:
    """The tasks of one data set. ``family`` groups sets of one kind, such as the paper's five concept families."""

    name: str
    family: str
    tasks: tuple[Task, ...]


def one_vs_rest(name: str, family: str, train: ByClass, test: ByClass, rng: np.random.Generator) -> LabelledSet:
    """For each class a task that holds all of its texts and as many of the others, evenly of each.

    ``prepare_probe_data`` of SAEBench (sae_bench/evals/sparse_probing/probe_training.py), with one difference: the
    others are drawn here, once, so that every SAE, k and reference is judged on the same texts. Two classes make one
    task, of the second class, since the other would be its mirror image. Raises LabelledSetError for fewer than two
    classes, or too few texts of one.
    """
    classes = _two_or_more(name, train)
    wanted = classes[1:] if len(classes) == 2 else classes
    tasks = (Task(c, _against(name, c, train, rng), _against(name, c, test, rng)) for c in wanted)
    return LabelledSet(name, family, tuple(tasks))


def divided(
    name: str, texts: ByClass, train: int, test: int, rng: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Texts to learn from and others to be tested on, half of ``train`` and of ``test`` for each class.

    Raises LabelledSetError as :func:`one_vs_rest` and :func:`per_class` do.
    """
    _two_or_more(name, texts)
    first, second = per_class(name, train, "train"), per_class(name, test, "test")
    found = {c: drawn(f"{name}, class {c!r}", held, first + second, rng) for c, held in texts.items()}
    return {c: held[:first] for c, held in found.items()}, {c: held[first:] for c, held in found.items()}


def per_class(name: str, size: int, what: str, parts: int = 2) -> int:
    """``size`` in ``parts`` equal parts. Raises LabelledSetError where it cannot be so divided."""
    if size < parts or size % parts:
        raise LabelledSetError(f"{name}: {what}={size} must be a positive multiple of {parts}, to be balanced")
    return size // parts


def drawn(what: str, texts: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """``n`` of ``texts``, none twice. Raises LabelledSetError where there are fewer."""
    if len(texts) < n:
        raise LabelledSetError(f"{what} has {len(texts)} texts, fewer than the {n} asked for; ask for fewer")
    return [texts[i] for i in map(int, rng.permutation(len(texts))[:n])]


def _two_or_more(name: str, texts: ByClass) -> list[str]:
    classes = list(texts)
    if len(classes) < 2:
        has = f"one class only, {classes[0]!r}" if classes else "no texts"
        raise LabelledSetError(f"labelled set {name!r} has {has}; a probe needs texts of two classes or more")
    return classes


def _against(name: str, positive: str, texts: ByClass, rng: np.random.Generator) -> Examples:
    own, others = list(texts[positive]), [c for c in texts if c != positive]
    share = math.ceil(len(own) / len(others))
    rest = [text for c in others for text in drawn(f"{name}, class {c!r}", texts[c], share, rng)]
    rest = drawn(f"{name} without {positive!r}", rest, len(own), rng)
    return Examples((*own, *rest), np.repeat([1, 0], len(own)))
