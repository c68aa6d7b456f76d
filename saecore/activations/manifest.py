"""What a store of activations says of itself, in ``manifest.json`` beside its shards."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saecore import paths
from saecore.activations.pretrained import locate
from saecore.activations.rows import START, Place
from saecore.activations.scale import InputScale
from saecore.spec import ActivationSpec

FORMAT = 1
ORDER = "documents in the data set's order; rows shuffled within a shard by default_rng([0, part, shard])"
PARTS = ("train", "test")


class StoreError(RuntimeError):
    """A store that is missing, unfinished or damaged; the message names the file and the way out."""


@dataclass(frozen=True)
class Shard:
    """A file of rows, and where in the text the next one starts."""

    name: str
    rows: int
    bytes: int
    sha256: str
    after: Place
    dropped: int  # massive rows left out while this shard was filled


@dataclass
class Part:
    """``train`` or ``test``: how many rows there shall be, and its shards in order."""

    wanted: int
    shards: list[Shard] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def start(self, index: int) -> Place:
        """Where in the text the shard with this index starts."""
        return self.shards[index - 1].after if index else START


@dataclass
class Manifest:
    """``shard_rows``: rows of every shard but a part's last. ``call_positions``: what places count the calls by.

    ``mark`` is the start of the first raw row; ``weights`` the checksum of the model's file, where it lies in a folder.
    """

    spec: ActivationSpec
    shard_rows: int
    call_positions: int
    scale: InputScale
    mark: tuple[float, ...]
    weights: str
    train: Part
    test: Part
    dtype: str = "float16"
    order: str = ORDER
    format: int = FORMAT

    @property
    def complete(self) -> bool:
        return all(part.rows == part.wanted for part in (self.train, self.test))

    def write(self, folder: Path) -> None:
        with paths.whole(folder / "manifest.json") as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def folder(spec: ActivationSpec) -> Path:
    """Where the spec's activations lie."""
    return paths.cache() / "activations" / spec.key()


def read(spec: ActivationSpec) -> Manifest | None:
    """The manifest of the spec's store, None where nothing was begun. Raises StoreError where it is damaged."""
    path = folder(spec) / "manifest.json"
    try:
        data = json.loads(path.read_text())
        made = {
            "spec": ActivationSpec(**data["spec"]),
            "scale": InputScale(**data["scale"]),
            "mark": tuple(data["mark"]),
        }
        for name in PARTS:
            made[name] = Part(data[name]["wanted"], [_shard(shard) for shard in data[name]["shards"]])
        found = Manifest(**{**data, **made})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error!r}); delete {path.parent} and run `{command(spec)}`") from error
    if found.format != FORMAT or found.spec != spec:
        raise StoreError(f"{path} is of another format or spec; delete {path.parent} and run `{command(spec)}`")
    return found


def _shard(data: dict[str, Any]) -> Shard:
    return Shard(**{**data, "after": Place(**data["after"])})


def weights(spec: ActivationSpec) -> str:
    """SHA-256 of what makes the model, its weights or else its config; empty where it lies in no folder here."""
    try:
        path = Path(locate(spec.model)) / ("model.safetensors" if spec.weights == "trained" else "config.json")
        return _sha256(path, path.stat().st_mtime_ns)
    except OSError:
        return ""


def check_weights(manifest: Manifest) -> None:
    """Raises StoreError where the model that lies here is not the one whose activations these are."""
    spec, now = manifest.spec, weights(manifest.spec)
    if now and manifest.weights and now != manifest.weights:
        raise StoreError(
            f"{folder(spec)} holds activations of another {spec.model}, with SHA-256 {manifest.weights[:12]}..., not "
            f"{now[:12]}...; delete the folder and run `{command(spec)}`"
        )


def command(spec: ActivationSpec) -> str:
    """The command that harvests a spec."""
    changed = [f"--{name}={value}" for name, value in spec.differences().items()]
    return shlex.join(["saecore", "harvest", spec.model, str(spec.layer), spec.dataset, *changed])


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, None where it is whole. A file is read once a process, unless it changes."""
    try:
        stat = (folder / shard.name).stat()
    except FileNotFoundError:
        return "is missing"
    if stat.st_size != shard.bytes:
        return f"has {stat.st_size} bytes, not {shard.bytes}"
    found = _sha256(folder / shard.name, stat.st_mtime_ns)
    return None if found == shard.sha256 else f"has SHA-256 {found[:12]}..., not {shard.sha256[:12]}..."


@functools.lru_cache(maxsize=65_536)
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
