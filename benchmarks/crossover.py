"""From which share of active codes on a step of the definition, which is dense, is faster than one by the kernels.

Both paths of our trainer take the same steps on the same batches at each share, in turns: TopK, which is told how many
latents to keep (it keeps positive ones only, about half of them at most), and ReLU, whose bias lets so many through at
the start. They do so twice: learning, which must end at losses as near to each other as README.md asks of every engine;
then with weights that stay where they are, as ReLU would else leave its share within a few steps, and these steps are
timed. A time counts only where no step by the kernels fell back to the definition. The share is the one that was seen.
Rows go to ``results/<device>-crossover.csv``, on a CPU only where other programs left it alone.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from unittest import mock

import scoreboard
from run import RESULTS, Others

from saecore import paths

if TYPE_CHECKING:
    import pandas as pd
    from problem import Problem, Shape

    from saecore.training import Trainer

SHAPES = {"cpu": "256x2048-k1-b512", "cuda": "768x24576-k1-b4096"}
SHARES = {
    "cpu": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
    "cuda": (1 / 1024, 1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32),
}
KERNELS = {"cpu": "cpu", "cuda": "triton"}
"""The trainer's path by device."""
CHANGE_OVER = {
    ("cpu", "relu"): "saecore.training.loop.DENSE_SHARE",
    ("cpu", "topk"): "saecore.training.loop.DENSE_SHARE_RANKED",
    ("cuda", "relu"): "saecore.training.device.DENSE_SHARE",
    ("cuda", "topk"): "saecore.training.device.DENSE_SHARE",
}
"""Above this share the kernels hand over; on a GPU they also make room for it and sort all of that at every step."""
ARCHITECTURES = ("relu", "topk")
HELD = 1e-30
"""A learning rate at which no weight moves."""
COLUMNS = ("date", "device", "shape", "architecture", "share", "kernels_ms", "definition_ms", "agree")
WARM_UP = 3
"""Steps that are not timed."""
ROOM = 2
"""Times the codes asked for: what the kernels have room for."""
ROWS = 128
"""From which ReLU's bias is taken."""


def measure(name: str, architecture: str, device: str, share: float, steps: int) -> dict[str, float | bool]:
    """Both paths at one share of active codes; the kernels have room for ``ROOM`` times that, then hand over.

    Milliseconds of a step, and ``agree``: whether both paths ended at one loss each time, each by its own steps.
    """
    import torch
    from problem import Shape, make

    shape = Shape.named(name)
    shape = replace(shape, k=max(1, round(share * shape.n_latents)))
    problem = make(replace(shape, k=1), steps, torch.Generator(device).manual_seed(0))
    agree, last = True, WARM_UP + steps
    for rate, room in ((shape.learning_rate, 4 * ROOM), (HELD, ROOM)):  # who learns may let more through for a while
        with mock.patch(CHANGE_OVER[device, architecture], min(1.0, room * shape.k / shape.n_latents)):
            told = replace(shape, learning_rate=rate)
            paths = {path: trainer(told, problem, architecture, path) for path in (KERNELS[device], "dense")}
            seconds, losses = {path: [] for path in paths}, {}
            ours = paths[KERNELS[device]]
            with mock.patch.object(ours, "_dense_grads", wraps=ours._dense_grads) as fallen:
                for step in range(last):
                    x = problem.batch(step)
                    for path, own in paths.items():
                        began = time.perf_counter()
                        losses[path] = float(own.step(x))  # which waits for the device
                        seconds[path].append(time.perf_counter() - began)
                ours.settle()
            whole = not fallen.called and ours.steps_done == last  # a GPU takes back a step without room
            agree = agree and whole and scoreboard.agrees(*losses.values())
    sparse, dense = (1e3 * median(times[WARM_UP:]) for times in seconds.values())
    return {
        "share": float(ours.l0) / shape.n_latents, "kernels_ms": sparse, "definition_ms": dense, "agree": agree,
    }  # fmt: skip


