"""What a store on the disk and a stream from a model have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.activations import scale
from saecore.activations.scale import InputScale
from saecore.sources.base import EVALUATION, TRAINING
from saecore.spec import ActivationSpec

MOMENT_ROWS = 262_144
"""Rows from which mean and covariance are taken."""
CHUNK = 4096


@dataclass(frozen=True)
class ActivationBatch:
    """Scaled rows."""

    x: Float[Tensor, "batch d_model"]


class ActivationSource(ABC):
    """Rows of activations by their place in a stream (sources.base.Source), multiplied by ``scale``.

    Batch ``step`` of ``n`` rows is rows ``step * n`` on of its stream. A training stream goes through all ``rows`` in
    an order of its own, then through them again in another; the held-out rows come in order, and start over when they
    end.
    """

    rows: int
    held_out_rows: int
    truth = None

    def __init__(self, spec: ActivationSpec, device: str | torch.device, input_scale: InputScale) -> None:
        self.spec, self.device, self.input_scale = spec, torch.device(device), input_scale

    @property
    def scale(self) -> float:
        return self.input_scale.scale

    @abstractmethod
    def _training_rows(self, n: int, position: int, stream: int) -> Float[Tensor, "n d_model"]: ...

    @abstractmethod
    def _held_out_rows(self, n: int, first: int) -> Float[Tensor, "n d_model"]:
        """Rows ``first`` to ``first + n`` of the held-out ones, which are there."""

    def batch(self, n: int, step: int, stream: int = TRAINING) -> ActivationBatch:
        """``n`` rows in float32 on the device; the same (n, step, stream) gives the same rows."""
        if stream == EVALUATION:
            first, parts = step * n % self.held_out_rows, []
            while n:
                count = min(n, self.held_out_rows - first)
                parts.append(self._held_out_rows(count, first))
                first, n = 0, n - count
            rows = torch.cat(parts)
        elif stream < 0 or stream % 2:
            raise ValueError(f"stream={stream}: even streams train, {EVALUATION} is held out; choose one of these")
        else:
            rows = self._training_rows(n, step * n, stream)
        return ActivationBatch(rows.to(self.device, non_blocking=True).float())

    def _first(self) -> Iterator[Float[Tensor, "n d_model"]]:
        count = min(MOMENT_ROWS, self.rows)
        for position in range(0, count, CHUNK):
            yield self._training_rows(min(CHUNK, count - position), position, TRAINING).to(self.device).float()

    @cached_property
    def _mean(self) -> Float[Tensor, "d_model"]:
        return scale.mean(self._first())

    @cached_property
    def _covariance(self) -> Float[Tensor, "d_model d_model"]:
        return scale.covariance(self._first(), self._mean)

    def mean(self) -> Float[Tensor, "d_model"]:
        """E x over up to 262,144 rows."""
        return self._mean

    def start_bias(self) -> Float[Tensor, "d_model"]:
        """The mean: codes then stand for what differs from it."""
        return self._mean

    def covariance(self) -> Float[Tensor, "d_model d_model"]:
        """Cov x over the rows of :meth:`mean`."""
        return self._covariance
