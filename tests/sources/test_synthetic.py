"""The generator makes what the paper's formula says: frequencies, independence, amplitudes, moments.

Seeds are fixed, so nothing here fails by chance; bounds are set where a wrong generator would be noticed.
"""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from saecore.sources.synthetic import EVALUATION, Superposition
from saecore.spec import SourceSpec
from saecore.training.loop import stream

CONSTANT = SourceSpec("constant", n_features=40, d_model=8, expected_l0=6.0)
VARIABLE = SourceSpec("variable", n_features=40, d_model=8, p_min=1e-3, p_max=0.4)


def fired(source: Superposition, n: int, step: int = 0) -> np.ndarray:
    """b_i of ``n`` rows."""
    return (source.batch(n, step).dense_codes(source.spec.n_features) > 0).numpy()


@pytest.mark.parametrize("spec", [CONSTANT, VARIABLE], ids=lambda s: s.probability)
def test_features_fire_with_their_probabilities(spec):
    source, n = Superposition(spec), 50_000
    p, counts = source.probabilities.numpy(), fired(source, n).sum(0)
    z = (counts - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z).max() < 4.5
    assert 1e-4 < stats.chi2.sf((z**2).sum(), len(p)) < 1 - 1e-4


def test_a_high_probability_is_exact():
    """Cells hit twice count once: at p = 0.5, a rate of p instead of -log(1 - p) would give 0.39."""
    source = Superposition(SourceSpec("constant", n_features=4, d_model=3, expected_l0=2.0))
    share = fired(source, 20_000).mean()
    assert abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(80_000)


@pytest.mark.parametrize("spec", [CONSTANT, VARIABLE], ids=lambda s: s.probability)
def test_features_and_rows_are_independent(spec):
    source, n = Superposition(spec), 50_000
    b, p = fired(source, n), source.probabilities.numpy()
    z = (b - p) / np.sqrt(p * (1 - p))
    pairs = (z.T @ z / np.sqrt(n))[np.triu_indices(len(p), 1)]
    following = (z[1:] * z[:-1]).sum(0) / np.sqrt(n - 1)
    for found in (pairs, following):
        assert 1e-4 < stats.chi2.sf((found**2).sum(), found.size) < 1 - 1e-4
    l0 = b.sum(1)
    assert l0.var() == pytest.approx((p * (1 - p)).sum(), rel=0.03)


def test_the_paper_scale_has_twenty_active_of_log_uniform_frequency():
    source = Superposition(SourceSpec())
    p = source.probabilities.numpy()
    assert 18.5 < p.sum() < 21.5
    assert (10**-5.5 <= p).all() and (p <= 10**-1.2).all()
    assert stats.kstest((np.log10(p) + 5.5) / 4.3, "uniform").pvalue > 1e-3
    assert (np.diff(p) <= 0).all()
    constant = Superposition(SourceSpec("constant"))
    assert torch.equal(constant.probabilities, torch.full((3200,), 0.00625, dtype=torch.float64))
    assert torch.equal(constant.features, source.features)


def test_features_are_uniform_on_the_sphere():
    features = Superposition(SourceSpec()).features
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3200))
    assert features.mean(0).abs().max() < 4.5 / np.sqrt(3200 * 100)
    spread = (features.T @ features / 3200 * 100) - torch.eye(100)
    assert spread.abs().max() < 5 * np.sqrt(2 / 3200)


def test_x_is_the_sum_of_its_features():
    source = Superposition(VARIABLE)
    batch = source.batch(300, 0)
    assert batch.x.shape == (300, 8)
    torch.testing.assert_close(batch.x, batch.dense_codes(40) @ source.features, rtol=0, atol=2e-6)


def test_the_codes_are_well_formed():
    batch = Superposition(VARIABLE).batch(300, 0)
    assert batch.indptr[0] == 0 and batch.indptr[-1] == len(batch.indices) == len(batch.values)
    for start, end in zip(batch.indptr[:-1].tolist(), batch.indptr[1:].tolist(), strict=True):
        assert (batch.indices[start:end].diff() > 0).all()
    assert (batch.values > 0).all()


