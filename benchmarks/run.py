"""Training speed of saecore beside its peers (README.md says how to read the table).

One process per library imports it. On a CPU it forks for each measurement, so that each has a peak of its own; on a
GPU, where a fork would find CUDA broken, it makes them in turn and ends where one fails, and a new one goes on.
Rounds go through all libraries before they start again.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import scoreboard
from scoreboard import Round

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 10
"""Steps before the clock starts; they train like the others. Compiled code is built or loaded here."""
LEAST_SECONDS = {"cpu": 3.0, "cuda": 0.5}
"""A fast engine goes on after the loss is taken until this much time is measured; a third of it where growth is."""
SET_UP = 2
"""What a library's import and compilation count, in engines, when the time is shared out."""
ANSWER, ANSWERS = "answer.json", "answers.jsonl"
OUT_OF_TIME = "not measured: its time was up"
GROWN = ("plain batch_topk", "limit bfloat16", "saecore batch_topk")
"""The engines of ``--grow``."""


@dataclass(frozen=True)
class Plan:
    """What one library's process is asked for: ``jobs`` of (shape, engine), to be done within ``seconds``."""

    package: str
    jobs: list[tuple[str, str]]
    device: str
    threads: int
    steps: int | None
    least_seconds: float
    seconds: float


def environment(threads: int, device: str) -> dict[str, str]:
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
        "SPARSIFY_DISABLE_TRITON": "0" if device == "cuda" else "1",
    }


