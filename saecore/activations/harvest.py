"""Runs a model over a text and writes what leaves a block to shards on the disk, resumably."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save

from saecore import paths
from saecore.activations.manifest import (
    PARTS,
    Manifest,
    Part,
    Shard,
    StoreError,
    check_weights,
    command,
    damage,
    folder,
    read,
    weights,
)
from saecore.activations.rows import (
    Probe,
    Progress,
    RowReader,
    block_rows,
    call_positions,
    held_out_rows,
    opened,
    probe,
)
from saecore.spec import ActivationSpec, SpecError

if TYPE_CHECKING:
    from saecore.activations.models import ResidualModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What a harvest has left to do, from a probe of the model's speed."""

    rows: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.rows:,} rows, {self.bytes / 2**20:,.1f} MiB, about {self.seconds / 60:.1f} minutes"


@dataclass(frozen=True)
class Piece:
    """One shard of a part, and whether it stands undamaged."""

    part: str
    index: int
    rows: int
    stands: bool


def harvest(
    spec: ActivationSpec,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    model: ResidualModel | None = None,
    shard_rows: int | None = None,
) -> Path:
    """Bring the spec's store to its end and return its folder; what stands is not made again.

    Logs rows, bytes and minutes before it starts. Killed at any moment, it goes on after the last whole shard and ends
    with the same bytes; a damaged or missing shard is written again. ``progress`` is told how many rows are there, then
    how many came. ``shard_rows`` are shuffled together (default: 262,144, or as many as 256 MiB hold).
    Two processes that harvest one spec wait for each other.

    Raises PathError where the cache cannot be written or is too small, StoreError where the store is of another model
    or text, SpecError where the text has fewer rows than asked.
    """
    where = folder(spec)
    paths.writable(where)
    with paths.alone(where):
        manifest = read(spec)
        stood = sum(piece.rows for piece in pieces(manifest) if piece.stands) if manifest else 0
        if progress is not None:
            progress(stood)
        if manifest and stood == manifest.train.wanted + manifest.test.wanted:
            return where
        model = opened(spec, device, model)
        first = probe(model, spec)
        manifest = manifest or _new(spec, shard_rows or block_rows(spec), model, first)
        _check_same(manifest, first)
        estimate = _estimate(manifest, first)
        log.info("%s layer %d on %s: %s, into %s", spec.model, spec.layer, spec.dataset, estimate, where)
        _check_room(where, estimate)
        for left in where.glob(".*.partial"):  # of a writer that was killed: we hold the lock
            left.unlink()
        for part in PARTS:
            _write_part(manifest, part, model, progress)
    return where


def plan(spec: ActivationSpec, device: str | torch.device = "cpu", *, model: ResidualModel | None = None) -> Estimate:
    """What :func:`harvest` has left to do; writes nothing."""
    model = opened(spec, device, model)
    first = probe(model, spec)
    return _estimate(read(spec) or _new(spec, block_rows(spec), model, first), first)


def _new(spec: ActivationSpec, shard_rows: int, model: ResidualModel, first: Probe) -> Manifest:
    return Manifest(
        spec=spec,
        shard_rows=shard_rows,
        call_positions=call_positions(model.device),
        scale=first.scale,
        mark=first.mark,
        weights=weights(spec),
        train=Part(spec.rows),
        test=Part(held_out_rows(spec)),
    )


def pieces(manifest: Manifest) -> Iterator[Piece]:
    """Every shard that there shall be."""
    where = folder(manifest.spec)
    for name in PARTS:
        part = getattr(manifest, name)
        for index, begin in enumerate(range(0, part.wanted, manifest.shard_rows)):
            stands = index < len(part.shards) and damage(where, part.shards[index]) is None
            yield Piece(name, index, min(manifest.shard_rows, part.wanted - begin), stands)


def _estimate(manifest: Manifest, first: Probe) -> Estimate:
    rows = sum(piece.rows for piece in pieces(manifest) if not piece.stands)
    return Estimate(rows, 2 * rows * manifest.spec.d_model, rows / first.rows_per_second)


def _write_part(manifest: Manifest, name: str, model: ResidualModel, progress: Progress | None) -> None:
    """Write the shards of a part that do not stand, and the manifest after each."""
    spec, part, where = manifest.spec, getattr(manifest, name), folder(manifest.spec)
    reader = None
    for piece in [p for p in pieces(manifest) if p.part == name and not p.stands]:
        start = part.start(piece.index)
        if reader is None or reader.place != start:
            reader = RowReader(model, spec, name, manifest.scale, manifest.call_positions, start)
        dropped = reader.dropped
        rows = reader.take(piece.rows, progress)
        if len(rows) < piece.rows:
            _settle_end(manifest, name, piece.index * manifest.shard_rows + len(rows))
        if len(rows):
            order = np.random.default_rng([0, PARTS.index(name), piece.index]).permutation(len(rows))
            content = save({"x": rows[torch.from_numpy(order)]})
            file = f"{name}-{piece.index:05d}.safetensors"
            digest = hashlib.sha256(content).hexdigest()
            with _named(where / file), paths.whole(where / file) as aside:
                aside.write_bytes(content)
            shard = Shard(file, len(rows), len(content), digest, reader.place, reader.dropped - dropped)
            part.shards[piece.index : piece.index + 1] = [shard]
        with _named(where / "manifest.json"):
            manifest.write(where)
        if part.rows == part.wanted:
            break


def _settle_end(manifest: Manifest, name: str, rows: int) -> None:
    """The text ended after ``rows``: an error for training; evaluation is content with fewer."""
    spec = manifest.spec
    if name == "train" or not rows:
        kind = "training" if name == "train" else "held-out"
        raise SpecError(
            f"rows={spec.rows:,}: {spec.dataset!r} has only {rows:,} rows of {kind} text at context={spec.context}; "
            + (f"set rows to at most {rows}, or give more text" if rows else "give more text")
        )
    log.warning("%s: %d held-out rows, not %d; its text ended", spec.dataset, rows, manifest.test.wanted)
    manifest.test.wanted = rows


def _check_same(manifest: Manifest, first: Probe) -> None:
    """Refuse to go on with another model or text than the store was begun with."""
    check_weights(manifest)
    begun, now = torch.tensor(manifest.mark), torch.tensor(first.mark)
    if (now - begun).norm() > 0.1 * begun.norm():  # less than that is another device or precision
        spec, where = manifest.spec, folder(manifest.spec)
        raise StoreError(
            f"{where} was begun with another {spec.model} or {spec.dataset}: its first row starts with "
            f"{manifest.mark[:2]}, now with {first.mark[:2]}; delete the folder and run `{command(spec)}`"
        )


def _check_room(where: Path, estimate: Estimate) -> None:
    free = shutil.disk_usage(where).free
    if free < 1.02 * estimate.bytes:
        raise paths.PathError(
            f"{where} has {free / 2**20:,.1f} MiB free, {estimate.bytes / 2**20:,.1f} MiB are needed; free the disk, "
            f"ask for fewer rows, or set {paths.CACHE} to a folder on a larger disk"
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A disk's error as PathError that names the file and the variable which moves it."""
    try:
        yield
    except OSError as error:
        raise paths.PathError(
            f"cannot write {path} ({error.strerror or error}); free the disk, or set {paths.CACHE} to another folder, "
            "and run again: what stands is kept"
        ) from error
