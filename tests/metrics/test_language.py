"""Splicing, on a model whose every loss is known: three tokens in a ring, residual one-hot, logits linear in it."""

import math

import pytest
import torch

from saecore.activations.models import ResidualModel, TokenBatch
from saecore.metrics.language import Bounds, HeldOutText, Loss, counted_predictions, held_out
from saecore.saes import SAE, build
from saecore.spec import ActivationSpec, ConstraintSpec, SAESpec

P = 0.8
SURE = math.log(P / ((1 - P) / 2))
"""Logit of the next token in the ring at which it has probability P, and the two others (1 - P) / 2 each."""


class Ring(ResidualModel):
    """Token i is followed by i + 1 mod 3, which the model expects with probability P. One block."""

    def __init__(self, predicts: bool = True) -> None:
        self.name, self.kind = "ring", "decoder" if predicts else "encoder"
        self.unembed = SURE * torch.eye(3).roll(1, 1)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def logits(self, tokens):
        return torch.eye(3)[tokens.ids] @ self.unembed

    def logits_with(self, tokens, layer, replace):
        stream = torch.eye(3)[tokens.ids]
        stream[tokens.keep] = replace(stream[tokens.keep])
        return stream @ self.unembed

    def tokenize(self, texts, context):
        ids = torch.tensor([[int(c) for c in text] for text in texts])
        return batch(ids)


def batch(ids: torch.Tensor) -> TokenBatch:
    """Every position but the first is kept; none is padding."""
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[:, 0] = False
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), keep)


def ring_text(mean=(1 / 3, 1 / 3, 1 / 3), limit: float = math.inf) -> HeldOutText:
    ids = torch.arange(13).remainder(3)
    parts = (batch(ids[None, :7]), batch(torch.stack([ids[2:8], ids[6:12]])))
    return HeldOutText(Ring(), 0, parts, torch.tensor(mean), limit)


def dictionary(l0: int) -> SAE:
    spec = SAESpec("topk", d_model=3, n_latents=6, l0=l0)
    sae = build(spec, ConstraintSpec("neurons"), generator=torch.Generator())
    sae.scale.fill_(7.0)
    return sae


def two_token_loss(sizes: list[int]) -> Loss:
    """Vocabulary of two; row r predicts token 1 with q = (r + 1) / 10 at its kept position, the reference with 1/4."""
    q = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = torch.stack([torch.log1p(-q), torch.log(q)], 1)[:, None].expand(-1, 3, -1)
    reference = torch.tensor([0.75, 0.25]).log().expand(4, 3, 2)
    ids = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 1, 1]])
    found, begin = Loss(), 0
    for size in sizes:
        part = slice(begin, begin + size)
        found.update(logits[part], batch(ids[part]), reference[part])
        begin += size
    return found


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 1, 1]])
def test_cross_entropy_and_divergence_by_hand_and_however_batched(sizes):
    """Position 0 is not kept, so only the last token of each row is asked for: 1, 1, 0, 1."""
    found = two_token_loss(sizes)
    assert found.tokens == 4
    assert found.cross_entropy() == pytest.approx(-sum(map(math.log, (0.1, 0.2, 0.7, 0.4))) / 4)
    kl = [0.25 * math.log(0.25 / q) + 0.75 * math.log(0.75 / (1 - q)) for q in (0.1, 0.2, 0.3, 0.4)]
    assert found.kl() == pytest.approx(sum(kl) / 4, rel=1e-5)


def test_padding_is_never_predicted_and_positions_not_kept_do_not_predict():
    ids = torch.zeros(2, 5, dtype=torch.long)
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    keep = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]]).bool()
    counted = counted_predictions(TokenBatch(ids, attention, keep))
    assert counted.tolist() == [[False, True, False, True], [False, True, False, False]]


def test_no_token_is_an_error():
    with pytest.raises(ValueError, match="no token follows a kept position"):
        Loss().cross_entropy()


