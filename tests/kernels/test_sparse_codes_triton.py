"""Decoding and gradients by the Triton kernels are those of the plain loss under autograd, or of a dense product."""

import pytest
import torch
from triton.runtime.errors import InterpreterError

from saecore.kernels import launch
from saecore.kernels.batch_topk import triton as select
from saecore.kernels.sparse_codes import triton as sparse
from saecore.kernels.sparse_codes.codes import DeviceCodes
from saecore.saes.base import SAE
from saecore.spec import SAESpec
from saecore.training.loss import training_loss

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(sparse, "BLOCK", 16)
    monkeypatch.setattr(sparse, "TILE", 32)


CASES = {
    "topk": (SAESpec("topk", d_model=7, n_latents=9, l0=3), 3),
    "batch_topk": (SAESpec("batch_topk", d_model=37, n_latents=12, l0=4), 5),
    "matryoshka": (SAESpec("matryoshka", d_model=9, n_latents=21, l0=4), 5),
    "two prefixes, the first empty": (SAESpec("matryoshka", d_model=5, n_latents=10, l0=2, fractions=(0.01, 0.99)), 2),
    "one latent, one row": (SAESpec("topk", d_model=1, n_latents=1, l0=1), 1),
}


def start_of(spec: SAESpec, batch: int, generator: torch.Generator, device: str) -> tuple[SAE, torch.Tensor]:
    sae = SAE(spec)
    for weight in sae.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    sae.b_enc.data.zero_()
    return sae.to(device), torch.randn(batch, spec.d_model, generator=generator).to(device)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograd_s(case, generator, device):
    spec, batch = CASES[case]
    sae, x = start_of(spec, batch, generator, device)
    ends, m = spec.group_ends(), spec.n_latents
    nobody = torch.zeros(m, dtype=torch.bool, device=device)
    loss = training_loss(sae, x, sae.threshold, 0.0, nobody, False)
    wanted = torch.autograd.grad(loss.total, [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec])

    W_enc, W_dec, b_dec = (w.detach() for w in (sae.W_enc, sae.W_dec, sae.b_dec))
    seen = sae.encoder_input(x).detach()
    codes, _ = select.select_ranked(sae.preactivations(x).detach(), spec.l0, spec.rows_per_selection(batch))
    back = sparse.backward(x, W_dec, b_dec, codes, ends)
    by = sparse.by_latent(codes.indices, m)
    rows, pull_rows, values = map(by.sort, (codes.rows, sparse.pull_rows(codes, ends), codes.values))
    pulled = sparse.Entries(by, back.pulls.flatten(0, 1), pull_rows, values)
    dec, enc = (torch.full_like(W_dec, torch.nan) for _ in range(2))
    sparse.weight_grads(pulled, dec)
    code_grads = sparse.code_grads(W_dec, pulled)
    sparse.weight_grads(sparse.Entries(by, seen, rows, code_grads), enc)
    through = sparse.sum_by_latent(code_grads, by)

    x_hat = sae.decode(loss.codes).detach()
    assert float(back.losses.mean()) == pytest.approx(float(loss.reconstruction.detach()), rel=1e-5)
    torch.testing.assert_close(back.errors, x_hat - x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.decode(W_dec, b_dec, codes), x_hat, rtol=1e-4, atol=1e-5)
    assert torch.equal(by.counts, (loss.codes > 0).sum(0).int())
    assert by.order.sort().values.tolist() == list(range(m)) and (by.counts[by.order].diff() <= 0).all()
    for found, grad in zip((enc, dec, through, back.bias_grad - through @ W_enc), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_decoding_in_half_precision_sums_in_full(generator, device):
    """Blocks of the usual size. One latent fires in every row, another in none."""
    W_dec, b_dec = torch.randn(6, 300, generator=generator).to(device), torch.randn(300, generator=generator).to(device)
    table = torch.rand(10, 6, generator=generator).to(device)
    table[:, 0] += 9
    table[:, 3] = 0
    codes, _ = select.select_ranked(table, 2, 10)
    assert codes.indices.bincount()[0] == 10
    found = sparse.decode(W_dec.bfloat16(), b_dec, codes)
    kept = torch.from_numpy(codes.to_host().dense(6)).to(device)
    torch.testing.assert_close(found, kept @ W_dec.bfloat16().float() + b_dec, rtol=1e-5, atol=1e-5)


def test_no_codes_at_all(device):
    codes, _ = select.select_ranked(-torch.ones(2, 3, device=device), 2, 2)
    x, W_dec, b_dec = torch.ones(2, 4, device=device), torch.ones(3, 4, device=device), torch.zeros(4, device=device)
    back = sparse.backward(x, W_dec, b_dec, codes, (3,))
    assert back.losses.tolist() == [4, 4] and back.bias_grad.tolist() == [-2] * 4
    by = sparse.by_latent(codes.indices, 3)
    grad = torch.full_like(W_dec, torch.nan)
    entries = sparse.Entries(by, back.pulls[0], codes.rows, codes.values)
    sparse.weight_grads(entries, grad)
    grads = sparse.code_grads(W_dec, entries)
    assert not grad.any() and not grads.any() and not sparse.sum_by_latent(grads, by).any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the guard is the interpreter's")
def test_offsets_beyond_32_bits_are_counted_in_64(device):
    """The last of so many latents would lie there, were it in memory: the guard says where it was looked for."""
    n_latents, d = 1 << 21, 1 << 11
    one = torch.ones(1, dtype=torch.int32)
    codes = DeviceCodes(torch.tensor([0, 1], dtype=torch.int32), 0 * one, one * (n_latents - 1), torch.ones(1))
    W_dec = torch.zeros(1, dtype=torch.bfloat16).expand(n_latents, d)
    place = (n_latents - 1) * d * W_dec.element_size()
    assert place > 1 << 32
    for fail in (
        lambda: sparse.decode(W_dec, torch.zeros(d), codes),
        lambda: sparse.code_grads(W_dec, entry_of(n_latents, torch.zeros(1, d), one)),
        lambda: sparse.code_grads(torch.zeros(1, d), entry_of(1, W_dec, one * (n_latents - 1))),
        lambda: sparse.weight_grads(entry_of(1, W_dec, one * (n_latents - 1)), torch.zeros(1, d)),
    ):
        with pytest.raises(InterpreterError, match=rf"outside, at \[.*\b{place}\b"):
            fail()


def entry_of(n_latents: int, source: torch.Tensor, rows: torch.Tensor) -> sparse.Entries:
    """One entry, of the last latent."""
    starts = torch.tensor([0, 1], dtype=torch.int32).repeat_interleave(torch.tensor([n_latents, 1]))
    order = torch.arange(n_latents - 1, n_latents - 2, -1, dtype=torch.int32)
    return sparse.Entries(sparse.ByLatent(starts, rows.long(), order), source, rows, torch.ones(1))


@pytest.mark.parametrize(
    ("d", "settings"),
    [
        (1, (16, 1, 256, 1)),
        (48, (64, 1, 64, 2)),
        (300, (512, 1, 8, 4)),
        (2304, (512, 5, 8, 4)),
        (9000, (2048, 5, 2, 4)),
    ],
)
def test_settings_cover_a_row(d, settings):
    assert sparse.row_settings(d) == settings
    block, blocks, _, warps = settings
    assert block * blocks >= d > block * (blocks - 1) and (warps == 1 or block >= 32 * warps)


def test_powers_and_parts():
    assert [launch.power(n) for n in (0, 1, 16, 17, 4096)] == [16, 16, 16, 32, 4096]
    assert launch.power(3, 2) == 4 and launch.power(100, 2, 8) == 8
    assert [launch.parts(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
