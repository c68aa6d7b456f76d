"""Batches where the SAE is; on a GPU one ahead, by a stream of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.sources.base import Source


class Feed:
    """Rows of one stream of a source by their step, on ``device``.

    On a GPU ``prepare`` makes a batch before it is asked for: the host draws it while the GPU is at work on the last
    one, and what is copied or computed for it runs beside that work.
    """

    def __init__(self, source: Source, rows: int, stream: int, device: torch.device) -> None:
        self.source, self.rows, self.stream, self.device = source, rows, stream, device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.copies is not None:
            self.copies.wait_stream(torch.cuda.current_stream(device))  # which made what the source keeps there
        self.ready: tuple[int, Tensor] | None = None

    def __call__(self, step: int) -> Float[Tensor, "batch d_model"]:
        if self.copies is None:
            return self.source.batch(self.rows, step, self.stream).x
        if self.ready is None or self.ready[0] != step:
            self.prepare(step)
        assert self.ready is not None
        x = self.ready[1]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.copies)
        x.record_stream(current)
        return x

    def prepare(self, step: int) -> None:
        """Start to make the batch of ``step`` on a GPU; elsewhere nothing."""
        if self.copies is None:
            return
        with torch.cuda.stream(self.copies):
            x = self.source.batch(self.rows, step, self.stream).x
            x = x.pin_memory() if x.device.type == "cpu" else x
            self.ready = step, x.to(self.device, non_blocking=True)
