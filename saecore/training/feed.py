"""Batches where the SAE is: one ahead, by a stream of its own, where the source is on the CPU and the SAE on a GPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.sources.base import Source


class Feed:
    """Rows of one stream of a source by their step, on ``device``.

    ``prepare`` makes a batch before it is asked for: the host draws it while the GPU is at work on the last one, and
    it is copied beside the computation, from memory that the GPU can read by itself.
    """

    def __init__(self, source: Source, rows: int, stream: int, device: torch.device) -> None:
        self.source, self.rows, self.stream, self.device = source, rows, stream, device
        apart = device.type == "cuda" and source.device.type == "cpu"
        self.copies = torch.cuda.Stream(device) if apart else None
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
        """Start to copy the batch of ``step``; nothing where there is nothing to copy."""
        if self.copies is None:
            return
        pinned = self.source.batch(self.rows, step, self.stream).x.pin_memory()
        with torch.cuda.stream(self.copies):
            self.ready = step, pinned.to(self.device, non_blocking=True)
