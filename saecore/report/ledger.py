"""Recorded runs: one row per measured value, in data/results/<experiment>.csv.

A run may be recorded on several devices, whose rows stand side by side in the file. It counts once all the same:
:func:`read` gives each value from one of them (:func:`one_device`), and :func:`finished` takes any.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from saecore import paths, spec

COLUMNS = (
    "experiment",
    "key",
    "source",
    "architecture",
    "constraint",
    "init",
    "l0",
    "seed",
    "step",
    "metric",
    "value",
    "device",
    "commit",
    "seconds",
    "settings",
)
RUN = ("key", "constraint", "seed")
IDENTITY = ("key", "step", "metric", "seed", "constraint", "device")
"""A row replaces the one that agrees with it in these."""
ORDER = ("source", "architecture", "constraint", "init", "l0", "settings", "seed", "key", "step", "metric", "device")
NUMBERS = {"l0": float, "seed": int, "step": int, "value": float, "seconds": float}
REQUIRED = ("experiment", "key", "constraint", "metric", "device")
"""Text columns that may not be empty; a floor without an SAE has no architecture, init or l0."""
SETTINGS = re.compile(r"([\w.]+=[^;=]+(;[\w.]+=[^;=]+)*)?")
COMMIT = "SAECORE_COMMIT"
FINAL = "dead_share"
"""A metric that only a finished run has; a learning curve's rows come earlier and hold fewer."""

Row = Mapping[str, Any]


class LedgerError(ValueError):
    """A row that cannot be recorded, or a question that no recorded row answers."""


def path(experiment: str) -> Path:
    """The experiment's file, there or not. Raises LedgerError where the name could name no file."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", experiment):
        raise LedgerError(f"experiment={experiment!r} must be lower-case letters, digits and _; it names a file")
    return paths.results() / f"{experiment}.csv"


def rows(
    run: spec.RunSpec, step: int, values: Mapping[str, float], seconds: float, on: str | torch.device
) -> list[dict[str, Any]]:
    """A row for each of a run's measured ``values`` at a training step, ``seconds`` of training in."""
    same = {
        "key": run.key(),
        "source": run.source.name,
        "architecture": run.sae.architecture,
        "constraint": run.constraint.name,
        "init": run.constraint.init,
        "l0": float(run.sae.l0),
        "seed": run.training.seed,
        "step": step,
        "device": device(on),
        "commit": commit(),
        "seconds": seconds,
        "settings": run.settings(),
    }
    return [{**same, "metric": metric, "value": value} for metric, value in values.items()]


def references(
    source: spec.SourceSpec | spec.ActivationSpec,
    found: Mapping[str, Mapping[str, float]],
    on: str | torch.device,
    seed: int = 0,
    step: int = 0,
) -> list[dict[str, Any]]:
    """Rows for floors and ceilings that need no SAE, under the key of their source; ``found``: by constraint."""
    same = {"key": source.key(), "source": source.name, "architecture": "", "init": "", "l0": None, "settings": ""}
    same |= {"seed": seed, "step": step, "device": device(on), "commit": commit(), "seconds": 0}
    return [
        {**same, "constraint": name, "metric": metric, "value": value}
        for name, values in found.items()
        for metric, value in values.items()
    ]


def record(experiment: str, rows: Iterable[Row]) -> Path:
    """Merge ``rows`` into the experiment's file: rows of equal identity are replaced, all others kept.

    The file is whole at every moment, and two processes that record at once lose nothing. Raises LedgerError before
    anything is written, as for NaN and infinity, and PathError where the disk refuses.
    """
    target = path(experiment)
    new: dict[tuple, dict[str, str]] = {}
    for row in rows:
        checked = _checked(experiment, row)
        if _identity(checked) in new:
            raise LedgerError(f"two rows have the same {', '.join(IDENTITY)}: {_identity(checked)}; give one of them")
        new[_identity(checked)] = checked
    if not new:
        return target
    paths.writable(target.parent, paths.RESULTS)
    with paths.alone(target.parent, paths.RESULTS):
        for left in paths.leftovers(target):  # of a writer that was killed: we hold the lock
            left.unlink()
        kept = {_identity(row): row for row in _lines(target)} if target.exists() else {}
        try:
            _write(target, sorted({**kept, **new}.values(), key=_order))
        except OSError as error:
            raise paths.PathError(
                f"cannot write {target} ({error.strerror or error}); free the disk, or set {paths.RESULTS} to another "
                "folder: what was recorded stands"
            ) from error
    return target


