"""Made-up rows of the ledger, and a results folder of a test's own."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from saecore import paths
from saecore.report import ledger

DEFAULTS: dict[str, Any] = {
    "experiment": "sample",
    "key": "abc",
    "source": "variable",
    "architecture": "topk",
    "constraint": "free",
    "init": "iso",
    "l0": 20,
    "seed": 0,
    "step": 100,
    "metric": "explained_variance",
    "value": 0.5,
    "device": "a CPU",
    "commit": "0123abc",
    "seconds": 60.0,
    "settings": "",
}


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return lambda **changed: {**DEFAULTS, **changed}


@pytest.fixture
def frame(row) -> Callable[..., pd.DataFrame]:
    """Rows with a key of their own for each run."""

    def make(*changes: dict[str, Any]) -> pd.DataFrame:
        made = [row(**change) for change in changes]
        for item in made:
            item["key"] = "-".join(str(item[n]) for n in ("source", "architecture", "l0", "seed", "settings"))
        return pd.DataFrame(made, columns=list(ledger.COLUMNS))

    return make


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "results"))
    return tmp_path / "results"
