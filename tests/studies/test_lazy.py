"""How far rows go, as chapters read it from live and recorded rows."""

import pandas as pd
import pytest

from saecore import sweep
from saecore.activations import open_source
from saecore.report import ledger
from saecore.studies import lazy

SMALL = {"probability": "constant", "source.n_features": 24, "source.d_model": 8, "source.expected_l0": 2.0}
SMALL |= {"sae.l0": 2, "training.steps": 100, "training.batch_size": 64, "architecture": "topk"}


def _rows(**changed):
    """A run's explained variance at a tenth of its steps and at their end."""
    same = {"architecture": "topk", "constraint": "free", "init": "iso", "seed": 0, "settings": ""}
    same |= {"metric": "explained_variance", **changed}
    return [{**same, "step": step, "value": value} for step, value in ((10, 0.4), (100, 0.8))]


def test_a_watched_run_is_measured_on_the_way_and_at_its_end():
    runs = [sweep.make({**SMALL, "constraint": c}) for c in ("free", "frozen_decoder")]
    source = open_source(runs[0].source)
    variants, frame = lazy.train_watched(runs, source)
    assert tuple(frame.columns) == ledger.COLUMNS and [v.run for v in variants] == runs
    steps = sorted(set(ledger.select(frame, metric="explained_variance")["step"]))
    assert steps == [1, 2, 5, 10, 20, 35, 50, 75, 100]
    told = ledger.select(frame, metric="cosine_to_start")
    cosine = dict(zip(told["constraint"], told["value"], strict=True))
    assert cosine["frozen_decoder"] == pytest.approx(1) and cosine["free"] < 0.999


def test_free_and_frozen_are_the_ends_of_the_leash():
    rows = _rows() + _rows(constraint="frozen_decoder") + _rows(constraint="frozen_decoder", init="cov")
    rows += _rows(constraint="soft_frozen_decoder") + _rows(constraint="untrained")
    rows += _rows(constraint="soft_frozen_decoder", settings="constraint.tau=0.97;sae.d_model=128")
    found = lazy.by_tau(pd.DataFrame(rows))
    assert found["tau"].tolist() == [0, 0, 1, 1, 0.8, 0.8, 0.97, 0.97]


def test_milestones_are_means_over_seeds_at_shares_of_each_runs_steps():
    rows = _rows() + [{**row, "seed": 1, "value": row["value"] + 0.1} for row in _rows()] + _rows(architecture="relu")
    table = lazy.milestones(pd.DataFrame(rows), ["explained_variance"], (0.1, 1.0))
    assert table.loc["topk"].tolist() == pytest.approx([0.45, 0.85])
    assert table.loc["relu"].tolist() == pytest.approx([0.4, 0.8])
    with pytest.raises(ledger.LedgerError, match="no row has step=50"):
        lazy.milestones(pd.DataFrame(rows), ["explained_variance"], (0.5,))
