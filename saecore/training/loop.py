"""The training loop: one step of one SAE, and many SAEs on one stream of samples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saecore import kernels
from saecore.kernels.cone_step import reference as cone_step
from saecore.saes import checkpoint
from saecore.saes.base import SAE
from saecore.saes.build import build
from saecore.sources.base import TRAINING, Source
from saecore.spec import RunSpec
from saecore.training.feed import Feed
from saecore.training.loss import training_loss
from saecore.training.ranks import ALONE, Alone

if TYPE_CHECKING:
    from saecore.training.device import Device

DENSE_SHARE, DENSE_SHARE_RANKED = 0.16, 0.30
"""Above this share of active codes the step is the dense definition's; the second where codes are ranked. Each is the
least at which that was faster, among the shapes in ``benchmarks/results`` (``benchmarks/crossover.py``). Runs recorded
so far took 0.12, and their L0 was below both wherever it is recorded."""
PROPORTIONAL, INTEGRAL = 1.0, 0.003
"""Gains of the controller that moves ReLU's and JumpReLU's penalty until L0 meets its target."""
DENSE_START = 4
"""JumpReLU and ReLU start with this many times the target L0, and the penalty brings it down."""


class DivergedError(RuntimeError):
    """Training met NaN or infinity; ``key`` names the run."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class Trainer:
    """One SAE in training. ``step`` takes a batch; the whole state is in ``state_dict`` and resumes exactly.

    ReLU and JumpReLU start at ``DENSE_START`` times the target L0 (:func:`calibrate`). From then on the weight of the
    L1 or L0 penalty moves, by a proportional-integral controller on log(L0 / target).

    ``path``: where gradients come from, ``dense`` (the definition under autograd), ``cpu`` (compiled) or ``triton``; by
    default the fastest that takes the SAE, or with ``fast=False`` the definition. ``precision`` is that of Triton's
    matmuls. Its L0 and penalty are scalars on the device.
    """

    def __init__(
        self,
        sae: SAE,
        run: RunSpec,
        fast: bool | None = None,
        ranks: Alone = ALONE,
        path: str | None = None,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        self.sae, self.run, self.ranks = sae, run, ranks
        self.path = path or _path(sae.W_enc, fast)
        self.fast = self.path == "cpu"
        self.steps_done = 0
        self.seconds = 0.0
        self.log_base = self.log_penalty = float(np.log(0.01))
        self.l0 = float("nan")
        self.guess: float | None = None
        self.aux_guess: float | None = None
        constraint = run.constraint
        self.start = sae.W_dec.detach().clone() if constraint.name == "soft_frozen_decoder" else None
        names = ["b_dec"]
        names += ["W_enc"] if constraint.trains_encoder else []
        names += ["W_dec"] if constraint.trains_decoder else []
        names += ["b_enc"] if run.sae.has_encoder_bias else []
        names += ["threshold"] if run.sae.architecture == "jump_relu" else []
        self.trained = tuple(names)
        if run.sae.architecture == "jump_relu":
            sae.checked_threshold()
        whole = self.path != "triton"  # which sums a weight's gradient and steps at once
        self.grads = {n: torch.zeros_like(self._tensor(n)) for n in names if whole or self._tensor(n).ndim == 1}
        self.moments = {n: (torch.zeros_like(self._tensor(n)), torch.zeros_like(self._tensor(n))) for n in names}
        self.silent = torch.zeros(len(sae.W_enc), dtype=torch.int32, device=sae.W_enc.device)
        self.gpu: Device | None = None
        if self.path == "triton":
            from saecore.training.device import Device

            self.gpu = Device(self, precision)

    def _tensor(self, name: str) -> Tensor:
        return getattr(self.sae, name).data

    @property
    def penalty(self) -> float:
        return float(np.exp(float(self.log_penalty)))

    @torch.no_grad()
    def step(self, x: Float[Tensor, "batch d_model"]) -> float | Float[Tensor, ""]:
        """One update; returns the reconstruction error, summed over dimensions and averaged over rows.

        Raises DivergedError where it is not finite, before anything is updated. On the Triton path the error stays on
        the device, and what is raised there is raised by a later step, or by :meth:`settle`.
        """
        if self.gpu is not None:
            return self._step_on_device(x)
        began = time.perf_counter()
        with_ortho = self.steps_done % self.run.sae.ortho_every == 0
        dead = self.silent >= self.run.sae.dead_after
        found = self._sparse_grads(x, dead, with_ortho) if self.fast else None
        loss, fired, active, threshold = found or self._dense_grads(x, dead, with_ortho)
        if not np.isfinite(loss):
            raise self._diverged(loss)
        self._update()
        self.silent = torch.where(fired, 0, self.silent + 1)
        self.l0 = active / len(x)
        self._after(threshold)
        self.steps_done += 1
        self.seconds += time.perf_counter() - began
        return loss

    def _diverged(self, loss: float) -> DivergedError:
        return DivergedError(
            f"loss={loss} at step {self.steps_done} of run {self.run.key()}: "
            "the data hold NaN or infinity, or the learning rate is too high",
            self.run.key(),
        )

    def _step_on_device(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
        assert self.gpu is not None
        while True:
            began, step = time.perf_counter(), self.steps_done
            with torch.cuda.device_of(self.sae.W_enc):  # where Triton launches, whatever the tensors are on
                loss = self.gpu.step(x)
            self.steps_done += 1
            self.seconds += time.perf_counter() - began
            if self.steps_done >= self.gpu.next_look:
                self.settle()
            if self.steps_done != step:  # else there was no room, and the same batch goes the dense way
                return loss

    def settle(self) -> None:
        """Wait for the device, if the steps were taken there.

        Where it stopped for lack of room, ``steps_done`` falls back to the step that is to be taken again. Raises
        DivergedError where it stopped at a loss that is not finite; the state is that before the step.
        """
        if self.gpu is None:
            return
        began = time.perf_counter()
        stop = self.gpu.look()
        self.seconds += time.perf_counter() - began
        if stop is not None and not stop.overflow:
            raise self._diverged(stop.loss)

    def _after(self, threshold: float | None) -> None:
        """Controller of the penalty, and the running threshold for inference."""
        spec = self.run.sae
        if not spec.selects_by_rank:
            gap = float(np.log(max(self.l0, 0.01 * spec.l0) / spec.l0))
            self.log_base = float(np.clip(self.log_base + INTEGRAL * gap, -12, 6))
            self.log_penalty = self.log_base + PROPORTIONAL * gap
        elif threshold is not None:
            old = self.sae.threshold
            rate = max(0.01, 1 / (self.steps_done + 1))
            old.copy_(threshold * torch.ones_like(old) if old.isnan().any() else old + rate * (threshold - old))

    def _update(self) -> None:
        spec = self.run.training
        rate, count = spec.rate_at(self.steps_done), self.steps_done + 1
        for name in self.trained:
            W, grad, (m, v) = self._tensor(name), self.grads[name], self.moments[name]
            unit = name == "W_dec"
            args = (rate, spec.beta1, spec.beta2, count)
            tau = self.run.constraint.tau
            if self.fast and W.ndim == 2:
                from saecore.kernels.cone_step import cpu

                anchor = self.start.numpy() if unit and self.start is not None else None
                cpu.step(W.numpy(), grad.numpy(), m.numpy(), v.numpy(), *args, unit=unit, start=anchor, tau=tau)
            elif unit:
                cone_step.unit_rows_step(W, grad, m, v, *args, start=self.start, tau=tau)
            else:
                cone_step.adam(W, grad, m, v, *args)
        if "threshold" in self.trained:
            self.sae.threshold.clamp_(min=0)

    def _dense_grads(self, x, dead, with_ortho):
        """Gradients of the definition, by autograd."""
        theta = self.sae.threshold.clone().requires_grad_()
        with torch.enable_grad():
            loss = training_loss(self.sae, x, theta, self.penalty, dead, with_ortho, self.ranks)
            leaves = {n: theta if n == "threshold" else getattr(self.sae, n) for n in self.trained}
            grads = torch.autograd.grad(loss.total, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            self.grads[name].zero_() if grad is None else self.grads[name].copy_(grad)
        active = loss.codes > 0
        return float(loss.reconstruction), active.any(0), float(active.sum()), loss.threshold

    def _sparse_grads(self, x, dead, with_ortho):
        """The same gradients from active codes only; None where too many are active for that to pay."""
        from saecore.kernels.batch_topk import cpu as select
        from saecore.kernels.sparse_codes import cpu as sparse

        sae, spec, grads = self.sae, self.sae.spec, self.grads
        W_enc, W_dec, b_dec = sae.W_enc.data, sae.W_dec.data, sae.b_dec.data
        seen = sae.encoder_input(x)
        threshold = near = on = None
        if spec.selects_by_rank:
            if self.run.sae.l0 > DENSE_SHARE_RANKED * self.run.sae.n_latents:
                return None
            weight, rows = sae.ranking_weight(x), spec.rows_per_selection(self.ranks.batch(len(x)))
            codes, self.guess = self.ranks.select_sparse(seen, W_enc, spec.l0, rows, self.guess, weight)
            threshold = self.ranks.mean_smallest(_smallest_kept(codes, rows, weight), rows > len(x))
        else:
            theta = sae.threshold.numpy()
            half = spec.bandwidth / 2 if spec.architecture == "jump_relu" else 0.0
            limit = int(DENSE_SHARE * len(x) * spec.n_latents)
            codes = select.select_above(seen, W_enc, sae.b_enc.data, sae.threshold - half, limit)
            if codes is None:
                return None
            on = codes.values > theta[codes.indices]
            near = np.abs(codes.values - theta[codes.indices]) < half
            codes.values *= on
        ends = np.array(spec.group_ends(), dtype=np.int64)
        target = self.ranks.target_sparse(x, W_dec, codes, b_dec)
        back = sparse.backward(target.numpy(), W_dec.numpy(), b_dec.numpy(), codes, ends)
        loss = float(back.losses.mean(dtype=np.float64))
        pre_grads = back.code_grads
        if on is not None and near is not None:
            if spec.architecture == "relu":
                pre_grads = pre_grads + np.float32(self.penalty / len(x))
            else:
                latents, theta = codes.indices[near], sae.threshold.numpy()
                pulls = theta[latents] * back.code_grads[near] + self.penalty / len(x)
                total = np.bincount(latents, pulls, minlength=spec.n_latents)
                grads["threshold"].copy_(torch.from_numpy(-total / spec.bandwidth))
            pre_grads = pre_grads * on
        bias = np.empty(spec.n_latents, dtype=np.float32)
        counts = sparse.weight_grads(
            seen.numpy(), back.pulls, codes, pre_grads, ends,
            grads["W_enc"].numpy() if "W_enc" in grads else None,
            grads["W_dec"].numpy() if "W_dec" in grads else None, bias,
        )  # fmt: skip
        fired, active = torch.from_numpy(counts > 0), float(len(codes.values))
        if on is not None:
            fired = torch.from_numpy(np.bincount(codes.indices[on], minlength=spec.n_latents) > 0)
            active = float(on.sum())
        through = torch.from_numpy(bias)
        if "b_enc" in grads:
            grads["b_enc"].copy_(through)
        grads["b_dec"].copy_(torch.from_numpy(back.pulls[0]).sum(0))
        if spec.centred:
            grads["b_dec"].sub_(through @ W_enc)
        n_dead = self.ranks.count(dead) if spec.has_auxiliary_loss else 0
        if n_dead:
            self._add_auxiliary(seen, torch.from_numpy(back.errors), dead, min(spec.aux_k, n_dead))
        if spec.architecture == "ortho" and with_ortho and "W_dec" in grads:
            self._add_orthogonality()
        return loss, fired, active, threshold

    def _add_auxiliary(self, seen: Tensor, errors: Tensor, dead: Tensor, k: int) -> None:
        """Gradients of loss.auxiliary, by hand."""
        from saecore.kernels.sparse_codes import cpu as sparse

        spec, grads = self.run.sae, self.grads
        n = int(dead.sum())
        # Zero rows are never selected. They keep the number of shapes small, each of which costs the matmul a set-up.
        more = -n % 128 if n else 128
        W_enc, W_dec = (F.pad(W.data[dead], (0, 0, 0, more)) for W in (self.sae.W_enc, self.sae.W_dec))
        codes, self.aux_guess = self.ranks.select_sparse(seen, W_enc, k, 1, self.aux_guess)
        nothing, ends = np.zeros(spec.d_model, dtype=np.float32), np.array([len(W_enc)], dtype=np.int64)
        target = self.ranks.target_sparse(-errors, W_dec, codes)
        back = sparse.backward(target.numpy(), W_dec.numpy(), nothing, codes, ends)
        enc, dec, bias = (
            torch.empty_like(W_enc),
            torch.empty_like(W_dec),
            np.empty(len(W_enc), dtype=np.float32),
        )
        sparse.weight_grads(seen.numpy(), back.pulls, codes, back.code_grads, ends, enc.numpy(), dec.numpy(), bias)
        if "W_dec" in grads:
            grads["W_dec"][dead] += spec.aux_coefficient * dec[:n]
        if "W_enc" in grads:
            grads["W_enc"][dead] += spec.aux_coefficient * enc[:n]
        grads["b_dec"].sub_(spec.aux_coefficient * (torch.from_numpy(bias) @ W_enc))

    def _add_orthogonality(self) -> None:
        """Gradients of loss.orthogonality, by hand; the nearest latent is found in bfloat16."""
        from saecore.kernels.batch_topk import cpu as select

        spec, W = self.run.sae, self.sae.W_dec.data
        nearest = torch.from_numpy(select.nearest(W))
        pull = (W * W[nearest]).sum(1, keepdim=True)
        pull *= 2 * spec.ortho_coefficient * spec.ortho_every * spec.d_model / spec.n_latents
        self.grads["W_dec"].add_(pull * W[nearest]).index_add_(0, nearest, pull * W)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on. Raises DivergedError as :meth:`settle`."""
        self.settle()
        state = {f"sae.{n}": t for n, t in self.sae.state_dict().items()}
        for name, (m, v) in self.moments.items():
            state |= {f"m.{name}": m, f"v.{name}": v}
        if self.start is not None:
            state["start"] = self.start
        scalars = [self.steps_done, self.log_base, self.log_penalty, self.l0, self.seconds]
        return state | {"silent": self.silent, "scalars": torch.tensor(scalars, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`. Raises KeyError where a tensor is missing."""
        self.sae.load_state_dict({n: state[f"sae.{n}"] for n in self.sae.state_dict()})
        for name, (m, v) in self.moments.items():
            m.copy_(state[f"m.{name}"])
            v.copy_(state[f"v.{name}"])
        if self.start is not None:
            self.start.copy_(state["start"])
        self.silent = state["silent"].to(self.silent)
        steps, self.log_base, self.log_penalty, self.l0, self.seconds = state["scalars"].tolist()
        self.steps_done = int(steps)
        if self.gpu is not None:
            self.gpu.begin()

    def save(self, path: Path) -> None:
        self.write(path, self.state_dict())

    def write(self, path: Path, state: dict[str, Tensor]) -> None:
        """Write a whole state for :meth:`resume`. Raises OSError as the disk does."""
        checkpoint.write(path, state, {"training": json.dumps(self.run.as_dict())})

    def whole(self) -> SAE:
        """The SAE with all its latents, where this trainer has but some of them."""
        return self.sae

    def resume(self, path: Path) -> bool:
        """Continue from ``path`` if it is there. Raises CheckpointError as :meth:`read`."""
        state = self.read(path)
        if state is not None:
            self.load_state_dict(state)
        return state is not None

    def read(self, path: Path) -> dict[str, Tensor] | None:
        """What was written there, if anything. Raises CheckpointError where it is damaged or of another run."""
        if not path.exists():
            return None
        tensors, metadata = checkpoint.read(path)
        if metadata.get("training") != json.dumps(self.run.as_dict()):
            raise checkpoint.CheckpointError(
                f"{path} belongs to another run than {self.run.key()}; delete it or move it"
            )
        return tensors


def _smallest_kept(codes, rows: int, weight: Tensor | None) -> Float[np.ndarray, "groups"]:
    """loss.smallest_kept on sparse codes, for each group; infinity where none is kept."""
    values = codes.values
    if weight is not None:
        values = values * np.repeat(weight.numpy(), np.diff(codes.indptr))
    bounds = codes.indptr[:-1:rows]
    filled = bounds < np.append(bounds[1:], codes.indptr[-1])
    smallest = np.full(len(bounds), np.inf, dtype=np.float32)
    if len(values):
        smallest[filled] = np.minimum.reduceat(values, bounds[filled])
    return smallest


def _path(W: Tensor, fast: bool | None) -> str:
    """Where a step's gradients come from: the definition under autograd, the compiled path, or Triton's."""
    if fast is not False and kernels.triton_path(W):
        return "triton"
    return "cpu" if fast is not False and kernels.fast_path(W) else "dense"


def start(
    run: RunSpec,
    source: Source,
    fast: bool | None = None,
    path: str | None = None,
    precision: torch.dtype = torch.bfloat16,
) -> Trainer:
    """A trainer at step 0."""
    return Trainer(beginning(run, source), run, fast, path=path, precision=precision)


def beginning(run: RunSpec, source: Source) -> SAE:
    """The SAE before the first step. It depends on ``training.seed`` alone, so that constraints share it.

    ReLU's biases and JumpReLU's thresholds start where a first batch has the target L0.
    """
    generator = torch.Generator().manual_seed(run.training.seed)
    truth = None if source.truth is None else source.truth.cpu()
    covariance = source.covariance().cpu() if run.constraint.init == "cov" else None
    sae = build(run.sae, run.constraint, generator=generator, covariance=covariance, truth=truth).to(source.device)
    sae.b_dec.data.copy_(source.start_bias())
    sae.scale.fill_(source.scale)
    if not run.constraint.trains_anything:
        calibrate(sae, source)
    elif run.sae.architecture in ("relu", "jump_relu"):
        calibrate(sae, source, DENSE_START * run.sae.l0)
    return sae


@torch.no_grad()
def calibrate(sae: SAE, source: Source, l0: int | None = None, rows: int = 4096) -> None:
    """Set what decides how many latents fire so that L0 meets ``l0`` (default ``spec.l0``), touching no weight.

    A common inference threshold, or for ReLU, which has none, a common encoder bias.
    """
    if sae.selects_per_row:
        return
    x = source.batch(rows, 0, TRAINING).x
    scores, weight = sae.preactivations(x), sae.ranking_weight(x)
    if weight is not None:
        scores = scores * weight[:, None]
    flat = scores.flatten()
    kept = min((l0 or sae.spec.l0) * rows, flat.numel() - 1)
    cut = float(np.partition(flat.cpu().numpy(), flat.numel() - 1 - kept)[flat.numel() - 1 - kept])
    if sae.spec.architecture == "relu":
        sae.b_enc.sub_(cut)
    else:
        sae.threshold.fill_(max(cut, 0.0))


def shared_streams(runs: Iterable[RunSpec]) -> list[list[RunSpec]]:
    """Groups of runs that see the same samples and the same number of them, in the order of their first run."""
    groups: dict[tuple, list[RunSpec]] = {}
    for run in runs:
        key = (run.source, run.training.batch_size, run.training.seed, run.training.steps)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def train_many(
    trainers: Sequence[Trainer],
    source: Source,
    steps: int,
    watch: Callable[[Trainer, float | Tensor], None] | None = None,
) -> None:
    """Bring every trainer to ``steps`` on one stream of samples; those ahead wait. ``watch`` sees each step's loss.

    On the Triton path also the losses of steps that were not taken, up to 63 before the host looks, and come again.
    Trainers must share batch size and training seed, which choose the samples.
    """
    shared = {(t.run.training.batch_size, t.run.training.seed) for t in trainers}
    if len(shared) > 1:
        raise ValueError(f"trainers on one stream must share batch size and seed, got {sorted(shared)}")
    moving = [t for t in trainers if t.run.constraint.trains_anything]
    if not moving:
        return
    (batch_size, seed) = shared.pop()
    feed = Feed(source, batch_size, stream(seed), moving[0].sae.W_enc.device)
    while (step := _behind(moving, steps)) < steps:
        x = feed(step)
        for trainer in moving:
            if trainer.steps_done == step:
                loss = trainer.step(x)
                if watch is not None:
                    watch(trainer, loss)
        if step + 1 < steps:
            feed.prepare(step + 1)


def _behind(trainers: Sequence[Trainer], steps: int) -> int:
    """The step that comes next. Before it is said that all ``steps`` are done, devices are waited for."""
    step = min(t.steps_done for t in trainers)
    if step >= steps:
        for trainer in trainers:
            trainer.settle()
    return min(t.steps_done for t in trainers)


def stream(seed: int) -> int:
    """The stream of training samples of a seed: even numbers, so that it never meets evaluation's."""
    return TRAINING + 2 * seed
