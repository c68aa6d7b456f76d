"""What every engine trains on: one shape, one stream of batches, one start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

HELD_OUT_BATCHES = 4
POOL_BYTES = 64 << 20
"""The stream repeats after this much data, so that it does not decide anyone's peak memory."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison, and what all engines use for it.

    Training amplifies rounding: plain loops whose starts differ by 3e-6 end about 0.02 % apart on
    ``synthetic`` and 0.2 % apart on ``small``. At three times that rate
    ``small`` would fail the 1 % check against itself.
    """

    d_model: int
    n_features: int
    n_latents: int
    k: int
    batch_size: int
    learning_rate: float
    steps: int  # after the warm-up, before the loss is taken, unless the command line says otherwise

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n_latents:
            raise ValueError(f"k={self.k} must lie between 1 and n_latents={self.n_latents}")


SHAPES = {
    "synthetic": Shape(
        d_model=100, n_features=3200, n_latents=3200, k=20, batch_size=2048, learning_rate=3e-3, steps=100
    ),
    "small": Shape(d_model=128, n_features=512, n_latents=512, k=8, batch_size=2048, learning_rate=1e-3, steps=200),
    "big": Shape(d_model=768, n_features=1024, n_latents=6144, k=32, batch_size=1024, learning_rate=1e-3, steps=60),
}


@dataclass(frozen=True)
class Problem:
    """Start and data. ``start``: unit decoder rows, which the encoder copies; both biases start at zero."""

    start: Float[Tensor, "n_latents d_model"]
    stream: Float[Tensor, "n_batches batch d_model"]
    held_out: Float[Tensor, "n_held_out batch d_model"]

    def batch(self, step: int) -> Float[Tensor, "batch d_model"]:
        """The rows of a step; the stream starts again where it ends."""
        return self.stream[step % len(self.stream)]

    def save(self, path: Path) -> None:
        save_file({"start": self.start, "stream": self.stream, "held_out": self.held_out}, path)

    @staticmethod
    def load(path: Path) -> Problem:
        return Problem(**load_file(path))


def make(shape: Shape, steps: int, generator: torch.Generator) -> Problem:
    """Sparse data x = sum_i b_i c_i f_i with ``n_features`` unit vectors f_i and c_i ~ LogNormal(0, 0.25).

    The probabilities of b_i are log-uniform over three decades and sum to ``k``. Rows are scaled to a mean
    squared norm of 1/2. That keeps the norm of the gradient below 1, where two peers clip it unasked.
    """
    features = _unit_rows(shape.n_features, shape.d_model, generator)
    probabilities = 10 ** (-3 * torch.rand(shape.n_features, generator=generator))
    probabilities = (probabilities * (shape.k / probabilities.sum())).clamp_max(0.5)

    def batch() -> Tensor:
        size = (shape.batch_size, shape.n_features)
        active = torch.rand(size, generator=generator) < probabilities
        row, feature = active.nonzero(as_tuple=True)
        codes = torch.zeros(size)
        codes[row, feature] = (0.25 * torch.randn(len(row), generator=generator)).exp()
        return codes @ features

    count = min(steps, max(1, POOL_BYTES // (4 * shape.batch_size * shape.d_model)))
    stream = torch.stack([batch() for _ in range(count)])
    held_out = torch.stack([batch() for _ in range(HELD_OUT_BATCHES)])
    scale = (2 * stream.square().sum(-1).mean()).rsqrt()
    return Problem(_unit_rows(shape.n_latents, shape.d_model, generator), stream * scale, held_out * scale)


def _unit_rows(count: int, width: int, generator: torch.Generator) -> Float[Tensor, "count width"]:
    rows = torch.randn(count, width, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)
