"""SAEBench's eight data sets, from the hub, with its classes, balance and splits (sae-bench 0.6.0).

Identifiers and classes are those of ``sae_bench_utils/dataset_info.py``. The texts are chosen as in
``sae_bench_utils/dataset_utils.py``: where a data set has a test split, the same ones for the same seed; of Europarl
and GitHub code from the same texts, divided by a shuffle of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from saecore import paths
from saecore.sources.hub import quiet, reason
from saecore.sources.probing.base import LabelledSet, LabelledSetError, divided, one_vs_rest, per_class
from saecore.sources.text import TextError

TRAIN, TEST, SEED = 4000, 1000, 42
GITHUB_FILES = "hf://datasets/codeparrot/github-code/data/train-*-of-01126.parquet"
"""Read as they are: the data set's loading script is code, and `datasets` runs none since 4.0. What the script adds is
the language, from the ending of the path.
"""
ENDINGS = {
    "C": (".c", ".h"),
    "Python": (".py",),
    "HTML": (".html",),
    "Java": (".java",),
    "PHP": (".php", ".php3", ".php4", ".php5", ".phps", ".phpt"),
}
LICENCE_CHARACTERS, LEAST_CHARACTERS = 150, 384
"""A file's first 50 tokens are left out (Gurnee et al. 2023), at 3 characters each, and 128 more must follow."""
PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
"""Europarl's configuration from which each language is read."""


@dataclass(frozen=True)
class Table:
    """A data set with train and test splits. ``classes``: values of the column ``label``, and what they mean.

    ``balance``: a column whose values are held equally often in every class.
    """

    hub: str
    family: str
    classes: Mapping[Any, str]
    text: str = "text"
    label: str = "label"
    balance: str | None = None


def _bios(*classes: tuple[int, str]) -> Table:
    return Table("LabHC/bias_in_bios", "profession", dict(classes), "hard_text", "profession", "gender")


AMAZON = "canrager/amazon_reviews_mcauley_1and5"
TABLES = {
    "LabHC/bias_in_bios_class_set1": _bios(
        (0, "accountant"), (1, "architect"), (2, "attorney"), (6, "dentist"), (9, "filmmaker")
    ),
    "LabHC/bias_in_bios_class_set2": _bios(
        (11, "journalist"), (13, "nurse"), (14, "painter"), (18, "photographer"), (19, "physician")
    ),
    "LabHC/bias_in_bios_class_set3": _bios(
        (20, "poet"), (21, "professor"), (22, "psychologist"), (25, "surgeon"), (26, "teacher")
    ),
    AMAZON: Table(
        AMAZON,
        "product_sentiment",
        {
            1: "Toys_and_Games",
            2: "Cell_Phones_and_Accessories",
            3: "Industrial_and_Scientific",
            5: "Musical_Instruments",
            6: "Electronics",
        },
        label="category",
        balance="rating",
    ),
    f"{AMAZON}_sentiment": Table(AMAZON, "product_sentiment", {1.0: "one_star", 5.0: "five_stars"}, label="rating"),
    "fancyzhx/ag_news": Table(
        "fancyzhx/ag_news", "news_topic", {0: "World", 1: "Sports", 2: "Business", 3: "Sci/Tech"}
    ),
}
GITHUB, EUROPARL = "codeparrot/github-code", "Helsinki-NLP/europarl"
SAEBENCH = (*TABLES, GITHUB, EUROPARL)


def hub_sets(train: int = TRAIN, test: int = TEST, seed: int = SEED) -> tuple[LabelledSet, ...]:
    """All eight; see :func:`hub_set`."""
    return tuple(hub_set(name, train, test, seed) for name in SAEBENCH)


def hub_set(name: str, train: int = TRAIN, test: int = TEST, seed: int = SEED) -> LabelledSet:
    """One of ``SAEBENCH``, through `datasets`.

    Raises LabelledSetError for an unknown name, a missing column or too few texts, TextError where the hub cannot be
    reached.
    """
    if name not in SAEBENCH:
        raise LabelledSetError(f"labelled set {name!r} is unknown; choose one of {', '.join(SAEBENCH)}")
    rng = np.random.default_rng([0x5AE, seed])
    with _hub(name) as load:
        if name in TABLES:
            table = TABLES[name]
            parts = load(table.hub)
            learnt = _sample(name, parts["train"].to_pandas(), table, train, seed)
            asked = _sample(name, parts["test"].to_pandas(), table, test, seed)
            return one_vs_rest(name, table.family, learnt, asked, rng)
        reader, family = (_github, "programming_language") if name == GITHUB else (_europarl, "language")
        found = reader(load, (train + test) // 2)
    return one_vs_rest(name, family, *divided(name, found, train, test, rng), rng)


def _sample(name: str, frame: pd.DataFrame, table: Table, size: int, seed: int) -> dict[str, list[str]]:
    """SAEBench's sample of half of ``size`` texts for each class."""
    for column in filter(None, (table.text, table.label, table.balance)):
        if column not in frame:
            raise LabelledSetError(f"{name} has the columns {', '.join(frame.columns)}, not {column!r}; it has changed")
    found = {}
    for value, title in table.classes.items():
        own = frame[frame[table.label] == value]
        groups = [own] if table.balance is None else [part for _, part in own.groupby(table.balance)]
        n = per_class(name, size, "size", 2 if table.balance is None else 4)
        least = min(map(len, groups), default=0)
        if least < n or (table.balance and len(groups) < 2):
            within = f" of each {table.balance}" if table.balance else ""
            raise LabelledSetError(
                f"{name} has {least} texts of the class {title}{within}, fewer than the {n} asked for; ask for fewer"
            )
        found[title] = [t for part in groups for t in part.sample(n=n, random_state=seed)[table.text].tolist()]
    return found


def _europarl(load: Callable[..., Any], n: int) -> dict[str, list[str]]:
    """For each language the first ``n + 1`` texts, as SAEBench takes them."""
    found: dict[str, list[str]] = {}
    for language, pair in PAIRS.items():
        texts = found[language] = []
        for row in load(EUROPARL, pair, split="train", streaming=True):
            texts.append(row["translation"][language])
            if len(texts) > n:
                break
    return found


def _github(load: Callable[..., Any], n: int) -> dict[str, list[str]]:
    """For each language the files that come until each has more than ``n``, without their licence header."""
    found: dict[str, list[str]] = {language: [] for language in ENDINGS}
    rows = load("parquet", data_files=GITHUB_FILES, columns=["path", "content"], split="train", streaming=True)
    for row in rows:
        language = next((name for name, endings in ENDINGS.items() if row["path"].endswith(endings)), None)
        if language and len(row["content"]) > LICENCE_CHARACTERS + LEAST_CHARACTERS:
            found[language].append(row["content"][LICENCE_CHARACTERS:])
            if all(len(texts) > n for texts in found.values()):
                break
    return found


@contextmanager
def _hub(name: str) -> Iterator[Callable[..., Any]]:
    """``datasets.load_dataset``, without a line on stderr for every retry; what fails becomes one line."""
    try:
        import datasets
    except ImportError as error:
        raise TextError(
            f"labelled set {name!r} is read through datasets ({error}); {paths.install_hint('models')}"
        ) from error
    try:
        with quiet():
            yield datasets.load_dataset
    except LabelledSetError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TextError(
            f"labelled set {name!r} cannot be read from the hub ({reason(error)}). Offline, give a CSV: --texts, or "
            "csv_set()"
        ) from error
