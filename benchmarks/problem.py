"""What every engine trains on: one shape, one stream of batches, one start."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

HELD_OUT_BATCHES = 4
POOL_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""The stream repeats after this much data, so that it does not decide anyone's peak memory."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison, and what all engines use for it.

    Training amplifies rounding: plain loops whose starts differ by 3e-6 end about 0.02 % apart on
    ``synthetic`` and 0.2 % apart on ``small``. At three times that rate
    ``small`` would fail the 1 % check against itself. The large shapes have as many features as dimensions, so that
    few steps teach enough to be checked.
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

    def __str__(self) -> str:
        return f"{self.d_model}x{self.n_latents}-k{self.k}-b{self.batch_size}"

    @staticmethod
    def named(name: str) -> Shape:
        """A shape of ``SHAPES``, or one written out, as 256x4096-k16-b1024. Raises ValueError for another name."""
        if name in SHAPES:
            return SHAPES[name]
        sizes = re.fullmatch(r"(\d+)x(\d+)-k(\d+)-b(\d+)", name)
        if sizes is None:
            raise ValueError(f"shape {name!r} is none of {', '.join(SHAPES)}, nor written like 256x4096-k16-b1024")
        d, m, k, batch = map(int, sizes.groups())
        rate = round(0.03 / d**0.5, 6)  # a step moves a unit row by about 3 % of its length
        return Shape(d, d, m, k, batch, rate, steps=15)


def _read(path: Path) -> dict[str, Shape]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    kinds: dict[str, Callable[[str], Any]]
    kinds = {name: float if name == "learning_rate" else int for name in Shape.__annotations__}
    return {line["name"]: Shape(**{name: kind(line[name]) for name, kind in kinds.items()}) for line in lines}


SHAPES = _read(Path(__file__).resolve().parent / "shapes.csv")
AXES = ("n_latents", "k", "batch_size")
GROWTH = {
    "cpu": (Shape.named("256x4096-k16-b1024"), (0.25, 0.5, 1, 2, 4)),
    "cuda": (Shape.named("2304x73728-k160-b4096"), (0.5, 1, 2)),
}
"""Per kind of device: a centre, and what its number of latents, k and its batch are multiplied by, one at a time."""


def growth(kind: str) -> list[str]:
    """Names of the shapes around the centre, each once."""
    centre, factors = GROWTH[kind]
    grown = [replace(centre, **{f: int(x * getattr(centre, f))}) for f in AXES for x in factors]
    return list(dict.fromkeys(map(str, grown)))


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

    Made on the generator's device.

    The probabilities of b_i are log-uniform over three decades and sum to ``k``. Rows are scaled to a mean
    squared norm of 1/2. That keeps the norm of the gradient below 1, where two peers clip it unasked.
    """
    device = generator.device
    features = _unit_rows(shape.n_features, shape.d_model, generator)
    probabilities = 10 ** (-3 * torch.rand(shape.n_features, generator=generator, device=device))
    probabilities = (probabilities * (shape.k / probabilities.sum())).clamp_max(0.5)

    def batch() -> Tensor:
        size = (shape.batch_size, shape.n_features)
        active = torch.rand(size, generator=generator, device=device) < probabilities
        row, feature = active.nonzero(as_tuple=True)
        codes = torch.zeros(size, device=device)
        codes[row, feature] = (0.25 * torch.randn(len(row), generator=generator, device=device)).exp()
        return codes @ features

    count = min(steps, max(1, POOL_BYTES[device.type] // (4 * shape.batch_size * shape.d_model)))
    stream = torch.stack([batch() for _ in range(count)])
    held_out = torch.stack([batch() for _ in range(HELD_OUT_BATCHES)])
    scale = (2 * stream.square().sum(-1).mean()).rsqrt()
    return Problem(_unit_rows(shape.n_latents, shape.d_model, generator), stream * scale, held_out * scale)


def _unit_rows(count: int, width: int, generator: torch.Generator) -> Float[Tensor, "count width"]:
    rows = torch.randn(count, width, generator=generator, device=generator.device)
    return rows / rows.norm(dim=1, keepdim=True)
