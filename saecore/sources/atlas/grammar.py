"""Writing text by drawing choices: the text, the spans that label it, and the probability of every choice made."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from string import Formatter
from typing import TypeVar

from saecore.sources.atlas.families import Rules

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a document carry ``label`` for ``concept``."""

    start: int
    end: int
    concept: str
    label: str


class Writer:
    """Text in the making. ``log_p`` is the log-probability (nats) of all choices drawn so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.text = ""
        self.spans: list[Span] = []
        self.log_p = 0.0

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of ``options``, with equal probability or in proportion to ``weights``."""
        draw = self.rng.random()
        if weights is None:
            place, p = int(draw * len(options)), 1 / len(options)
        else:
            ends = list(accumulate(weights))
            place = min(bisect_right(ends, draw * ends[-1]), len(options) - 1)
            p = weights[place] / ends[-1]
        self.log_p += math.log(p)
        return options[place]

    def write(self, text: str) -> tuple[int, int]:
        """Appends ``text``; where it now stands."""
        start = len(self.text)
        self.text += text
        return start, len(self.text)

    def expand(self, symbol: str, rules: Rules, special: dict[str, Callable[[], None]]) -> None:
        """Draws a production of ``symbol`` and writes it; ``special`` symbols write themselves."""
        if symbol in special:
            special[symbol]()
            return
        self.fill(self.choose(rules[symbol]), rules, special)

    def fill(self, template: str, rules: Rules, special: dict[str, Callable[[], None]]) -> None:
        """Writes ``template``, its symbols expanded."""
        for literal, symbol in parsed(template):
            self.write(literal)
            if symbol is not None:
                self.expand(symbol, rules, special)

    def capitalise(self, start: int) -> None:
        """The character at ``start`` becomes a capital."""
        self.text = self.text[:start] + self.text[start : start + 1].upper() + self.text[start + 1 :]

    def label(self, start: int, end: int, concept: str, label: str) -> None:
        self.spans.append(Span(start, end, concept, label))


@cache
def parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of literal text and the symbol after it (None at the end)."""
    return tuple((literal, symbol) for literal, symbol, _, _ in Formatter().parse(template))
