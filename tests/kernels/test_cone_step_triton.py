"""The Triton steps are the definition's, from a gradient or from a latent's entries, and are not taken when told so."""

import pytest
import torch
from torch.nn.functional import normalize
from triton.runtime.errors import InterpreterError

from saecore.kernels.batch_topk import triton as select
from saecore.kernels.cone_step import reference
from saecore.kernels.cone_step import triton as cone_step
from saecore.kernels.sparse_codes import triton as sparse

pytestmark = pytest.mark.usefixtures("guarded")
BETA1, BETA2 = 0.9, 0.99


def rows_of(W: torch.Tensor, start=None, shadow=None) -> cone_step.Rows:
    return cone_step.Rows(W.clone(), torch.zeros_like(W), torch.zeros_like(W), start, shadow)


def go(device: str, value: int = 1) -> torch.Tensor:
    return torch.full((1,), value, dtype=torch.int32, device=device)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 7), (3, 33)])
@pytest.mark.parametrize("tau", [None, 0.0, 0.9])
def test_unit_rows_step_as_the_definition(n, d, tau, generator, device, monkeypatch):
    """Three steps with a rate that brings most rows to the edge of their cone."""
    monkeypatch.setattr(sparse, "BLOCK", 16)
    W = normalize(torch.randn(n, d, generator=generator)).to(device)
    start = None if tau is None else W.clone()
    found, wanted = rows_of(W, start), rows_of(W)
    for count in (1, 2, 3):
        grad = torch.randn(n, d, generator=generator).to(device)
        cone_step.step(found, grad, cone_step.Adam(0.3, BETA1, BETA2, count, True, tau or 0.0), go(device))
        reference.unit_rows_step(
            wanted.W, grad, wanted.m, wanted.v, 0.3, BETA1, BETA2, count, start=start, tau=tau or 0.0
        )
    if d == 1:  # the tangent of a point is empty: only rounding is left, which Adam magnifies
        assert found.W.abs() == 1
        return
    for name in ("W", "m", "v"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    if tau:
        assert start is not None and ((found.W * start).sum(1) < tau + 1e-4).any()


def test_a_row_opposite_to_its_start_returns_to_it(device):
    start = torch.tensor([[1.0, 0, 0], [0, -1, 0]], device=device)
    found = rows_of(-start, start)
    cone_step.step(found, torch.zeros_like(start), cone_step.Adam(0.1, BETA1, BETA2, 1, True, 0.8), go(device))
    assert torch.equal(found.W, start)


@pytest.mark.parametrize("shape", [(1,), (37,), (3, 21)])
def test_without_unit_rows_it_is_adam(shape, generator, device, monkeypatch):
    monkeypatch.setattr(cone_step, "BLOCK", 16)
    W = torch.randn(shape, generator=generator).to(device)
    found, wanted = rows_of(W), rows_of(W)
    for count in (1, 2):
        grad = torch.randn(shape, generator=generator).to(device)
        cone_step.step(found, grad, cone_step.Adam(0.03, BETA1, BETA2, count), go(device))
        reference.adam(wanted.W, grad, wanted.m, wanted.v, 0.03, BETA1, BETA2, count)
    for name in ("W", "m", "v"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("tau", [None, 0.9])
def test_the_fused_step_is_a_gradient_and_a_step(unit, tau, generator, device, monkeypatch):
    """Some latents have entries and some have none, and all move on by their moments."""
    monkeypatch.setattr(sparse, "BLOCK", 8)
    batch, m, d = 4, 9, 21
    codes, _ = select.select_ranked(torch.randn(batch, m, generator=generator).to(device), 2, batch)
    source = torch.randn(batch, d, generator=generator).to(device)
    by = sparse.by_latent(codes.indices, m)
    entries = sparse.Entries(by, source, by.sort(codes.rows), by.sort(codes.values))
    assert 0 < int((entries.by.counts > 0).sum()) < m
    W = normalize(torch.randn(m, d, generator=generator)).to(device)
    start = None if tau is None else W.clone()
    fused, apart = (rows_of(W, start, torch.zeros_like(W, dtype=torch.bfloat16)) for _ in range(2))
    for count in (1, 2):
        adam = cone_step.Adam(0.3, BETA1, BETA2, count, unit, tau or 0.0)
        grad = torch.full_like(W, torch.nan)
        sparse.weight_grads(entries, grad)
        wanted = sparse.code_grads(apart.W, entries)
        cone_step.step(apart, grad, adam, go(device))
        dots = cone_step.fused_step(fused, entries, adam, go(device))
        assert (dots is None) == (not unit)
        if dots is not None:
            torch.testing.assert_close(dots, wanted, rtol=1e-5, atol=1e-6)
        for name in ("W", "m", "v"):
            torch.testing.assert_close(getattr(fused, name), getattr(apart, name), rtol=1e-4, atol=1e-5)
    for rows in (fused, apart):  # the interpreter cuts where a GPU rounds
        assert rows.shadow is not None
        torch.testing.assert_close(rows.shadow.float(), rows.W, rtol=2**-7, atol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_no_step_is_taken_where_the_flag_says_so(fused, device):
    W = torch.tensor([[0.6, 0.8], [1.0, 0.0]], device=device)
    found = rows_of(W, None, torch.zeros_like(W, dtype=torch.bfloat16))
    adam = cone_step.Adam(0.1, BETA1, BETA2, 1, True)
    if fused:
        codes, _ = select.select_ranked(torch.ones(1, 2, device=device), 2, 1)
        by = sparse.by_latent(codes.indices, 2)
        entries = sparse.Entries(by, W[:1], by.sort(codes.rows), by.sort(codes.values))
        cone_step.fused_step(found, entries, adam, go(device, 0))
    else:
        cone_step.step(found, torch.ones_like(W), adam, go(device, 0))
    assert torch.equal(found.W, W)
    assert found.shadow is not None
    assert not any(t.any() for t in (found.m, found.v, found.shadow))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the guard is the interpreter's")
@pytest.mark.parametrize("unit", [True, False])
def test_offsets_beyond_32_bits_are_counted_in_64(unit):
    """The last of so many latents would lie there, were it in memory: the guard says where it was looked for."""
    n_latents, d = 1 << 21, 1 << 11
    W = torch.zeros(1).expand(n_latents, d)
    last = torch.full((1,), n_latents - 1, dtype=torch.int32)
    starts, none = torch.zeros(n_latents + 1, dtype=torch.int32), torch.zeros(1)
    entries = sparse.Entries(sparse.ByLatent(starts, last.long(), last), torch.zeros(1, d), last, none)
    with pytest.raises(InterpreterError, match=rf"outside, at \[.*\b{(n_latents - 1) * d * 4}\b"):
        cone_step.fused_step(cone_step.Rows(W, W, W), entries, cone_step.Adam(0.1, BETA1, BETA2, 1, unit), go("cpu"))