def read(experiment: str, every_device: bool = False) -> pd.DataFrame:
    """The rows of an experiment in the file's order; what several devices recorded, once, unless ``every_device``.

    Raises LedgerError where nothing is recorded yet or the file is damaged.
    """
    source = path(experiment)
    if not source.exists():
        known = ", ".join(sorted(p.stem for p in source.parent.glob("*.csv"))) or "nothing"
        raise LedgerError(
            f"no recorded runs in {source.name}; make them with `saecore run {experiment}` "
            f"(recorded in {source.parent.name}/: {known})"
        )
    rows = list(_lines(source))
    frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    for name, kind in NUMBERS.items():
        try:
            frame[name] = [kind(text or "nan") for text in frame[name]]
        except ValueError as error:
            raise LedgerError(f"{source}: {name} holds what is no number ({error}); record it again") from error
    return frame if every_device else one_device(frame)


def one_device(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each run, metric and step one row: of the device that took the metric furthest; of equals, the first by name.

    Other devices only add the steps that it lacks, as where a run was stopped on one machine and ended on another.
    """
    furthest = frame.groupby([*RUN, "metric", "device"], sort=False)["step"].transform("max")
    best_first = frame.assign(furthest=furthest).sort_values(["furthest", "device"], ascending=[False, True])
    return frame.loc[best_first.drop_duplicates([*RUN, "metric", "step"]).index.sort_values()]


def select(frame: pd.DataFrame, **equals: Any) -> pd.DataFrame:
    """Rows whose columns equal the values given; a list or tuple stands for any of its members.

    Raises LedgerError naming what is there when nothing matches.
    """
    for name, wanted in equals.items():
        if name not in frame.columns:
            raise LedgerError(f"no column {name!r}; the columns are {', '.join(frame.columns)}")
        members = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        found = frame.loc[frame[name].isin(members)]
        if found.empty:
            there = ", ".join(repr(v) for v in sorted(frame[name].unique().tolist(), key=str)) or "no rows at all"
            before = ", ".join(f"{k}={v!r}" for k, v in equals.items() if k != name)
            raise LedgerError(f"no row has {name}={wanted!r}{f' among {before}' if before else ''}; there is: {there}")
        frame = found
    return frame


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each run and metric, the row of the last step."""
    run = frame.groupby([*RUN, "metric"], sort=False)["step"]
    return frame.loc[frame["step"] == run.transform("max")]


def finished(experiment: str, metric: str = FINAL) -> set[str]:
    """Keys of the runs that have ``metric`` recorded, on any device; none where nothing is recorded yet."""
    source = path(experiment)
    return {row["key"] for row in _lines(source) if row["metric"] == metric} if source.exists() else set()


def fractions(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``features_recovered`` as shares of the features there are, under ``fraction_recovered``.

    A learning curve records the count alone. Raises LedgerError where there is no such row.
    """
    counts = expand(select(frame, metric="features_recovered"), "source.n_features")
    shares = counts["value"] / counts["source.n_features"]
    return counts.assign(metric="fraction_recovered", value=shares).drop(columns="source.n_features")


def binned(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of ``<metric>_<i>``, such as ``recovered_bin_3``, with i as the column ``bin``. Raises LedgerError."""
    numbers = frame["metric"].str.extract(rf"^{re.escape(metric)}_(\d+)$")[0]
    found = frame.loc[numbers.notna()]
    if found.empty:
        there = ", ".join(sorted(frame["metric"].unique())) or "no rows at all"
        raise LedgerError(f"no metric {metric}_<i> is recorded; there is: {there}")
    return found.assign(metric=metric, bin=numbers[found.index].astype(int))


def expand(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """A column per setting (``training.learning_rate``); the spec's default where a row does not set it.

    Raises LedgerError for a setting that is no field with a default.
    """
    parsed = [dict(item.split("=", 1) for item in text.split(";") if item) for text in frame["settings"]]
    columns = {name: [row.get(name, _default(name)) for row in parsed] for name in names}
    return frame.assign(**{name: [_literal(v) for v in values] for name, values in columns.items()})


def provenance(frame: pd.DataFrame) -> str:
    """One line: how many runs, which seeds, on what, from which commits, how many hours."""
    runs: dict[tuple, float] = {}
    for *run, seconds in frame[[*RUN, "seconds"]].itertuples(index=False):
        runs[tuple(run)] = max(seconds, runs.get(tuple(run), 0.0))
    devices = ", ".join(sorted(frame["device"].unique())) or "no device"
    commits = ", ".join(sorted(frame["commit"].unique())) or "none"
    hours = sum(runs.values()) / 3600
    spent = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    counted = f"{len(runs)} {_plural('run', len(runs))}"
    return f"{counted}, {_ranges(frame['seed'])}, on {devices}, commit {commits}, {spent}"


@cache
def commit() -> str:
    """Short commit of the code that runs, "-dirty" where saecore/ differs from it; asked once per process.

    SAECORE_COMMIT stands in where there is no git; without either it is "unknown".
    """
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    return head + ("-dirty" if _git("status", "--porcelain", "--", ":(top)saecore") else "")


@cache
def device(name: str | torch.device = "cpu") -> str:
    """Plain name of the CPU or GPU, such as "NVIDIA H200"."""
    chosen = torch.device(name)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    if chosen.type != "cpu":
        return chosen.type
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    model = found[1] if found else platform.processor() or platform.machine()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)|\bCPU\b|@.*", "", model)).strip()


def _checked(experiment: str, row: Row) -> dict[str, str]:
    row = {"experiment": experiment, **row}
    missing = [c for c in COLUMNS if c not in row]
    unknown = [c for c in row if c not in COLUMNS]
    if missing or unknown:
        raise LedgerError(f"a row has no {missing} and has unknown {unknown}; the columns are {', '.join(COLUMNS)}")
    if row["experiment"] != experiment:
        raise LedgerError(f"experiment={row['experiment']!r} in a row of {experiment!r}; record it under its own name")
    line = {column: _text(column, row[column]) for column in COLUMNS}
    empty = [c for c in REQUIRED if not line[c]]
    if empty:
        raise LedgerError(f"{empty[0]} is empty in the row of metric={line['metric']!r}; it identifies the row")
    if not SETTINGS.fullmatch(line["settings"]):
        raise LedgerError(f"settings={line['settings']!r} is not name=value;name=value (RunSpec.settings() writes it)")
    return line


def _text(column: str, value: Any) -> str:
    kind = NUMBERS.get(column)
    if kind is None:
        text = str(value)
        if not isinstance(value, str) or re.search(r"[\r\n]", text):
            raise LedgerError(f"{column}={value!r} must be one line of text")
        return text
    if column == "l0" and value in ("", None):
        return ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LedgerError(f"{column}={value!r} is not a number") from None
    if not math.isfinite(number):
        raise LedgerError(f"{column}={number} is not finite; leave the row out")
    if kind is int:
        if number != int(number):
            raise LedgerError(f"{column}={value!r} is not a whole number")
        return str(int(number))
    return f"{number:.6g}"


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in IDENTITY)


def _order(row: Mapping[str, str]) -> tuple[float | str, ...]:
    return tuple(float(row[c] or "-inf") if c in NUMBERS else row[c] for c in ORDER)


def _lines(source: Path) -> Iterator[dict[str, str]]:
    with source.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            wrong = [c for c in COLUMNS if c not in header] or [c for c in header if c not in COLUMNS] or ["order"]
            raise LedgerError(f"{source} does not have the ledger's columns ({', '.join(wrong)}); record it again")
        for number, line in enumerate(reader, 2):
            if len(line) != len(COLUMNS):
                raise LedgerError(
                    f"{source}, line {number} has {len(line)} fields, not {len(COLUMNS)}; record it again"
                )
            yield dict(zip(COLUMNS, line, strict=True))


def _write(target: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with paths.whole(target) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([row[column] for column in COLUMNS] for row in rows)


def _default(name: str) -> Any:
    part, _, item = name.partition(".")
    classes = {
        "source": spec.SourceSpec,
        "sae": spec.SAESpec,
        "constraint": spec.ConstraintSpec,
        "training": spec.TrainingSpec,
    }
    if part in classes:
        for field in dataclasses.fields(classes[part]):
            if field.name == item and field.default is not dataclasses.MISSING:
                return field.default
    raise LedgerError(
        f"setting {name!r} is no field with a default; write part.field with part in {', '.join(classes)}"
    )


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in ("True", "False"):
        return value == "True"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(paths.root()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _ranges(seeds: Iterable[int]) -> str:
    found = sorted(set(seeds))
    whole = len(found) > 1 and found == list(range(found[0], found[-1] + 1))
    return f"{_plural('seed', len(found))} " + (f"{found[0]}-{found[-1]}" if whole else ", ".join(map(str, found)))
