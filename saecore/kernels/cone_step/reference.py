"""Definition of the steps, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 1e-12


def project_to_cone(
    W: Float[Tensor, "n_latents d_model"], start: Float[Tensor, "n_latents d_model"], tau: float
) -> Float[Tensor, "n_latents d_model"]:
    """The unit rows nearest to the unit rows ``W`` whose cosine to ``start`` (unit rows) is at least ``tau``.

    Where the cosine is below tau: w <- tau w0 + sqrt(1 - tau^2) unit(w - (w.w0) w0). A row exactly opposite to its
    start, or zero, has no side to turn to: it goes back to the start.
    """
    cosine = (W * start).sum(1, keepdim=True)
    side = W - cosine * start
    length = side.norm(dim=1, keepdim=True)
    edge = tau * start + (1 - tau**2) ** 0.5 * side / length.clamp_min(SMALL)
    moved = torch.where(length > 1e-6, edge, start)
    return torch.where(cosine < tau, moved, W)


def adam(
    W: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    rate: float,
    beta1: float,
    beta2: float,
    count: int,
    eps: float = 1e-8,
) -> None:
    """Adam in place; ``count`` is 1 at the first step."""
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    W.sub_(rate * (m / (1 - beta1**count)) / ((v / (1 - beta2**count)).sqrt() + eps))


def unit_rows_step(
    W: Float[Tensor, "n_latents d_model"],
    grad: Float[Tensor, "n_latents d_model"],
    m: Float[Tensor, "n_latents d_model"],
    v: Float[Tensor, "n_latents d_model"],
    rate: float,
    beta1: float,
    beta2: float,
    count: int,
    start: Float[Tensor, "n_latents d_model"] | None = None,
    tau: float = 0.0,
) -> None:
    """Adam on unit rows in place: parallel gradient removed before, unit norm and cone (if ``start``) after."""
    grad = grad - (grad * W).sum(1, keepdim=True) * W
    adam(W, grad, m, v, rate, beta1, beta2, count)
    W.div_(W.norm(dim=1, keepdim=True).clamp_min(SMALL))
    if start is not None:
        W.copy_(project_to_cone(W, start, tau))
