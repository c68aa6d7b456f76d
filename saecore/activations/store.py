"""Activations on the disk as a source of training data."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saecore.activations.manifest import PARTS, Manifest, Part, StoreError, check_weights, command, damage, folder, read
from saecore.activations.source import ActivationSource
from saecore.spec import ActivationSpec

BLOCK = 64
"""Rows that are read together. They lie together in a shard, whose rows were shuffled when it was written."""
OPEN_FILES = 64
"""Shards of a part that stay open; a store may have more than the system lets a process open."""


class ActivationStore(ActivationSource):
    """The shards of a spec. A training stream reads blocks of 64 rows from all over the store.

    Each epoch is a permutation of the blocks drawn from (stream, epoch), every row once; position ``step * n`` of the
    stream is where a batch starts. Only the rows of a batch are in memory. Every shard's checksum is held against the
    manifest when the store is opened, once a process. Raises StoreError where the store is missing, unfinished or
    damaged.
    """

    def __init__(self, spec: ActivationSpec, device: str | torch.device = "cpu") -> None:
        manifest = _checked(spec)
        super().__init__(spec, device, manifest.scale)
        where = folder(spec)
        self.manifest = manifest
        self.rows, self.held_out_rows = manifest.train.rows, manifest.test.rows
        self._files = {name: _Rows(where, getattr(manifest, name), spec.d_model) for name in PARTS}
        shards = np.array([shard.rows for shard in manifest.train.shards])
        self._begins, self._sizes = _blocks(shards)
        self._epoch = lru_cache(maxsize=4)(self._permuted)

    def _permuted(self, stream: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in this epoch's order, and where in the epoch each of them ends."""
        order = np.random.default_rng([0xAC7, stream, epoch]).permutation(len(self._sizes)).astype(np.int32)
        return order, np.cumsum(self._sizes[order])

    def _training_rows(self, n: int, position: int, stream: int) -> Float[Tensor, "n d_model"]:
        out, filled = np.empty((n, self.spec.d_model), dtype=np.float16), 0
        while filled < n:
            epoch, place = divmod(position + filled, self.rows)
            order, ends = self._epoch(stream, epoch)
            first = int(np.searchsorted(ends, place, side="right"))
            for index in range(first, len(order)):
                block = order[index]
                skip = place - int(ends[index] - self._sizes[block])
                count = min(int(self._sizes[block]) - skip, n - filled)
                self._files["train"].read(int(self._begins[block]) + skip, out[filled : filled + count])
                filled, place = filled + count, place + count
                if filled == n:
                    break
        return torch.from_numpy(out)

    def _held_out_rows(self, n: int, first: int) -> Float[Tensor, "n d_model"]:
        out = np.empty((n, self.spec.d_model), dtype=np.float16)
        self._files["test"].read(first, out)
        return torch.from_numpy(out)


class _Rows:
    """The rows of a part by number, read from its files; memory maps would count as this process's memory."""

    def __init__(self, where: Path, part: Part, d_model: int) -> None:
        self._width = 2 * d_model
        self._paths = [where / shard.name for shard in part.shards]
        self._open = lru_cache(OPEN_FILES)(lambda shard: self._paths[shard].open("rb", buffering=0))
        self._headers = [shard.bytes - shard.rows * self._width for shard in part.shards]
        self._ends = np.cumsum([shard.rows for shard in part.shards])
        self._lock = threading.Lock()

    def read(self, first: int, out: Float[np.ndarray, "n d_model"]) -> None:
        """Fill ``out`` with the rows from ``first`` on."""
        filled = 0
        while filled < len(out):
            shard = int(np.searchsorted(self._ends, first + filled, side="right"))
            begin = int(self._ends[shard - 1]) if shard else 0
            count = min(int(self._ends[shard]) - first - filled, len(out) - filled)
            view = out[filled : filled + count].data.cast("B")
            with self._lock:
                try:
                    file = self._open(shard)
                except FileNotFoundError as error:
                    raise StoreError(f"{self._paths[shard]} is gone; harvest it again") from error
                file.seek(self._headers[shard] + (first + filled - begin) * self._width)
                got = file.readinto(view)
            if got != len(view):
                raise StoreError(f"{self._paths[shard]} was cut short while it was read; harvest it again")
            filled += count


def _blocks(shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row and size of every block; none of them crosses shards."""
    begins = [np.arange(0, rows, BLOCK) + start for rows, start in zip(shards, np.cumsum(shards) - shards, strict=True)]
    sizes = [np.minimum(BLOCK, rows - np.arange(0, rows, BLOCK)) for rows in shards]
    return np.concatenate(begins), np.concatenate(sizes).astype(np.int32)


def _checked(spec: ActivationSpec) -> Manifest:
    """The manifest of a whole store. Raises StoreError."""
    where, manifest = folder(spec), read(spec)
    if manifest is None:
        raise StoreError(f"no activations of {spec.name} in {where}; run `{command(spec)}`")
    if not manifest.complete:
        raise StoreError(
            f"{where} holds {manifest.train.rows:,} of {manifest.train.wanted:,} rows; run `{command(spec)}` to go on"
        )
    check_weights(manifest)
    for shard in (*manifest.train.shards, *manifest.test.shards):
        wrong = damage(where, shard)
        if wrong:
            raise StoreError(f"{where / shard.name} {wrong}; run `{command(spec)}` to write it again")
    return manifest
