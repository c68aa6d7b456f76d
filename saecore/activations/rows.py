"""Texts or images through a model to rows of activations, in an order that can be taken up again at any row."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saecore.activations.scale import InputScale, estimate
from saecore.spec import ActivationSpec, require

if TYPE_CHECKING:
    from saecore.activations.models import ImageBatch, ResidualModel, TokenBatch

Progress = Callable[[int], object]

DOCUMENTS = 256
"""Documents that are tokenised together and sorted by length, so that little of a call is padding."""
CPU_POSITIONS, GPU_POSITIONS = 4096, 32_768
"""Positions, padding included, of one call of the model; above 4096 a CPU's caches are too small."""
FIRST_ROWS, FIRST_DOCUMENTS = 16_384, 32
"""At least so many rows, of whole groups of so many documents, tell the input scale and the model's speed."""
BLOCK_ROWS, BLOCK_BYTES = 262_144, 256 * 2**20
"""Rows that are shuffled together, and the most bytes they may take in half precision."""


@dataclass(frozen=True)
class Place:
    """How far a text was read: documents done, calls of the model done on those after them, rows done of the next.

    For a vision tower an image is a document.
    """

    documents: int = 0
    calls: int = 0
    rows: int = 0


START = Place()


@dataclass(frozen=True)
class Probe:
    """What the first rows tell: the input scale, the speed, and the start of the first row, which marks the model."""

    scale: InputScale
    rows_per_second: float
    mark: tuple[float, ...]


def block_rows(spec: ActivationSpec) -> int:
    """Rows that are shuffled together where nothing else is asked."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (2 * spec.d_model)))


def call_positions(device: torch.device) -> int:
    """Positions of one call where nothing else is asked."""
    return CPU_POSITIONS if device.type == "cpu" else GPU_POSITIONS


def held_out_rows(spec: ActivationSpec) -> int:
    """Rows for evaluation: a tenth, at most 131,072."""
    return max(1, min(spec.rows // 10, 131_072))


def opened(spec: ActivationSpec, device: str | torch.device, model: ResidualModel | None = None) -> ResidualModel:
    """The spec's model, unless it is given. Raises SpecError where layer or d_model are not its own, and ModelError."""
    if model is None:
        from saecore.activations import models

        model = models.load(spec.model, weights=spec.weights, device=device)
    require(
        spec.d_model == model.d_model,
        f"d_model={spec.d_model} is not that of {spec.model}; set d_model={model.d_model}",
    )
    require(
        spec.layer < model.n_layers,
        f"layer={spec.layer}: {spec.model} has {model.n_layers} blocks; choose 0 to {model.n_layers - 1}",
    )
    return model


def total_rows(spec: ActivationSpec) -> int:
    """Rows of a whole store, for training and held out."""
    return spec.rows + held_out_rows(spec)


class RowReader:
    """Kept rows of a split, scaled and in half precision, in the order of the text. ``place`` is where it stands.

    It means the same to a reader with the same ``positions`` in a call of the model.
    """

    def __init__(
        self,
        model: ResidualModel,
        spec: ActivationSpec,
        split: str,
        scale: InputScale,
        positions: int,
        place: Place = START,
    ) -> None:
        self.place = place
        self.dropped = 0  # massive rows met since the start
        self._model, self._layer, self._scale = model, spec.layer, scale
        self._calls = calls(model, spec, split, positions, place)
        self._rows = torch.empty(0, spec.d_model, dtype=torch.float16)

    def take(self, n: int, progress: Progress | None = None) -> Float[Tensor, "at_most_n d_model"]:
        """The next ``n`` rows; fewer only where the text ends. ``progress`` is told how many came with each call."""
        block, filled = torch.empty(n, self._rows.shape[1], dtype=torch.float16), 0
        while filled < n:
            if not len(self._rows) and not self._run():
                break
            part = self._rows[: n - filled]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if progress is not None:
                progress(len(part))
            self._rows = self._rows[len(part) :]
            place = self.place
            self.place = (
                dataclasses.replace(place, rows=place.rows + len(part))
                if len(self._rows)
                else Place(place.documents, place.calls + 1)
            )
        return block[:filled]

    def _run(self) -> bool:
        """Run the model once more; False where the text has ended."""
        found = next(self._calls, None)
        if found is None:
            return False
        at, batch = found
        raw = kept_rows(self._model, batch, self._layer)
        rows = self._scale.apply(raw).cpu()
        done = self.place.rows
        if not done:
            self.dropped += len(raw) - len(rows)
        self.place, self._rows = dataclasses.replace(at, rows=done), rows[done:]
        if not len(rows):
            self.place = Place(at.documents, at.calls + 1)
        return True


