"""The names, the agreement of both paths, and values that are known beforehand."""

import math

import pytest
import torch

from saecore import kernels
from saecore.activations.scale import InputScale
from saecore.activations.source import ActivationBatch, ActivationSource
from saecore.metrics.evaluate import evaluate, glimpse, samples
from saecore.saes import build
from saecore.sources.synthetic import EVALUATION, Superposition
from saecore.spec import ARCHITECTURES, ActivationSpec, ConstraintSpec, SAESpec, SourceSpec
from saecore.training import calibrate

CONSTANT = SourceSpec("constant", n_features=40, d_model=12, expected_l0=2.0)
VARIABLE = SourceSpec("variable", n_features=40, d_model=12, p_min=1e-3, p_max=0.2)
NAMES = {
    "explained_variance", "l0", "dead_share", "features_recovered", "fraction_recovered", "one_to_one_recovered",
    "mean_best_cosine", "mean_one_to_one_cosine", "code_f1_micro", "code_f1_macro", "code_precision", "code_recall",
}  # fmt: skip


def sae_of(source: Superposition, architecture="batch_topk", n_latents=40, constraint="free", l0=2):
    spec = SAESpec(architecture, d_model=12, n_latents=n_latents, l0=l0)
    truth = source.features if constraint == "oracle" else None
    sae = build(spec, ConstraintSpec(constraint), generator=torch.Generator().manual_seed(0), truth=truth)
    calibrate(sae, source)
    return sae


def test_the_names_of_the_ledger():
    constant, variable = Superposition(CONSTANT), Superposition(VARIABLE)
    assert set(evaluate(sae_of(constant), constant, rows=500)) == NAMES
    sae = sae_of(variable)
    found = evaluate(sae, variable, rows=500, start=sae.W_dec)
    bins = {name for name in found if name.startswith("recovered_bin_")}
    assert set(found) == NAMES | {"cosine_to_start"} | bins
    assert bins <= {f"recovered_bin_{i}" for i in range(8)} and len(bins) >= 6
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert set(glimpse(sae, variable, rows=500)) == {
        "explained_variance",
        "l0",
        "features_recovered",
        "mean_best_cosine",
    }


def test_an_sae_that_holds_the_truth_recovers_all():
    source = Superposition(VARIABLE)
    sae = sae_of(source, constraint="oracle")
    found = evaluate(sae, source, rows=4000, start=-sae.W_dec)
    assert found["features_recovered"] == found["one_to_one_recovered"] == 40
    assert found["fraction_recovered"] == 1
    assert found["mean_best_cosine"] == pytest.approx(1) and found["mean_one_to_one_cosine"] == pytest.approx(1)
    assert found["cosine_to_start"] == pytest.approx(-1)
    assert all(value == 1 for name, value in found.items() if name.startswith("recovered_bin_"))


