"""Reading features off a sample: easy where it must be, and never beyond the truth."""

import pytest
import torch

from saecore.sources.synthetic import EVALUATION, Superposition
from saecore.spec import SourceSpec
from saecore.studies.reading import _pursued, best_step, compare_readings, fitted
from tests.studies.far import far


def _world(**changed):
    spec = {"probability": "constant", "n_features": 40, "d_model": 20, "expected_l0": 3.0}
    return Superposition(SourceSpec(**{**spec, **changed}))


@pytest.fixture(scope="module")
def table():
    return compare_readings(_world(), rows=256, slow_rows=64).set_index("way")


def test_every_way_is_scored(table):
    assert len(table) == 5 and table.index.is_unique
    assert table[["precision", "recall", "f1"]].stack().between(0, 1).all()
    assert table["explained_variance"].le(1).all() and table["f1_error"].between(0, 0.1).all()
    fixed = table["codes"].drop(["one threshold", "one feature at a time (matching pursuit)"])
    assert (fixed == 3).all() and table["codes"].le(4).all()


def test_iteration_beats_one_step_where_features_are_few(table):
    assert table["f1"]["all at once, until it settles"] > table["f1"]["largest dot products of each sample"]


def test_the_true_features_explain_everything_and_none_explain_nothing():
    world = _world()
    batch = world.batch(64, 0, EVALUATION)
    fired = batch.dense_codes(40) > 0
    assert fitted(batch.x, world.features, fired) == pytest.approx(1, abs=1e-6)
    nothing = fitted(batch.x, world.features, torch.zeros_like(fired))
    assert nothing <= 0


def test_matching_pursuit_takes_tensors_of_a_gpu():
    world = _world()
    x = world.batch(16, 0, EVALUATION).x
    assert torch.equal(_pursued(far(x), far(world.features), 3), _pursued(x, world.features, 3))


def test_the_best_step_by_hand_for_orthogonal_features():
    """Two orthogonal features, no crowd: the noise is nothing, so the log odds are as sure as they can be."""
    world = _world(n_features=2, d_model=2, expected_l0=1.0)
    world.features = torch.eye(2)
    odds = best_step(world, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(odds > 0, torch.tensor([[True, False], [False, False]]))


def test_the_best_step_ranks_better_than_dot_products_where_frequencies_differ():
    world = _world(probability="variable", n_features=200, p_min=1e-3, p_max=0.1)
    f1 = dict(compare_readings(world, rows=1024, slow_rows=8)[["way", "f1"]].to_numpy().tolist())
    assert f1["best single step"] > f1["largest dot products of each sample"] + 0.05


def test_the_best_step_is_at_even_odds_where_both_cases_are_equally_likely():
    world = _world(n_features=40, expected_l0=20.0, sigma=0.0)  # p = 1/2: no prior
    middle = world.mean() + 0.0 * world.features  # every detector answers p
    assert torch.allclose(best_step(world, middle), torch.zeros(40, 40), atol=1e-3)
