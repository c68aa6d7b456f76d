"""What a language model loses when its residual stream is replaced by a reconstruction (paper, Sec. 4.2)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from saecore.activations.models import Replace, ResidualModel, TokenBatch
from saecore.activations.rows import by_length
from saecore.activations.source import ActivationSource
from saecore.saes.base import SAE
from saecore.sources import text
from saecore.sources.base import Source

TOKENS = 16_384
"""Held-out predictions on which a reconstruction is judged."""
POSITIONS = 1024
"""Positions in a batch; logits take ``POSITIONS * vocabulary`` numbers."""
CHUNK = 256
"""Predictions that are compared at once, and rows that an SAE rebuilds at once."""
LEAST = 0.01
"""Nats between floor and ceiling below which their ratio says nothing."""


@dataclass
class Loss:
    """Sums over predicted tokens, in float64: cross-entropy and the divergence from another model's predictions.

    A token counts where the position before it was kept: there the residual stream was replaced.
    """

    tokens: int = 0
    _cross_entropy: float = 0.0
    _kl: float = 0.0

    def update(
        self,
        logits: Float[Tensor, "batch seq vocabulary"],
        tokens: TokenBatch,
        reference: Float[Tensor, "batch seq vocabulary"] | None = None,
    ) -> None:
        """Add a batch; ``reference`` are the logits from which the divergence is counted (default: no divergence)."""
        rows, places = counted_predictions(tokens).nonzero(as_tuple=True)
        self.tokens += len(rows)
        for row, place in zip(rows.split(CHUNK), places.split(CHUNK), strict=True):
            predicted = F.log_softmax(logits[row, place].float(), dim=1)
            self._cross_entropy += float(
                F.nll_loss(predicted, tokens.ids[row, place + 1], reduction="none").double().sum()
            )
            if reference is not None:
                wanted = F.log_softmax(reference[row, place].float(), dim=1)
                self._kl += float((wanted.exp() * (wanted - predicted)).sum(1).double().sum())

    def cross_entropy(self) -> float:
        """Mean of -log q(token), in nats. Raises ValueError without tokens."""
        return self._cross_entropy / self._counted()

    def kl(self) -> float:
        """Mean of sum_t p(t) log(p(t) / q(t)), in nats, p the reference. Raises ValueError without tokens."""
        return self._kl / self._counted()

    def _counted(self) -> int:
        if not self.tokens:
            raise ValueError("no token follows a kept position: the text is empty or every document has one token")
        return self.tokens


def counted_predictions(tokens: TokenBatch) -> Bool[Tensor, "batch seq_less_one"]:
    """Positions whose residual is kept and which a real token follows."""
    return tokens.keep[:, :-1] & tokens.attention[:, 1:]


@dataclass(frozen=True)
class HeldOutText:
    """A model, the block after which its residual stream is replaced, and text that no SAE was trained on.

    ``mean`` is the mean residual there, in raw units: what mean ablation puts in place. Rows with a norm above
    ``norm_limit`` are no SAE's business (activations.scale) and stay as they are.
    """

    model: ResidualModel
    layer: int
    batches: tuple[TokenBatch, ...]
    mean: Float[Tensor, "d_model"]
    norm_limit: float = math.inf

    def usual(self, replace: Replace) -> Replace:
        """``replace`` with massive rows left as they are."""

        def put(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
            return torch.where(rows.norm(dim=1, keepdim=True) > self.norm_limit, rows, replace(rows))

        return put

    @torch.no_grad()
    def loss(self, replace: Replace) -> Loss:
        """The loss with the kept residuals replaced, and its divergence from the model as it is."""
        found, put = Loss(), self.usual(replace)
        for tokens in self.batches:
            found.update(self.model.logits_with(tokens, self.layer, put), tokens, self.model.logits(tokens))
        return found

    def bounds(self) -> Bounds:
        """The model as it is, and with its residual stream replaced by its mean or by zero."""
        mean = self.mean
        return Bounds(
            self.loss(lambda rows: rows), self.loss(lambda rows: mean.expand_as(rows)), self.loss(torch.zeros_like)
        )

    def spliced(self, sae: SAE) -> Loss:
        """The loss with the SAE's reconstruction in place of the residual stream."""
        return self.loss(lambda rows: torch.cat([sae.rebuild(part) for part in rows.split(CHUNK)]))


@dataclass(frozen=True)
class Bounds:
    """Between what a reconstruction is read: ceiling ``model``, floor ``mean_ablation``."""

    model: Loss
    mean_ablation: Loss
    zero_ablation: Loss

    def values(self, loss: Loss) -> dict[str, float]:
        """The metrics of a loss by their names in the ledger.

        ``ce_recovered`` = (CE_floor - CE) / (CE_floor - CE_model); it is left out where those two are closer than
        ``LEAST``, because the layer then holds nothing that could be recovered, as with random weights.
        """
        found = {"cross_entropy": loss.cross_entropy(), "kl": loss.kl()}
        floor, ceiling = self.mean_ablation.cross_entropy(), self.model.cross_entropy()
        if floor - ceiling >= LEAST:
            found["ce_recovered"] = (floor - loss.cross_entropy()) / (floor - ceiling)
        return found


def held_out(model: ResidualModel, source: Source, tokens: int = TOKENS) -> HeldOutText:
    """The first documents of the source's held-out split, until ``tokens`` predictions count.

    Raises ValueError where the model predicts no tokens.
    """
    spec = source.spec
    if not model.has_logits:
        raise ValueError(f"{model.name} has no language-model head; cross-entropy and KL are defined for decoders only")
    found, batches, documents = 0, [], text.documents(spec.dataset, "test")
    while part := list(itertools.islice(documents, max(1, POSITIONS // spec.context))):
        batches += by_length(model.tokenize(part, spec.context), POSITIONS)
        found = sum(int(counted_predictions(batch).sum()) for batch in batches)
        if found >= tokens:
            break
    mean = (source.start_bias() / source.scale).to(model.device)
    return HeldOutText(model, spec.layer, tuple(batches), mean, norm_limit(source))


def norm_limit(source: Source) -> float:
    """The raw norm above which a row is massive, and was left out of training (activations.scale)."""
    return source.input_scale.norm_limit if isinstance(source, ActivationSource) else math.inf
