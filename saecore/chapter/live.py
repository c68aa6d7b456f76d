"""What a chapter calls while it runs. Needs none of the book's tools, so chapters run in Colab as is."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

PROFILES = ("smoke", "full")
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Profile:
    """How much a chapter runs: `smoke` (a minute on a CPU) or `full` (makes the recorded rows again).

    Raises ValueError for another name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in PROFILES:
            raise ValueError(f"profile={self.name!r} is unknown; choose one of {', '.join(PROFILES)}")

    @property
    def full(self) -> bool:
        return self.name == "full"

    def pick(self, *, smoke: T, full: T) -> T:
        """The one of the two that belongs to this profile."""
        return full if self.full else smoke


def environment(profile: str = "smoke") -> dict[str, str]:
    """Environment variables a chapter's kernel starts with.

    A smoke run is compared digit by digit, so it has no network, no GPU and one thread: the order of a sum
    depends on how many threads share it.
    """
    quiet = {"TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "TOKENIZERS_PARALLELISM": "false"}
    if Profile(profile).full:
        return quiet
    fixed = {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
    return quiet | fixed | dict.fromkeys(THREADS, "1") | dict.fromkeys(OFFLINE, "1")


def setup(profile: str) -> Profile:
    """The chapter's profile; a smoke run is put on one thread, and tables print with three decimals.

    Raises ValueError for an unknown profile.
    """
    chosen = Profile(profile)
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, where Jupyter has no widgets
    if not chosen.full:
        _one_thread()
    import pandas as pd

    pd.set_option("display.precision", 3)
    pd.set_option("display.max_rows", 60)
    pd.set_option("display.max_columns", 20)
    return chosen


def _one_thread() -> None:
    # A thread pool reads the environment once, when its library is imported; later it must be asked. numba compares the
    # two at each compilation and refuses to go on where they differ, so its variable is set before the import or not.
    import torch

    numba = sys.modules.get("numba")
    os.environ.update({name: "1" for name in THREADS if not (numba and name.startswith("NUMBA_"))})
    if numba:  # before torch: where both use one OpenMP, numba's pool sets torch's number to its own when it starts
        numba.set_num_threads(1)
    torch.set_num_threads(1)


def glue(name: str, value: Any, format: str = "") -> None:
    """Store `value` under `name` for the chapter's prose, which shows it by {glue:text}`name`.

    The page shows `value` as `format` prints it (".3f", ".1%", ",", or "{:.0f} of 3200"). The value itself
    goes into the notebook beside the text, and a test compares it with data/expected. A float needs a format.
    Raises ValueError for a float without one or not finite, TypeError for what is neither number nor text.
    """
    from IPython.display import display

    raw = _plain(name, value)
    if isinstance(raw, float) and not format:
        raise ValueError(f"glue({name!r}, {raw!r}): a float needs a format, such as format='.3f'")
    text = format.format(raw) if "{" in format else f"{raw:{format}}"
    # The layout of myst_nb.glue(..., display=False), with the value kept beside the name. The text is stored
    # quoted: the page evaluates it as a literal and would print '0.500' as 0.5.
    prefix = "application/papermill.record/"
    display(
        {prefix + "text/plain": repr(text)},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix, "value": raw}},
    )


def glue_all(values: Mapping[str, Any], format: str = "") -> None:
    """`glue` each value under its name, all printed by one format."""
    for name, value in values.items():
        glue(name, value, format)


def _plain(name: str, value: Any) -> bool | int | float | str:
    item = value.item() if hasattr(value, "item") else value
    if not isinstance(item, bool | int | float | str):
        raise TypeError(f"glue({name!r}, ...): {type(value).__name__} is not a number or a text; glue its parts")
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError(f"glue({name!r}, {item}): not a finite number; say in words what happened instead")
    return item
