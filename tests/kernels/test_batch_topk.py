"""The compiled selections keep exactly what the definition keeps."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from saecore.kernels.batch_topk import cpu, reference
from saecore.kernels.batch_topk import dense as dense_path

GUESSES = (None, 0.0, 1e-30, 0.1, 1.0, 5.0, 1e30, float("inf"), float("nan"), -1.0)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def dense(codes, m: int) -> torch.Tensor:
    return torch.from_numpy(codes.dense(m))


def well_formed(codes, m: int) -> None:
    assert codes.indptr.dtype == np.int64 and codes.indices.dtype == np.int32 and codes.values.dtype == np.float32
    assert codes.indptr[0] == 0 and codes.indptr[-1] == len(codes.indices) == len(codes.values)
    for start, end in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        row = codes.indices[start:end]
        assert (np.diff(row) > 0).all() and (row >= 0).all() and (row < m).all()


def whole_numbers(n: int, d: int, generator: torch.Generator, top: int = 2) -> torch.Tensor:
    """Numbers that bfloat16 holds, so that equal scores are equal: ties abound."""
    return torch.randint(-top, top + 1, (n, d), generator=generator).float()


class TestReference:
    def test_keeps_the_largest_of_each_group(self):
        scores = torch.tensor([[5.0, 1, 4], [9, 8, 7], [2, 3, -1], [6, -2, -3], [1, 2, 3]])
        kept = reference.select_ranked(scores, 1, 2)
        wanted = [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
        assert kept.int().tolist() == wanted

    def test_ties_go_to_the_lower_row_then_to_the_lower_latent(self):
        scores = torch.tensor([[1.0, 2, 1], [1, 2, 2]])
        assert reference.select_ranked(scores, 2, 2).int().tolist() == [[1, 1, 0], [0, 1, 1]]
        assert reference.select_ranked(scores, 1, 2).int().tolist() == [[0, 1, 0], [0, 1, 0]]

    def test_nothing_that_is_not_positive_is_kept(self):
        scores = torch.tensor([[0.0, -1, 3], [-0.0, -1, -2]])
        assert reference.select_ranked(scores, 3, 2).int().tolist() == [[0, 0, 1], [0, 0, 0]]

    def test_above_is_strict_and_per_latent(self):
        scores = torch.tensor([[1.0, -0.5, 0.0]])
        assert reference.select_above(scores, torch.tensor([1.0, -1.0, -0.1])).tolist() == [[False, True, True]]


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize(
    ("n", "m", "d", "budget"),
    [
        (1, 1, 1, 1),
        (1, 33, 5, 3),
        (7, 31, 16, 2),
        (7, 32, 16, 40),
        (10, 65, 3, 9),
        (64, 257, 20, 4),
        (5, 3200, 100, 20),
    ],
)
class TestRanked:
    def test_agrees_with_the_definition(self, n, m, d, budget, rows, generator):
        budget = min(budget, m)
        x, weight = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
        codes, _ = cpu.select_ranked(x, weight, budget, min(rows, n))
        well_formed(codes, m)
        scores = x @ weight.T
        wanted = scores * reference.select_ranked(scores, budget, min(rows, n))
        assert torch.equal(dense(codes, m) > 0, wanted > 0)
        torch.testing.assert_close(dense(codes, m), wanted, rtol=1e-4, atol=1e-5)

    def test_ties_are_broken_alike(self, n, m, d, budget, rows, generator):
        budget = min(budget, m)
        x, weight = whole_numbers(n, d, generator), whole_numbers(m, d, generator, 1)
        scores = x @ weight.T
        wanted = scores * reference.select_ranked(scores, budget, min(rows, n))
        for guess in (None, 3.0):
            assert torch.equal(dense(cpu.select_ranked(x, weight, budget, min(rows, n), guess)[0], m), wanted)


@pytest.mark.parametrize("rows", [1, 48])
@pytest.mark.parametrize(("m", "budget"), [(400, 5), (140, 64), (132, 64), (64, 64), (64, 3)])
def test_a_guess_never_changes_the_result(m, budget, rows, generator):
    """Also where many codes are asked for and the cut comes near to zero, as with a few dead latents."""
    x, weight = torch.randn(480, 100, generator=generator), torch.randn(m, 100, generator=generator)
    first, guess = cpu.select_ranked(x, weight, budget, rows)
    scores = x @ weight.T
    assert torch.equal(dense(first, m) > 0, reference.select_ranked(scores, budget, rows))
    for other in (*GUESSES, guess, 0.9 * guess, 1.1 * guess):
        codes, _ = cpu.select_ranked(x, weight, budget, rows, other)
        for name in ("indptr", "indices", "values"):
            assert np.array_equal(getattr(codes, name), getattr(first, name)), (name, other)


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_where_few_scores_are_positive_all_are_kept(rows, generator):
    """The cut falls to zero, where bfloat16 cannot tell the sign of a small sum."""
    x = torch.randn(200, 64, generator=generator) + 1
    weight = torch.randn(500, 64, generator=generator) - 0.25
    scores = x @ weight.T
    assert 0.05 < (scores > 0).float().mean() < 0.11
    wanted = reference.select_ranked(scores, 60, rows)
    if rows == 200:
        assert torch.equal(wanted, scores > 0)
    assert torch.equal(dense(cpu.select_ranked(x, weight, 60, rows)[0], 500) > 0, wanted)


def test_nothing_is_kept_where_no_score_is_positive(generator):
    x, weight = torch.rand(9, 8, generator=generator), -torch.rand(40, 8, generator=generator)
    for rows in (1, 4, 9):
        codes, guess = cpu.select_ranked(x, weight, 3, rows)
        assert codes.indptr.tolist() == [0] * 10 and len(codes.values) == 0
        assert guess == 0


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_a_weighting_ranks_but_does_not_scale(rows, generator):
    x, weight = torch.randn(10, 20, generator=generator), torch.randn(99, 20, generator=generator)
    weighting = torch.rand(10, generator=generator) + 0.1
    scores = x @ weight.T
    mask = reference.select_ranked(scores * weighting[:, None], 3, rows)
    codes, _ = cpu.select_ranked(x, weight, 3, rows, None, weighting)
    assert torch.equal(dense(codes, 99) > 0, mask)
    torch.testing.assert_close(dense(codes, 99), scores * mask, rtol=1e-4, atol=1e-5)
    if rows == 10:
        assert not torch.equal(mask, reference.select_ranked(scores, 3, rows))


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 40, 5), (7, 31, 16), (64, 257, 20)])
@pytest.mark.parametrize("level", [-1.0, 0.0, 0.7])
def test_above_agrees_with_the_definition(n, m, d, level, generator):
    x, weight = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    bias, threshold = torch.randn(m, generator=generator), level + torch.randn(m, generator=generator)
    codes = cpu.select_above(x, weight, bias, threshold)
    assert codes is not None
    well_formed(codes, m)
    scores = x @ weight.T + bias
    mask = reference.select_above(scores, threshold)
    assert np.array_equal(np.diff(codes.indptr), mask.sum(1).numpy())
    rows = np.repeat(np.arange(n), np.diff(codes.indptr))
    assert mask[rows, codes.indices].all()
    torch.testing.assert_close(torch.from_numpy(codes.values), scores[rows, codes.indices], rtol=1e-4, atol=1e-5)


def test_above_does_not_depend_on_the_other_rows(generator):
    """Rounding grows with a row's norm, so the margin must not come from the average row."""
    weight = torch.randn(400, 100, generator=generator) / 10
    bias, threshold = torch.full((400,), -0.2), torch.zeros(400)
    large = 10 * torch.randn(64, 100, generator=generator)
    small = 0.1 * torch.randn(4096, 100, generator=generator)
    mixed = cpu.select_above(torch.cat([large, small]), weight, bias, threshold)
    assert mixed is not None
    wanted = reference.select_above(large @ weight.T + bias, threshold)
    assert torch.equal(dense(mixed, 400)[:64] > 0, wanted)


