"""The sparse autoencoder, in its inference form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saecore import kernels
from saecore.kernels.batch_topk import dense, reference
from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.spec import SAESpec

ROOM = 4
"""Times ``l0`` codes a row for which the Triton path has room. Not measured on a GPU yet: a batch that is denser is no
longer what the SAE was trained for."""


class UnreadableError(ValueError):
    """Rows that hold NaN or infinity, which no SAE can read."""


class SAE(nn.Module):
    """x_hat = W_dec^T z + b_dec, with z a sparse, non-negative function of W_enc (x - b_dec) + b_enc.

    Rows of ``W_enc`` and ``W_dec`` are latents; decoder rows have unit norm. TopK keeps the ``l0`` largest
    pre-activations of a row; every other architecture keeps those above ``threshold`` (ReLU: zero; JumpReLU: learned
    per latent; BatchTopK and its kin: the running mean of the smallest code kept in training).
    ``scale`` is what the model's own activations are multiplied by before the SAE sees them; ``rebuild`` does it.
    """

    threshold: Float[Tensor, "n_latents"]
    scale: Float[Tensor, ""]

    def __init__(self, spec: SAESpec) -> None:
        super().__init__()
        self.spec = spec
        m, d = spec.n_latents, spec.d_model
        self.W_enc = nn.Parameter(torch.empty(m, d))
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.W_dec = nn.Parameter(torch.empty(m, d))
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.register_buffer("threshold", torch.full((m,), torch.nan))
        self.register_buffer("scale", torch.ones(()))
        if spec.architecture == "relu":
            self.threshold.zero_()

    @property
    def selects_per_row(self) -> bool:
        return self.spec.selects_by_rank and self.spec.rows_per_selection(2) == 1

    def encoder_input(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """What the encoder sees: x - b_dec, or x for JumpReLU."""
        return x - self.b_dec if self.spec.centred else x

    def preactivations(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_latents"]:
        return torch.addmm(self.b_enc, self.encoder_input(x), self.W_enc.T)

    def ranking_weight(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch"] | None:
        """What multiplies a row's pre-activations before they are ranked or compared with the threshold."""
        return 1 / self.encoder_input(x).norm(dim=1).clamp_min(1e-12) if self.spec.rescale else None

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_latents"]:
        """Codes in the inference form: a row's codes do not depend on the rest of the batch.

        Raises ValueError if ``x`` holds NaN or infinity, or if no threshold was ever set.
        """
        self.check_input(x)
        pre = self.preactivations(x)
        if self.selects_per_row:
            mask = dense.select_ranked(pre, self.spec.l0, 1)
        else:
            weight = self.ranking_weight(x)
            scores = pre if weight is None else pre * weight[:, None]
            mask = reference.select_above(scores, self.checked_threshold())
        return pre * mask

    def decode(self, codes: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_model"]:
        return torch.addmm(self.b_dec, codes, self.W_dec)

    def forward(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        return self.decode(self.encode(x))

    def rebuild(self, activations: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """A model's own activations through the SAE and back to their own scale."""
        return self(activations * self.scale) / self.scale

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "batch d_model"]) -> SparseCodes:
        """:meth:`encode` as SparseCodes, by the Triton or the compiled path where there is one.

        The Triton path has room for ``ROOM`` times ``spec.l0`` codes a row above a threshold; where a batch has more,
        it is encoded densely.
        """
        self.check_input(x)
        if kernels.triton_path(x):
            with torch.cuda.device_of(x):  # where Triton launches, whatever the tensors are on
                codes = self._encode_on_device(x)
            return SparseCodes.from_dense(self.encode(x)) if codes is None else codes
        if not kernels.fast_path(x):
            return SparseCodes.from_dense(self.encode(x))
        from saecore.kernels.batch_topk import cpu

        seen, weight = self.encoder_input(x), self.ranking_weight(x)
        if self.selects_per_row:
            return cpu.select_ranked(seen, self.W_enc.detach(), self.spec.l0, 1)[0]
        ranked = seen if weight is None else seen * weight[:, None]
        codes = cpu.select_above(ranked, self.W_enc.detach(), self.b_enc.detach(), self.checked_threshold())
        assert codes is not None
        if weight is not None:
            codes.values /= weight.repeat_interleave(torch.from_numpy(codes.indptr).diff()).numpy()
        return codes

    def _encode_on_device(self, x: Float[Tensor, "batch d_model"]) -> SparseCodes | None:
        """Codes by the Triton path; None where there is too little room."""
        from saecore.kernels.batch_topk import triton

        if self.selects_per_row:
            return triton.select_ranked(self.preactivations(x), self.spec.l0, 1)[0].to_host()
        seen, weight = self.encoder_input(x), self.ranking_weight(x)
        ranked = seen if weight is None else seen * weight[:, None]
        room = min(ROOM * self.spec.l0, self.spec.n_latents) * len(x)
        codes, overflow = triton.encode_above(ranked, self.W_enc.data, self.b_enc.data, self.checked_threshold(), room)
        if overflow:
            return None
        if weight is not None:
            codes.values /= weight.index_select(0, codes.rows.clamp_max(len(x) - 1))
        return codes.to_host()

    def checked_threshold(self) -> Float[Tensor, "n_latents"]:
        if self.threshold.isnan().any():
            raise ValueError(
                f"this {self.spec.architecture} SAE has no inference threshold: "
                "train it or call saecore.training.calibrate(sae, source) first"
            )
        return self.threshold.detach()

    def check_input(self, x: Float[Tensor, "batch d_model"]) -> None:
        if x.ndim != 2 or x.shape[1] != self.spec.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}; this SAE takes (batch, {self.spec.d_model})")
        bad = ~torch.isfinite(x).all(1)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise UnreadableError(
                f"x holds NaN or infinity in {int(bad.sum())} of {len(x)} rows (first: row {row}); "
                "drop those rows or mend the source"
            )
