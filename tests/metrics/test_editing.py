"""Editing by hand: what an edit puts in, what a mask learns, and how edits are counted."""

import math

import pytest
import torch

from saecore.metrics.editing import (
    Mask,
    Outcomes,
    Subspace,
    latents,
    rotated,
    share,
    shuffled,
    temperatures,
    train,
)
from saecore.saes import SAE, build
from saecore.spec import ConstraintSpec, SAESpec


def sae_of(generator: torch.Generator, scale: float = 0.5) -> SAE:
    sae = build(SAESpec("topk", d_model=6, n_latents=16, l0=3), ConstraintSpec("untrained"), generator=generator)
    sae.scale.fill_(scale)
    with torch.no_grad():
        sae.b_dec.normal_(generator=generator)
    return sae


def test_scores_of_known_outcomes():
    found = Outcomes(torch.tensor([1, 1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 0, 1, 1]).bool())
    assert found.scores() == {"cause": 0.25, "isolation": 1.0, "disentanglement": 0.625}


def test_a_share_needs_a_range():
    assert share(0.6, 0.5, 0.9) == pytest.approx(0.25) and share(0.45, 0.5, 0.6) == pytest.approx(-0.5)
    assert share(0.6, 0.5, 0.505) is None and share(0.6, 0.5, 0.4) is None


def test_an_edit_decodes_the_mixed_codes(generator):
    sae, rows = sae_of(generator), torch.randn(20, 6, generator=generator)
    space = latents(sae, rows)
    live = sae.encode(rows * sae.scale).detach()
    mixed = torch.rand(16, generator=generator)
    base, source = torch.tensor([0, 3, 7]), torch.tensor([5, 1, 2])
    wanted = sae.decode((1 - mixed) * live[base] + mixed * live[source]).detach() / sae.scale
    weight = mixed[(live != 0).any(0)]
    torch.testing.assert_close(space.edited(base, source, weight), wanted)
    error = rows[base] - sae.rebuild(rows[base]).detach()
    torch.testing.assert_close(space.edited(base, source, weight, with_error=True), wanted + error)
    assert error.abs().max() > 0.1 and 3 < space.codes.shape[1] <= 16


def test_latents_that_never_fire_stay_out(generator):
    sae, rows = sae_of(generator), torch.randn(5, 6, generator=generator).repeat(4, 1)
    space = latents(sae, rows)
    fired = (sae.encode(rows * sae.scale) != 0).any(0)
    assert space.codes.shape == (20, int(fired.sum())) and 0 < fired.sum() < 16
    torch.testing.assert_close(space.rebuilt, sae.rebuild(rows).detach())


def test_a_rotation_loses_nothing(generator):
    rows = torch.randn(8, 4, generator=generator)
    axes = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    space = rotated(rows, axes)
    base, source = torch.arange(4), torch.arange(4, 8)
    torch.testing.assert_close(space.edited(base, source, torch.ones(4)), rows[source])
    torch.testing.assert_close(space.edited(base, source, torch.zeros(4)), rows[base])
    one = space.edited(base, source, torch.tensor([0.0, 1, 0, 0]))
    torch.testing.assert_close((one - rows[base]) @ axes.T, ((rows[source] - rows[base]) @ axes.T) * torch.eye(4)[1])


def test_temperatures_are_saebenchs():
    """torch.logspace(log10(1), log10(1e-4), steps), as train_mdbm has it."""
    torch.testing.assert_close(torch.tensor(temperatures(37)), torch.logspace(0, -4, 37))
    assert temperatures(1) == [1.0]


