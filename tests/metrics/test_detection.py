"""Thresholds worked out by hand, and codes that settle where the optimality conditions say."""

import numpy as np
import pytest
import torch

from saecore.metrics.detection import Detected, Detection, nonnegative_lasso

SCORES = torch.tensor([[0.9, 0.1, 0.6], [0.4, 0.7, -3.0]])
FIRED = torch.tensor([[True, False, False], [False, True, False]])
EDGES = np.array([0.0, 0.25, 0.5, 0.65, 1.0])


def test_each_threshold_by_hand():
    found = Detection(EDGES)
    found.update(SCORES, FIRED)
    assert found.fired.tolist() == [0, 0, 0, 2] and found.silent.tolist() == [2, 1, 1, 0]
    assert found.precision() == pytest.approx([2 / 6, 2 / 4, 2 / 3, 1])
    assert found.recall() == pytest.approx([1, 1, 1, 1])
    assert found.f1() == pytest.approx([4 / 8, 4 / 6, 4 / 5, 1])
    assert found.best() == Detected(0.65, 1.0, 1.0, 1.0)


def test_the_answer_does_not_depend_on_the_batches(generator):
    scores = torch.randn(40, 7, generator=generator)
    fired = torch.rand(40, 7, generator=generator) < 0.2
    whole, parts = (Detection(np.linspace(-2, 2, 21)) for _ in range(2))
    whole.update(scores, fired)
    for start in range(0, 40, 9):
        parts.update(scores[start : start + 9], fired[start : start + 9])
    assert whole.f1().tolist() == parts.f1().tolist()


def test_scores_beyond_the_edges_are_counted_in_the_outer_bins():
    found = Detection(np.array([0.0, 0.5, 1.0]))
    found.update(torch.tensor([[-5.0, 7.0]]), torch.tensor([[False, True]]))
    assert found.silent.tolist() == [1, 0] and found.fired.tolist() == [0, 1]


def test_nothing_told_has_perfect_precision_and_no_recall():
    found = Detection(np.array([0.0, 0.5, 1.0]))
    found.update(torch.tensor([[0.1]]), torch.tensor([[True]]))
    assert found.precision()[1] == 1 and found.recall()[1] == 0 and found.f1()[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_counts_are_numpys_on_the_edges_too(generator, dtype):
    scores = (torch.randn(50, 20, generator=generator) * 4).round().div(4).to(dtype)  # many of them on an edge
    found = Detection(np.arange(-1.0, 1.01, 0.25))
    found.update(scores, torch.zeros_like(scores, dtype=torch.bool))
    wanted, _ = np.histogram(scores.double().numpy().clip(-1, 1), found.edges)
    assert found.silent.tolist() == wanted.tolist()


def test_nan_is_an_error_and_counts_nothing():
    found = Detection(EDGES)
    with pytest.raises(ValueError, match="1 of 6 scores are NaN"):
        found.update(torch.where(SCORES == 0.1, torch.nan, SCORES), FIRED)
    assert found.silent.sum() == 0


@pytest.mark.parametrize("edges", [[0.0], [1.0, 0.0], [0.0, 0.0]])
def test_edges_must_rise(edges):
    with pytest.raises(ValueError, match="edges: pass at least 2, each above the one before"):
        Detection(np.array(edges))


def test_codes_settle_at_the_closed_form_for_orthogonal_directions():
    x = torch.tensor([[1.0, -0.5, 0.05], [0.3, 0.2, 0.0]])
    assert torch.allclose(nonnegative_lasso(x, torch.eye(3), 0.1), torch.relu(x - 0.1), atol=1e-6)


def test_settled_codes_meet_the_conditions_of_the_optimum(generator):
    directions = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator), dim=1)
    x = torch.randn(5, 8, generator=generator)
    codes = nonnegative_lasso(x, directions, 0.1, steps=3000)
    pull = (x - codes @ directions) @ directions.T  # 0.1 where a code is positive, at most 0.1 elsewhere
    assert (codes >= 0).all() and (pull <= 0.1 + 1e-3).all()
    assert torch.allclose(pull[codes > 1e-3], torch.tensor(0.1), atol=1e-3)


def test_codes_stay_where_the_rows_are(generator):
    directions, x = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
    wanted = nonnegative_lasso(x, directions, 0.1)
    with torch.device("meta"):  # a tensor made without a device of its own would meet the rows' device and fail
        assert torch.equal(nonnegative_lasso(x, directions, 0.1), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_as_the_cpu_does(generator):
    scores = torch.randn(40, 7, generator=generator)
    here, there = Detection(EDGES), Detection(EDGES)
    here.update(scores, scores > 0.5)
    there.update(scores.cuda(), scores.cuda() > 0.5)
    assert here.fired.tolist() == there.fired.tolist() and here.silent.tolist() == there.silent.tolist()
