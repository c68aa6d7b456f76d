"""The inference form: codes by hand, row by row, with clear errors for what cannot be encoded."""

import numpy as np
import pytest
import torch

from saecore import kernels
from saecore.saes.base import SAE
from saecore.spec import ARCHITECTURES, SAESpec


def by_hand(architecture: str, threshold: float | None = None, **fields) -> SAE:
    """Four latents in two dimensions; pre-activations of x = (3, 1) are 2, 2.5, -2 and 1 with b_dec = (1, 0)."""
    sae = SAE(SAESpec(architecture, d_model=2, n_latents=4, l0=2, **fields))
    sae.W_enc.data = torch.tensor([[1.0, 0], [1, 0.5], [-1, 0], [0, 1]])
    sae.W_dec.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 1]])
    sae.b_dec.data = torch.tensor([1.0, 0])
    if threshold is not None:
        sae.threshold.fill_(threshold)
    return sae


def encoded(sae: SAE, x) -> list:
    """Codes by both paths, which must agree."""
    x = torch.tensor(x)
    codes = sae.encode(x)
    torch.testing.assert_close(torch.from_numpy(sae.encode_sparse(x).dense(4)), codes.detach())
    return codes.tolist()


X = [[3.0, 1.0]]


def test_topk_keeps_the_largest_of_each_row():
    assert encoded(by_hand("topk"), X) == [[2, 2.5, 0, 0]]
    assert encoded(by_hand("topk"), [[0.0, 0.25]]) == [[0, 0, 1, 0.25]]


def test_topk_keeps_nothing_negative():
    assert encoded(by_hand("topk"), [[0.5, -1.0]]) == [[0, 0, 0.5, 0]]


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka", "ortho"])
def test_the_batch_family_keeps_what_exceeds_its_threshold(architecture):
    assert encoded(by_hand(architecture, 1.5), X) == [[2, 2.5, 0, 0]]
    assert encoded(by_hand(architecture, 0.5), X) == [[2, 2.5, 0, 1]]
    assert encoded(by_hand(architecture, 2.0), X) == [[0, 2.5, 0, 0]]


def test_topk_over_groups_keeps_what_exceeds_its_threshold():
    assert encoded(by_hand("topk", 2.2, group_size=8), X) == [[0, 2.5, 0, 0]]


def test_rescaling_compares_with_the_threshold_but_returns_plain_codes():
    """|x - b_dec| is sqrt(5), so scores are 0.89, 1.12, -0.89, 0.45."""
    assert encoded(by_hand("batch_topk", 0.5, rescale=True), X) == [[2, 2.5, 0, 0]]
    assert encoded(by_hand("batch_topk", 1.0, rescale=True), [[21.0, 10.0], [3.0, 1.0]]) == [
        [0, 25, 0, 0],
        [0, 2.5, 0, 0],
    ]


def test_relu_keeps_what_is_positive_after_its_bias():
    sae = by_hand("relu")
    sae.b_enc.data = torch.tensor([-1.0, -2.5, 2.5, 0])
    assert encoded(sae, X) == [[1, 0, 0.5, 1]]


def test_jump_relu_does_not_centre_and_has_a_threshold_per_latent():
    """Pre-activations of x itself: 3, 3.5, -3, 1, with biases 0, 0, 4, 0."""
    sae = by_hand("jump_relu")
    sae.b_enc.data = torch.tensor([0.0, 0, 4, 0])
    sae.threshold.copy_(torch.tensor([3.0, 3.0, 0.5, 0.5]))
    assert encoded(sae, X) == [[0, 3.5, 1, 1]]


def test_decoding_adds_the_bias():
    sae = by_hand("topk")
    assert sae(torch.tensor(X)).tolist() == [[3, 2.5]]


def random_sae(architecture: str, generator: torch.Generator, **fields) -> SAE:
    sae = SAE(SAESpec(architecture, d_model=16, n_latents=70, l0=4, **fields))
    for weight in (sae.W_enc, sae.W_dec, sae.b_dec):
        weight.data = torch.randn(weight.shape, generator=generator)
    sae.b_enc.data.fill_(-3.0 if sae.spec.has_encoder_bias else 0.0)
    if architecture != "relu":
        sae.threshold.fill_(0.5 if sae.spec.rescale else 4.0)
    return sae


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "batch_topk, rescaled"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_row_s_codes_do_not_depend_on_its_batch(architecture, sparse, generator):
    name, _, rescaled = architecture.partition(", ")
    sae = random_sae(name, generator, rescale=bool(rescaled))
    x = torch.randn(33, 16, generator=generator)
    x[20:] *= 100

    def encode(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(sae.encode_sparse(rows).dense(70)) if sparse else sae.encode(rows).detach()

    together = encode(x)
    assert 0 < (together > 0).sum() < together.numel() / 2
    for size in (1, 7):
        apart = torch.cat([encode(part) for part in x.split(size)])
        assert torch.equal(apart > 0, together > 0)
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_paths_encode_alike(architecture, generator):
    sae, x = random_sae(architecture, generator), torch.randn(50, 16, generator=generator)
    dense = sae.encode(x).detach()
    found = sae.encode_sparse(x)
    assert np.array_equal(found.dense(70) > 0, (dense > 0).numpy())
    torch.testing.assert_close(torch.from_numpy(found.dense(70)), dense, rtol=1e-4, atol=1e-5)


def test_without_the_compiled_path_encode_sparse_is_encode(monkeypatch, generator):
    sae, x = random_sae("batch_topk", generator), torch.randn(9, 16, generator=generator)
    monkeypatch.setattr(kernels, "fast_path", lambda tensor: False)
    assert np.array_equal(sae.encode_sparse(x).dense(70), sae.encode(x).detach().numpy())


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka", "ortho", "jump_relu"])
def test_an_absent_threshold_is_an_error(architecture):
    sae, x = by_hand(architecture), torch.tensor(X)
    for encode in (sae.encode, sae.encode_sparse, sae):
        with pytest.raises(ValueError, match=f"this {architecture} SAE has no inference threshold: train it or call"):
            encode(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_input_is_an_error_that_names_the_row(bad):
    x = torch.ones(5, 2)
    x[3, 1] = bad
    for encode in (by_hand("topk").encode, by_hand("topk").encode_sparse):
        with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 5 rows \(first: row 3\); drop those rows"):
            encode(x)


def test_a_wrong_width_is_an_error_that_names_both():
    for encode in (by_hand("topk").encode, by_hand("topk").encode_sparse):
        with pytest.raises(ValueError, match=r"x has shape \(4, 3\); this SAE takes \(batch, 2\)"):
            encode(torch.zeros(4, 3))
