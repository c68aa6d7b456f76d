"""Texts by name: the embedded world's, a local file's, or a hub data set's, one document at a time.

A data set without a test split of its own holds out every tenth document: the 10th, 20th, ... of those not blank.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from saecore import paths
from saecore.sources.hub import quiet, reason

SPLITS = ("train", "test")
COLUMN = "text"
ENCODING = "utf-8-sig"
"""UTF-8, with the mark at its beginning that some programs write, or without."""
EVERY = 10
"""One document in so many is held out."""
HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


class TextError(OSError):
    """A text that cannot be read; the message names it, the reason and the way out."""


def documents(dataset: str, split: str = "train") -> Iterator[str]:
    """The documents of a data set, in its order, blank ones left out; never held in memory at once.

    ``dataset`` is ``atlas`` (without end), ``python-docs`` (Python's own documentation), a file or a hub id
    ``owner/name[:config]``, streamed through ``datasets``.
    ``#column`` at the end names the column of a table (default: ``text``). Files: ``.txt`` (documents between blank
    lines), ``.json`` (a list of texts or of objects), ``.jsonl``, ``.csv``, ``.parquet``. Raises TextError for what is
    missing, unreachable, empty or of another form, at the latest when the first document is asked for.
    """
    if split not in SPLITS:
        raise TextError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if dataset == "atlas":
        from saecore.sources import atlas

        return (document.text for document in atlas.documents(split))
    if dataset == "python-docs":
        from saecore.sources import python_docs

        return _split(python_docs.documents(), split, dataset)
    place, _, column = dataset.partition("#")
    path = Path(place).expanduser()
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise TextError(f"{path} is of no known form; give one of {', '.join(READERS)}")
        return _split(_whole(path, column or COLUMN), split, dataset)
    found = HUB_ID.fullmatch(place)
    if path.suffix.lower() in READERS or found is None:
        raise TextError(
            f"data set {dataset!r} is no file; give atlas, python-docs, a file or a hub id owner/name[:config][#column]"
        )
    return _from_hub(dataset, found["name"], found["config"], column or COLUMN, split)


def _split(texts: Iterable[str], split: str, dataset: str) -> Iterator[str]:
    """Every tenth, or the others."""
    count, given = 0, False
    for text in texts:
        if not text.strip():
            continue
        count += 1
        if (count % EVERY == 0) == (split == "test"):
            given = True
            yield text
    if not given:
        raise TextError(
            f"data set {dataset!r} has no {split} document: it holds {count} that are not blank, "
            f"of which every {EVERY}th is held out for test; give more (in a .txt, blank lines separate documents)"
        )


def _whole(path: Path, column: str) -> Iterator[str]:
    """A file's texts; what its reader cannot make sense of becomes one line."""
    try:
        yield from READERS[path.suffix.lower()](path, column)
    except TextError:
        raise
    except (OSError, ValueError, csv.Error, ImportError) as error:
        raise TextError(f"{path} cannot be read as {path.suffix} ({error})") from error


def _paragraphs(path: Path, _column: str) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding=ENCODING) as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).rstrip("\n")
                lines = []
    yield "".join(lines).rstrip("\n")


def _json(path: Path, column: str) -> Iterator[str]:
    items = json.loads(path.read_text(encoding=ENCODING))
    if not isinstance(items, list):
        raise TextError(f"{path} holds a {type(items).__name__}; it must be a list of texts or of objects")
    for item in items:
        yield item if isinstance(item, str) else _cell(item, column, path)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding=ENCODING) as file:
        for line in filter(str.strip, file):
            item = json.loads(line)
            yield item if isinstance(item, str) else _cell(item, column, path)


def _csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses documents above 128 KiB
    with path.open(encoding=ENCODING, newline="") as file:
        for row in csv.DictReader(file):
            yield _cell(row, column, path)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            _cell(dict.fromkeys(file.schema_arrow.names), column, path)
        for batch in file.iter_batches(batch_size=1000, columns=[column]):
            for item in batch.to_pylist():
                yield _cell(item, column, path)


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _paragraphs,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _cell(row: Any, column: str, place: Path | str) -> str:
    """A row's text; an empty cell is a blank document."""
    if not isinstance(row, dict) or column not in row:
        has = f"has the columns {', '.join(map(str, row))}" if isinstance(row, dict) else f"holds {row!r:.60}"
        raise TextError(f"{place} {has}, not {column!r}; name the column of the text with {place}#column")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise TextError(f"{place}: column {column!r} holds {text!r:.60}, which is no text; name another with #column")
    return text or ""


def _from_hub(dataset: str, name: str, config: str | None, column: str, split: str) -> Iterator[str]:
    """The data set's own split where it has a test split, else our tenth of its train split."""
    try:
        import datasets
    except ImportError as error:
        hint = paths.install_hint("models")
        raise TextError(f"data set {dataset!r} is read through datasets ({error}); {hint}") from error
    try:
        with quiet():
            own = "test" in datasets.get_dataset_split_names(name, config)
            rows = datasets.load_dataset(name, config, split=split if own else "train", streaming=True)
        texts = (_cell(row, column, name) for row in rows)
        yield from filter(str.strip, texts) if own else _split(texts, split, dataset)
    except TextError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise TextError(
            f"data set {dataset!r} cannot be read from the hub ({reason(error)}). Offline, give atlas or a local file; "
            "for a gated one accept its terms on the hub and set HF_TOKEN"
        ) from error
