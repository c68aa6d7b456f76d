"""Causal editing (RAVEL, Huang et al. 2024) as SAEBench runs it (Karvonen et al. 2025, ``sae_bench.evals.ravel``).

A mask over latents is trained so that what it takes from a source entity changes one attribute of a base entity (Cause)
and no other (Isolation). Their mean is the disentanglement. A mask that does nothing has Cause 0 and Isolation 1, one
that swaps everything about the reverse: the floor is one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saecore.metrics.evaluate import BATCH, rebuild
from saecore.saes.base import SAE

LEARNING_RATE, EPOCHS = 1e-3, 2
WARMEST, COLDEST = 1.0, 1e-4
"""Temperatures of the mask's sigmoid at the first and at the last step, with equal ratios between (SAEBench)."""
LEAST = 0.01
"""Between floor and ceiling; closer, and their ratio says nothing."""

Loss = Callable[[Float[Tensor, "batch d_model"], Int[Tensor, "batch"]], Float[Tensor, ""]]
"""From edited rows and the numbers of their pairs."""


@dataclass(frozen=True)
class Outcomes:
    """What edits led to: for each pair whether it asks for Cause, and whether the model then said what it should."""

    cause: Bool[Tensor, "pairs"]
    right: Bool[Tensor, "pairs"]

    def cause_score(self) -> float:
        """Share of the pairs that ask for the attribute of the mask and now tell the source's value."""
        return float(self.right[self.cause].double().mean())

    def isolation_score(self) -> float:
        """Share of the pairs that ask for another attribute and still tell the base's value."""
        return float(self.right[~self.cause].double().mean())

    def disentanglement(self) -> float:
        return (self.cause_score() + self.isolation_score()) / 2

    def scores(self) -> dict[str, float]:
        return {
            "cause": self.cause_score(),
            "isolation": self.isolation_score(),
            "disentanglement": self.disentanglement(),
        }


def share(score: float, floor: float, ceiling: float) -> float | None:
    """(score - floor) / (ceiling - floor); None where these are closer than ``LEAST``."""
    return (score - floor) / (ceiling - floor) if ceiling - floor >= LEAST else None


@dataclass(frozen=True)
class Coordinates:
    """Rows of a model's residual stream in the coordinates in which they are edited, all in the model's own units.

    ``rows`` are what stands there, ``rebuilt`` what the codes give back: rebuilt = codes @ directions + constant.
    """

    rows: Float[Tensor, "rows d_model"]
    rebuilt: Float[Tensor, "rows d_model"]
    codes: Float[Tensor, "rows coordinates"]
    directions: Float[Tensor, "coordinates d_model"]

    def edited(
        self,
        base: Int[Tensor, "batch"],
        source: Int[Tensor, "batch"],
        weight: Float[Tensor, "coordinates"],
        with_error: bool = False,
    ) -> Float[Tensor, "batch d_model"]:
        """decode((1 - w) z_base + w z_source), and with the error what the codes lack of the base: x - decode(z)."""
        anchor = self.rows if with_error else self.rebuilt
        return anchor[base] + ((self.codes[source] - self.codes[base]) * weight) @ self.directions


@torch.no_grad()
def latents(sae: SAE, rows: Float[Tensor, "rows d_model"]) -> Coordinates:
    """The latents that fire on any of a model's own rows. A mask's gradient on the others is zero: they stay out."""
    rebuilt, codes = [], []
    for part in (rows * sae.scale).split(BATCH):
        x_hat, sparse = rebuild(sae, part)
        rebuilt.append(x_hat.to(rows.device))
        codes.append(torch.from_numpy(sparse.dense(sae.spec.n_latents)))
    dense = torch.cat(codes)
    live = (dense != 0).any(0)
    directions = sae.W_dec.detach()[live.to(sae.W_dec.device)] / sae.scale
    return Coordinates(rows, torch.cat(rebuilt) / sae.scale, dense[:, live].to(rows), directions.to(rows))


def rotated(rows: Float[Tensor, "rows d_model"], axes: Float[Tensor, "d_model d_model"]) -> Coordinates:
    """Coordinates along orthonormal axes, which are the rows of ``axes``: nothing is lost."""
    return Coordinates(rows, rows, rows @ axes.T, axes)


