"""The residual stream of a transformer as training data: kept on the disk, or made as it is asked for."""

from __future__ import annotations

import torch

from saecore.activations.harvest import harvest, plan
from saecore.activations.manifest import StoreError
from saecore.activations.manifest import read as _manifest
from saecore.activations.rows import Progress, total_rows
from saecore.activations.store import ActivationStore
from saecore.activations.stream import ActivationStream
from saecore.sources.base import Source
from saecore.sources.synthetic import Superposition
from saecore.spec import ActivationSpec, SourceSpec

__all__ = ["ActivationStore", "ActivationStream", "StoreError", "harvest", "open_source", "plan", "total_rows"]


def open_source(
    spec: SourceSpec | ActivationSpec,
    device: str | torch.device = "cpu",
    stream: bool = False,
    progress: Progress | None = None,
) -> Source:
    """The source of a spec. Activations that are not all on the disk are harvested first, unless ``stream``.

    ``progress`` is told of a harvest's rows. Raises StoreError where what is on the disk is damaged, and what
    :func:`harvest` raises.
    """
    if isinstance(spec, SourceSpec):
        return Superposition(spec, device)
    if stream:
        return ActivationStream(spec, device)
    manifest = _manifest(spec)
    if manifest is None or not manifest.complete:
        harvest(spec, device, progress)
    return ActivationStore(spec, device)
