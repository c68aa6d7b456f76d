"""Images of a folder, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from saecore.sources.text import EVERY, SPLITS

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageError(OSError):
    """Images that cannot be read; the message names them, the reason and the way out."""


def images(folder: Path | str, split: str = "train", first: int = 0) -> Iterator[Image]:
    """The images under ``folder`` in RGB, by name; every tenth is held out for test. ``first``: how many to pass over.

    Raises ImageError where there is no such folder, no image for the split, or a damaged one (by its name).
    """
    if split not in SPLITS:
        raise ImageError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    found = sorted(path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = [path for place, path in enumerate(found, 1) if (place % EVERY == 0) == (split == "test")]
    if not chosen:
        raise ImageError(
            f"{folder} holds {len(found)} images ({', '.join(SUFFIXES)}), of which every {EVERY}th is held out for "
            f"test: none is left for {split}; give a folder with more"
        )
    return map(_read, chosen[first:])


def _read(path: Path) -> Image:
    from PIL import Image as pillow

    try:
        with pillow.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path} is damaged or no image ({error}); delete it or fetch it again") from error
