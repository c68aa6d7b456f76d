"""From rounds to rows: which speeds may be shown, how they compare, where they are kept."""

from __future__ import annotations

import csv
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from saecore import paths

OURS, REFERENCE, LIMIT = "saecore", "plain", "limit"
TOLERANCE = 0.01
QUIET = 0.15
"""Share of the processor that others may use while an engine runs; above it the rows are not kept. Threads
that wait for each other lose far more than the share taken, and not all engines lose alike."""
LEAST_FALL = 0.1
"""The reference's loss must have fallen by this share of its start, or what learned nothing could pass."""


@dataclass(frozen=True)
class Round:
    """One process. ``engine`` is "library architecture"; losses are on held-out rows, NaN for a limit.

    ``others``: the share of the processor that other programs took meanwhile.
    """

    engine: str
    version: str
    steps_per_s: float
    start_loss: float
    loss: float
    peak_mb: float
    others: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of a results file. ``checked`` is yes, no, or limit (nothing to check)."""

    date: str
    device: str
    shape: str
    engine: str
    version: str
    steps_per_s: float
    loss: float
    peak_mb: float
    checked: str

    @property
    def package(self) -> str:
        return self.engine.rpartition(" ")[0]

    @property
    def architecture(self) -> str:
        return self.engine.rpartition(" ")[2]

    @property
    def shown(self) -> bool:
        return self.checked != "no"


def settle(shape: str, answers: Sequence[dict], date: str, device: str, path: Path, brief: bool = False) -> str:
    """The table of one shape, its rows kept in ``path`` unless others took too much of the processor.

    ``answers``: ``shape``, ``engine``, and a ``round`` or the reason of a ``failure``, which bars the engine.
    ``brief``: one line, of speeds alone.
    """
    own = [a for a in answers if a["shape"] == shape]
    failures = {a["engine"]: a["failure"] for a in reversed(own) if "failure" in a}
    rounds = [Round(**a["round"]) for a in own if a["engine"] not in failures]
    rows = summarise(rounds, date, device, shape)
    notes = [f"{engine}: {reason}" for engine, reason in failures.items()]
    noise = max((r.others for r in rounds), default=0.0)
    if noise > QUIET:
        notes.append(f"rows not kept: other programs used {noise:.0%} of the processor; run again when it is quiet")
    elif rows:
        append(path, rows)
    if brief:
        return "\n".join([speeds(shape, rows), *notes])
    return f"{shape} on {device}\n{table(rows, rounds, notes)}"


def speeds(shape: str, rows: Sequence[Row]) -> str:
    """A line of what may be shown, in milliseconds a step."""
    return ", ".join([shape, *(f"{r.engine} {1e3 / r.steps_per_s:.3g} ms" for r in rows if r.shown)])


def summarise(rounds: Sequence[Round], date: str, device: str, shape: str) -> list[Row]:
    """One row an engine, in the order met: medians over its rounds, each of which must pass the check."""
    rows = []
    for engine in dict.fromkeys(r.engine for r in rounds):
        own = [r for r in rounds if r.engine == engine]
        losses, speeds = [r.loss for r in own], [r.steps_per_s for r in own]
        if engine.startswith(f"{LIMIT} "):
            checked = LIMIT
        else:
            reference = reference_loss(rounds, engine.rpartition(" ")[2])
            checked = "yes" if all(agrees(loss, reference) for loss in losses) else "no"
        peak = median(r.peak_mb for r in own)
        rows.append(Row(date, device, shape, engine, own[0].version, median(speeds), median(losses), peak, checked))
    return rows


def reference_loss(rounds: Sequence[Round], architecture: str) -> float | None:
    """The plain loop's loss for this architecture; None where it did not run or has learned too little."""
    own = [r for r in rounds if r.engine == f"{REFERENCE} {architecture}"]
    if not own or any(not r.loss <= (1 - LEAST_FALL) * r.start_loss for r in own):
        return None
    return median(r.loss for r in own)


