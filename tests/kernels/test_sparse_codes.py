"""Decoding and gradients from active codes only are those of the plain loss under autograd."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from saecore.kernels.sparse_codes import cpu
from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.saes.base import SAE
from saecore.spec import SAESpec
from saecore.training.loss import training_loss


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def csr(*rows: dict[int, float]) -> SparseCodes:
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    indices = np.array([j for row in rows for j in row], dtype=np.int32)
    return SparseCodes(indptr, indices, np.array([v for row in rows for v in row.values()], dtype=np.float32))


def f32(values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_dense_and_back():
    codes = csr({1: 2.0, 3: 0.5}, {}, {0: 1.0})
    table = [[0, 2, 0, 0.5], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert codes.dense(4).tolist() == table
    again = SparseCodes.from_dense(torch.tensor(table))
    for name in ("indptr", "indices", "values"):
        assert np.array_equal(getattr(again, name), getattr(codes, name))
        assert getattr(again, name).dtype == getattr(codes, name).dtype


def test_codes_of_no_rows_and_of_empty_rows():
    assert SparseCodes.from_dense(torch.zeros(0, 4)).dense(4).shape == (0, 4)
    assert SparseCodes.from_dense(torch.zeros(3, 4)).indptr.tolist() == [0, 0, 0, 0]


def test_decode_by_hand():
    W_dec, b_dec = f32([[1, 0], [0, 1], [1, 1]]), f32([10, 20])
    assert cpu.decode(W_dec, b_dec, csr({0: 2.0, 2: 3.0}, {})).tolist() == [[15, 23], [10, 20]]


def test_gradients_by_hand():
    """One row, x = (3, 0), codes 1 on e1 and 2 on e2: the error is (-2, 2), the loss 8, dL/dx_hat = (-4, 4)."""
    x, W_dec, b_dec, codes = f32([[3, 0]]), f32([[1, 0], [0, 1], [1, 1]]), f32([0, 0]), csr({0: 1.0, 1: 2.0})
    ends = np.array([3])
    back = cpu.backward(x, W_dec, b_dec, codes, ends)
    assert back.losses.tolist() == [8]
    assert back.errors.tolist() == [[-2, 2]]
    assert back.pulls.tolist() == [[[-4, 4]]]
    assert back.code_grads.tolist() == [-4, 4]
    enc, dec, bias = f32(np.full((3, 2), np.nan)), f32(np.full((3, 2), np.nan)), f32(np.full(3, np.nan))
    fired = cpu.weight_grads(x, back.pulls, codes, back.code_grads, ends, enc, dec, bias)
    assert dec.tolist() == [[-4, 4], [-8, 8], [0, 0]]
    assert enc.tolist() == [[-12, 0], [12, 0], [0, 0]]
    assert bias.tolist() == [-4, 4, 0]
    assert fired.tolist() == [1, 1, 0]


def test_nested_prefixes_by_hand():
    """x = (3, 0), code 1 on e1 (first prefix) and on e2 (second): errors (-2, 0) and (-2, 1), half weight each."""
    x, W_dec, codes = f32([[3, 0]]), f32([[1, 0], [0, 1]]), csr({0: 1.0, 1: 1.0})
    back = cpu.backward(x, W_dec, f32([0, 0]), codes, np.array([1, 2]))
    assert back.losses.tolist() == [4.5]
    assert back.errors.tolist() == [[-2, 1]]
    assert back.pulls.tolist() == [[[-4, 1]], [[-2, 1]]]
    assert back.code_grads.tolist() == [-4, 1]


CASES = {
    "topk": SAESpec("topk", d_model=7, n_latents=33, l0=3),
    "batch_topk": SAESpec("batch_topk", d_model=16, n_latents=40, l0=5),
    "groups of three": SAESpec("batch_topk", d_model=7, n_latents=33, l0=2, group_size=3),
    "matryoshka": SAESpec("matryoshka", d_model=9, n_latents=41, l0=4),
    "two prefixes": SAESpec("matryoshka", d_model=5, n_latents=10, l0=2, fractions=(0.1, 0.9)),
    "one latent": SAESpec("topk", d_model=3, n_latents=1, l0=1),
}


@pytest.mark.parametrize("batch", [1, 8, 31])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograd_s(case, batch, generator):
    spec = CASES[case]
    sae = SAE(spec)
    for weight in sae.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    sae.b_enc.data.zero_()
    x = torch.randn(batch, spec.d_model, generator=generator)
    nobody = torch.zeros(spec.n_latents, dtype=torch.bool)
    loss = training_loss(sae, x, sae.threshold, 0.0, nobody, False)
    wanted = torch.autograd.grad(loss.total, [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec])

    codes, ends = SparseCodes.from_dense(loss.codes), np.array(spec.group_ends())
    W_enc, W_dec, b_dec = sae.W_enc.detach(), sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    back = cpu.backward(x.numpy(), W_dec, b_dec, codes, ends)
    seen = sae.encoder_input(x).detach().numpy()
    enc, dec = (f32(np.full(W_dec.shape, np.nan)) for _ in range(2))
    bias = f32(np.full(spec.n_latents, np.nan))
    fired = cpu.weight_grads(seen, back.pulls, codes, back.code_grads, ends, enc, dec, bias)
    b_dec_grad = torch.from_numpy(back.pulls[0].sum(0)) - torch.from_numpy(bias) @ W_enc

    assert float(back.losses.mean()) == pytest.approx(float(loss.reconstruction.detach()), rel=1e-5)
    x_hat = sae.decode(loss.codes).detach()
    torch.testing.assert_close(torch.from_numpy(back.errors), x_hat - x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(cpu.decode(W_dec, b_dec, codes)), x_hat, rtol=1e-4, atol=1e-5)
    assert fired.tolist() == (loss.codes > 0).sum(0).tolist()
    for found, grad in zip((enc, dec, bias), wanted, strict=False):
        torch.testing.assert_close(torch.from_numpy(found), grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))
    torch.testing.assert_close(b_dec_grad, wanted[3], rtol=1e-3, atol=1e-4 * float(wanted[3].abs().max()))


def test_a_frozen_weight_leaves_the_others_as_they_are():
    x, W_dec, codes, ends = f32([[3, 0], [1, 1]]), f32([[1, 0], [0, 1]]), csr({0: 1.0, 1: 2.0}, {1: 1.0}), np.array([2])
    back = cpu.backward(x, W_dec, f32([0, 0]), codes, ends)
    both = [f32(np.full(s, np.nan)) for s in ((2, 2), (2, 2), 2)]
    cpu.weight_grads(x, back.pulls, codes, back.code_grads, ends, *both)
    for frozen in (0, 1):
        given = [f32(np.full(s, np.nan)) for s in ((2, 2), (2, 2), 2)]
        enc, dec = [None if i == frozen else g for i, g in enumerate(given[:2])]
        cpu.weight_grads(x, back.pulls, codes, back.code_grads, ends, enc, dec, given[2])
        assert np.isnan(given[frozen]).all()
        for i in {0, 1, 2} - {frozen}:
            assert np.array_equal(given[i], both[i])


def test_no_codes_at_all():
    x, codes, ends = f32([[3, 4]]), csr({}), np.array([2])
    back = cpu.backward(x, f32([[1, 0], [0, 1]]), f32([0, 0]), codes, ends)
    assert back.losses.tolist() == [25] and len(back.code_grads) == 0
    enc, dec, bias = f32(np.full((2, 2), np.nan)), f32(np.full((2, 2), np.nan)), f32(np.full(2, np.nan))
    assert cpu.weight_grads(x, back.pulls, codes, back.code_grads, ends, enc, dec, bias).tolist() == [0, 0]
    assert not enc.any() and not dec.any() and not bias.any()


def test_one_thread_and_two_agree_to_the_bit(generator, two_threads):
    codes = SparseCodes.from_dense(torch.randn(37, 50, generator=generator).clamp_min(0.5) - 0.5)
    x, W_dec = torch.randn(37, 20, generator=generator).numpy(), torch.randn(50, 20, generator=generator).numpy()
    b_dec, ends = torch.randn(20, generator=generator).numpy(), np.array([20, 50])
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        back = cpu.backward(x, W_dec, b_dec, codes, ends)
        enc, dec, bias = f32(np.zeros((50, 20))), f32(np.zeros((50, 20))), f32(np.zeros(50))
        cpu.weight_grads(x, back.pulls, codes, back.code_grads, ends, enc, dec, bias)
        found.append(
            [back.losses, back.errors, back.pulls, back.code_grads, enc, dec, bias, cpu.decode(W_dec, b_dec, codes)]
        )
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
