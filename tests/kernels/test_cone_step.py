"""The optimiser's steps: Adam, unit rows, and the nearest point of the cone around a row's start."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("numba")

from saecore.kernels.cone_step import cpu, reference

BETA1, BETA2 = 0.9, 0.99


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def stepped(fast: bool, W, grads, rate=0.1, unit=True, start=None, tau=0.0) -> torch.Tensor:
    """``W`` after one step for each of ``grads``, by the compiled path or by the definition."""
    W = torch.as_tensor(W, dtype=torch.float32).clone()
    m, v = torch.zeros_like(W), torch.zeros_like(W)
    for count, grad in enumerate(grads, 1):
        grad = torch.as_tensor(grad, dtype=torch.float32).clone()
        if fast:
            anchor = None if start is None else start.numpy()
            cpu.step(
                W.numpy(),
                grad.numpy(),
                m.numpy(),
                v.numpy(),
                rate,
                BETA1,
                BETA2,
                count,
                unit=unit,
                start=anchor,
                tau=tau,
            )
        elif unit:
            reference.unit_rows_step(W, grad, m, v, rate, BETA1, BETA2, count, start=start, tau=tau)
        else:
            reference.adam(W, grad, m, v, rate, BETA1, BETA2, count)
    return W


both = pytest.mark.parametrize("fast", [False, True], ids=["reference", "cpu"])


@both
def test_adam_is_torch_s(fast, generator):
    W, grads = torch.randn(7, 5, generator=generator), torch.randn(9, 7, 5, generator=generator)
    wanted = W.clone().requires_grad_()
    optimiser = torch.optim.Adam([wanted], lr=0.03, betas=(BETA1, BETA2))
    for grad in grads:
        wanted.grad = grad.clone()
        optimiser.step()
    found = stepped(fast, W, grads, rate=0.03, unit=False)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)


@both
def test_the_parallel_part_of_the_gradient_is_removed(fast):
    """A gradient along the row moves nothing; Adam's first step moves each coordinate by the rate."""
    W = [[1.0, 0, 0], [1.0, 0, 0]]
    grads = [[[5.0, 0, 0], [7.0, 2.0, 0]]]
    found = stepped(fast, W, grads)
    side = np.array([1, -0.1, 0]) / np.sqrt(1.01)
    torch.testing.assert_close(found, torch.tensor(np.array([[1, 0, 0], side]), dtype=torch.float32))


@both
def test_a_row_without_gradient_stays(fast, generator):
    W = normalize(torch.randn(5, 8, generator=generator))
    found = stepped(fast, W, torch.zeros(3, 5, 8), start=W, tau=0.8)
    torch.testing.assert_close(found, W, rtol=0, atol=2e-7)


@both
def test_rows_opposite_to_their_start_return_to_it(fast):
    start = torch.tensor([[1.0, 0, 0], [0, -1, 0]])
    found = stepped(fast, -start, torch.zeros(1, 2, 3), start=start, tau=0.8)
    assert torch.equal(found, start)


@both
def test_a_row_on_the_edge_stays_and_one_beyond_moves_to_it(fast):
    """tau = 0.6: (0.6, 0.8) is on the edge; (0, 1) and (-0.6, 0.8) go to it, each on its side."""
    start = torch.tensor([[1.0, 0]] * 5)
    W = [[0.6, 0.8], [0.0, 1.0], [-0.6, -0.8], [0.8, -0.6], [1.0, 0.0]]
    found = stepped(fast, W, torch.zeros(1, 5, 2), start=start, tau=0.6)
    wanted = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, -0.8], [0.8, -0.6], [1.0, 0.0]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7)


@both
def test_at_tau_zero_the_half_space_is_allowed(fast):
    start = torch.tensor([[1.0, 0], [1.0, 0]])
    found = stepped(fast, [[0.0, 1.0], [-0.6, 0.8]], torch.zeros(1, 2, 2), start=start, tau=0.0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), rtol=0, atol=2e-7)


def test_a_zero_row_goes_to_its_start():
    start = torch.tensor([[0.0, 1.0]])
    assert torch.equal(reference.project_to_cone(torch.zeros(1, 2), start, 0.8), start)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8, 0.99])
def test_the_projection_is_the_nearest_point(tau, generator):
    """Against 200,000 points of the cone in three dimensions: none is nearer, and one is about as near."""
    start, rows = (normalize(torch.randn(12, 3, generator=generator).double()) for _ in range(2))
    projected = reference.project_to_cone(rows, start, tau)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(12).double())
    assert ((projected * start).sum(1) >= tau - 1e-9).all()
    points = normalize(torch.randn(200_000, 3, generator=generator).double())
    height = tau + (1 - tau) * torch.rand(200_000, 1, generator=generator).double()
    for i in range(12):
        side = normalize(points - (points @ start[i])[:, None] * start[i])
        cone = height * start[i] + (1 - height**2).sqrt() * side
        best = (cone - rows[i]).norm(dim=1).min()
        found = (projected[i] - rows[i]).norm()
        assert found <= best + 1e-9 and found >= best - 0.02


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (33, 100)])
@pytest.mark.parametrize("tau", [None, 0.0, 0.8])
@pytest.mark.parametrize("unit", [True, False])
def test_the_compiled_step_is_the_definition_s(shape, tau, unit, generator):
    W = normalize(torch.randn(shape, generator=generator)) if unit else torch.randn(shape, generator=generator)
    grads = torch.randn(12, *shape, generator=generator)
    start = None if tau is None or not unit else W
    fast, plain = (stepped(f, W, grads, 0.05, unit, start, tau or 0.0) for f in (True, False))
    if shape == (1, 1) and unit:  # the tangent of a point is empty: only rounding is left, which Adam magnifies
        assert fast.abs() == plain.abs() == 1
    else:
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("tau", [0.3, 0.8, 0.999])
def test_rows_stay_unit_and_in_their_cone(fast, tau, generator):
    start = normalize(torch.randn(50, 20, generator=generator))
    drift = torch.randn(50, 20, generator=generator)
    grads = drift + torch.randn(300, 50, 20, generator=generator)
    W = stepped(fast, start, grads, rate=0.1, start=start, tau=tau)
    cosine = (W * start).sum(1)
    torch.testing.assert_close(W.norm(dim=1), torch.ones(50), rtol=0, atol=1e-5)
    assert cosine.min() >= tau - 1e-5
    assert (cosine < tau + 1e-4).float().mean() > 0.5  # the cone does hold them


def test_two_threads_agree_with_one_up_to_rounding_and_with_themselves_to_the_bit(generator, two_threads):
    start, grads = normalize(torch.randn(21, 9, generator=generator)), torch.randn(5, 21, 9, generator=generator)
    two, again = (stepped(True, start, grads, start=start, tau=0.9) for _ in range(2))
    torch.set_num_threads(1)
    one = stepped(True, start, grads, start=start, tau=0.9)
    assert torch.equal(two, again)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
