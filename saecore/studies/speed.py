"""What a chapter shows of the kernels while it is read: that they are right, and what they save on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saecore.kernels.batch_topk import reference as selection
from saecore.kernels.cone_step import reference as cone
from saecore.saes.build import build
from saecore.sources.synthetic import Superposition
from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec, require
from saecore.training import Trainer

TOLERANCE = 1e-5
"""Of a kernel: the largest difference to the definition, as a share of the largest number; float32 rounds at 6e-8."""
LOSS_TOLERANCE = 0.01
"""Of a training: the benchmark's own."""
TAU = 0.8
WARM_UP = 2
"""Steps of a race that are not timed."""
WAY_OUT = "`.venv/bin/python -m pytest tests/kernels` says which kernel is wrong"


class DisagreementError(RuntimeError):
    """A fast path does not compute what its definition says, so its speed says nothing."""


@dataclass(frozen=True)
class Case:
    """One batch of random rows and an SAE of random unit rows."""

    spec: SAESpec
    x: Float[Tensor, "batch d_model"]
    b_dec: Float[Tensor, "d_model"]
    W_enc: Float[Tensor, "n_latents d_model"]
    W_dec: Float[Tensor, "n_latents d_model"]
    start: Float[Tensor, "n_latents d_model"]

    @staticmethod
    def random(spec: SAESpec, batch: int, generator: torch.Generator) -> Case:
        d, m = spec.d_model, spec.n_latents
        x, b_dec = torch.randn(batch, d, generator=generator), 0.1 * torch.randn(d, generator=generator)
        return Case(spec, x, b_dec, *(F.normalize(torch.randn(m, d, generator=generator)) for _ in range(3)))

    @property
    def seen(self) -> Float[Tensor, "batch d_model"]:
        return self.x - self.b_dec


Pair = tuple[str, str, np.ndarray, Tensor]
"""Kernel, quantity, what the kernel computes, and what the definition does."""


def agreement(case: Case) -> pd.DataFrame:
    """Every compiled kernel on one batch, beside its definition in plain PyTorch.

    ``difference``: the largest one, as a share of the definition's largest number; codes that one of the two selects
    and the other does not count in full.
    """
    lines = []
    for kernel, quantity, fast, plain in (*_selections(case), *_gradients(case), _cone_step(case)):
        difference = float((torch.from_numpy(fast) - plain).abs().max() / plain.abs().max())
        lines.append({"kernel": kernel, "quantity": quantity, "numbers": plain.numel(), "difference": difference})
    return pd.DataFrame(lines)


def _selections(case: Case) -> Iterator[Pair]:
    from saecore.kernels.batch_topk import cpu

    scores, m, l0 = case.seen @ case.W_enc.T, case.spec.n_latents, case.spec.l0
    for words, rows in (("TopK's codes", 1), ("BatchTopK's codes", len(case.x))):
        codes, _ = cpu.select_ranked(case.seen, case.W_enc, l0, rows)
        yield "selection", words, codes.dense(m), scores * selection.select_ranked(scores, l0, rows)
    edge = scores.flatten().topk(l0 * len(case.x) + 1).values[-2:]
    cut = edge.mean().expand(m).contiguous()  # between two scores: at one, rounding would decide
    above = cpu.select_above(case.seen, case.W_enc, torch.zeros(m), cut)
    if above is None:
        raise DisagreementError(f"the selection gave up on a threshold, with no limit set; {WAY_OUT}")
    yield "selection", "codes above a threshold", above.dense(m), scores * selection.select_above(scores, cut)


