"""From which share of active codes on a step of the definition, which is dense, is faster than one by the kernels.

Both paths of our trainer take the same steps on the same batches at each share, in turns: TopK, which is told how many
latents to keep, and ReLU, whose bias lets so many through at the start. A time counts only where no step by the kernels
fell back to the definition, and where the losses are as near to each other as README.md asks of every engine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING
from unittest import mock

import scoreboard

if TYPE_CHECKING:
    from problem import Problem, Shape

    from saecore.training import Trainer

SHAPES = {"cpu": "256x2048-k1-b512", "cuda": "768x24576-k1-b4096"}
SHARES = {
    "cpu": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
    "cuda": (1 / 1024, 1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32),
}
KERNELS = {"cpu": "cpu", "cuda": "triton"}
"""The trainer's path by device."""
CHANGE_OVER = {"cpu": "saecore.training.loop.DENSE_SHARE", "cuda": "saecore.training.device.DENSE_SHARE"}
"""Above this share the kernels hand over; on a GPU they also make room for it and sort all of that at every step."""
ARCHITECTURES = ("relu", "topk")
WARM_UP = 3
"""Steps that are not timed."""
ROOM = 2
"""Times the codes asked for: what the kernels have room for."""
ROWS = 128
"""From which ReLU's bias is taken."""


@dataclass(frozen=True)
class Point:
    """Milliseconds of a step; ``agree``: whether both paths ended at one loss, each by its own steps."""

    share: float
    sparse: float
    dense: float
    agree: bool


def measure(name: str, architecture: str, device: str, share: float, steps: int) -> Point:
    """Both paths at one share of active codes; the kernels have room for ``ROOM`` times that, then hand over."""
    import torch
    from problem import Shape, make

    shape = Shape.named(name)
    shape = replace(shape, k=max(1, round(share * shape.n_latents)))
    problem = make(replace(shape, k=1), steps, torch.Generator(device).manual_seed(0))
    paths = {path: trainer(shape, problem, architecture, path) for path in (KERNELS[device], "dense")}
    seconds, losses = {path: [] for path in paths}, {}
    ours, room = paths[KERNELS[device]], min(1.0, ROOM * shape.k / shape.n_latents)
    falls = mock.patch.object(ours, "_dense_grads", wraps=ours._dense_grads)
    with mock.patch(CHANGE_OVER[device], room), falls as fallen:
        for step in range(WARM_UP + steps):
            x = problem.batch(step)
            for path, own in paths.items():
                began = time.perf_counter()
                losses[path] = float(own.step(x))  # which waits for the device
                seconds[path].append(time.perf_counter() - began)
        ours.settle()
    whole = not fallen.called and ours.steps_done == WARM_UP + steps  # a GPU takes back a step without room
    sparse, dense = (1e3 * median(times[WARM_UP:]) for times in seconds.values())
    return Point(shape.k / shape.n_latents, sparse, dense, whole and scoreboard.agrees(*losses.values()))


def trainer(shape: Shape, problem: Problem, architecture: str, path: str) -> Trainer:
    """A trainer at its start; ReLU's bias lets ``k`` codes of a row through."""
    import torch

    from saecore.saes.build import build
    from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
    from saecore.training import Trainer

    spec = SAESpec(architecture, d_model=shape.d_model, n_latents=shape.n_latents, l0=shape.k, aux_coefficient=0.0)
    source = SourceSpec(d_model=shape.d_model, n_features=shape.n_features, expected_l0=1.0)
    training = TrainingSpec(steps=1000, batch_size=shape.batch_size, learning_rate=shape.learning_rate)
    run = RunSpec(spec, source, ConstraintSpec("free"), training)
    sae = build(spec, run.constraint, generator=torch.Generator().manual_seed(0)).to(problem.start.device)
    if architecture == "relu":
        x = problem.batch(0)[:ROWS]
        scores = sae.preactivations(x).detach().flatten()
        sae.b_enc.data.sub_(scores.kthvalue(len(scores) - shape.k * len(x) + 1).values)
    return Trainer(sae, run, path=path)


def crossing(points: Sequence[Point]) -> str:
    """Where the two lines meet, in words; between two shares by a straight line on logarithmic scales."""
    told = [p for p in points if p.agree]
    if not told:
        return "no crossover: the two paths did not agree"
    lead = [math.log(p.dense / p.sparse) for p in told]
    if lead[0] <= 0:
        return f"the definition is faster from {told[0].share:.3g} on, or from below that"
    for i in range(1, len(told)):
        if lead[i] <= 0:
            part = lead[i - 1] / (lead[i - 1] - lead[i])
            share = told[i - 1].share * (told[i].share / told[i - 1].share) ** part
            return f"the definition is faster from a share of {share:.3g} on"
    return f"the kernels are faster up to {told[-1].share:.3g} at least"


def table(points: Sequence[Point]) -> str:
    lines = ["share active  kernels ms  definition ms"]
    for p in points:
        times = f"{p.sparse:10.2f}  {p.dense:13.2f}" if p.agree else "not shown: the paths do not agree"
        lines.append(f"{p.share:12.5f}  {times}")
    return "\n".join([*lines, crossing(points)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--shape", help=f"its k is not used; default: {SHAPES['cpu']}, on a GPU {SHAPES['cuda']}")
    parser.add_argument("--shares", type=float, nargs="+", help="of the latents that are active, rising")
    parser.add_argument("--steps", type=int, default=7, help="timed steps; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(argv)
    if given.device == "cuda" and not scoreboard.has_gpu():
        parser.error("--device cuda: PyTorch sees no GPU here")
    import torch

    torch.set_num_threads(given.threads)
    name = given.shape or SHAPES[given.device]
    shares = given.shares or SHARES[given.device]
    where = scoreboard.device(given.threads) if given.device == "cpu" else scoreboard.gpu()
    for architecture in ARCHITECTURES:
        points = [measure(name, architecture, given.device, share, given.steps) for share in shares]
        print(f"{architecture}, {name.partition('-k')[0]}, {where}\n{table(points)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
