"""Runs that a chapter trains on the spot. Nothing is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saecore.activations import open_source
from saecore.metrics.evaluate import evaluate, glimpse
from saecore.report import ledger
from saecore.sources.base import Source
from saecore.spec import RunSpec
from saecore.training import Trainer, shared_streams, start, train_many


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
        steps = group[0].training.steps
        trainers = [start(run, source) for run in group]
        starts = [trainer.sae.W_dec.detach().clone() for trainer in trainers]
        for mark in sorted(m for m in set(marks) if m < steps):
            train_many(trainers, source, mark)
            for trainer, fresh in zip(trainers, starts, strict=True):
                found += _rows(trainer, mark, glimpse(trainer.sae, source, rows // 4, fresh))
        train_many(trainers, source, steps)
        for trainer, fresh in zip(trainers, starts, strict=True):
            found += _rows(trainer, steps, evaluate(trainer.sae, source, rows, start=fresh))
    return pd.DataFrame(found, columns=pd.Index(ledger.COLUMNS))


def _rows(trainer: Trainer, step: int, values: dict[str, float]) -> list[dict]:
    return ledger.rows(trainer.run, step, values, trainer.seconds, trainer.sae.W_enc.device)
