"""A language model as the judge, wherever it runs: what it is asked, and what counts as an answer.

The questions follow SAEBench's (2503.09532): sequences in a numbered list, activating tokens marked where a description
is asked for and nowhere in a test, the answer a list of numbers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from saecore.judges.base import Plan, Question
from saecore.metrics.autointerp import Excerpt, Trial

log = logging.getLogger(__name__)
T = TypeVar("T")

DESCRIBE = """A neuron of a neural network fires on one thing: a word, a part of words, a way of writing, or an idea.
Below are texts in which it fires, the strongest first. The tokens on which it fires stand between << and >>.
Say what it fires on, in one phrase of at most 20 words. Cover most of the marked tokens and be no narrower. Where \
only a particular word, capital letter or sign is marked, say so. No list of words, no formatting. Begin with \
"This neuron fires on".

{texts}"""
JUDGE = """A neuron of a neural network fires on {description}.

Below are {count} texts in random order. In which of them does it fire at least once, on any token? Do not take the \
description more narrowly than it is meant. Answer with the numbers of these texts separated by commas, such as \
"2, 5, 11", or with "None", and write nothing else.

{texts}"""
AGAIN_DESCRIBE = (
    'That is no description. Answer with one phrase of at most 20 words that begins "This neuron fires on".'
)
AGAIN_JUDGE = 'Answer with numbers from 1 to {count} separated by commas, or with "None", and nothing else.'

OPENING = re.compile(r"^\W*this neuron (fires|activates|is activated) (on|by|when|for)\s+", re.IGNORECASE)
NUMBERS = re.compile(r"\d{1,6}([,;\s]+\d{1,6})*")
LONGEST = 100
"""Words of a description."""
ROUNDS = 3
"""Times that a question is put before it goes without an answer."""
CHARACTERS = 4
"""Characters to a token, in an estimate."""
DESCRIPTION_TOKENS = 100


@dataclass(frozen=True)
class Ask:
    """A conversation, as (role, content), that wants one more message of at most ``max_tokens``."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int

    @property
    def characters(self) -> int:
        return sum(len(content) for _, content in self.messages)


class Talk(Protocol):
    """A language model that answers."""

    def complete(self, asks: Sequence[Ask]) -> list[str]:
        """The answers in order, "" where one was cut off or empty. Raises OSError where the model cannot be reached."""
        ...

    def known(self, ask: Ask) -> str | None:
        """An answer that is at hand and costs nothing."""
        ...


@dataclass
class LanguageJudge:
    """``malformed`` counts answers that were no answer, ``unanswered`` the questions given up after ``ROUNDS``."""

    talk: Talk
    malformed: int = field(default=0, init=False)
    unanswered: int = field(default=0, init=False)

    def describe(self, trials: Sequence[Trial]) -> list[str | None]:
        asks = [describing(t.top) for t in trials]
        return self._ask(asks, [read_description] * len(asks), [AGAIN_DESCRIBE] * len(asks))

    def judge(self, questions: Sequence[Question]) -> list[list[bool] | None]:
        counts = [len(excerpts) for _, excerpts in questions]
        return self._ask(
            [judging(*question) for question in questions],
            [lambda answer, count=count: read_numbers(answer, count) for count in counts],
            [AGAIN_JUDGE.format(count=count) for count in counts],
        )

    def plan(self, trials: Sequence[Trial], price_in: float, price_out: float) -> Plan:
        """Where a latent's description is not at hand, its tests are counted with one of the usual length."""
        calls = cached = tokens_in = tokens_out = 0
        for trial in trials:
            asks = [(describing(trial.top), 30)]
            answer = self.talk.known(asks[0][0])
            description = read_description(answer) if answer is not None else None
            for tests in (trial.test, trial.hard):
                asks.append((judging(description or "something " * 10, tests), 2 * len(tests)))
            for ask, tokens in asks:
                calls += 1
                if self.talk.known(ask) is not None:
                    cached += 1
                else:
                    tokens_in += ask.characters // CHARACTERS
                    tokens_out += tokens
        cost = (tokens_in * price_in + tokens_out * price_out) / 1e6
        return Plan(calls, cached, tokens_in, tokens_out, cost)

    def _ask(
        self, asks: Sequence[Ask], readers: Sequence[Callable[[str], T | None]], reminders: Sequence[str]
    ) -> list[T | None]:
        """Every ask with its reader; what it cannot read is put again, with the answer and a reminder."""
        found: list[T | None] = [None] * len(asks)
        open_asks = dict(enumerate(asks))
        for _ in range(ROUNDS):
            answers = self.talk.complete(list(open_asks.values()))
            for (place, ask), answer in zip(list(open_asks.items()), answers, strict=True):
                found[place] = readers[place](answer)
                if found[place] is not None:
                    del open_asks[place]
                else:
                    self.malformed += 1
                    said = (("assistant", answer or "..."), ("user", reminders[place]))
                    open_asks[place] = Ask(ask.messages + said, ask.max_tokens)
            if not open_asks:
                return found
        self.unanswered += len(open_asks)
        log.warning("%d of %d questions have no usable answer after %d rounds", len(open_asks), len(asks), ROUNDS)
        return found


def describing(top: Sequence[Excerpt]) -> Ask:
    texts = _listed([excerpt.marked for excerpt in top])
    return Ask((("user", DESCRIBE.format(texts=texts)),), DESCRIPTION_TOKENS)


def judging(description: str, excerpts: Sequence[Excerpt]) -> Ask:
    texts = _listed([excerpt.plain for excerpt in excerpts])
    content = JUDGE.format(description=description, count=len(excerpts), texts=texts)
    return Ask((("user", content),), 4 * len(excerpts) + 20)


def read_description(answer: str) -> str | None:
    """Without its opening words; None where nothing, or far more than a description, is left."""
    said = OPENING.sub("", answer.strip()).strip().rstrip(".").strip()
    return said if said and len(said.split()) <= LONGEST else None


def read_numbers(answer: str, count: int) -> list[bool] | None:
    """One bool for each sequence; None where it is neither numbers from 1 to ``count`` nor "None"."""
    said = re.sub(r"\band\b", ",", answer.strip().strip("\"'`[]().").strip())
    if said.lower() == "none":
        return [False] * count
    if not NUMBERS.fullmatch(said):
        return None
    numbers = {int(number) for number in re.findall(r"\d+", said)}
    return [place in numbers for place in range(1, count + 1)] if numbers <= set(range(1, count + 1)) else None


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"{place}. {text}" for place, text in enumerate(texts, 1))
