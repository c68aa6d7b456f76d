"""The training losses by hand, one term at a time."""

import pytest
import torch

from saecore.saes.base import SAE
from saecore.spec import SAESpec
from saecore.training.loss import JumpReLU, Step, auxiliary, orthogonality, smallest_kept, training_loss

NOBODY = torch.zeros(3, dtype=torch.bool)


def sae_of(architecture: str, **fields) -> SAE:
    """Pre-activations of x = (2, 1): 2, 1, -2; decoder e1, e2, -e1."""
    sae = SAE(SAESpec(architecture, d_model=2, n_latents=3, l0=1, **fields))
    sae.W_enc.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    sae.W_dec.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    return sae


X = torch.tensor([[2.0, 1.0], [0.5, 3.0]])


def loss_of(sae: SAE, x=X, theta=None, penalty=0.0, dead=NOBODY, with_ortho=False):
    theta = torch.zeros(3) if theta is None else theta
    found = training_loss(sae, x, theta, penalty, dead, with_ortho)
    return found, float(found.total.detach()), float(found.reconstruction.detach())


def test_topk_loses_what_its_row_does_not_keep():
    """Row 1 keeps 2 and loses 1; row 2 keeps 3 and loses 0.5."""
    loss, total, reconstruction = loss_of(sae_of("topk"))
    assert total == reconstruction == pytest.approx((1 + 0.25) / 2)
    assert loss.codes.tolist() == [[2, 0, 0], [0, 3, 0]]
    assert loss.threshold == pytest.approx(2.5)  # mean of 2 and 3


def test_batch_topk_shares_its_budget():
    """Two codes for the batch (2.5, 1), (0.5, 3): 2.5 and 3. Three rows with one code each: the largest three."""
    x = torch.tensor([[2.5, 1.0], [0.5, 3.0], [0.2, 2.8]])
    loss, total, _ = loss_of(sae_of("batch_topk"), x)
    assert loss.codes.tolist() == [[2.5, 0, 0], [0, 3, 0], [0, pytest.approx(2.8), 0]]
    assert total == pytest.approx((1 + 0.25 + 0.04) / 3)
    assert loss.threshold == 2.5


def test_groups_between_one_row_and_the_batch():
    x = torch.tensor([[5.0, 4.0], [1.0, 0.5], [2.0, 1.0]])
    loss, _, _ = loss_of(sae_of("batch_topk", group_size=2), x)
    assert loss.codes.tolist() == [[5, 4, 0], [0, 0, 0], [2, 0, 0]]
    assert loss.threshold == 3  # mean of 4 (first group) and 2 (last group, one row)


def test_rescaling_ranks_by_share_of_the_input():
    """Rows (4, 3) / 5 and (1, 0): shares 0.8, 0.6 and 1, so the second row's 1 goes before the first row's 3."""
    x = torch.tensor([[4.0, 3.0], [1.0, 0.0]])
    assert loss_of(sae_of("batch_topk", rescale=True), x)[0].codes.tolist() == [[4, 0, 0], [1, 0, 0]]
    assert loss_of(sae_of("batch_topk", rescale=False), x)[0].codes.tolist() == [[4, 3, 0], [0, 0, 0]]


def test_relu_pays_for_the_size_of_its_codes():
    """Codes 2, 1 and 0.5, 3: rebuilt exactly, so only 0.1 times the mean L1 norm (3 and 3.5) is left."""
    loss, total, reconstruction = loss_of(sae_of("relu"), penalty=0.1)
    assert reconstruction == 0 and total == pytest.approx(0.1 * 3.25)
    assert loss.threshold is None


def test_jump_relu_pays_for_the_number_of_its_codes():
    """Above 0.75: 2, 1 and 3, so one row loses 0.5 and 1.5 codes a row cost 0.1 each."""
    loss, total, reconstruction = loss_of(sae_of("jump_relu"), theta=torch.full((3,), 0.75), penalty=0.1)
    assert loss.codes.tolist() == [[2, 1, 0], [0, 3, 0]]
    assert reconstruction == pytest.approx(0.125) and total == pytest.approx(0.125 + 0.15)


