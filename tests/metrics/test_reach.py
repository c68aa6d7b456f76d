"""How close chance and a cone come, against simulation and simple geometry."""

import math

import pytest
import torch

from saecore.metrics.geometry import reach, typical_best
from saecore.metrics.recovery import chance_level


def test_the_typical_best_cosine_is_the_median_of_a_simulation(generator):
    for n, d in [(50, 8), (1000, 100)]:
        found = chance_level(4000, n, d, generator).median()
        assert typical_best(d, n) == pytest.approx(float(found), abs=0.01)


def test_one_random_direction_is_as_often_above_as_below():
    assert typical_best(10, 1) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="n_directions=0 must be at least 1"):
        typical_best(10, 0)


def test_reach_in_the_plane():
    degrees = math.pi / 180
    assert reach(math.cos(70 * degrees), math.cos(30 * degrees)) == pytest.approx(math.cos(40 * degrees))
    assert reach(0.9, 0.8) == 1.0
    assert reach(0.3, 1.0) == pytest.approx(0.3)


def test_no_direction_in_the_cone_reaches_further(generator):
    start, target = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=1)
    tries = torch.nn.functional.normalize(start + 0.5 * torch.randn(20_000, 6, generator=generator), dim=1)
    inside = tries[tries @ start >= 0.8]
    assert float((inside @ target).max()) <= reach(float(start @ target), 0.8) + 1e-6


@pytest.mark.parametrize(("cosine", "tau"), [(1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_reach_refuses_what_is_no_cosine(cosine, tau):
    with pytest.raises(ValueError, match="need -1 <= cosine <= 1"):
        reach(cosine, tau)
