"""Explained variance, L0 and dead share: by hand, and the same however rows are batched."""

import numpy as np
import pytest
import torch

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics.reconstruction import Reconstruction, explained_variance

X = torch.tensor([[1.0, 0], [3.0, 0], [5.0, 6.0]])
X_HAT = torch.tensor([[1.0, 1], [3.0, 0], [4.0, 6.0]])
CODES = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 0, 2, 0]])


def summed(*sizes: int) -> Reconstruction:
    sums = Reconstruction()
    for x, x_hat, codes in zip(X.split(sizes), X_HAT.split(sizes), CODES.split(sizes), strict=True):
        sums.update(x, x_hat, SparseCodes.from_dense(codes))
    return sums


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (2, 1), (1, 1, 1), (0, 3)])
def test_by_hand_and_however_batched(sizes):
    """Mean (3, 2); variation 4 + 4 + 0 + 4 + 4 + 16 = 32; error 1 + 1; 3 codes on 3 rows; latents 1 and 3 silent."""
    sums = summed(*sizes)
    assert sums.explained_variance() == pytest.approx(1 - 2 / 32)
    assert sums.l0() == 1
    assert sums.firings(4).tolist() == [2, 0, 1, 0]
    assert sums.dead_share(4) == 0.5
    assert sums.dead_share(3) == pytest.approx(1 / 3)


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (2, 1), (1, 1, 1), (0, 3)])
def test_the_mean_of_row_ratios_by_hand_and_however_batched(sizes):
    """Mean (3, 2): variations 8, 4, 20 and errors 1, 0, 1 of the rows."""
    sums = Reconstruction(centre=X.mean(0))
    for x, x_hat, codes in zip(X.split(sizes), X_HAT.split(sizes), CODES.split(sizes), strict=True):
        sums.update(x, x_hat, SparseCodes.from_dense(codes))
    assert sums.explained_variance_per_row() == pytest.approx(1 - (1 / 8 + 0 / 4 + 1 / 20) / 3)
    assert sums.explained_variance() == pytest.approx(1 - 2 / 32)


def test_the_mean_of_row_ratios_needs_a_centre_that_no_row_equals():
    with pytest.raises(ValueError, match=r"needs rows and Reconstruction\(centre="):
        summed(3).explained_variance_per_row()
    sums = Reconstruction(centre=X[0])
    sums.update(X, X_HAT, SparseCodes.from_dense(CODES))
    with pytest.raises(ValueError, match="a row equals the centre"):
        sums.explained_variance_per_row()


def test_it_is_no_mean_of_batch_ratios(generator):
    """Rows whose batches have means and sizes of their own: the ratio of sums differs from the mean of ratios."""
    x = torch.cat([torch.randn(10, 3, generator=generator), 50 + torch.randn(1000, 3, generator=generator)])
    x_hat = x + torch.randn(1010, 3, generator=generator)
    whole = 1 - float((x_hat - x).double().square().sum() / (x - x.mean(0)).double().square().sum())
    sums = Reconstruction()
    for part in (slice(0, 10), slice(10, 1010)):
        nothing = SparseCodes.from_dense(torch.zeros(len(x[part]), 1))
        sums.update(x[part], x_hat[part], nothing)
    assert sums.explained_variance() == pytest.approx(whole, rel=1e-5)
    ratios = [explained_variance(x[part], x_hat[part]) for part in (slice(0, 10), slice(10, 1010))]
    assert abs(np.mean(ratios) - whole) > 0.5


def test_the_bounds_of_explained_variance(generator):
    x = torch.randn(500, 7, generator=generator)
    assert explained_variance(x, x) == 1
    assert explained_variance(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, -x) < -2.9


def test_a_large_mean_does_not_swamp_it(generator):
    x = torch.randn(2000, 4, generator=generator).double()
    shifted = (x + 3000).float()
    noise = 0.5 * torch.randn(2000, 4, generator=generator)
    assert explained_variance(shifted, shifted + noise) == pytest.approx(
        explained_variance(x.float(), x.float() + noise), abs=2e-3
    )


def test_latents_that_fire_late_are_counted_from_zero():
    sums = Reconstruction()
    for latent in (0, 7, 3):
        codes = torch.zeros(1, 8)
        codes[0, latent] = 1
        sums.update(torch.ones(1, 2), torch.ones(1, 2), SparseCodes.from_dense(codes))
    assert sums.firings(10).tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_what_cannot_be_explained_is_an_error():
    with pytest.raises(ValueError, match="needs at least 2 rows, got 0; call update first"):
        Reconstruction().explained_variance()
    same = torch.full((5, 2), 0.1)
    with pytest.raises(ValueError, match="all 5 rows are equal: no variance to explain; pass rows that differ"):
        explained_variance(same, same)