def test_orthogonal_features_are_read_exactly():
    """As many dimensions as features, encoder rows the features themselves: every code is the truth."""
    source = Superposition(SourceSpec("constant", n_features=6, d_model=6, expected_l0=1.0))
    source.features = torch.eye(6)
    sae = build(SAESpec("relu", d_model=6, n_latents=6, l0=1), ConstraintSpec("oracle"),
                generator=torch.Generator(), truth=torch.eye(6))  # fmt: skip
    sae.W_enc.data = torch.eye(6)
    found = evaluate(sae, source, rows=3000)
    assert found["explained_variance"] == pytest.approx(1)
    assert found["code_f1_micro"] == found["code_f1_macro"] == found["code_precision"] == found["code_recall"] == 1
    assert found["l0"] == pytest.approx(1.0, rel=0.1) and found["dead_share"] == 0
    sae.W_dec.data = torch.eye(6)[[1, 0, 2, 3, 4, 3]]  # latents 0 and 1 swapped, feature 5 missing
    sae.W_dec.data[5] *= -1
    found = evaluate(sae, source, rows=20_000)
    assert found["features_recovered"] == found["one_to_one_recovered"] == 5
    assert found["explained_variance"] < 0.3
    both = (4 + 2 / 6) / 6  # the swapped latents are right where both features fire, one time in six
    assert found["code_f1_micro"] == pytest.approx(both, abs=0.01)
    assert found["code_f1_macro"] == pytest.approx(both, abs=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_latents", [40, 64, 25])
def test_both_paths_evaluate_alike(architecture, n_latents, monkeypatch):
    source = Superposition(VARIABLE)
    sae = sae_of(source, architecture, n_latents)
    fast = evaluate(sae, source, rows=700, batch=300)
    monkeypatch.setattr(kernels, "fast_path", lambda tensor: False)
    plain = evaluate(sae, source, rows=700, batch=300)
    assert fast == pytest.approx(plain, rel=1e-5)


def test_a_glimpse_says_what_evaluate_says():
    source = Superposition(CONSTANT)
    sae = sae_of(source)
    whole, part = evaluate(sae, source, rows=8192), glimpse(sae, source)
    assert part == pytest.approx({name: whole[name] for name in part})


def test_samples_are_the_evaluation_stream_and_as_many_as_asked():
    source = Superposition(CONSTANT)
    batches = list(samples(source, 700, 300))
    assert [len(b.x) for b in batches] == [300, 300, 100]
    assert torch.equal(batches[1].x, source.batch(300, 1, EVALUATION).x)


def test_held_out_rows_are_each_read_once_where_their_number_does_not_divide():
    class Numbered(ActivationSource):
        rows, held_out_rows = 10, 1700

        def _training_rows(self, n, position, stream):
            return torch.zeros(n, 1)

        def _held_out_rows(self, n, first):
            return torch.arange(first, first + n, dtype=torch.float)[:, None]

    source = Numbered(ActivationSpec("toy", 0, "toy", 1), "cpu", InputScale(1.0, 1.0, 1))
    for rows in (1700, 1000, 5000):
        found = torch.cat([batch.x for batch in samples(source, rows, 300)]).flatten()
        assert found.tolist() == list(range(min(rows, 1700)))


def test_an_sae_without_a_threshold_is_an_error():
    source = Superposition(CONSTANT)
    spec = SAESpec("batch_topk", d_model=12, n_latents=40, l0=2)
    sae = build(spec, ConstraintSpec(), generator=torch.Generator())
    with pytest.raises(ValueError, match="has no inference threshold"):
        evaluate(sae, source, rows=100)


class Gaussian:
    """Activations without truth: rows of mean 3 and deviations 2 and 1, the same for the same place."""

    spec = ActivationSpec("toy", 0, "toy", 2)
    device, scale, truth = torch.device("cpu"), 0.5, None

    def batch(self, n, step, stream=0):
        generator = torch.Generator().manual_seed(1000 * stream + step)
        return ActivationBatch(3 + torch.randn(n, 2, generator=generator) * torch.tensor([2.0, 1.0]))

    def start_bias(self):
        return torch.full((2,), 3.0)

    def covariance(self):
        return torch.diag(torch.tensor([4.0, 1.0]))


def dictionary(name, l0):
    spec = ConstraintSpec(name, init="cov")
    source = Gaussian()
    sae = build(SAESpec("topk", d_model=2, n_latents=4, l0=l0), spec, generator=torch.Generator(),
                covariance=source.covariance())  # fmt: skip
    sae.b_dec.data.copy_(source.start_bias())
    return sae


def test_activations_have_both_explained_variances_and_no_truth():
    """Of two independent Gaussians the smaller square is lost; its mean over angles, where E r^2 = 2, numerically."""
    sae = dictionary("pca", l0=1)
    found = evaluate(sae, Gaussian(), rows=200_000)
    assert set(found) == {"explained_variance", "explained_variance_per_row", "l0", "dead_share"}
    s, t = 2.0, 1.0
    angle = (torch.arange(200_000) + 0.5) * math.pi / 200_000
    lost = torch.minimum((s * angle.cos()) ** 2, (t * angle.sin()) ** 2)
    assert found["explained_variance"] == pytest.approx(1 - 2 * float(lost.mean()) / (s**2 + t**2), abs=0.005)
    ratio = lost / ((s * angle.cos()) ** 2 + (t * angle.sin()) ** 2)
    assert found["explained_variance_per_row"] == pytest.approx(1 - float(ratio.mean()), abs=0.005)
    assert found["l0"] == 1 and found["dead_share"] == 0


def test_the_cosine_to_the_start_tells_live_latents_from_dead_ones():
    source, sae = Gaussian(), dictionary("neurons", l0=1)
    start = sae.W_dec.detach().clone()
    sae.W_enc.data[3] = 0  # never the largest
    sae.W_dec.data[:3] = torch.tensor([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    found = evaluate(sae, source, rows=5000, start=start)
    assert found["cosine_to_start"] == pytest.approx((0.6 + 1 + 1 + 1) / 4)
    assert found["cosine_to_start_live"] == pytest.approx((0.6 + 1 + 1) / 3)
    assert found["cosine_to_start_dead"] == found["cosine_to_start_dead_q05"] == 1
    assert found["cosine_to_start_live_q50"] == 1
    assert found["cosine_to_start_live_q25"] == pytest.approx(0.8)
    part = glimpse(sae, source, rows=5000, start=start)
    assert set(part) == {"explained_variance", "l0", "cosine_to_start", "cosine_to_start_live", "cosine_to_start_dead"}
    assert part == pytest.approx({name: found[name] for name in part})


def test_without_dead_latents_there_is_no_cosine_of_theirs():
    sae = dictionary("neurons", l0=2)
    found = evaluate(sae, Gaussian(), rows=5000, start=sae.W_dec)
    assert not [name for name in found if "dead_q" in name or name == "cosine_to_start_dead"]
    assert found["explained_variance"] == pytest.approx(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_evaluates_as_the_cpu_does(architecture):
    source, there = Superposition(VARIABLE), Superposition(VARIABLE, "cuda")
    sae = sae_of(source, architecture)
    here = evaluate(sae, source, rows=2000, start=sae.W_dec)
    assert evaluate(sae.to("cuda"), there, rows=2000, start=sae.W_dec) == pytest.approx(here, rel=1e-3)
