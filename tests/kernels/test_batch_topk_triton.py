"""The Triton selections keep exactly what the definition keeps, and say so in sparse codes."""

import pytest
import torch

from saecore.kernels.batch_topk import reference
from saecore.kernels.batch_topk import triton as select
from saecore.training.loss import smallest_kept

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """So small that little shapes take many of them."""
    monkeypatch.setattr(select, "WIDTH", 8)
    monkeypatch.setattr(select, "HEIGHT", 2)
    monkeypatch.setattr(select, "CHUNK", 16)
    monkeypatch.setattr(select, "TILE", (16, 16, 16))


def scores_of(n: int, m: int, generator: torch.Generator, ties: bool, device: str, dtype=torch.float32):
    whole = torch.randint(-3, 4, (n, m), generator=generator).float()
    return (whole if ties else torch.randn(n, m, generator=generator)).to(device, dtype)


def well_formed(codes, batch: int, m: int) -> None:
    """Void entries say that they are, and latents ascend within a row."""
    end = int(codes.indptr[-1])
    assert codes.batch == batch and codes.indptr[0] == 0 and (codes.indptr.diff() >= 0).all()
    assert (codes.rows[end:] == batch).all() and (codes.indices[end:] == m).all() and not codes.values[end:].any()
    place = codes.rows[:end].long() * m + codes.indices[:end]
    assert (place.diff() > 0).all() and (codes.indices[:end] < m).all()
    assert [t.dtype for t in (codes.indptr, codes.rows, codes.indices, codes.values)] == [torch.int32] * 3 + [
        torch.float32
    ]


def dense(codes, m: int) -> torch.Tensor:
    return torch.from_numpy(codes.to_host().dense(m))


SHAPES = [  # rows, latents, budget, rows of a group
    (1, 1, 1, 1),
    (1, 33, 3, 1),
    (4, 21, 2, 1),
    (7, 31, 2, 3),
    (5, 17, 17, 2),  # all of them
    (5, 37, 4, 5),
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "budget", "rows"), SHAPES)
def test_ranked_is_the_definition_s_ties_included(n, m, budget, rows, dtype, generator, device):
    for ties in (False, True):
        scores = scores_of(n, m, generator, ties, device, dtype)
        codes, smallest = select.select_ranked(scores, budget, rows)
        well_formed(codes, n, m)
        mask = reference.select_ranked(scores, budget, rows)
        assert len(codes.values) == budget * n
        assert torch.equal(dense(codes, m), (scores * mask).float().cpu())
        assert float(smallest) == pytest.approx(float(smallest_kept(scores.float(), mask, rows)), rel=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_what_is_above_the_cut_closes_up_behind_ties_that_are_too_many(device):
    """Budget 3: the two largest, and of all the ties the first."""
    scores = torch.ones(1, 60, device=device)
    scores[0, 31], scores[0, 58] = 2.0, 3.0
    codes, smallest = select.select_ranked(scores, 3, 1)
    well_formed(codes, 1, 60)
    assert codes.indices.tolist() == [0, 31, 58] and codes.values.tolist() == [1, 2, 3] and float(smallest) == 1


def test_ranked_with_blocks_of_the_usual_size(generator, device):
    """More latents than a program takes in every one of the kernels."""
    scores = scores_of(2, 5001, generator, False, device)
    scores[0, 4990:] = 9.0
    for budget, rows in ((20, 1), (3, 2)):
        codes, _ = select.select_ranked(scores, budget, rows)
        wanted = scores * reference.select_ranked(scores, budget, rows)
        assert torch.equal(dense(codes, 5001), wanted.cpu())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_not_positive_is_not_kept(rows, device):
    """Nothing in most groups; in the others fewer than the budget. NaN is no number, infinity is the largest."""
    scores = torch.full((4, 19), -1.0, device=device)
    scores[1, 3], scores[1, 5], scores[2, 18], scores[2, 0] = torch.nan, 0.5, torch.inf, -0.0
    codes, smallest = select.select_ranked(scores, 2, rows)
    well_formed(codes, 4, 19)
    wanted = torch.zeros(4, 19)
    wanted[1, 5], wanted[2, 18] = 0.5, torch.inf
    assert torch.equal(dense(codes, 19), wanted)
    nothing, least = select.select_ranked(-scores.nan_to_num(1.0, posinf=1.0).abs(), 2, rows)
    assert int(nothing.indptr[-1]) == 0 and float(least) == 0
    well_formed(nothing, 4, 19)


def test_more_than_32_bits_count_is_refused():
    with pytest.raises(
        ValueError, match="1048576 rows with 64 codes each exceed what a selection counts; take smaller"
    ):
        select.select_ranked(torch.zeros(1, 1).expand(1 << 20, 1 << 12), 64, 1 << 20)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 16), (5, 37)])
@pytest.mark.parametrize("level", [-9.0, 0.3, 9.0])
def test_above_is_the_definition_s(n, m, level, dtype, generator, device):
    scores = scores_of(n, m, generator, False, device, dtype)
    bias, threshold = (torch.randn(m, generator=generator).to(device) for _ in range(2))
    threshold += level
    pre = scores.float() + bias
    mask = reference.select_above(pre, threshold)
    active = int(mask.sum())
    codes, overflow = select.select_above(scores, bias, threshold, max(active, 1))
    well_formed(codes, n, m)
    assert not overflow
    assert torch.equal(torch.from_numpy(codes.to_host().dense(m)), (pre * mask).cpu())
    if active > 1:
        cut, overflow = select.select_above(scores, bias, threshold, active - 1)
        assert overflow and int(cut.indptr[-1]) == active - 1
        well_formed(cut, n, m)
        assert torch.equal(cut.values, codes.values[:-1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 33, 7), (20, 40, 20)])
@pytest.mark.parametrize("level", [0.0, 99.0])
def test_encoding_with_a_threshold_writes_the_same_codes(n, m, d, level, generator, device):
    x, weight, bias, threshold = (torch.randn(s, generator=generator).to(device) for s in ((n, d), (m, d), (m,), (m,)))
    pre = x @ weight.T + bias
    mask = reference.select_above(pre, threshold + level)
    codes, overflow = select.encode_above(x, weight, bias, threshold + level, n * m)
    well_formed(codes, n, m)
    assert not overflow
    torch.testing.assert_close(dense(codes, m), (pre * mask).cpu(), rtol=1e-4, atol=1e-5)
    if mask.sum() > 1:
        cut, overflow = select.encode_above(x, weight, bias, threshold + level, int(mask.sum()) - 1)
        assert overflow and int(cut.indptr[-1]) == mask.sum() - 1
        well_formed(cut, n, m)