def calls(
    model: ResidualModel,
    spec: ActivationSpec,
    split: str,
    positions: int,
    start: Place = START,
    group: int = DOCUMENTS,
) -> Iterator[tuple[Place, TokenBatch | ImageBatch]]:
    """The calls of the model from ``start`` on, each with its place.

    ``group`` documents are sorted together. Images come in their order, in groups that leave room for large ones.
    """
    sees = model.kind == "vision"
    group = min(group, FIRST_DOCUMENTS) if sees else group
    documents, first, done = _documents(spec.dataset, split, start.documents, sees), start.documents, start.calls
    while chunk := list(itertools.islice(documents, group)):
        for call, batch in enumerate(_batches(model, chunk, spec.context, positions)):
            if call >= done:
                yield Place(first, call), batch
        first, done = first + len(chunk), 0


def _documents(dataset: str, split: str, first: int, images: bool) -> Iterator[Any]:
    """The texts or images of a split from the ``first`` on. Raises TextError or ImageError."""
    if images:
        from saecore.sources.images import images as read

        return read(dataset, split, first)
    from saecore.sources import text

    return itertools.islice(text.documents(dataset, split), first, None)


def _batches(
    model: ResidualModel, documents: Sequence[Any], context: int, positions: int
) -> Iterator[TokenBatch | ImageBatch]:
    """What the model takes of some documents, in calls of at most so many ``positions``."""
    if model.kind != "vision":
        return by_length(model.tokenize(documents, context), positions)
    size = max(1, positions // model.context)
    return (model.pixels(documents[i : i + size]) for i in range(0, len(documents), size))


def by_length(tokens: TokenBatch, positions: int) -> Iterator[TokenBatch]:
    """The sequences of a batch that have kept positions, longest first, in batches of at most so many ``positions``."""
    lengths = tokens.attention.sum(1) * tokens.keep.any(1)
    order = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    while len(order):
        longest = int(lengths[order[0]])
        chosen = order[: max(1, positions // longest)]
        order = order[len(chosen) :]
        fields = {name: getattr(tokens, name)[chosen, :longest] for name in ("ids", "attention", "keep")}
        yield dataclasses.replace(tokens, **fields)


@torch.no_grad()
def kept_rows(model: ResidualModel, batch: TokenBatch | ImageBatch, layer: int) -> Float[Tensor, "n d_model"]:
    """Residual stream at the kept positions, in raw units."""
    return model.residual(batch, layer)[batch.keep]


def probe(model: ResidualModel, spec: ActivationSpec) -> Probe:
    """Input scale, speed and mark from the first rows for training.

    The scale does not depend on ``spec.rows``, so that stores of one model and text share it. Raises SpecError and
    TextError where there is nothing to train on, or nothing held out.
    """
    positions = call_positions(model.device)
    held_out = next(calls(model, spec, "test", positions, group=1), None)
    require(held_out is not None, f"dataset={spec.dataset!r} has no held-out text; give more")
    began, found, count = time.perf_counter(), [], 0
    for place, batch in calls(model, spec, "train", positions, group=FIRST_DOCUMENTS):
        if count >= FIRST_ROWS and not place.calls:
            break
        found.append(kept_rows(model, batch, spec.layer).cpu())
        count += len(found[-1])
    require(count > 0, f"dataset={spec.dataset!r} has nothing to train on; give another")
    rows = torch.cat(found)
    return Probe(estimate(rows), count / (time.perf_counter() - began), tuple(rows[0, :16].tolist()))
