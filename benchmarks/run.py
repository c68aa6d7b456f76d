"""Training speed of saecore beside its peers (README.md says how to read the table).

Each engine trains in a process of its own; rounds go through all engines before they start again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import psutil
import scoreboard
from scoreboard import Round

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 10
"""Steps before the clock starts; they train like the others. Compiled code is built or loaded here."""
LISTEN_SECONDS = 1.0
LEAST_SECONDS = 3.0
"""A fast engine goes on after the loss is taken until this much time is measured."""


def environment(threads: int) -> dict[str, str]:
    """The same for every engine: threads, no network, and an allocator that keeps freed arrays.

    saecore asks glibc for the last when it is imported. A peer gains from it too, so all get it.
    """
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }


def work(engine: str, shape_name: str, steps: int, threads: int, folder: Path) -> None:
    """Body of one process: train, time, measure, leave the answer in ``folder``."""
    import torch
    from engines import ENGINES
    from problem import SHAPES, Problem

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape, problem = SHAPES[shape_name], Problem.load(folder / "problem.safetensors")
    build, architecture = ENGINES[engine]
    made = build(shape, problem, architecture, WARM_UP + steps)

    @torch.no_grad()
    def loss() -> float:
        if made.reconstruct is None:
            return float("nan")
        errors = [(made.reconstruct(x) - x).square().mean() for x in problem.held_out]
        return float(torch.stack(errors).mean())

    def train(first: int, last: int) -> float:
        began = time.perf_counter()
        for step in range(first, last):
            made.step(problem.batch(step))
        return time.perf_counter() - began

    start_loss = loss()
    train(0, WARM_UP)
    done = WARM_UP + steps
    seconds = train(WARM_UP, done)
    end_loss = loss()
    while seconds < LEAST_SECONDS:
        seconds += train(done, done + steps)
        done += steps
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    answer = Round(engine, made.version, (done - WARM_UP) / seconds, start_loss, end_loss, peak)
    (folder / "answer.json").write_text(json.dumps(asdict(answer)), encoding="utf-8")


def measure(engine: str, shape: str, steps: int, threads: int, folder: Path) -> Round | str:
    """One process; a line that says why where it gave no answer."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--worker", engine, "--folder", str(folder)]
    command += ["--shape", shape, "--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    if done.returncode or not answer.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{engine} failed: {last}"
    return Round(**json.loads(answer.read_text(encoding="utf-8")))


def compare(shape: str, steps: int | None, rounds: int, threads: int, engines: Sequence[str]) -> str:
    """Run everything, keep the rows, return the table."""
    import torch
    from problem import SHAPES, make

    steps = steps or SHAPES[shape].steps
    date, found, failures, noise = datetime.now().strftime("%Y-%m-%dT%H:%M"), [], {}, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problem = make(SHAPES[shape], WARM_UP + steps, torch.Generator().manual_seed(0))
        problem.save(folder / "problem.safetensors")
        for turn in range(rounds):
            for engine in engines:
                if engine in failures:
                    continue
                print(f"round {turn + 1}/{rounds} {engine}", file=sys.stderr)
                noise = max(noise, psutil.cpu_percent(LISTEN_SECONDS) / 100)
                answer = measure(engine, shape, steps, threads, folder)
                if isinstance(answer, str):
                    failures[engine] = answer
                else:
                    found.append(answer)
    found = [r for r in found if r.engine not in failures]
    device = scoreboard.device(threads)
    rows = scoreboard.summarise(found, date, device, shape)
    title = f"{shape}: {steps} steps after {WARM_UP}, {threads} threads, median of {rounds}, {device}"
    notes = list(failures.values())
    if noise > scoreboard.QUIET:
        notes.append(f"rows not kept: other programs used {noise:.0%} of the processor; run again when it is quiet")
    else:
        RESULTS.mkdir(exist_ok=True)
        scoreboard.append(RESULTS / f"{device}.csv", rows)
    return f"{title}\n{scoreboard.table(rows, found, notes)}"


def main(argv: Sequence[str] | None = None) -> int:
    from engines import ENGINES
    from problem import SHAPES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="synthetic")
    parser.add_argument("--steps", type=int, help="steps before the loss is taken (default: the shape's own)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES), help="default: all")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        work(given.worker, given.shape, given.steps, given.threads, given.folder)
    else:
        print(compare(given.shape, given.steps, given.rounds, given.threads, given.engines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
