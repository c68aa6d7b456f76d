"""Text of 200 rows and a latent on it, as judges see them."""

import numpy as np
import pytest
from scipy import sparse

from saecore.metrics.autointerp import Text, Trial, choose

ROWS, LENGTH, VOCABULARY = 200, 40, 200


@pytest.fixture(scope="session")
def text() -> Text:
    ids = np.random.default_rng(0).integers(VOCABULARY, size=ROWS * LENGTH)
    return Text(ids, np.repeat(np.arange(ROWS), LENGTH), {i: f" t{i}" for i in range(VOCABULARY)})


def trials_of(text: Text, *fires: np.ndarray) -> tuple[Trial, ...]:
    """A trial for each boolean array over the positions, in their order."""
    rng = np.random.default_rng(0)
    dense = np.stack([np.where(f, rng.uniform(0.5, 1, len(f)), 0) for f in fires], 1)
    chosen = choose(text, sparse.csc_array(dense.astype(np.float32)), seed=0)
    assert chosen.left_out == 0
    return tuple(sorted(chosen.trials, key=lambda trial: trial.latent))


@pytest.fixture(scope="session")
def make_trials(text):
    return lambda *fires: trials_of(text, *fires)


@pytest.fixture(scope="session")
def trials(text) -> tuple[Trial, ...]:
    return trials_of(text, text.ids == 5, text.ids == 6, text.ids == 7)
