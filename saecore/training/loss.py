"""The training losses, in plain PyTorch under autograd: the definition that the compiled path must agree with.

Squared errors are summed over dimensions and averaged over rows. Weights quoted by papers for a mean over elements
keep their meaning, because every term is scaled alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saecore.saes.base import SAE
from saecore.training.ranks import ALONE, Alone


@dataclass
class Loss:
    """What one batch gives."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    codes: Float[Tensor, "batch n_latents"]
    threshold: float | None  # smallest score kept, averaged over groups; None where nothing is ranked


class JumpReLU(torch.autograd.Function):
    """z = pre * (pre > theta), with the straight-through gradient of Rajamanoharan et al. 2024 (eq. 11) for theta."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth):
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.bandwidth / 2
        return grad * (pre > theta), -(grad * near).sum(0) * theta / ctx.bandwidth, None


class Step(torch.autograd.Function):
    """1(pre > theta), with the straight-through gradient of Rajamanoharan et al. 2024 (eq. 12) for theta."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth):
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.bandwidth / 2
        return None, -(grad * near).sum(0) / ctx.bandwidth, None


def training_loss(
    sae: SAE,
    x: Float[Tensor, "batch d_model"],
    theta: Float[Tensor, "n_latents"],
    penalty: float,
    dead: Bool[Tensor, "n_latents"],
    with_ortho: bool,
    ranks: Alone = ALONE,
) -> Loss:
    """The loss of one batch. ``theta`` is JumpReLU's threshold as a leaf, ``penalty`` the weight of L1 or L0.

    ``x`` and ``sae`` are what this one of the ``ranks`` holds.
    """
    spec = sae.spec
    pre = sae.preactivations(x)
    threshold = None
    total = pre.new_zeros(())
    if spec.architecture == "relu":
        codes = pre.relu()
        total = total + penalty * codes.sum(1).mean()
    elif spec.architecture == "jump_relu":
        codes = JumpReLU.apply(pre, theta, spec.bandwidth)
        total = total + penalty * Step.apply(pre, theta, spec.bandwidth).sum(1).mean()
    else:
        weight = sae.ranking_weight(x)
        scores = (pre if weight is None else pre * weight[:, None]).detach()
        rows = spec.rows_per_selection(ranks.batch(len(x)))
        mask = ranks.select_dense(scores, spec.l0, rows)
        codes = pre * mask
        threshold = smallest_kept(scores, mask, rows, ranks)
    reconstruction = pre.new_zeros(())
    for end in spec.group_ends():
        rebuilt = sae.decode(torch.cat([codes[:, :end], codes.new_zeros(len(x), spec.n_latents - end)], 1))
        error = rebuilt - ranks.target(x, rebuilt.detach(), sae.b_dec.detach())
        reconstruction = reconstruction + error.square().sum(1).mean() / len(spec.group_ends())
    total = total + reconstruction
    if spec.has_auxiliary_loss and ranks.count(dead):
        total = total + spec.aux_coefficient * auxiliary(sae, pre, -error.detach(), dead, ranks)
    if spec.architecture == "ortho" and with_ortho:
        total = total + spec.ortho_coefficient * spec.ortho_every * spec.d_model * orthogonality(sae.W_dec)
    return Loss(total, reconstruction, codes.detach(), threshold)


def smallest_kept(
    scores: Float[Tensor, "batch n_latents"], mask: Bool[Tensor, "batch n_latents"], rows: int, ranks: Alone = ALONE
) -> float:
    """Mean over groups of rows of the smallest score kept."""
    per_row = torch.where(mask, scores, torch.inf).amin(1)
    padded = torch.nn.functional.pad(per_row, (0, -len(per_row) % rows), value=torch.inf)
    return ranks.mean_smallest(padded.view(-1, rows).amin(1).cpu().numpy(), rows > len(scores))


def auxiliary(
    sae: SAE,
    pre: Float[Tensor, "batch n_latents"],
    residual: Float[Tensor, "batch d_model"],
    dead: Bool[Tensor, "n_latents"],
    ranks: Alone = ALONE,
) -> Float[Tensor, ""]:
    """The residual explained by the ``aux_k`` strongest dead latents (Gao et al. 2024, Sec. 2.4; no normalisation)."""
    pre = pre[:, dead]
    rebuilt = (pre * ranks.select_dense(pre.detach(), sae.spec.aux_k, 1)) @ sae.W_dec[dead]
    return (rebuilt - ranks.target(residual, rebuilt.detach())).square().sum(1).mean()


def orthogonality(W_dec: Float[Tensor, "n_latents d_model"]) -> Float[Tensor, ""]:
    """Mean over latents of the squared largest cosine to another latent (OrtSAE, Korznikov et al. 2025; one chunk)."""
    with torch.no_grad():
        cosines = W_dec @ W_dec.T
        cosines.fill_diagonal_(-torch.inf)
        nearest = cosines.argmax(1)
    return (W_dec * W_dec[nearest]).sum(1).square().mean()
