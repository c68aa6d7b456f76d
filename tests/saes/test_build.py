"""Where weights start: the same for every variant, parallel or independent, isotropic or like the data."""

import pytest
import torch

from saecore.saes import build
from saecore.saes.constraints import cov
from saecore.spec import (
    ARCHITECTURES,
    CONSTRAINTS,
    DICTIONARIES,
    ActivationSpec,
    ConstraintSpec,
    RunSpec,
    SAESpec,
    SpecError,
    TrainingSpec,
)

SPEC = SAESpec("batch_topk", d_model=6, n_latents=40, l0=3)


def built(spec: SAESpec = SPEC, seed: int = 0, covariance=None, truth=None, **constraint):
    generator = torch.Generator().manual_seed(seed)
    return build(spec, ConstraintSpec(**constraint), generator=generator, covariance=covariance, truth=truth)


def rows(seed: int, n: int = 40, d: int = 6) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def test_every_architecture_and_constraint_shares_one_start():
    first = built()
    for architecture in ARCHITECTURES:
        for name in set(CONSTRAINTS) - {"oracle", *DICTIONARIES}:
            other = built(SAESpec(architecture, d_model=6, n_latents=40, l0=7), name=name)
            for weight in ("W_enc", "W_dec", "b_enc", "b_dec"):
                assert torch.equal(getattr(other, weight), getattr(first, weight)), (architecture, name, weight)
    assert not torch.equal(built(seed=1).W_dec, first.W_dec)


def test_decoder_rows_have_unit_norm_and_encoder_rows_kaiming_s():
    """sqrt(2 d / m) = sqrt(12 / 40), the RMS norm of a row of kaiming_uniform_ of a (d, m) matrix."""
    sae = built()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(sae.W_enc, sae.W_dec * 0.3**0.5)
    assert not sae.b_enc.any() and not sae.b_dec.any()
    public = torch.nn.init.kaiming_uniform_(torch.empty(100, 3200), generator=torch.Generator().manual_seed(0))
    assert float(public.T.square().sum(1).mean().sqrt()) == pytest.approx((2 * 100 / 3200) ** 0.5, rel=0.01)


def test_the_threshold_starts_absent_but_for_relu():
    assert built().threshold.isnan().all()
    assert not built(SAESpec("relu", d_model=6, n_latents=40, l0=3)).threshold.any()


def test_an_untied_encoder_starts_elsewhere_and_moves_nothing_else():
    tied, untied = built(), built(tied=False)
    assert torch.equal(tied.W_dec, untied.W_dec)
    cosine = torch.cosine_similarity(untied.W_enc, untied.W_dec)
    assert cosine.abs().mean() < 0.5
    torch.testing.assert_close(untied.W_enc.norm(dim=1), tied.W_enc.norm(dim=1))


def test_iso_rows_are_uniform_on_the_sphere():
    W = built(SAESpec("topk", d_model=5, n_latents=20_000, l0=3)).W_dec
    assert W.mean(0).abs().max() < 0.02
    assert (W.T @ W / 20_000 - torch.eye(5) / 5).abs().max() < 0.01