def test_a_row_without_active_features_is_zero():
    batch = Superposition(SourceSpec("constant", n_features=4, d_model=3, expected_l0=0.1)).batch(200, 0)
    empty = batch.indptr.diff() == 0
    assert 0.8 < empty.float().mean() < 1
    assert (batch.x[empty] == 0).all() and (batch.x[~empty].norm(dim=1) > 0).all()


@pytest.mark.parametrize("sigma", [0.0, 0.25, 0.5])
def test_amplitudes_are_log_normal(sigma):
    source = Superposition(SourceSpec("constant", n_features=40, d_model=8, expected_l0=6.0, sigma=sigma))
    log = source.batch(20_000, 0).values.double().log()
    n = len(log)
    assert abs(log.mean()) <= 4.5 * sigma / np.sqrt(n)
    assert float(log.std()) == pytest.approx(sigma, abs=4.5 * sigma / np.sqrt(2 * n))


def test_a_batch_depends_on_its_arguments_alone():
    one, two = Superposition(CONSTANT), Superposition(CONSTANT)
    two.batch(50, 3)
    first, again = one.batch(64, 7), two.batch(64, 7)
    for name in ("x", "indptr", "indices", "values"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    other_world = Superposition(dataclasses.replace(CONSTANT, seed=1))
    others = [one.batch(64, 8), one.batch(64, 7, EVALUATION), other_world.batch(64, 7)]
    assert not any(torch.equal(first.x, other.x) for other in others)


def test_evaluation_shares_no_sample_with_training():
    source = Superposition(CONSTANT)
    streams = [EVALUATION, *(stream(seed) for seed in range(128))]
    assert len(set(streams)) == len(streams) and max(streams) < 256  # eight bits beside the source's seed
    samples = [
        {row.tobytes() for row in source.batch(1000, step, number).x.numpy() if row.any()}
        for number in (EVALUATION, *(stream(seed) for seed in range(4)))
        for step in range(2)
    ]
    assert len(set().union(*samples)) == sum(map(len, samples)) > 9900


def test_correlated_pairs_have_that_correlation_and_their_marginals():
    spec = SourceSpec("constant", n_features=9, d_model=4, expected_l0=1.8, correlation=0.6)
    source, n, p = Superposition(spec), 60_000, 0.2
    b = fired(source, n)
    assert np.abs((b.sum(0) - n * p) / np.sqrt(n * p * (1 - p))).max() < 4.5
    found = np.corrcoef(b.T)
    wanted = np.eye(9)
    for even in range(0, 8, 2):
        wanted[even, even + 1] = wanted[even + 1, even] = 0.6
    assert np.abs(found - wanted).max() < 0.02  # about 4.5 standard errors


def test_correlated_codes_are_well_formed():
    spec = SourceSpec("constant", n_features=9, d_model=4, expected_l0=1.8, correlation=0.6)
    batch = Superposition(spec).batch(500, 0)
    cells = torch.repeat_interleave(torch.arange(500), batch.indptr.diff()) * 9 + batch.indices
    assert (cells.diff() > 0).all()


@pytest.mark.parametrize("spec", [CONSTANT, VARIABLE], ids=lambda s: s.probability)
def test_moments_are_those_of_a_large_sample(spec):
    source, n = Superposition(spec), 200_000
    x = source.batch(n, 0).x.double().numpy()
    mean, covariance = source.mean().double().numpy(), source.covariance().double().numpy()
    error = np.sqrt(np.diag(covariance) / n)
    assert (np.abs(x.mean(0) - mean) < 4.5 * error).all()
    centred = x - mean
    sample = centred.T @ centred / n
    fourth = np.sqrt(((centred[:, :, None] * centred[:, None, :])[:20_000] ** 2).mean(0) / n)
    assert (np.abs(sample - covariance) < 4.5 * fourth).all()