def test_the_bounds_of_the_ring():
    """The mean of the one-hots has equal logits, so both ablations leave a uniform guess."""
    bounds = ring_text().bounds()
    assert bounds.model.tokens == 5 + 2 * 4
    assert bounds.model.cross_entropy() == pytest.approx(-math.log(P), rel=1e-5)
    assert bounds.model.kl() == 0
    for floor in (bounds.mean_ablation, bounds.zero_ablation):
        assert floor.cross_entropy() == pytest.approx(math.log(3), rel=1e-5)
        assert floor.kl() == pytest.approx(math.log(3) + P * math.log(P) + (1 - P) * math.log((1 - P) / 2), rel=1e-4)


def test_mean_ablation_is_not_zero_ablation():
    bounds = ring_text(mean=(1.0, 0.0, 0.0)).bounds()
    assert bounds.zero_ablation.cross_entropy() == pytest.approx(math.log(3), rel=1e-5)
    right = sum(int(ids) == 1 for part in ring_text().batches for ids in part.ids[:, 2:].flatten()) / 13
    expected = -right * math.log(P) - (1 - right) * math.log((1 - P) / 2)
    assert bounds.mean_ablation.cross_entropy() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_sae_recovers_all_and_one_that_gives_the_mean_nothing():
    text, perfect, mute = ring_text(), dictionary(l0=1), dictionary(l0=1)
    mute.W_enc.data.zero_()
    mute.b_dec.data.copy_(text.mean * mute.scale)
    bounds = text.bounds()
    assert bounds.values(text.spliced(perfect)) == pytest.approx(
        {"cross_entropy": -math.log(P), "kl": 0.0, "ce_recovered": 1.0}, abs=1e-5
    )
    assert bounds.values(text.spliced(mute)) == pytest.approx(bounds.values(bounds.mean_ablation), abs=1e-5)
    assert bounds.values(bounds.mean_ablation)["ce_recovered"] == 0
    assert bounds.values(bounds.model)["ce_recovered"] == 1


def test_half_the_stream_gives_what_half_the_logit_gives():
    """The reconstruction is x / 2 exactly: the ring's next token then has exp(SURE / 2) against two ones."""
    text, sae = ring_text(), dictionary(l0=1)
    sae.W_enc.data.mul_(0.5)
    q = math.exp(SURE / 2) / (math.exp(SURE / 2) + 2)
    found = text.bounds().values(text.spliced(sae))
    assert found["cross_entropy"] == pytest.approx(-math.log(q), rel=1e-5)
    assert found["ce_recovered"] == pytest.approx((math.log(3) + math.log(q)) / (math.log(3) + math.log(P)), rel=1e-4)


def test_massive_rows_stay_as_they_are():
    everything_massive = ring_text(limit=0.5).bounds()
    assert everything_massive.mean_ablation.cross_entropy() == pytest.approx(-math.log(P), rel=1e-5)
    assert everything_massive.mean_ablation.kl() == 0


def test_a_layer_that_holds_nothing_has_no_share_recovered():
    same = two_token_loss([4])
    assert set(Bounds(same, same, same).values(same)) == {"cross_entropy", "kl"}


class Rows:
    """A source of which only spec, scale and mean are asked."""

    device, scale, truth = torch.device("cpu"), 4.0, None

    def __init__(self, dataset: str) -> None:
        self.spec = ActivationSpec("ring", 0, dataset, 3, context=2048)

    def batch(self, n, step, stream=0):
        raise AssertionError("no rows are read")

    def start_bias(self):
        return torch.tensor([4.0, 0, 8])

    def covariance(self):
        return torch.eye(3)


def test_held_out_text_is_the_test_split_as_far_as_needed(tmp_path):
    """Every tenth document is held out; one fills a batch of 1024 positions; each has three predictions."""
    path = tmp_path / "ring.txt"
    path.write_text("\n\n".join(f"{i % 3}{(i + 1) % 3}{(i + 2) % 3}{i % 3}{(i + 1) % 3}" for i in range(60)))
    text = held_out(Ring(), Rows(str(path)), tokens=8)
    assert [part.ids[:, 0].tolist() for part in text.batches] == [[0], [1], [2]]  # documents 9, 19 and 29
    assert text.mean.tolist() == [1, 0, 2]
    assert len(held_out(Ring(), Rows(str(path)), tokens=10**6).batches) == 6


def test_an_encoder_predicts_no_tokens():
    with pytest.raises(ValueError, match="ring has no language-model head; cross-entropy and KL are defined for"):
        held_out(Ring(predicts=False), Rows("atlas"))
