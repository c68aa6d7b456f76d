"""What a judge of automated interpretability offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from saecore.metrics.autointerp import Excerpt, Judged, Trial

Question = tuple[str, Sequence[Excerpt]]
"""A description, and the sequences of which the judge says whether a latent so described activates on them."""


@dataclass(frozen=True)
class Plan:
    """What a run would ask. ``calls`` in all, of which ``cached`` cost nothing; tokens and ``cost`` are of the others.

    Tokens are estimated at four characters each; ``cost`` is in the currency of the prices.
    """

    calls: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls, {self.cached:,} of them answered already; for the others about "
            f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out, {self.cost:.2f} to pay"
        )


class Judge(Protocol):
    """Describes latents from their top sequences, then tells from a description alone where a latent activates.

    Many at once, answers in the order of what was asked; None where there is no usable answer. A judge sees of a trial
    ``top`` and ``silent``, never the test.
    """

    def describe(self, trials: Sequence[Trial]) -> list[str | None]: ...

    def judge(self, questions: Sequence[Question]) -> list[list[bool] | None]: ...

    def plan(self, trials: Sequence[Trial], price_in: float, price_out: float) -> Plan:
        """Without asking anything. Prices are per million tokens."""
        ...


def ask(judge: Judge, trials: Sequence[Trial]) -> list[Judged]:
    """Every trial described and judged, against random and against hard silent sequences in separate questions."""
    descriptions = judge.describe(trials)
    told = [(d, t) for d, t in zip(descriptions, trials, strict=True) if d is not None]
    said = iter(judge.judge([(d, tests) for d, t in told for tests in (t.test, t.hard)]))
    return [
        Judged(t, d, None, None) if d is None else Judged(t, d, next(said), next(said))
        for d, t in zip(descriptions, trials, strict=True)
    ]