def swap(rows: torch.Tensor, wanted: torch.Tensor):
    """A loss: the edited row should have the source along ``wanted`` and the base elsewhere."""
    base, source = torch.arange(0, len(rows) // 2), torch.arange(len(rows) // 2, len(rows))
    target = rows[base] + ((rows[source] - rows[base]) @ wanted.T) @ wanted
    return base, source, lambda edited, which: (edited - target[which]).square().mean()


def test_a_mask_finds_the_coordinates_that_must_move(generator):
    rows = torch.randn(400, 6, generator=generator)
    rows[:, 5] = 1.0  # never differs, so it has no gradient and stays out
    base, source, loss = swap(rows, torch.eye(6)[[1, 4]])
    mask = Mask(rotated(rows, torch.eye(6)))
    batches = list(torch.randperm(200, generator=generator).split(10))
    train(mask, base, source, batches, loss)
    assert mask.chosen().tolist() == [False, True, False, False, True, False]
    assert mask.logits[5] == 0 and mask.logits.abs().max() < 2 * len(batches) * 1.01e-3


def test_a_subspace_turns_to_what_no_coordinate_holds(generator):
    rows = torch.randn(400, 4, generator=generator)
    diagonal = torch.tensor([[1.0, 1, 0, 0]]) / math.sqrt(2)
    base, source, loss = swap(rows, diagonal)
    batches = list(torch.randperm(200, generator=generator).split(10))
    plain, learned = Mask(rotated(rows, torch.eye(4))), Subspace(rows)
    train(plain, base, source, batches, loss, epochs=20, learning_rate=1e-2)
    train(learned, base, source, batches, loss, epochs=20, learning_rate=1e-2)
    with torch.no_grad():
        stuck = loss(plain.space.edited(base, source, plain.chosen().float()), base)
        found = loss(learned.found().edited(base, source, learned.chosen().float()), base)
    axes = learned.axes.detach()
    torch.testing.assert_close(axes @ axes.T, torch.eye(4), atol=1e-5, rtol=0)
    assert learned.chosen().sum() == 1 and (axes[learned.chosen()] @ diagonal.T).abs() > 0.99
    assert found < 0.02 < 0.1 < stuck


def test_axes_keep_their_side_when_they_settle(generator):
    subspace = Subspace(torch.randn(3, 5, generator=generator))
    with torch.no_grad():
        subspace.axes.add_(0.01 * torch.randn(5, 5, generator=generator))
    before = subspace.axes.detach().clone()
    subspace.settle()
    assert (torch.nn.functional.cosine_similarity(subspace.axes, before) > 0.99).all()


def test_a_random_mask_is_of_the_same_size(generator):
    chosen = torch.arange(200) < 30
    drawn = [shuffled(chosen, generator) for _ in range(2)]
    assert [int(mask.sum()) for mask in drawn] == [30, 30] and not torch.equal(*drawn)


def test_coordinates_of_unequal_scale_are_in_the_models_units(generator):
    rows = torch.randn(12, 6, generator=generator)
    one, other = (latents(sae_of(torch.Generator().manual_seed(3), s), rows / s) for s in (1.0, 0.25))
    torch.testing.assert_close(one.codes, other.codes)
    torch.testing.assert_close(one.directions, other.directions * 0.25)
    assert one.codes.abs().max() > 0.1


def test_a_price_leaves_out_what_is_not_worth_it(generator):
    """Two coordinates lead to the goal, one by far more than the other; a price between the two keeps the first."""
    rows = torch.randn(64, 6, generator=generator)
    base, source = torch.randperm(64, generator=generator), torch.randperm(64, generator=generator)
    goal = rows[base].clone()
    goal[:, 0], goal[:, 1] = rows[source, 0], rows[base, 1] + 0.2 * (rows[source, 1] - rows[base, 1])
    chosen = {}
    for price in (0.0, 0.02, 5.0):
        mask = Mask(rotated(rows, torch.eye(6)), price)
        train(
            mask, base, source, list(torch.arange(64).split(16)),
            lambda edited, which: (edited - goal[which]).square().mean(), epochs=20, learning_rate=1e-2,
        )  # fmt: skip
        chosen[price] = mask.chosen().nonzero()[:, 0].tolist()
    assert chosen[0.0][0] == chosen[0.02][0] == 0 and len(chosen[0.02]) <= len(chosen[0.0]) and chosen[5.0] == []
    assert mask.cost(1.0) > 0 == Mask(mask.space).cost(1.0)
