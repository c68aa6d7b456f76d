"""Everything that needs a GPU, in the minutes given: what `make gpu` runs. Standard library only.

Each stage is a process with a share of the time, so that none can starve the next; a stage that fails is named and
the rest goes on. Rows, log and tables go to ``--out``; the tables are printed last.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/activations/test_models_opening.py",
    "tests/kernels/test_real_sizes_triton.py",
    "tests/metrics/test_detection.py",
    "tests/metrics/test_evaluate.py",
    "tests/training/test_device.py",
)
"""The files with tests that need a GPU; of the others some cannot be imported without numba."""
SHAPES = ("gemma", "llama", "gpt2", "synthetic", "atlas")
GRACE = 10
"""Seconds for a stage to end by itself after it was asked to."""


@dataclass(frozen=True)
class Stage:
    """``minutes``: at most; 0 for what is left. ``shown``: its output is printed at the end. ``site``: of the peers."""

    name: str
    command: list[str]
    minutes: float
    shown: bool = False
    site: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    seconds: float
    words: str
    output: str


def stages(out: Path, site: Path | None) -> list[Stage]:
    """In the order in which they run. ``site``: where the peers were unpacked."""
    python = sys.executable
    bench = [python, "benchmarks/run.py", "--device", "cuda", "--results", str(out)]
    tests = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", *TESTS]
    results = {"SAECORE_RESULTS": str(out)}
    return [
        Stage("tests", tests, 2.5),
        Stage("speed", [*bench, "--shape", *SHAPES, "--minutes", "3.3"], 3.7, True, site),
        Stage("growth", [*bench, "--grow", "--minutes", "1.0"], 1.2, True),
        Stage("crossover", [python, "benchmarks/crossover.py", "--device", "cuda", "--results", str(out)], 0.7, True),
        Stage("recovery", [python, "-m", "saecore", "run", "gpu", "--device", "cuda"], 0, extra=results),
    ]


def unpack(wheels: Path, site: Path) -> str:
    """Put the peers' wheels (`make peers`) where Python finds them; what became of it."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        return f"no wheels in {wheels.relative_to(ROOT)}: only peers that are installed take part (`make peers`)"
    options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, "--target", site, *found],
        capture_output=True,
        text=True,
    )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"{len(found)} wheels unpacked" if done.returncode == 0 else f"pip could not unpack the wheels: {last}"


def run(stage: Stage, seconds: float, log: Path) -> Outcome:
    """One stage, ended with all its processes when its time is up. What it prints is added to ``log``.

    The package need not be installed: every stage finds it, and the peers, by PYTHONPATH.
    """
    began = time.monotonic()
    found = os.pathsep.join(filter(None, [str(stage.site or ""), str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": found, **stage.extra}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as words:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=words, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=max(1.0, seconds))
            code = process.returncode
            said = "done" if code == 0 else f"failed (code {code})"
        except subprocess.TimeoutExpired:
            said, output = "stopped, its time was up", stop(process)
        words.seek(0)
        told = [*output.strip().splitlines(), *words.read().strip().splitlines()]
    with log.open("a", encoding="utf-8") as file:
        file.write("\n".join([f"== {stage.name}: {said}", *told, ""]))
    if said != "done" and told:
        said += f"; last words: {told[-1][:200]}"
    return Outcome(stage, time.monotonic() - began, said, output)


def stop(process: subprocess.Popen[str]) -> str:
    """End a stage and what it started; what it had printed."""
    for how in (signal.SIGINT, signal.SIGKILL):  # at the first, pytest still tells of failures
        try:
            os.killpg(process.pid, how)
            return process.communicate(timeout=GRACE)[0] or ""
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue
    return ""


def report(outcomes: Sequence[Outcome]) -> str:
    """What each stage printed that is to be shown, the speeds last, under one line per stage."""
    width = max(len(o.stage.name) for o in outcomes)
    lines = [f"{o.stage.name.ljust(width)}  {o.seconds:4.0f} s  {o.words}" for o in outcomes]
    shown = sorted((o for o in outcomes if o.stage.shown and o.output), key=lambda o: o.stage.name == "speed")
    return "\n\n".join(["\n".join(lines), *(f"== {o.stage.name}\n{o.output.strip()}" for o in shown)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.8, help="for everything; default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder; default: %(default)s")
    given = parser.parse_args(argv)
    ends = time.monotonic() + 60 * given.minutes
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.log").unlink(missing_ok=True)
    site = ROOT / "build" / "peers-site"
    print(unpack(ROOT / "build" / "peers", site), flush=True)
    outcomes = []
    for stage in stages(out, site if site.exists() else None):
        left = ends - time.monotonic()
        outcomes.append(run(stage, min(60 * stage.minutes or left, left - GRACE), out / "gpu.log"))
        print(f"{stage.name}: {outcomes[-1].words}", flush=True)
    text = report(outcomes)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(any(o.words != "done" for o in outcomes[:2]))


if __name__ == "__main__":
    sys.exit(main())
