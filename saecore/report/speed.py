"""Rows of the benchmark (benchmarks/results): what was measured last, beside the fastest other engine and the limit.

A speed counts only if the loss of the same process passed the check; a file's rows of one ``date`` are of one run.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from saecore import paths

OURS, LIMIT, HARVEST = "saecore", "limit", "harvest"
AXES = {"n_latents": "latents", "k": "active latents per row", "batch_size": "rows per batch"}
SIZES = ("d_model", *AXES)
GROWTH, CROSSOVER = "-growth", "-crossover"
COLUMNS = ("date", "device", "shape", "engine", "version", "steps_per_s", "loss", "peak_mb", "checked")


class SpeedError(ValueError):
    """A row whose shape has no sizes."""


def shapes() -> pd.DataFrame:
    """Sizes of the named shapes, by name."""
    return pd.read_csv(paths.benchmarks() / "shapes.csv").set_index("name")


def rows(growth: bool = False, folder: Path | None = None) -> pd.DataFrame:
    """Rows that may be shown, of the last run of each shape on each device that timed our step, with their sizes.

    ``growth``: those of `run.py --grow`, which lie in files of their own. ``milliseconds``: of one step. A file with
    other columns is another benchmark's. Raises SpeedError for a shape without sizes.
    """
    parts = []
    for path in sorted((folder or paths.benchmarks() / "results").glob("*.csv")):
        part = pd.read_csv(path)
        if path.stem.endswith(GROWTH) == growth and tuple(part.columns) == COLUMNS:
            parts.append(part)
    table = pd.concat(parts) if parts else pd.DataFrame(columns=pd.Index(COLUMNS))
    table = table.loc[table["checked"] != "no"].reset_index(drop=True)
    names = table["engine"].astype(str).str.extract(r"^(?P<library>.+) (?P<architecture>\S+)$")
    table = table.join(names).assign(milliseconds=1e3 / table["steps_per_s"].astype(float))
    ours = table.loc[table["library"] == OURS]
    last = ours.groupby(["device", "shape"]).date.max().reset_index()
    return _sized(table.merge(last, on=["device", "shape", "date"]))


def _sized(table: pd.DataFrame) -> pd.DataFrame:
    known, sizes = shapes(), []
    for name in table["shape"]:
        written = re.fullmatch(r"(\d+)x(\d+)-k(\d+)-b(\d+)", name)
        if written is None and name not in known.index:
            raise SpeedError(f"the shape {name!r} is neither in shapes.csv nor written like 256x4096-k16-b1024")
        sizes.append([int(v) for v in (written.groups() if written else known.loc[name, list(SIZES)])])
    return pd.concat([table, pd.DataFrame(sizes, columns=pd.Index(SIZES), index=table.index, dtype=int)], axis=1)


def harvests(folder: Path | None = None) -> pd.DataFrame:
    """Rows of the last run of `benchmarks/harvest.py`: kept positions a second and peak memory (MB), of each ``what``.

    ``times``: how many times as fast the harvest of the fewest rows is. Raises FileNotFoundError where there are none.
    """
    table = pd.read_csv((folder or paths.benchmarks() / "results") / "harvest.csv")
    last = table.loc[table["date"] == table["date"].max()].reset_index(drop=True)
    ours = last.loc[last["what"] == HARVEST, "rows_per_s"].iloc[0]
    return last.assign(times=ours / last["rows_per_s"])


def crossovers(folder: Path | None = None) -> pd.DataFrame:
    """From which share of active codes on dense steps are faster: the last run of `benchmarks/crossover.py` there.

    By ``device``, ``shape`` and ``architecture``: the ``crossover`` (see :func:`crossing`) and the largest share seen.
    """
    files = sorted((folder or paths.benchmarks() / "results").glob(f"*{CROSSOVER}.csv"))
    by, lines = ["device", "shape", "architecture"], []
    if files:
        table = pd.concat([pd.read_csv(file) for file in files])
        table["shape"] = table["shape"].str.replace(r"-k\d+", "", regex=True)
        for key, run in table.groupby(by):
            last = run.loc[run["date"] == run["date"].max()]
            lines.append([*cast(tuple, key), crossing(last), last["share"].max()])
    return pd.DataFrame(lines, columns=pd.Index([*by, "crossover", "measured up to"]))


def crossing(points: pd.DataFrame) -> float:
    """The share of active codes where the definition begins to be faster; NaN where it nowhere is, or none agrees.

    Between two shares by a straight line on logarithmic scales; the first share where the kernels are never faster.
    """
    told = points.loc[points["agree"]].sort_values("share")
    shares, lead = np.log(told["share"]), np.log(told["definition_ms"] / told["kernels_ms"])
    behind = np.flatnonzero(lead <= 0)
    if not len(behind):
        return math.nan
    at = slice(max(behind[0] - 1, 0), behind[0] + 1)
    return float(np.exp(np.interp(0, lead.iloc[at][::-1], shares.iloc[at][::-1])))


def on_gpu(device: str) -> bool:
    """Whether a device's name is a GPU's: a processor's ends with its number of threads."""
    return re.search(r"-\d+t$", device) is None


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """For each of our rows the fastest other engine of its architecture, and how many of its limits a step takes."""
    lines = []
    for row in table.loc[table["library"] == OURS].to_dict("records"):
        run = table.loc[(table["device"] == row["device"]) & (table["shape"] == row["shape"])]
        same = (run["architecture"] == row["architecture"]) & ~run["library"].isin([OURS, LIMIT])
        limits = run.loc[run["library"] == LIMIT].set_index("architecture")["milliseconds"]
        line = {name: row[name] for name in ("device", "date", "shape", "architecture", "milliseconds")}
        if same.any():
            best = run.loc[run.loc[same, "milliseconds"].astype(float).idxmin()]
            line |= {"fastest other": best["library"], "times faster": best["milliseconds"] / row["milliseconds"]}
        line |= {f"times the {p} limit": row["milliseconds"] / limits[p] for p in limits.index}
        lines.append(line)
    return pd.DataFrame(lines)


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `--grow` along each axis: ``axis``, ``size`` and ``milliseconds`` by device and engine.

    The centre is the size most rows have, axis by axis; it lies on all three.
    """
    parts = []
    for _, run in table.groupby("device"):
        centre = {axis: run[axis].mode()[0] for axis in AXES}
        for axis in AXES:
            others = [run[other] == centre[other] for other in AXES if other != axis]
            line = run.loc[others[0] & others[1]].sort_values(axis)
            parts.append(line.assign(axis=axis, size=line[axis]))
    return pd.concat(parts, ignore_index=True) if parts else table.assign(axis="", size=0)


def per_doubling(grown: pd.DataFrame) -> pd.DataFrame:
    """What a doubling of an axis multiplies an engine's time by, from the middle of the axis to its end."""
    lines = []
    for key, line in grown.groupby(["device", "engine", "axis"]):
        device, engine, axis = cast(tuple, key)
        ends = line.sort_values("size").iloc[[(len(line) - 1) // 2, -1]]
        doublings = math.log2(ends["size"].iloc[1] / ends["size"].iloc[0])
        if doublings > 0:
            times = (ends["milliseconds"].iloc[1] / ends["milliseconds"].iloc[0]) ** (1 / doublings)
            lines.append({"device": device, "engine": engine, "axis": axis, "times": times})
    return pd.DataFrame(lines, columns=pd.Index(["device", "engine", "axis", "times"]))


def devices(table: pd.DataFrame, gpu: bool) -> str:
    """The devices that the rows are of, in words; "none" where there is no row."""
    found = sorted({d for d in table["device"] if on_gpu(d) == gpu})
    return ", ".join(found) or "none"
