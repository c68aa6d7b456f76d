"""Live runs look like recorded ones, and are the runs that a sweep would make."""

import pytest
import torch

from saecore import sweep
from saecore.metrics.evaluate import evaluate
from saecore.report import compare, ledger
from saecore.sources.synthetic import Superposition
from saecore.studies.live import train_live
from saecore.training import start, train_many

SMALL = {"probability": "constant", "source.n_features": 24, "source.d_model": 8, "source.expected_l0": 2.0}
SMALL |= {"sae.l0": 2, "training.steps": 12, "training.batch_size": 64, "architecture": "topk"}


@pytest.fixture(scope="module")
def runs():
    fields = [(c, s) for c in ("free", "frozen_decoder", "untrained") for s in (0, 1)]
    return [sweep.make({**SMALL, "constraint": c, "seed": s}) for c, s in fields]


@pytest.fixture(scope="module")
def frame(runs):
    return train_live(runs, marks=(4, 12, 99), rows=512)


def test_rows_have_the_ledgers_columns_and_every_run(frame, runs):
    assert tuple(frame.columns) == ledger.COLUMNS
    assert set(frame["key"]) == {run.key() for run in runs}
    assert sorted(set(ledger.select(frame, metric="features_recovered")["step"])) == [4, 12]
    assert sorted(set(ledger.select(frame, metric="code_f1_micro")["step"])) == [12]


def test_tables_take_them(frame):
    table = compare.summary(ledger.last(frame), ["constraint"], "explained_variance")
    assert table["constraint"].tolist() == ["free", "frozen_decoder", "untrained"]
    assert table["n"].tolist() == [2, 2, 2]
    assert max(ledger.fractions(frame)["value"]) <= 1


def test_a_live_run_is_the_run_itself(frame, runs):
    run = runs[0]
    source = Superposition(run.source)
    trainer = start(run, source)
    train_many([trainer], source, run.training.steps)
    wanted = evaluate(trainer.sae, source, 512)
    row = ledger.select(frame, key=run.key(), metric="explained_variance", step=12)
    assert row["value"].item() == pytest.approx(wanted["explained_variance"], abs=1e-6)


def test_a_frozen_decoder_recovers_what_it_started_with(frame):
    found = ledger.select(ledger.last(frame), metric="features_recovered")
    frozen, untrained = (
        ledger.select(found, constraint=c).sort_values("seed")["value"].tolist()
        for c in ("frozen_decoder", "untrained")
    )
    assert frozen == untrained and not torch.tensor(frozen).isnan().any()