@runtime_checkable
class Edit(Protocol):
    """What is trained."""

    def edited(
        self, base: Int[Tensor, "batch"], source: Int[Tensor, "batch"], temperature: float
    ) -> Float[Tensor, "batch d_model"]: ...

    def cost(self, temperature: float) -> Float[Tensor, ""] | float:
        """What is added to the loss."""
        ...

    def parameters(self) -> list[Tensor]: ...

    def settle(self) -> None:
        """After every step: back to where it may be."""
        ...


class Mask:
    """A binary mask over coordinates, learned as sigmoid(logits / temperature); what it has chosen is logits > 0.

    ``price``: of each coordinate in the mask, in units of the loss; SAEBench has none.
    """

    def __init__(self, space: Coordinates, price: float = 0.0) -> None:
        self.space, self.price = space, price
        self.logits = nn.Parameter(space.codes.new_zeros(space.codes.shape[1]))

    def edited(
        self, base: Int[Tensor, "batch"], source: Int[Tensor, "batch"], temperature: float
    ) -> Float[Tensor, "batch d_model"]:
        return self.space.edited(base, source, torch.sigmoid(self.logits / temperature))

    def cost(self, temperature: float) -> Float[Tensor, ""] | float:
        return self.price * torch.sigmoid(self.logits / temperature).sum() if self.price else 0.0

    def parameters(self) -> list[Tensor]:
        return [self.logits]

    def settle(self) -> None:
        pass

    def chosen(self) -> Bool[Tensor, "coordinates"]:
        return self.logits.detach() > 0


class Subspace(Mask):
    """MDAS (Huang et al. 2024): the axes of the mask are learned with it, any rotation of the residual stream."""

    def __init__(self, rows: Float[Tensor, "rows d_model"]) -> None:
        self.axes = nn.Parameter(torch.eye(rows.shape[1]).to(rows))
        super().__init__(rotated(rows, self.axes.detach()))

    def edited(
        self, base: Int[Tensor, "batch"], source: Int[Tensor, "batch"], temperature: float
    ) -> Float[Tensor, "batch d_model"]:
        change = (self.space.rows[source] - self.space.rows[base]) @ self.axes.T
        return self.space.rows[base] + (change * torch.sigmoid(self.logits / temperature)) @ self.axes

    def parameters(self) -> list[Tensor]:
        return [self.logits, self.axes]

    @torch.no_grad()
    def settle(self) -> None:
        """The axes become orthonormal again; each keeps its side, so that Adam's moments still point along it."""
        q, r = torch.linalg.qr(self.axes.T)
        self.axes.copy_((q * r.diagonal().sign()).T)

    def found(self) -> Coordinates:
        return rotated(self.space.rows, self.axes.detach())


def train(
    edit: Edit,
    base: Int[Tensor, "pairs"],
    source: Int[Tensor, "pairs"],
    batches: Sequence[Int[Tensor, "batch"]],
    loss: Loss,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
) -> None:
    """Adam on ``loss`` and the edit's own cost, over the same batches of pairs each epoch, as the temperature falls."""
    optimiser = torch.optim.Adam(edit.parameters(), lr=learning_rate)
    order = [which for _ in range(epochs) for which in batches]
    for which, temperature in zip(order, temperatures(len(order)), strict=True):
        optimiser.zero_grad()
        (loss(edit.edited(base[which], source[which], temperature), which) + edit.cost(temperature)).backward()
        optimiser.step()
        edit.settle()


def temperatures(steps: int) -> list[float]:
    """From ``WARMEST`` to ``COLDEST`` with equal ratios."""
    ratio = COLDEST / WARMEST
    return [WARMEST * ratio ** (step / max(1, steps - 1)) for step in range(steps)]


def shuffled(chosen: Bool[Tensor, "coordinates"], generator: torch.Generator) -> Bool[Tensor, "coordinates"]:
    """A random mask of the same size."""
    return chosen[torch.randperm(len(chosen), generator=generator).to(chosen.device)]
