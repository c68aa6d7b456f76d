"""The input scale, by its definition."""

import numpy as np
import pytest
import torch

from saecore.activations import scale
from saecore.activations.scale import MASSIVE, InputScale, estimate
from saecore.spec import SpecError


def test_centred_rows_get_mean_squared_norm_d_model(generator):
    rows = 3 * torch.randn(500, 8, generator=generator) + 20
    found = estimate(rows)
    scaled = found.apply(rows).float()
    assert float((scaled - scaled.mean(0)).square().sum(1).mean()) == pytest.approx(8, rel=1e-3)
    assert found.rows == 500


def test_massive_rows_are_left_out_of_the_scale_and_of_the_rows(generator):
    rows = torch.randn(501, 8, generator=generator)
    limit = MASSIVE * float(rows.norm(dim=1).median())
    massive = torch.full((20, 8), 1.1 * limit / 8**0.5)
    below = torch.full((1, 8), 0.99 * limit / 8**0.5)
    mixed = torch.cat([massive[:10], rows, massive[10:]])
    found = estimate(mixed)
    assert found.norm_limit == MASSIVE * float(mixed.norm(dim=1).median())
    assert found.scale == pytest.approx(estimate(rows).scale, rel=1e-6)
    exact = InputScale(1.0, limit, 501)
    assert torch.equal(exact.apply(mixed), rows.half())
    assert len(exact.apply(below)) == 1


def test_rows_that_are_not_finite_are_refused(generator):
    rows = torch.randn(50, 4, generator=generator)
    known = estimate(rows)
    rows[7, 2] = torch.nan
    rows[9, 0] = torch.inf  # as massive as can be, and yet not left out in silence
    for asked in (known.apply, estimate):
        with pytest.raises(SpecError, match="2 of 50 rows of activations hold NaN or infinity; check"):
            asked(rows)
        with pytest.raises(SpecError, match="1 of 41 rows"):
            asked(rows[9:])


def test_what_half_precision_cannot_hold_is_refused():
    with pytest.raises(SpecError, match="exceed half precision .65504"):
        InputScale(10.0, 1e9, 1).apply(torch.full((1, 2), 7000.0))


def test_rows_that_do_not_vary_are_refused():
    with pytest.raises(SpecError, match="do not vary"):
        estimate(torch.ones(10, 3))


@pytest.mark.parametrize("cut", [1, 40, 99])
def test_mean_and_covariance_do_not_depend_on_batching(cut, generator):
    rows = torch.randn(100, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + 4
    parts = [rows[:cut], rows[cut:]]
    centre = scale.mean(parts)
    wanted = np.cov(rows.double().numpy().T, bias=True)
    assert torch.allclose(centre.double(), rows.double().mean(0), atol=1e-5)
    assert np.allclose(scale.covariance(parts, centre), wanted, rtol=1e-4, atol=1e-4)
