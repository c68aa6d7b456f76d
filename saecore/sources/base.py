"""What a source of training data offers, whether its rows are drawn or read from a model."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

TRAINING, EVALUATION = 0, 1
"""Streams of samples: what is evaluated was never trained on."""


@runtime_checkable
class Batch(Protocol):
    """Rows of data; a source may add what it knows of them."""

    @property
    def x(self) -> Float[Tensor, "batch d_model"]: ...


@runtime_checkable
class Source(Protocol):
    """Rows by their place in a stream: the same (n, step, stream) gives the same rows, so that a run can resume.

    Even streams are for training (one for each seed), ``EVALUATION`` is held out.
    """

    device: torch.device

    @property
    def spec(self) -> Any: ...

    @property
    def scale(self) -> float:
        """What raw rows were multiplied by; saved with the SAE."""
        ...

    @property
    def truth(self) -> Float[Tensor, "n_features d_model"] | None:
        """The directions that made the data, where they are known."""
        ...

    def batch(self, n: int, step: int, stream: int = TRAINING) -> Batch: ...

    def start_bias(self) -> Float[Tensor, "d_model"]:
        """Where ``b_dec`` starts."""
        ...

    def covariance(self) -> Float[Tensor, "d_model d_model"]: ...
