"""Where things lie. No other module knows a path.

SAECORE_HOME     the repository's root (default: found from the package, then from the current folder)
SAECORE_RESULTS  where recorded runs are written (default: data/results)
SAECORE_CACHE    what may be deleted at any time (default: data/cache)
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one writer at a time
    fcntl = None

HOME = "SAECORE_HOME"
RESULTS = "SAECORE_RESULTS"
CACHE = "SAECORE_CACHE"
MARKERS = ("pyproject.toml", "data/paper", "saecore")


class PathError(OSError):
    """A folder that is missing or cannot be written; the message names it and the variable that moves it."""


def _is_root(folder: Path) -> bool:
    return all((folder / marker).exists() for marker in MARKERS)


def root() -> Path:
    """The repository's root. Raises PathError where there is none."""
    given = os.environ.get(HOME)
    if given:
        folder = Path(given).expanduser().resolve()
        if not _is_root(folder):
            raise PathError(f"{HOME}={given!r} holds no {' + '.join(MARKERS)}; set it to a clone's root")
        return folder
    package, here = Path(__file__).resolve().parent.parent, Path.cwd()
    for folder in (package, here, *here.parents):
        if _is_root(folder):
            return folder
    raise PathError(
        f"no repository around {package} or {here} (looked for {' + '.join(MARKERS)}); "
        f"clone it and set {HOME} to the clone's root"
    )


def _moved(variable: str, default: str) -> Path:
    given = os.environ.get(variable)
    return Path(given).expanduser().resolve() if given else root() / default


def data() -> Path:
    return root() / "data"


def results() -> Path:
    return _moved(RESULTS, "data/results")


def cache() -> Path:
    return _moved(CACHE, "data/cache")


def expected() -> Path:
    return data() / "expected"


def paper() -> Path:
    return data() / "paper"


def book() -> Path:
    return root() / "book"


def chapters() -> Path:
    return book() / "chapters"


def build() -> Path:
    return root() / "build"


def benchmarks() -> Path:
    return root() / "benchmarks"


def install_hint(extra: str) -> str:
    """How to install an extra of this package, which is on no index."""
    return f"in a clone of the repository run: pip install -e '.[{extra}]'"


def writable(folder: Path, variable: str = CACHE) -> Path:
    """`folder`, made where missing and tried for writing. Raises PathError, naming `variable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PathError(
            f"cannot write in {folder} ({error.strerror or error}); set {variable} to a folder you may write to"
        ) from error
    return folder


@contextmanager
def alone(folder: Path, variable: str = CACHE) -> Iterator[None]:
    """One writer of a folder at a time; others wait. The lock leaves no file, and ends with the process.

    Raises PathError, naming ``variable``, where the disk knows no locks.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise PathError(
                f"cannot lock {folder} ({error.strerror}); set {variable} to a folder on a local disk"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write so that ``path`` appears whole or not at all: a name beside it, renamed when the block ends.

    What was written is on the disk before the rename, and an error in the block leaves ``path`` as it was. Makes the
    folder where it is missing. The name is hidden and this writer's own; only a killed process leaves it behind, for
    :func:`leftovers` to find. Raises OSError as the disk does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    if os.name == "posix":  # so that the rename itself outlives a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def leftovers(path: Path) -> list[Path]:
    """What killed writers of ``path`` left, and what live ones are writing: the caller must know that there is none."""
    return sorted(path.parent.glob(f".{path.name}.*.partial"))
