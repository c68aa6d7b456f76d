"""Directions and caps, against closed forms and the paper's numbers."""

import numpy as np
import pytest
import torch
from scipy import integrate

from saecore.metrics import geometry
from saecore.metrics.geometry import coherence, cosine_to_start, interference, log10_cap_bound, log10_cap_probability
from saecore.saes.constraints import iso


def test_cosine_to_start_by_hand():
    W, start = torch.tensor([[2.0, 0], [0, 1], [-1, 0], [3, 4]]), torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 2]])
    assert cosine_to_start(W, start).tolist() == pytest.approx([1, 0, -1, 0.8])


def test_interference_of_random_directions_is_one_over_root_d(generator):
    cosines = interference(iso(400, 64, generator), 50_000, generator)
    assert cosines.shape == (50_000,)
    assert float(cosines.std()) == pytest.approx(1 / 8, rel=0.03)
    assert abs(float(cosines.mean())) < 0.01


def test_interference_is_between_different_features(generator):
    assert set(interference(torch.eye(3), 1000, generator).tolist()) == {0.0}
    two = interference(torch.tensor([[1.0, 0], [0.6, 0.8]]), 100, generator)
    assert two.tolist() == pytest.approx([0.6] * 100)


def test_interference_depends_on_the_generator_alone():
    features = iso(50, 8, torch.Generator().manual_seed(0))
    one, two, three = (interference(features, 20, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("chunk", [1, 2, 1024])
def test_coherence_is_the_cosine_to_the_nearest_other(chunk, monkeypatch):
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    features = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 2.0], [-1.0, 0]])
    assert coherence(features).tolist() == pytest.approx([0.6, 0.8, 0.8, 0])


def test_the_bound_is_the_paper_s():
    """Section 4.1: 6.36e-321 for 2304 dimensions at 0.8; times 73,728 latents, 4.67e-316 (as the paper rounds it)."""
    assert 10 ** (log10_cap_bound(2304, 0.8) + 321) == pytest.approx(6.36, rel=0.01)
    assert 10 ** (log10_cap_bound(2304, 0.8) + np.log10(73_728) + 316) == pytest.approx(4.67, rel=0.01)
    assert log10_cap_bound(2304, 0.0) == 0


@pytest.mark.parametrize("d", [2, 3, 10, 100])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.8, 0.99])
def test_the_cap_is_the_integral_over_the_sphere(d, tau):
    """The cosine's density is proportional to (1 - t^2)^((d - 3) / 2); in angles, sin(a)^(d - 2)."""
    cap, _ = integrate.quad(lambda a: np.sin(a) ** (d - 2), 0, np.arccos(tau), epsrel=1e-11)
    whole, _ = integrate.quad(lambda a: np.sin(a) ** (d - 2), 0, np.pi, epsrel=1e-11, points=[np.pi / 2])
    if cap / whole > 1e-60:
        assert log10_cap_probability(d, tau) == pytest.approx(np.log10(cap / whole), abs=1e-6)


def test_caps_by_hand():
    assert log10_cap_probability(2, 0.5) == pytest.approx(np.log10(1 / 3))  # 60 degrees to either side of 360
    assert log10_cap_probability(3, 0.8) == pytest.approx(-1)  # height 0.2 of 2 (Archimedes)
    assert log10_cap_probability(7, 0.0) == pytest.approx(np.log10(0.5))
    assert log10_cap_probability(7, 1.0) == -np.inf


def test_the_cap_goes_on_where_the_beta_function_underflows():
    """Both forms agree where both can be computed, and the logarithm is about linear in the dimension beyond."""
    dimensions = np.arange(900, 1600, 20)
    logs = np.array([log10_cap_probability(int(d), 0.8) for d in dimensions])
    assert logs[0] > -290 > logs[-1]
    slopes = np.diff(logs) / 20
    assert np.ptp(slopes) < 5e-4
    assert slopes.mean() == pytest.approx(np.log10(0.6), abs=1e-3)  # sqrt(1 - 0.8^2) per dimension


@pytest.mark.parametrize("d", [3, 100, 2304])
@pytest.mark.parametrize("tau", [0.1, 0.5, 0.8])
def test_the_bound_holds(d, tau):
    assert log10_cap_probability(d, tau) <= log10_cap_bound(d, tau)


def test_random_directions_fall_into_the_cap_as_often(generator):
    rows = iso(200_000, 6, generator)
    share = float((rows[:, 0] >= 0.6).float().mean())
    wanted = 10 ** log10_cap_probability(6, 0.6)
    assert abs(share - wanted) < 4.5 * np.sqrt(wanted / 200_000)


@pytest.mark.parametrize(("d", "tau"), [(1, 0.5), (10, -0.1), (10, 1.1)])
def test_what_is_no_cap_is_an_error(d, tau):
    with pytest.raises(ValueError, match=f"tau={tau}, d_model={d}: need"):
        log10_cap_probability(d, tau)