def test_above_gives_up_beyond_its_limit(generator):
    x, weight = torch.randn(8, 16, generator=generator), torch.randn(50, 16, generator=generator)
    zero = torch.zeros(50)
    active = int((x @ weight.T > 0).sum())
    assert cpu.select_above(x, weight, zero, zero, active - 1) is None
    codes = cpu.select_above(x, weight, zero, zero, 8 * 50)
    assert codes is not None and len(codes.values) == active


@pytest.mark.parametrize("precise", [True, False])
def test_the_nearest_row_is_the_definition_s_up_to_rounding(precise, generator):
    if precise:  # one-hot rows and their neighbours: inner products that bfloat16 holds
        rows = torch.eye(6)[[0, 1, 2, 0, 1, 5]] * torch.tensor([1.0, 2, 1, 4, 1, 1])[:, None]
        assert cpu.nearest(rows).tolist() == [3, 4, 0, 0, 1, 0]
    else:
        rows = torch.nn.functional.normalize(torch.randn(97, 20, generator=generator))
        cosines = (rows @ rows.T).fill_diagonal_(-torch.inf)
        found = torch.from_numpy(cpu.nearest(rows))
        assert (found != torch.arange(97)).all()
        assert (cosines.max(1).values - cosines[torch.arange(97), found]).max() < 0.01


def test_the_nearest_row_may_point_away():
    rows = torch.tensor([[1.0, 0], [-1.0, 0.25], [-0.5, 0.0]])
    assert cpu.nearest(rows).tolist() == [2, 2, 1]


@pytest.mark.parametrize("rows", [1, 5, 37])
def test_one_thread_and_two_agree_to_the_bit(rows, generator, two_threads):
    x, weight = torch.randn(37, 100, generator=generator), torch.randn(700, 100, generator=generator)
    threshold = torch.full((700,), 15.0)
    two = [cpu.select_ranked(x, weight, 6, rows)[0], cpu.select_above(x, weight, 0 * threshold, threshold)]
    torch.set_num_threads(1)
    one = [cpu.select_ranked(x, weight, 6, rows)[0], cpu.select_above(x, weight, 0 * threshold, threshold)]
    for a, b in zip(one, two, strict=True):
        assert a is not None and b is not None and len(a.values) > 0
        for name in ("indptr", "indices", "values"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    ("batch", "n_latents", "budget", "rows"), [(1, 5, 2, 1), (7, 33, 3, 3), (8, 40, 2, 8), (5, 6, 6, 2)]
)
def test_dense_path_equals_the_definition_ties_included(batch: int, n_latents: int, budget: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    scores = torch.randint(-3, 4, (batch, n_latents), generator=generator).float()
    found = dense_path.select_ranked(scores, budget, rows)
    assert torch.equal(found, reference.select_ranked(scores, budget, rows))