def _gradients(case: Case) -> Iterator[Pair]:
    from saecore.kernels.batch_topk import cpu as select
    from saecore.kernels.sparse_codes import cpu

    x, W_dec, b_dec, m = case.x.numpy(), case.W_dec.numpy(), case.b_dec.numpy(), case.spec.n_latents
    codes, _ = select.select_ranked(case.seen, case.W_enc, case.spec.l0, len(x))
    dense, ends = torch.from_numpy(codes.dense(m)), np.array([m])
    yield "sparse codes", "reconstruction", cpu.decode(W_dec, b_dec, codes), dense @ case.W_dec + case.b_dec
    back, bias = cpu.backward(x, W_dec, b_dec, codes, ends), np.empty(m, dtype=np.float32)
    fast = np.empty_like(W_dec), np.empty_like(W_dec)
    cpu.weight_grads(case.seen.numpy(), back.pulls, codes, back.code_grads, ends, *fast, bias)
    weights = [W.clone().requires_grad_() for W in (case.W_enc, case.W_dec)]
    x_hat = (case.seen @ weights[0].T * (dense > 0)) @ weights[1] + case.b_dec
    plain = torch.autograd.grad((x_hat - case.x).square().sum(1).mean(), weights)
    yield "sparse codes", "gradient of the encoder", fast[0], plain[0]
    yield "sparse codes", "gradient of the decoder", fast[1], plain[1]


def _cone_step(case: Case) -> Pair:
    from saecore.kernels.cone_step import cpu

    fast, plain, grad = case.W_dec.clone(), case.W_dec.clone(), case.W_enc
    numbers = (0.01, 0.9, 0.999, 1)
    m, v = torch.zeros_like(grad), torch.zeros_like(grad)
    own = m.clone().numpy(), v.clone().numpy()
    cpu.step(fast.numpy(), grad.numpy(), *own, *numbers, unit=True, start=case.start.numpy(), tau=TAU)
    cone.unit_rows_step(plain, grad, m, v, *numbers, start=case.start, tau=TAU)
    return "cone step", "decoder rows after a step", fast.numpy(), plain


def race(spec: SAESpec, batch: int, steps: int) -> pd.DataFrame:
    """Train one SAE twice on the same samples, by the definition and by the kernels, in turns.

    ``milliseconds``: the median of a step after the first ``WARM_UP``. Raises SpecError where there is no other step,
    DisagreementError where the last losses are more than ``LOSS_TOLERANCE`` apart: such a speed is not reported.
    """
    require(steps > WARM_UP, f"steps={steps}: the first {WARM_UP} are not timed; give at least {WARM_UP + 1}")
    source = SourceSpec(d_model=spec.d_model, n_features=spec.n_latents, expected_l0=float(spec.l0))
    run = RunSpec(spec, source, ConstraintSpec("free"), TrainingSpec(steps=steps, batch_size=batch))
    samples = Superposition(source)
    trainers = {
        name: Trainer(build(spec, run.constraint, generator=torch.Generator().manual_seed(0)), run, path=path)
        for name, path in (("definition", "dense"), ("kernels", "cpu"))
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    losses: dict[str, float] = {}
    for step in range(steps):
        x = samples.batch(batch, step, 0).x
        for name, trainer in trainers.items():
            began = time.perf_counter()
            losses[name] = float(trainer.step(x))
            seconds[name].append(time.perf_counter() - began)
    gap = abs(losses["kernels"] / losses["definition"] - 1)
    if not gap <= LOSS_TOLERANCE:
        raise DisagreementError(
            f"the losses are {gap:.2%} apart after {steps} steps, more than {LOSS_TOLERANCE:.0%}; {WAY_OUT}"
        )
    lines = [
        {"path": name, "milliseconds": 1e3 * float(np.median(seconds[name][WARM_UP:])), "loss": losses[name]}
        for name in trainers
    ]
    return pd.DataFrame(lines).set_index("path")


def work(shapes: pd.DataFrame) -> pd.DataFrame:
    """What a step multiplies, in GFLOP (a multiplication and an addition are two), by arithmetic alone.

    ``dense``: the encoder's and the decoder's product, and back through them: five products of batch, width and
    dictionary. ``needed``: the encoder's, and the other four for active latents only. ``shapes``: of report.speed.
    """
    product = 2e-9 * shapes["batch_size"] * shapes["d_model"] * shapes["n_latents"]
    active = shapes["k"] / shapes["n_latents"]
    needed = product * (1 + 4 * active)
    return pd.DataFrame(
        {"active": active, "dense": 5 * product, "needed": needed, "dense / needed": 5 * product / needed}
    )
