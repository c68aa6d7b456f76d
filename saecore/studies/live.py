"""Runs that a chapter trains on the spot. Nothing is recorded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from saecore.activations import open_source
from saecore.metrics.evaluate import GLIMPSE_ROWS, evaluate, glimpse
from saecore.report import ledger
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.spec import RunSpec
from saecore.training import Trainer, shared_streams, start, train_many


@dataclass(frozen=True)
class Variant:
    """A trained SAE beside what it was before."""

    run: RunSpec
    start: SAE
    sae: SAE
    seconds: float

    def rows(self, values: dict[str, float]) -> list[dict]:
        """``values`` as rows of the ledger."""
        return ledger.rows(self.run, self.run.training.steps, values, self.seconds, self.sae.W_enc.device)


def train_live(
    runs: Sequence[RunSpec], marks: Sequence[int] = (), rows: int = 8192, device: str = "cpu"
) -> pd.DataFrame:
    """Train every run and measure it; rows have the ledger's columns, so that tables and figures take both.

    Runs that see the same samples train on one stream. At each of ``marks`` (steps) a learning curve's few metrics
    are measured on a quarter of ``rows`` samples, at the end all of them on ``rows``.
    """
    found: list[dict] = []
    source: Source | None = None
    for group in shared_streams(runs):
        if source is None or source.spec != group[0].source:
            source = open_source(group[0].source, device)
        variants, curve = train_variants(group, source, marks, rows // 4)
        found += curve.to_dict("records")
        for variant in variants:
            found += variant.rows(evaluate(variant.sae, source, rows, start=variant.start.W_dec.detach()))
    return _frame(found)


def train_variants(
    runs: Sequence[RunSpec], source: Source, marks: Sequence[int] = (), rows: int = GLIMPSE_ROWS
) -> tuple[list[Variant], pd.DataFrame]:
    """Train runs that share a stream of samples; what they became, and a learning curve from ``rows`` at ``marks``."""
    trainers, steps = [start(run, source) for run in runs], runs[0].training.steps
    starts, found = [copy.deepcopy(trainer.sae) for trainer in trainers], []
    for mark in sorted(m for m in set(marks) if m < steps):
        train_many(trainers, source, mark)
        for trainer, fresh in zip(trainers, starts, strict=True):
            found += _glimpsed(trainer, mark, glimpse(trainer.sae, source, rows, fresh.W_dec.detach()))
    train_many(trainers, source, steps)
    pairs = zip(trainers, starts, strict=True)
    return [Variant(t.run, fresh, t.sae, t.seconds) for t, fresh in pairs], _frame(found)


def _glimpsed(trainer: Trainer, step: int, values: dict[str, float]) -> list[dict]:
    return ledger.rows(trainer.run, step, values, trainer.seconds, trainer.sae.W_enc.device)


def _frame(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(ledger.COLUMNS))
