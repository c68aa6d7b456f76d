"""An SAE on disk: safetensors with the run's spec in the metadata. Written aside, then renamed: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saecore import paths
from saecore.saes.base import SAE
from saecore.spec import RunSpec, from_dict


class CheckpointError(RuntimeError):
    """A file that is not a whole checkpoint of ours."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to ``path`` so that the file is never visible half-written. Raises OSError as the disk does."""
    try:
        with paths.whole(path) as aside:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside, dict(metadata))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write {path}: {error}; free the disk or choose another folder with {paths.CACHE}"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``path``.

    Raises FileNotFoundError where there is none, CheckpointError naming the file where it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); delete it and run again"
        ) from error


def save(path: Path, sae: SAE, run: RunSpec) -> None:
    """Write the SAE and the spec it came from. Raises OSError as :func:`write` does."""
    write(path, sae.state_dict(), {"run": json.dumps(run.as_dict())})


def load(path: Path) -> tuple[SAE, RunSpec]:
    """The SAE and its run. Raises CheckpointError where the file, its spec or a tensor is missing or damaged."""
    try:
        tensors, metadata = read(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; `saecore run SWEEP --saes` trains it") from None
    if "run" not in metadata:
        raise CheckpointError(f"{path} carries no run spec; it was not written by saecore.saes.save")
    try:
        run = from_dict(json.loads(metadata["run"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} carries a run spec that cannot be read ({error}); train it again") from error
    sae = SAE(run.sae)
    wanted = sae.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"{path}: {name} should have shape {tuple(tensor.shape)}, found {found}")
    sae.load_state_dict({name: tensors[name] for name in wanted})
    if not all(torch.isfinite(t).all() for n, t in sae.state_dict().items() if n != "threshold"):
        raise CheckpointError(f"{path} holds NaN or infinity in its weights; the run diverged, train it again")
    return sae, run
