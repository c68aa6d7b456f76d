"""The Triton kernels at real sizes on a GPU, where a program has many neighbours and an offset passes 2**31."""

import pytest
import torch
from torch.nn.functional import normalize

from saecore.kernels.batch_topk import dense as dense_path
from saecore.kernels.batch_topk import triton as select
from saecore.kernels.cone_step import reference
from saecore.kernels.cone_step import triton as cone_step
from saecore.kernels.sparse_codes import triton as sparse

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GEMMA = 2304, 73_728, 160, 4096  # d_model, n_latents, L0, batch
GPT2 = 768, 24_576, 32, 4096


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator("cuda").manual_seed(0)


def normal(*shape: int, generator: torch.Generator, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)


def table(codes, m: int) -> torch.Tensor:
    """Dense codes, on the device."""
    end = int(codes.indptr[-1])
    found = torch.zeros(codes.batch, m, device="cuda")
    found[codes.rows[:end].long(), codes.indices[:end].long()] = codes.values[:end]
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 100, 4096])
def test_ranked(rows, dtype, generator):
    """In bfloat16 there are thousands of ties at the cut."""
    _, m, k, batch = GPT2
    scores = normal(batch, m, generator=generator, dtype=dtype)
    codes, _ = select.select_ranked(scores, k, rows)
    assert int(codes.indptr[-1]) == k * batch
    wanted = scores * dense_path.select_ranked(scores, k, rows)
    assert torch.equal(table(codes, m), wanted.float())


def test_ranked_and_above_past_two_to_the_31(generator):
    """2.4e9 scores: what is planted in the last rows is found there."""
    batch, m = 33_000, GEMMA[1]
    assert batch * m > 1 << 31
    scores = torch.zeros(batch, m, dtype=torch.bfloat16, device="cuda")
    rows = torch.randint(0, batch, (5000,), generator=generator, device="cuda")
    rows[:100] = torch.arange(batch - 100, batch, device="cuda")
    latents = torch.randint(0, m, (5000,), generator=generator, device="cuda")
    place = (rows * m + latents).unique()
    row, latent = place // m, place % m
    scores[row, latent] = normal(len(place), generator=generator).abs().bfloat16() + 1
    nothing = torch.zeros(m, device="cuda")
    above, overflow = select.select_above(scores, nothing, nothing + 0.5, 6000)
    for codes in (select.select_ranked(scores, 1, batch)[0], above):
        end = int(codes.indptr[-1])
        assert end == len(row) and torch.equal(codes.rows[:end].long(), row)
        assert torch.equal(codes.indices[:end].long(), latent)
        assert torch.equal(codes.values[:end], scores[row, latent].float())
    assert not overflow