def work(plan: Plan, shape: str, engine: str, folder: Path) -> dict:
    """One measurement, or the reason why there is none; left in ``folder`` too."""
    try:
        found: dict = {"round": asdict(train(plan, shape, engine, folder))}
    except Exception as error:
        found = {"failure": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"}
    (folder / ANSWER).write_text(json.dumps(found), encoding="utf-8")
    return found


def train(plan: Plan, shape_name: str, engine: str, folder: Path) -> Round:
    """Train, time and measure one engine."""
    import torch
    from engines import ENGINES
    from problem import Problem, Shape, make

    torch.set_num_threads(plan.threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if plan.device == "cuda" else "highest")
    shape = Shape.named(shape_name)
    steps = plan.steps or shape.steps
    if plan.device == "cuda":
        problem = make(shape, WARM_UP + steps, torch.Generator(plan.device).manual_seed(0))
    else:  # made apart, so that making it is no part of the peak
        problem = Problem.load(folder / f"{shape_name}.safetensors")
    build, architecture = ENGINES[engine]
    made = build(shape, problem, architecture, WARM_UP + steps)
    clock = Clock(plan.device)

    @torch.no_grad()
    def loss() -> float:
        if made.reconstruct is None:
            return float("nan")
        errors = [(made.reconstruct(x) - x).square().mean() for x in problem.held_out]
        return float(torch.stack(errors).mean())

    def go(first: int, last: int) -> float:
        began = clock.now()
        for step in range(first, last):
            made.step(problem.batch(step))
        return clock.now() - began

    start_loss = loss()
    clock.forget_peak()
    go(0, WARM_UP)
    done = WARM_UP + steps
    seconds = go(WARM_UP, done)
    peak = clock.peak_mb()
    end_loss = loss()
    while seconds < plan.least_seconds:
        more = max(1, min(steps, int(steps * plan.least_seconds / seconds)))
        seconds += go(done, done + more)
        done += more
    return Round(engine, made.version, (done - WARM_UP) / seconds, start_loss, end_loss, peak)


class Clock:
    """Time and memory of a device: a GPU is waited for, and its memory counted by PyTorch's allocator."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> float:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget_peak(self) -> None:
        """On a GPU only: the system keeps the most that a process ever held."""
        import torch

        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float:
        import torch

        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def serve(plan: Plan, folder: Path) -> None:
    """Body of a library's process: a line of JSON in ``folder`` for each measurement, as soon as it stands."""
    from engines import LIBRARIES

    ends = time.monotonic() + plan.seconds
    broken = importable(LIBRARIES[plan.package])
    with (folder / ANSWERS).open("a", encoding="utf-8") as answers:
        for shape, engine in plan.jobs:
            if broken:
                found = {"failure": broken}
            elif plan.device == "cuda":
                print(f"{shape}: {engine}", file=sys.stderr, flush=True)
                found = work(plan, shape, engine, folder)
            else:
                print(f"{shape}: {engine}", file=sys.stderr, flush=True)
                found = alone(plan, shape, engine, folder, ends - time.monotonic())
            answers.write(json.dumps({"shape": shape, "engine": engine, **found}) + "\n")
            answers.flush()
            if plan.device == "cuda" and "failure" in found and not broken:
                return  # after an error of CUDA nothing works in this process


def importable(module: str) -> str:
    """Import it; why that failed, or nothing."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            return "not installed"
        return f"cannot be imported without {error.name}"
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {error})"
    return ""


def alone(plan: Plan, shape: str, engine: str, folder: Path, seconds: float) -> dict:
    """:func:`work` in a process of its own, for so many seconds at most."""
    if seconds <= 0:
        return {"failure": OUT_OF_TIME}
    (folder / ANSWER).unlink(missing_ok=True)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=work, args=(plan, shape, engine, folder))
    others = Others()
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return {"failure": OUT_OF_TIME}
    if not (folder / ANSWER).exists():
        return {"failure": f"its process ended with code {process.exitcode} (below zero: the signal)"}
    found = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    if "round" in found:
        found["round"]["others"] = others.share()
    return found


class Others:
    """The share of the processor that other programs take from now on: neither this process nor its children."""

    def __init__(self) -> None:
        self.began, self.before = time.monotonic(), self._taken()

    @staticmethod
    def _taken() -> float:
        import psutil

        times = psutil.cpu_times()
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(getattr(times, kind, 0.0) for kind in kinds) - sum(u.ru_utime + u.ru_stime for u in own)

    def share(self) -> float:
        """Call after children have been waited for."""
        seconds = (time.monotonic() - self.began) * (os.cpu_count() or 1)
        return max(0.0, (self._taken() - self.before) / seconds)


def measure(plan: Plan, folder: Path) -> list[dict]:
    """What a library's processes answer, and for each measurement that they did not come to, the reason."""
    found: list[dict] = []
    jobs, ends = list(plan.jobs), time.monotonic() + plan.seconds
    while jobs and time.monotonic() < ends:
        (folder / ANSWERS).write_text("", encoding="utf-8")
        left = ends - time.monotonic()
        now = replace(plan, jobs=jobs, seconds=left)
        command = [sys.executable, __file__, "--worker", json.dumps(asdict(now)), "--folder", str(folder)]
        reason = OUT_OF_TIME
        try:
            grace = 10 if plan.device == "cpu" else 0  # it ends what it forked
            code = subprocess.run(
                command, env=environment(plan.threads, plan.device), stdout=subprocess.DEVNULL, timeout=left + grace
            ).returncode
            reason = f"its process ended with code {code} (below zero: the signal)"
        except subprocess.TimeoutExpired:
            pass
        new = [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]
        told = {(a["shape"], a["engine"]) for a in new}
        jobs = [job for job in jobs if tuple(job) not in told]
        found += new
        if jobs and not any("failure" in a for a in new):  # the first of those left brought the process down
            found.append(_failed(jobs.pop(0), reason))
    return found + [_failed(job, OUT_OF_TIME) for job in jobs]


def _failed(job: tuple[str, str], reason: str) -> dict:
    return {"shape": job[0], "engine": job[1], "failure": reason}


def compare(given: argparse.Namespace) -> str:
    """Run everything, keep the rows, return the tables."""
    from engines import LIBRARIES, package
    from problem import Shape, make

    date, ends = datetime.now().strftime("%Y-%m-%dT%H:%M"), time.monotonic() + 60 * given.minutes
    answers: list[dict] = []
    wanted = {name: [e for e in given.engines if package(e) == name] for name in LIBRARIES}
    wanted = {name: engines for name, engines in wanted.items() if engines}
    weights = given.rounds * sum(SET_UP + len(engines) for engines in wanted.values())
    least = LEAST_SECONDS[given.device] / (3 if given.grow else 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in given.shape if given.device == "cpu" else ():
            import torch

            steps = given.steps or Shape.named(shape).steps
            problem = make(Shape.named(shape), WARM_UP + steps, torch.Generator().manual_seed(0))
            problem.save(folder / f"{shape}.safetensors")
        for turn in range(given.rounds):
            print(f"round {turn + 1} of {given.rounds}", file=sys.stderr, flush=True)
            for name, engines in wanted.items():
                share = (SET_UP + len(engines)) / weights
                weights -= SET_UP + len(engines)
                jobs = [(shape, engine) for shape in given.shape for engine in engines]
                left = max(1.0, ends - time.monotonic())
                plan = Plan(name, jobs, given.device, given.threads, given.steps, least, share * left)
                answers += measure(plan, folder)
    device = scoreboard.device(given.threads) if given.device == "cpu" else scoreboard.gpu()
    path = given.results / f"{device}{'-growth' if given.grow else ''}.csv"
    return "\n\n".join(scoreboard.settle(shape, answers, date, device, path, given.grow) for shape in given.shape)


def main(argv: Sequence[str] | None = None) -> int:
    from engines import ENGINES, HALF, package
    from problem import SHAPES, Shape, growth

    parser = argparse.ArgumentParser(description=__doc__)
    named = f"{', '.join(SHAPES)}, or written out like 256x4096-k16-b1024"
    parser.add_argument("--shape", nargs="+", default=["synthetic"], help=f"{named}; default: synthetic")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--grow", action="store_true", help="how the cost grows with latents, k and batch, instead")
    parser.add_argument("--steps", type=int, help="steps before the loss is taken (default: the shape's own)")
    parser.add_argument("--rounds", type=int, help="default: 3 on a CPU, 1 on a GPU and with --grow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, help="default: all; on a CPU, of bf16 only plain")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many; each library has its share")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows; default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        serve(Plan(**json.loads(given.worker)), given.folder)
        return 0
    if given.device == "cuda" and not scoreboard.has_gpu():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if given.grow:
        given.shape = growth(given.device)
    try:
        for shape in given.shape:
            Shape.named(shape)
    except ValueError as error:
        parser.error(str(error))
    on_cpu = [e for e in ENGINES if HALF not in e or package(e) == "plain"]
    given.engines = given.engines or list(GROWN if given.grow else on_cpu if given.device == "cpu" else ENGINES)
    given.rounds = given.rounds or (1 if given.grow or given.device == "cuda" else 3)
    print(compare(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
