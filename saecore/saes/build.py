"""The only registry: from specs to an SAE."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.saes import constraints
from saecore.saes.base import SAE
from saecore.spec import DICTIONARIES, ConstraintSpec, SAESpec, SpecError


def build(
    spec: SAESpec,
    constraint: ConstraintSpec,
    *,
    generator: torch.Generator,
    covariance: Float[Tensor, "d_model d_model"] | None = None,
    truth: Float[Tensor, "n_latents d_model"] | None = None,
) -> SAE:
    """An SAE at its start. ``covariance`` is needed for ``init="cov"``, ``truth`` for the oracle and ``init="truth"``.

    Encoder rows start parallel to decoder rows (``tied``), with the norm that Kaiming initialisation gives them in the
    public BatchTopK recipe. The same generator state gives the same start whatever the architecture and constraint, so
    that variants share it. ``pca`` and ``neurons`` have unit rows on both sides: their codes are coefficients.
    Raises SpecError where something needed is missing.
    """
    if constraint.init == "cov" and covariance is None:
        raise SpecError("init='cov' needs the data's covariance: pass covariance=source.covariance()")
    sae = SAE(spec)
    if constraint.name in DICTIONARIES:
        rows = _dictionary(constraint.name, spec.d_model, covariance)
        return _filled(sae, rows, rows)
    if constraint.init == "cov":
        assert covariance is not None
        start = constraints.cov(spec.n_latents, covariance, generator)
    else:
        start = constraints.iso(spec.n_latents, spec.d_model, generator)
    independent = constraints.iso(spec.n_latents, spec.d_model, generator)
    if constraint.name == "oracle" or constraint.init == "truth":
        if truth is None or truth.shape != start.shape:
            shape = None if truth is None else tuple(truth.shape)
            raise SpecError(f"an oracle or a start at the truth needs truth of shape {tuple(start.shape)}, got {shape}")
        start = truth.clone()
    return _filled(sae, start, (start if constraint.tied else independent) * encoder_norm(spec))


def _dictionary(
    name: str, d_model: int, covariance: Float[Tensor, "d_model d_model"] | None
) -> Float[Tensor, "two_d_model d_model"]:
    if name == "neurons":
        return constraints.neurons(d_model)
    assert covariance is not None  # pca has init="cov"
    return constraints.components(covariance)


def _filled(sae: SAE, decoder: Float[Tensor, "n_latents d_model"], encoder: Float[Tensor, "n_latents d_model"]) -> SAE:
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(encoder)
    return sae


def encoder_norm(spec: SAESpec) -> float:
    """RMS norm of a row under ``kaiming_uniform_`` of a (d_model, n_latents) matrix: sqrt(2 d_model / n_latents)."""
    return (2 * spec.d_model / spec.n_latents) ** 0.5