@pytest.mark.parametrize("level", [1.5, 3.0])
def test_above_and_the_fused_encoder(level, generator):
    d, m, _, batch = GPT2
    x, weight = normal(batch, d, generator=generator), normalize(normal(m, d, generator=generator))
    bias, threshold = (0.1 * normal(m, generator=generator) for _ in range(2))
    threshold += level
    scores = x @ weight.T
    wanted = (scores + bias) * (scores + bias > threshold)
    n = int((wanted != 0).sum())
    above, overflow = select.select_above(scores, bias, threshold, n)
    assert not overflow and torch.equal(table(above, m), wanted)
    fused, overflow = select.encode_above(x, weight, bias, threshold, n + 1000)
    assert not overflow
    found = table(fused, m)
    unlike = (found != 0) != (wanted != 0)
    assert int(unlike.sum()) < 1e-4 * n + 2  # those on the edge
    torch.testing.assert_close(found.masked_fill(unlike, 0), wanted.masked_fill(unlike, 0), rtol=1e-4, atol=1e-4)
    again, _ = select.encode_above(x, weight, bias, threshold, n + 1000)
    assert torch.equal(again.values, fused.values) and torch.equal(again.indices, fused.indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ends", [(24_576,), (1000, 9000, 24_576)])
def test_gradients(ends, dtype, generator):
    d, m, k, batch = GPT2
    x, b_dec = normal(batch, d, generator=generator), normal(d, generator=generator)
    W_dec = normalize(normal(m, d, generator=generator)).to(dtype)
    scores = normal(batch, m, generator=generator)
    scores[:, 7] += 9  # a latent that always fires
    codes, _ = select.select_ranked(scores, k, batch)
    z = table(codes, m)
    W = W_dec.float()
    errors = [z[:, :end] @ W[:end] + b_dec - x for end in ends]
    back = sparse.backward(x, W_dec, b_dec, codes, ends)
    torch.testing.assert_close(back.errors, errors[-1], rtol=1e-4, atol=1e-3)
    losses = torch.stack(errors).square().sum(2).mean(0)
    torch.testing.assert_close(back.losses, losses, rtol=1e-4, atol=1e-3)
    by = sparse.by_latent(codes.indices, m)
    pull_rows = by.sort(sparse.pull_rows(codes, ends))
    entries = sparse.Entries(by, back.pulls.flatten(0, 1), pull_rows, by.sort(codes.values))
    grad = torch.full((m, d), torch.nan, device="cuda")
    sparse.weight_grads(entries, grad)
    code_grads = sparse.code_grads(W, entries)
    starts = (0, *ends[:-1])
    wanted = torch.cat([z[:, a:b].T @ back.pulls[g].float() for g, (a, b) in enumerate(zip(starts, ends, strict=True))])
    torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-5)
    full = torch.cat([back.pulls[g].float() @ W[a:b].T for g, (a, b) in enumerate(zip(starts, ends, strict=True))], 1)
    rows, latents = by.sort(codes.rows).long(), by.sort(codes.indices).long()
    torch.testing.assert_close(code_grads, full[rows, latents], rtol=1e-3, atol=1e-6)
    through = sparse.sum_by_latent(code_grads, by)
    torch.testing.assert_close(through, (full * (z > 0)).sum(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tau", [None, 0.8])
@pytest.mark.parametrize("d", [16, 48, 768, 2304, 4096])
def test_steps(d, tau, generator):
    m, batch, k = 5000, 512, 16
    W = normalize(normal(m, d, generator=generator))
    start = None if tau is None else W.clone()
    codes, _ = select.select_ranked(normal(batch, m, generator=generator), k, batch)
    source = normal(batch, d, generator=generator)
    by = sparse.by_latent(codes.indices, m)
    entries = sparse.Entries(by, source, by.sort(codes.rows), by.sort(codes.values))
    go = torch.ones(1, dtype=torch.int32, device="cuda")
    shadows = [torch.zeros_like(W, dtype=torch.bfloat16) for _ in range(2)]
    moving = [cone_step.Rows(W.clone(), torch.zeros_like(W), torch.zeros_like(W), start, s) for s in (*shadows, None)]
    grad = torch.zeros_like(W)
    for count in (1, 2, 3):
        adam = cone_step.Adam(0.03, 0.9, 0.99, count, True, tau or 0.0)
        sparse.weight_grads(entries, grad)
        cone_step.fused_step(moving[0], entries, adam, go)
        cone_step.step(moving[1], grad, adam, go)
        plain = moving[2]
        reference.unit_rows_step(plain.W, grad, plain.m, plain.v, 0.03, 0.9, 0.99, count, start=start, tau=tau or 0.0)
    for rows, shadow in zip(moving[:2], shadows, strict=True):
        off = (rows.W - moving[2].W).abs() > 1e-4  # Adam takes the sign of a gradient that is but rounding
        assert int(off.sum()) < 1e-5 * W.numel() + 2
        assert torch.equal(shadow, rows.W.bfloat16())


def test_weights_past_two_to_the_31(generator):
    """2.2e9 decoder weights: the gradient of the last latents lands on them, and they step."""
    d, m = 4096, 530_000
    assert d * m > 1 << 31
    W = torch.zeros(m, d, device="cuda")
    W[-1000:] = normalize(normal(1000, d, generator=generator))
    scores = torch.zeros(8, 1000, device="cuda")
    scores[:, ::50] = 1 + normal(8, 20, generator=generator).abs()
    codes, _ = select.select_ranked(scores, 20, 8)
    codes.indices += m - 1000
    x, nothing = normal(8, d, generator=generator), torch.zeros(d, device="cuda")
    back = sparse.backward(x, W, nothing, codes, (m,))
    torch.testing.assert_close(back.errors, scores @ W[-1000:] - x, rtol=1e-4, atol=1e-3)
    by = sparse.by_latent(codes.indices, m)
    entries = sparse.Entries(by, back.pulls[0], by.sort(codes.rows), by.sort(codes.values))
    grad = torch.full_like(W, torch.nan)
    sparse.weight_grads(entries, grad)
    code_grads = sparse.code_grads(W, entries)
    torch.testing.assert_close(grad[-1000:], scores.T @ back.pulls[0], rtol=1e-3, atol=1e-5)
    assert not grad[:-1000].any()
    wanted = back.pulls[0] @ W[-1000:].T
    torch.testing.assert_close(code_grads, wanted.T[::50].flatten(), rtol=1e-3, atol=1e-5)
    del grad
    m_, v_ = torch.zeros_like(W), torch.zeros_like(W)
    before = W[-1000:].clone()
    go = torch.ones(1, dtype=torch.int32, device="cuda")
    cone_step.fused_step(cone_step.Rows(W, m_, v_), entries, cone_step.Adam(0.01, 0.9, 0.99, 1), go)
    moved = (W[-1000:] != before).any(1)
    assert moved[::50].all() and int(moved.sum()) == 20 and not W[:-1000].any()
