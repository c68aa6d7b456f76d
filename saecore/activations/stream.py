"""Activations straight from the model, with no disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saecore.activations.rows import (
    START,
    Place,
    RowReader,
    block_rows,
    call_positions,
    held_out_rows,
    opened,
    probe,
)
from saecore.activations.source import ActivationSource
from saecore.spec import ActivationSpec, require

if TYPE_CHECKING:
    from saecore.activations.models import ResidualModel

log = logging.getLogger(__name__)


class ActivationStream(ActivationSource):
    """The rows that a store of the spec would hold, made as they are asked for.

    One buffer of ``buffer_rows`` is in memory (default: 262,144, or as many as 256 MiB hold), shuffled by
    (stream, epoch, its number). Steps asked one after the other run the model once. A step further back starts at its
    buffer; one further on, as when a run resumes in a new process, first runs the model over all rows before it.
    Held-out rows are made when first asked for and stay in memory.
    """

    def __init__(
        self,
        spec: ActivationSpec,
        device: str | torch.device = "cpu",
        *,
        model: ResidualModel | None = None,
        buffer_rows: int | None = None,
    ) -> None:
        self._model = opened(spec, device, model)
        first = probe(self._model, spec)
        super().__init__(spec, device, first.scale)
        log.info("%s layer %d on %s: %.0f rows/s, no disk", spec.model, spec.layer, spec.dataset, first.rows_per_second)
        self.rows = spec.rows
        self._buffer_rows = min(buffer_rows or block_rows(spec), spec.rows)
        self._starts = [START]  # where in the text the buffers start, as far as they are known
        self._reader = self._open("train", START)
        self._shown: tuple[int, int, int] | None = None
        self._shuffled = torch.empty(0, spec.d_model, dtype=torch.float16)
        self._held_out: Tensor | None = None

    def _open(self, split: str, place: Place) -> RowReader:
        positions = call_positions(self._model.device)
        return RowReader(self._model, self.spec, split, self.input_scale, positions, place)

    def _training_rows(self, n: int, position: int, stream: int) -> Float[Tensor, "n d_model"]:
        parts = []
        while n:
            epoch, place = divmod(position, self.rows)
            index, skip = divmod(place, self._buffer_rows)
            part = self._buffer(stream, epoch, index)[skip : skip + n]
            parts.append(part)
            n, position = n - len(part), position + len(part)
        return torch.cat(parts)

    def _buffer(self, stream: int, epoch: int, index: int) -> Float[Tensor, "n d_model"]:
        """A buffer of a stream's epoch, shuffled; the last one of an epoch may be smaller."""
        if self._shown != (stream, epoch, index):
            if index >= len(self._starts) + 1:
                log.info("%s: running the model over %d rows to resume", self.spec.name, index * self._buffer_rows)
            for missing in range(len(self._starts) - 1, index):
                self._fill(missing)
            rows = self._fill(index)
            order = np.random.default_rng([0xAC7, stream, epoch, index]).permutation(len(rows))
            self._shuffled, self._shown = rows[torch.from_numpy(order)], (stream, epoch, index)
        return self._shuffled

    def _fill(self, index: int) -> Float[Tensor, "n d_model"]:
        """The rows of a buffer in the order of the text."""
        if self._reader.place != self._starts[index]:
            self._reader = self._open("train", self._starts[index])
        wanted = min(self._buffer_rows, self.rows - index * self._buffer_rows)
        rows = self._reader.take(wanted)
        found = index * self._buffer_rows + len(rows)
        require(
            len(rows) == wanted,
            f"rows={self.rows:,}: {self.spec.dataset!r} has only {found:,} rows of training text at "
            f"context={self.spec.context}; set rows to at most {found}, or give more text",
        )
        if index + 1 == len(self._starts):
            self._starts.append(self._reader.place)
        return rows

    @property
    def held_out_rows(self) -> int:
        return len(self._held_out_part())

    def _held_out_part(self) -> Float[Tensor, "n d_model"]:
        if self._held_out is None:
            self._held_out = self._open("test", START).take(held_out_rows(self.spec))
            require(len(self._held_out) > 0, f"dataset={self.spec.dataset!r} has no held-out text; give more")
        return self._held_out

    def _held_out_rows(self, n: int, first: int) -> Float[Tensor, "n d_model"]:
        return self._held_out_part()[first : first + n]
