"""Swapped parts: what they must give where it is known, and shares of the gain that sum to it."""

import copy
import itertools

import pytest
import torch

from saecore.activations.source import ActivationBatch
from saecore.metrics.lazy import PARTS, match_l0, shapley, swaps
from saecore.saes import SAE
from saecore.sources.base import EVALUATION
from saecore.sources.synthetic import Superposition
from saecore.spec import ARCHITECTURES, ActivationSpec, ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
from saecore.training import start, train_many

SOURCE = SourceSpec("constant", n_features=24, d_model=8, expected_l0=2.0)


def trained(architecture: str, constraint: str = "free", steps: int = 60) -> tuple[SAE, SAE, Superposition]:
    source = Superposition(SOURCE)
    sae = SAESpec(architecture, d_model=8, n_latents=24, l0=3)
    run = RunSpec(sae, SOURCE, ConstraintSpec(constraint), TrainingSpec(steps=steps, batch_size=128))
    trainer = start(run, source)
    train_many([trainer], source, steps)
    return trainer.sae, start(run, source).sae, source


def test_shapley_values_of_a_known_game():
    """Encoder worth 1, decoder worth 2, both together 6 more; biases nothing: the common part is halved."""
    found = {}
    for size in range(4):
        for parts in map(frozenset, itertools.combinations(PARTS, size)):
            kept = set(PARTS) - parts
            found[parts] = 1.0 * ("encoder" in kept) + 2 * ("decoder" in kept) + 6 * ({"encoder", "decoder"} <= kept)
    assert shapley(found) == pytest.approx({"encoder": 4, "decoder": 5, "biases": 0})


@pytest.mark.parametrize("architecture", ["relu", "topk", "batch_topk", "jump_relu"])
def test_every_set_of_parts_is_there_and_the_shares_sum_to_the_gain(architecture):
    sae, fresh, source = trained(architecture)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    found = swaps(sae, fresh, source, rows=1000)
    assert len(found) == 8 + 3
    gain = found["swapped_none"] - found["swapped_encoder_decoder_biases"]
    assert sum(found[f"gain_{part}"] for part in PARTS) == pytest.approx(gain)
    assert gain > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


def test_a_part_that_was_frozen_gains_nothing():
    sae, fresh, source = trained("topk", "frozen_decoder")
    found = swaps(sae, fresh, source, rows=500)
    assert found["gain_decoder"] == pytest.approx(0)
    assert found["swapped_decoder"] == found["swapped_none"]
    assert found["swapped_encoder"] == found["swapped_encoder_decoder"] < found["swapped_none"]


def test_the_bias_is_put_back_at_the_end_and_not_inside_the_encoder(generator):
    source = Superposition(SOURCE)
    sae = SAE(SAESpec("batch_topk", d_model=8, n_latents=24, l0=3))
    sae.W_enc.data.normal_(generator=generator)
    sae.W_dec.data.normal_(generator=generator)
    sae.threshold.fill_(1.0)
    fresh = copy.deepcopy(sae)
    sae.b_dec.data.normal_(generator=generator)
    x = source.batch(1000, 0, EVALUATION).x
    told = (sae(x) - sae.b_dec + fresh.b_dec).detach()
    lost = (x - told).square().sum() / (x - x.mean(0)).square().sum()
    found = swaps(sae, fresh, source, rows=1000, batch=1000)
    assert found["swapped_biases"] == pytest.approx(1 - float(lost), rel=0.01)
    assert found["swapped_biases"] != pytest.approx(found["swapped_none"], rel=0.05)


class Rows:
    """The same rows at every place."""

    spec, device, scale, truth = ActivationSpec("toy", 0, "toy", 4), torch.device("cpu"), 1.0, None

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def batch(self, n: int, step: int, stream: int = 0) -> ActivationBatch:
        return ActivationBatch(self.x[:n])

    def start_bias(self) -> torch.Tensor:
        return self.x.mean(0)

    def covariance(self) -> torch.Tensor:
        return torch.cov(self.x.T)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "topk"])
def test_l0_is_met_by_one_number(architecture, generator):
    sae = SAE(SAESpec(architecture, d_model=4, n_latents=10, l0=2))
    sae.W_enc.data.normal_(generator=generator)
    if architecture != "relu":
        sae.threshold.uniform_(0.5, 1.5, generator=generator)
    before = sae.threshold.clone()
    x = torch.randn(2000, 4, generator=generator)
    match_l0(sae, Rows(x), 1.5, rows=2000)
    assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(1.5, abs=0.001)
    torch.testing.assert_close(sae.threshold - before, (sae.threshold - before)[:1].expand(10))


def test_topk_keeps_its_l0():
    sae = SAE(SAESpec("topk", d_model=4, n_latents=10, l0=2))
    sae.b_enc.data.zero_()
    match_l0(sae, Rows(torch.randn(10, 4)), 7.0)
    assert not sae.b_enc.any() and sae.threshold.isnan().all()