def trainer(shape: Shape, problem: Problem, architecture: str, path: str) -> Trainer:
    """A trainer at its start; ReLU's bias lets ``k`` codes of a row through."""
    import torch

    from saecore.saes.base import SAE
    from saecore.saes.build import encoder_norm
    from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
    from saecore.training import Trainer

    spec = SAESpec(architecture, d_model=shape.d_model, n_latents=shape.n_latents, l0=shape.k, aux_coefficient=0.0)
    source = SourceSpec(d_model=shape.d_model, n_features=shape.n_features, expected_l0=1.0)
    training = TrainingSpec(steps=1000, batch_size=shape.batch_size, learning_rate=shape.learning_rate)
    run = RunSpec(spec, source, ConstraintSpec("free"), training)
    with problem.start.device, torch.no_grad():
        sae = SAE(spec)
        sae.W_dec.copy_(problem.start)
        sae.W_enc.copy_(problem.start * encoder_norm(spec))
    if architecture == "relu":
        x = problem.batch(0)[:ROWS]
        scores = sae.preactivations(x).detach().flatten()
        sae.b_enc.data.sub_(scores.kthvalue(len(scores) - shape.k * len(x) + 1).values)
    return Trainer(sae, run, path=path)


def table(points: pd.DataFrame) -> str:
    """What the command prints for one shape and architecture. No time is shown where the paths do not agree."""
    from saecore.report.speed import crossing

    shown = points.assign(agree=["yes" if agree else "no" for agree in points["agree"]])
    shown.loc[~points["agree"], ["kernels_ms", "definition_ms"]] = float("nan")
    share = crossing(points)
    words = f"the definition is faster from a share of {share:.3g} on"
    if math.isnan(share):
        words = f"the kernels are faster up to {points['share'].max():.3g} at least"
    if not bool(points["agree"].any()):
        words = "no crossover: the two paths did not agree"
    return f"{shown.round({'share': 5, 'kernels_ms': 2, 'definition_ms': 2}).to_string(index=False)}\n{words}"


def keep(path: Path, points: pd.DataFrame) -> None:
    """Add rows to a results file, which is never half there."""
    import pandas as pd

    old = pd.read_csv(path) if path.exists() else None
    with paths.whole(path) as aside:
        pd.concat([p for p in (old, points) if p is not None]).to_csv(aside, index=False, float_format="%.4g")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--shape", help=f"its k is not used; default: {SHAPES['cpu']}, on a GPU {SHAPES['cuda']}")
    parser.add_argument("--shares", type=float, nargs="+", help="of the latents that are active, rising")
    parser.add_argument("--steps", type=int, default=7, help="timed steps; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows; default: %(default)s")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not scoreboard.has_gpu():
        parser.error("--device cuda: PyTorch sees no GPU here")
    import pandas as pd
    import torch

    from saecore.report.speed import CROSSOVER

    torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision("high" if given.device == "cuda" else "highest")  # as run.py
    name = given.shape or SHAPES[given.device]
    shares = given.shares or SHARES[given.device]
    where = scoreboard.device(given.threads) if given.device == "cpu" else scoreboard.gpu()
    date, sizes = datetime.now().strftime("%Y-%m-%dT%H:%M"), name.partition("-k")[0]
    for architecture in ARCHITECTURES:
        others = Others() if given.device == "cpu" else None
        found = pd.DataFrame([measure(name, architecture, given.device, share, given.steps) for share in shares])
        print(f"{architecture}, {sizes}, {where}\n{table(found)}")
        found = found.assign(date=date, device=where, shape=name, architecture=architecture)
        noise = others.share() if others else 0.0
        if noise > scoreboard.QUIET:
            print(f"rows not kept: other programs used {noise:.0%} of the processor; run again when it is quiet")
        else:
            keep(given.results / f"{where}{CROSSOVER}.csv", found.reindex(columns=list(COLUMNS)))
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