def agrees(loss: float, reference: float | None) -> bool:
    """Whether a loss lies within TOLERANCE of the reference; never without one."""
    return reference is not None and math.isfinite(loss) and abs(loss - reference) <= TOLERANCE * reference


def ratios(rows: Sequence[Row]) -> list[str]:
    """For each architecture of ours: to the fastest other engine (plain counts) and to the limits."""
    lines = []
    for ours in (r for r in rows if r.package == OURS):
        if not ours.shown:
            lines.append(f"{ours.engine}: no ratio, its loss did not pass the check")
            continue
        others = [r for r in rows if r.checked == "yes" and r.package != OURS]
        same = [r for r in others if r.architecture == ours.architecture]
        for words, group in (
            (f"fastest other {ours.architecture}", same),
            ("fastest other of any architecture", others),
        ):
            if group:
                best = max(group, key=lambda r: r.steps_per_s)
                ratio = ours.steps_per_s / best.steps_per_s
                lines.append(f"{ours.engine} / {words} ({best.package}) = {ratio:.2f}")
            else:
                lines.append(f"{ours.engine} / {words}: none passed the check")
        for row in (r for r in rows if r.package == LIMIT):
            lines.append(f"{ours.engine} / {row.engine} = {ours.steps_per_s / row.steps_per_s:.2f}")
    return lines


def table(rows: Sequence[Row], rounds: Sequence[Round], notes: Sequence[str] = ()) -> str:
    """What the command prints. The speed of an engine that fails the check is not in it."""
    head = (
        "engine",
        "version",
        "steps/s",
        "range",
        "loss",
        "to plain",
        "peak MB",
        "checked",
    )
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        reference = None if row.checked == LIMIT else reference_loss(rounds, row.architecture)
        speeds = [r.steps_per_s for r in rounds if r.engine == row.engine]
        lines.append(
            (
                row.engine,
                row.version,
                f"{row.steps_per_s:.2f}" if row.shown else "-",
                f"{min(speeds):.2f}-{max(speeds):.2f}" if row.shown else "-",
                "-" if math.isnan(row.loss) else f"{row.loss:.4e}",
                "-" if reference is None else f"{row.loss / reference - 1:+.2%}",
                f"{row.peak_mb:.0f}",
                row.checked,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    unfit = [
        f"no {a} speed is shown: plain {a} did not run, or its loss fell by less than {LEAST_FALL:.0%}"
        for a in dict.fromkeys(r.architecture for r in rows if r.checked != LIMIT)
        if reference_loss(rounds, a) is None
    ]
    return "\n".join([*text, *notes, *unfit, *ratios(rows)])


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a results file, which is never half there. Raises ValueError where it has other columns."""
    names = [f.name for f in fields(Row)]
    old = path.read_text(encoding="utf-8") if path.exists() else ",".join(names) + "\n"
    if old.partition("\n")[0] != ",".join(names):
        raise ValueError(f"{path} starts with {old.partition(chr(10))[0]!r}, not {','.join(names)!r}; move it away")
    with paths.whole(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        file.write(old)
        writer = csv.DictWriter(file, names, lineterminator="\n")
        for row in rows:
            values = asdict(row)
            values["steps_per_s"] = f"{row.steps_per_s:.4g}"
            values["loss"] = "" if math.isnan(row.loss) else f"{row.loss:.6g}"
            values["peak_mb"] = f"{row.peak_mb:.0f}"
            writer.writerow(values)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def gpu() -> str:
    """A slug of the GPU's name. Raises RuntimeError where PyTorch sees none."""
    import torch

    return _slug(torch.cuda.get_device_name())


def device(threads: int) -> str:
    """A slug of the processor's name and the number of threads."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1] if found else name
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", "", name.lower())
    return f"{_slug(name)}-{threads}t"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