def test_cov_rows_are_normalised_gaussians_of_that_covariance(generator):
    """Where one variance is 10,000 times the other, rows lie along that axis; the angle is arctan of a ratio."""
    turn = torch.linalg.qr(torch.randn(2, 2, generator=generator)).Q
    covariance = turn @ torch.diag(torch.tensor([1e4, 1.0])) @ turn.T
    W = cov(20_000, covariance, generator)
    torch.testing.assert_close(W.norm(dim=1), torch.ones(20_000))
    along = (W @ turn[:, 0]).abs()
    assert float((along > 0.9).float().mean()) == pytest.approx(0.9868, abs=0.004)  # 1 - (2 / pi) arctan(0.01 / 0.484)
    assert float(((W @ turn[:, 1]).abs() < 0.01 * along).float().mean()) == pytest.approx(0.5, abs=0.02)  # Cauchy
    assert float((W @ turn[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_cov_of_the_identity_is_iso(generator):
    W = cov(20_000, torch.eye(4), generator)
    assert (W.T @ W / 20_000 - torch.eye(4) / 4).abs().max() < 0.01


def test_cov_takes_a_singular_covariance(generator):
    W = cov(50, torch.diag(torch.tensor([1.0, 1.0, 0.0])), generator)
    assert W[:, 2].abs().max() < 1e-6


def test_cov_needs_a_covariance():
    with pytest.raises(SpecError, match="init='cov' needs the data's covariance: pass covariance="):
        built(init="cov")
    assert not torch.equal(built(init="cov", covariance=torch.eye(6)).W_dec, torch.zeros(40, 6))


def test_cov_refuses_what_is_no_covariance(generator):
    with pytest.raises(SpecError, match="positive semi-definite; the smallest eigenvalue is -1.*check the source"):
        cov(5, torch.diag(torch.tensor([1.0, -1.0])), generator)


def test_the_oracle_decodes_with_the_truth():
    truth = rows(5)
    sae = built(name="oracle", truth=truth)
    assert torch.equal(sae.W_dec, truth)
    torch.testing.assert_close(sae.W_enc, truth * 0.3**0.5)
    sae.W_dec.data.zero_()
    assert truth.all()  # ours is a copy


def test_a_free_sae_may_start_at_the_truth():
    truth = rows(5)
    assert torch.equal(built(init="truth", truth=truth).W_dec, truth)
    with pytest.raises(SpecError, match=r"needs truth of shape \(40, 6\), got None"):
        built(init="truth")


@pytest.mark.parametrize(("truth", "said"), [(None, "None"), (rows(5, 39), r"\(39, 6\)")])
def test_the_oracle_needs_a_truth_of_its_shape(truth, said):
    with pytest.raises(SpecError, match=rf"oracle .*needs truth of shape \(40, 6\), got {said}"):
        built(name="oracle", truth=truth)


PAIRS = SAESpec("topk", d_model=6, n_latents=12, l0=3)


def test_pca_rows_are_principal_components_and_their_opposites(generator):
    """Variances 9, 4, ..., along known axes: row i is the i-th axis, largest variance first, up to its sign."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    covariance = turn @ torch.diag(torch.tensor([1.0, 9, 4, 0.5, 0.25, 16])) @ turn.T
    sae = built(PAIRS, name="pca", init="cov", covariance=covariance)
    torch.testing.assert_close((sae.W_dec[:6] @ turn).abs(), torch.eye(6)[[5, 1, 2, 0, 3, 4]], atol=1e-5, rtol=0)
    assert torch.equal(sae.W_dec[6:], -sae.W_dec[:6]) and torch.equal(sae.W_enc, sae.W_dec)


@pytest.mark.parametrize("init", ["iso", "cov"])
def test_neurons_are_the_standard_basis_whatever_the_init(init):
    sae = built(PAIRS, name="neurons", init=init, covariance=torch.eye(6) * 2)
    assert torch.equal(sae.W_dec, torch.cat([torch.eye(6), -torch.eye(6)])) and torch.equal(sae.W_enc, sae.W_dec)


def test_a_dictionary_keeps_the_largest_coefficients_of_each_row_of_either_sign():
    sae = built(PAIRS, name="neurons")
    sae.b_dec.data.fill_(1.0)
    x = torch.tensor([[5.0, -6, 1.5, 1, 3, 0.5]])  # less the bias: 4, -7, 0.5, 0, 2, -0.5
    torch.testing.assert_close(sae(x), torch.tensor([[5.0, -6, 1, 1, 3, 1]]))


def test_a_dictionary_with_every_coefficient_loses_nothing(generator):
    spec = SAESpec("topk", d_model=6, n_latents=12, l0=6)
    x = torch.randn(50, 6, generator=generator)
    sae = built(spec, name="pca", init="cov", covariance=torch.cov(x.T))
    torch.testing.assert_close(sae(x), x, atol=1e-5, rtol=0)


def run_of(sae: SAESpec, **constraint) -> RunSpec:
    return RunSpec(sae, ActivationSpec("atlas", 0, "atlas", 6), ConstraintSpec(**constraint), TrainingSpec())


@pytest.mark.parametrize("name", DICTIONARIES)
def test_a_dictionary_needs_topk_and_two_latents_a_dimension(name):
    assert not run_of(PAIRS, name=name, init="cov").constraint.trains_anything
    with pytest.raises(SpecError, match=f"constraint='{name}' .* set architecture='topk', not 'batch_topk'"):
        run_of(SAESpec("batch_topk", d_model=6, n_latents=12, l0=3), name=name, init="cov")
    with pytest.raises(SpecError, match=rf"constraint='{name}' .* d_model=6 directions; set n_latents=12, not 40"):
        run_of(SAESpec("topk", d_model=6, n_latents=40, l0=3), name=name, init="cov")


def test_pca_is_made_of_the_covariance():
    with pytest.raises(SpecError, match="constraint='pca' is made of the data's covariance, not init='iso'; set init="):
        ConstraintSpec("pca")
    with pytest.raises(SpecError, match="init='cov' needs the data's covariance"):
        built(PAIRS, name="pca", init="cov")