def test_matryoshka_averages_over_its_prefixes():
    """Prefixes of one and of three latents; both codes of the batch: 2.5 on e1, 3 on e2."""
    sae = sae_of("matryoshka", fractions=(1 / 3, 2 / 3))
    x = torch.tensor([[2.5, 1.0], [0.5, 3.0]])
    first, whole = (1 + 9.25) / 2, (1 + 0.25) / 2
    assert loss_of(sae, x)[1] == pytest.approx((first + whole) / 2)


def test_the_threshold_s_gradients_are_those_of_the_paper():
    """Window 1 around theta = 1 holds 0.6 and 1.4, not 1.6. dz/dtheta = -theta / window, dH/dtheta = -1 / window."""
    pre = torch.tensor([[0.6], [1.4], [1.6]], requires_grad=True)
    theta, weight = torch.tensor([1.0], requires_grad=True), torch.tensor([[2.0], [3.0], [5.0]])
    (JumpReLU.apply(pre, theta, 1.0) * weight).sum().backward()
    assert theta.grad is not None and pre.grad is not None
    assert theta.grad.item() == pytest.approx(-(2 + 3) * 1.0)
    assert pre.grad.flatten().tolist() == [0, 3, 5]
    (of_step,) = torch.autograd.grad((Step.apply(pre, theta, 0.9) * weight).sum(), theta)
    assert of_step.item() == pytest.approx(-(2 + 3) / 0.9)


def test_dead_latents_explain_the_residual():
    """Two dead latents, the stronger one allowed: pre-activation 1 on e2 against the residual (0, 3)."""
    sae = sae_of("topk", aux_k=1, aux_coefficient=0.5)
    dead = torch.tensor([False, True, True])
    pre = torch.tensor([[2.0, 1.0, -2.0]])
    assert float(auxiliary(sae, pre, torch.tensor([[0.0, 3.0]]), dead).detach()) == pytest.approx(4.0)
    assert loss_of(sae, X[:1], dead=dead)[1] == pytest.approx(1 + 0.5 * 0)  # the residual (0, 1) is explained
    assert loss_of(sae, X[:1])[1] == pytest.approx(1)


def test_a_dead_latent_that_points_away_explains_nothing():
    sae = sae_of("topk", aux_k=1)
    dead = torch.tensor([False, False, True])
    found = auxiliary(sae, torch.tensor([[2.0, 1.0, -2.0]]), torch.tensor([[3.0, 0.0]]), dead)
    assert float(found.detach()) == 9


@pytest.mark.parametrize("architecture", ["relu", "jump_relu"])
def test_architectures_without_it_have_no_auxiliary_loss(architecture):
    sae = sae_of(architecture, aux_k=1)
    everyone = torch.ones(3, dtype=torch.bool)
    assert loss_of(sae, dead=everyone)[1] == loss_of(sae)[1]


def test_orthogonality_is_the_squared_cosine_to_the_nearest():
    """Cosines 0.6 (rows 1, 2) and 0.8 (rows 2, 3); 0 between 1 and 3: (0.36 + 0.64 + 0.64) / 3."""
    W = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    assert float(orthogonality(W)) == pytest.approx(1.64 / 3)


def test_ortho_adds_it_every_few_steps_scaled_to_the_sum():
    sae = sae_of("ortho", ortho_coefficient=0.5, ortho_every=3)
    sae.W_dec.data = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    plain, with_it = loss_of(sae)[1], loss_of(sae, with_ortho=True)[1]
    assert with_it - plain == pytest.approx(0.5 * 3 * 2 * 1.64 / 3, rel=1e-5)


def test_the_smallest_kept_is_averaged_over_groups_that_keep_any():
    scores = torch.tensor([[5.0, 1], [4, 2], [3, 3], [9, 9]])
    mask = torch.tensor([[True, False], [True, True], [False, False], [False, False]])
    assert smallest_kept(scores, mask, 1) == pytest.approx((5 + 2) / 2)
    assert smallest_kept(scores, mask, 2) == 2
    assert smallest_kept(scores, torch.zeros_like(mask), 2) == 0
