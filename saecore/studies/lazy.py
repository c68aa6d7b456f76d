"""Lazy training (paper, Sec. 4.2, App. D, E): how far rows go, what freedom buys, which part carries the gain."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saecore.report import ledger
from saecore.sources.base import Source
from saecore.spec import RunSpec
from saecore.studies.examine import Examiner
from saecore.studies.live import Variant, train_variants

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Shares of the steps at which a learning curve is read; the paper reads it at 0.05 and 0.1."""


def train_watched(runs: Sequence[RunSpec], source: Source) -> tuple[list[Variant], pd.DataFrame]:
    """Train runs that share a stream, with their curves at ``SHARES`` of the steps and every metric at the end.

    Rows have the ledger's columns. What :func:`saecore.metrics.lazy.swaps` tells is among them where both sides train.
    """
    marks = [round(share * runs[0].training.steps) for share in SHARES]
    variants, curve = train_variants(runs, source, marks)
    at_hand, ends = Examiner(source), []
    for variant in variants:
        ends += variant.rows(at_hand.measure(variant.sae, variant.start, variant.run))
    return variants, pd.concat([curve, pd.DataFrame(ends, columns=curve.columns)], ignore_index=True)


def by_tau(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of decoders on a leash, with its length as the column ``tau``: free is 0, frozen is 1.

    Everything else, and every init but ``iso``, is left out.
    """
    ends = {"free": 0.0, "frozen_decoder": 1.0}
    chosen = ledger.select(frame, constraint=["soft_frozen_decoder", *ends], init="iso")
    told = ledger.expand(chosen, "constraint.tau")["constraint.tau"]
    return chosen.assign(tau=[ends.get(name, tau) for name, tau in zip(chosen["constraint"], told, strict=True)])


def milestones(frame: pd.DataFrame, metrics: Sequence[str], shares: Sequence[float] = (0.05, 0.1, 1.0)) -> pd.DataFrame:
    """Means over seeds at shares of the steps: a row per architecture, a column per metric and share.

    ``frame``: finished runs of one constraint and init at every recorded step. Raises LedgerError where one of the
    steps is not recorded.
    """
    parts = []
    for _, runs in ledger.select(frame, metric=list(metrics)).groupby("architecture", sort=False):
        steps = runs["step"].max()
        parts += [ledger.select(runs, step=round(share * steps)).assign(share=share) for share in shares]
    table = pd.concat(parts).pivot_table("value", "architecture", ["metric", "share"], sort=False)
    return table.loc[:, list(metrics)]
