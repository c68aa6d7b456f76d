"""A local table of texts and their classes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from saecore.sources.probing.base import LabelledSet, LabelledSetError, divided, one_vs_rest

log = logging.getLogger(__name__)

TEST_SHARE = 1 / 5
"""SAEBench's 1000 of 5000."""


def csv_set(
    path: str | Path,
    train: int | None = None,
    test: int | None = None,
    *,
    most: int | None = None,
    family: str | None = None,
    text: str = "prompt",
    label: str = "target",
    seed: int = 0,
) -> LabelledSet:
    """The texts of a CSV's column ``text``, by their class in the column ``label``, divided at random.

    A text that stands there several times counts once, one without a label or with two not at all, so that no text is
    in both parts. Blanks around a label are no part of it. By default every class gives as many texts as the smallest
    has, a fifth of them for the test, and of two classes together no more than ``most``. ``family``: the file's name by
    default, up to its first dot. Raises LabelledSetError for a file that is missing, unreadable, empty, without one of
    the columns, of one class only, or with fewer texts than asked for, and where both columns are one.
    """
    path = Path(path)
    frame = _read(path, text, label)
    classes = {str(c): part[text].tolist() for c, part in frame.groupby(label)}
    least = min(map(len, classes.values()), default=0)
    least = least if most is None else min(least, most // 2)
    test = 2 * max(1, round(TEST_SHARE * least)) if test is None else test
    train = max(2, 2 * least - test) if train is None else train
    rng, name = np.random.default_rng([0xC57, seed]), path.name.split(".")[0]
    return one_vs_rest(name, family or name, *divided(name, classes, train, test, rng), rng)


def _read(path: Path, text: str, label: str) -> pd.DataFrame:
    """Columns ``text``, as it stands, and ``label``, every text once; what is blank in either is left out."""
    if text == label:
        raise LabelledSetError(f"text={text!r} and label={label!r} are one column of {path}; name two")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, ImportError) as error:  # pandas' own and wrong encodings are ValueErrors
        raise LabelledSetError(f"{path} cannot be read as CSV ({str(error).strip()}); give another file") from error
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):  # pandas took the first column for row names
        raise LabelledSetError(f"{path} has rows of more fields than its header; give every column a name")
    for column in (text, label):
        if column not in frame:
            has = ", ".join(map(str, frame.columns))
            raise LabelledSetError(f"{path} has the columns {has}, not {column!r}; name yours with text= and label=")
    frame[label] = frame[label].str.strip()
    frame = frame.loc[frame[text].str.strip() != "", [text, label]].drop_duplicates()
    unlabelled = frame[label] == ""
    if unlabelled.any():
        log.warning("%s: %d texts have no label and are left out", path, unlabelled.sum())
        frame = frame[~unlabelled]
    doubtful = frame[text].duplicated(keep=False)
    if doubtful.any():
        log.warning("%s: %d texts have two labels and are left out", path, frame.loc[doubtful, text].nunique())
    return frame[~doubtful]
