"""One training step through the Triton kernels, nothing of which the host waits for.

Matmuls and gathers read bfloat16 shadows of the float32 weights, which the optimiser's pass rewrites; every sum is in
float32, and so are weights, moments, biases and thresholds. A code is the encoder's bfloat16 pre-activation, right to
2**-9 of itself: an exact one would cost another gather of 3 GB at the paper's Gemma shape. ``precision=float32`` does
the same without shadows.

A step that must not be taken (its loss is no finite number, or more codes are active than there is room for) raises a
flag on the device, and from then on nothing is updated. The host looks at it every ``LOOK_EVERY`` steps. The state
is then still that before the step, which fails, or is taken again by the dense definition, as those after it are until
there is room.

No CUDA graph and no torch.compile: neither was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32
from torch import Tensor

from saecore.kernels.batch_topk import triton as select
from saecore.kernels.cone_step import triton as cone_step
from saecore.kernels.sparse_codes import triton as sparse
from saecore.kernels.sparse_codes.codes import DeviceCodes
from saecore.training import loop

DENSE_SHARE = 1 / 128
"""Above this share of active codes the step is the dense definition's. Not measured on a GPU yet
(``benchmarks/crossover.py`` does): it is where an H200's peak rates put it. A code that is active costs three gathers
of d_model bfloat16 numbers at 4.8 TB/s, a pair of row and latent costs four matmuls of d_model at 990 TFLOP/s."""
LOOK_EVERY = 64
"""Steps after which the host looks at the device's flag."""
CHUNK = 4096
"""Latents compared with all others at once."""


@dataclass
class Active:
    """The codes of a batch, and what is known of them before anything is decoded."""

    codes: DeviceCodes
    on: Bool[Tensor, "capacity"]  # neither void nor below the threshold
    near: Bool[Tensor, "capacity"] | None = None  # within JumpReLU's window of the threshold
    theta: Float32[Tensor, "capacity"] | None = None  # the threshold, each latent's own
    threshold: Float32[Tensor, ""] | None = None  # smallest score kept, averaged over groups, where scores are ranked
    overflow: Bool[Tensor, ""] | None = None  # whether there was too little room, where that can be


@dataclass(frozen=True)
class Pulled:
    """Codes that one reconstruction pulls at, and for each entry the row of ``pulls`` that it sees."""

    codes: DeviceCodes
    pulls: Float[Tensor, "n d_model"]
    rows: Int32[Tensor, "capacity"]


@dataclass(frozen=True)
class Stop:
    """A step that was not taken: its number, its loss, and whether for lack of room."""

    step: int
    loss: float
    overflow: bool


class Device:
    """What a trainer keeps on the GPU beside its state, and the step. Not ``fused``: gradients stand in ``grads``."""

    def __init__(self, trainer: loop.Trainer, precision: torch.dtype) -> None:
        self.trainer, self.precision, self.fused = trainer, precision, not trainer.ranks.sums_weights
        where = trainer.sae.W_enc.device
        self.go = torch.ones(1, dtype=torch.int32, device=where)
        self.stopped = torch.zeros(3, dtype=torch.float64, device=where)  # the numbers of Stop
        self.shadows: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Take over the trainer's state after it was set from outside."""
        t = self.trainer
        if self.precision != torch.float32:
            self.shadows = {name: getattr(t.sae, name).data.to(self.precision) for name in ("W_enc", "W_dec")}
        for name in ("l0", "log_base", "log_penalty"):
            setattr(t, name, torch.tensor(float(getattr(t, name)), dtype=torch.float64, device=self.go.device))
        self.go.fill_(1)
        self.dense_step = -1
        self.careful_until = t.steps_done + 1
        self.look()

    def look(self) -> Stop | None:
        """Wait for the device; where a step was not taken, go back to it."""
        t = self.trainer
        seen = [self.go, self.stopped, t.silent.max()[None], torch.as_tensor(t.l0)[None]]
        numbers = torch.cat([number.double() for number in seen]).tolist()
        stop = None if numbers[0] else Stop(int(numbers[1]), numbers[2], bool(numbers[3]))
        if stop is not None:
            self.go.fill_(1)
            t.steps_done = stop.step
        if stop is not None and stop.overflow:
            self.dense_step = stop.step
        self.l0, self.looked_at, self.longest = numbers[5], t.steps_done, t.ranks.longest(int(numbers[4]))
        self.next_look = t.steps_done + (1 if t.steps_done < self.careful_until else LOOK_EVERY)
        return stop

    def step(self, x: Float32[Tensor, "batch d_model"]) -> Float64[Tensor, ""]:
        """One update, unless the flag is up; the loss, for whoever wants to wait for it."""
        t, spec = self.trainer, self.trainer.run.sae
        with_ortho = spec.architecture == "ortho" and t.steps_done % spec.ortho_every == 0
        expected = spec.l0 if spec.selects_by_rank else self.l0
        if expected > DENSE_SHARE * spec.n_latents or t.steps_done == self.dense_step:
            return self._dense(x, with_ortho)
        x = t.ranks.rows(x)
        seen, weight = t.sae.encoder_input(x), t.sae.ranking_weight(x)
        ranked = seen if weight is None else seen * weight[:, None]
        scores = ranked.to(self.precision) @ self._read("W_enc").T
        active, ends = self._select(scores, weight), t.sae.spec.group_ends()
        target = t.ranks.target_sparse(x, self._read("W_dec"), active.codes, t.sae.b_dec.data)
        back = sparse.backward(target, self._read("W_dec"), t.sae.b_dec.data, active.codes, ends)
        loss = t.ranks.mean(back.losses.mean(dtype=torch.float64))
        self._check(loss, active.overflow)
        parts = [Pulled(active.codes, back.pulls.flatten(0, 1), sparse.pull_rows(active.codes, ends))]
        if spec.has_auxiliary_loss and self.longest + t.steps_done - self.looked_at >= spec.dead_after:
            scores.masked_fill_(t.silent < spec.dead_after, 0)
            parts.append(self._auxiliary(scores, weight, back.errors, len(parts[0].pulls)))
        fired = self._backward(active, parts, seen, back.bias_grad, with_ortho)
        l0 = t.ranks.total(active.on.sum().double()) / t.ranks.batch(len(x))
        self._after(t.ranks.fired(fired), l0, active.threshold)
        return loss

    def _read(self, name: str) -> Float[Tensor, "n_latents d_model"]:
        """What matmuls and gathers read of a weight."""
        return self.shadows[name] if name in self.shadows else getattr(self.trainer.sae, name).data

    def _select(self, scores: Float[Tensor, "batch n_latents"], weight: Float32[Tensor, "batch"] | None) -> Active:
        sae, spec = self.trainer.sae, self.trainer.run.sae
        batch, m = scores.shape
        if spec.selects_by_rank:
            ranks = self.trainer.ranks
            codes, smallest = ranks.select_device(scores, spec.l0, spec.rows_per_selection(ranks.batch(batch)))
            return Active(_unweighted(codes, weight), codes.rows < batch, threshold=smallest)
        half = spec.bandwidth / 2 if spec.architecture == "jump_relu" else 0.0
        room = max(int(DENSE_SHARE * batch * m), 1)
        codes, overflow = select.select_above(scores, sae.b_enc.data, sae.threshold - half, room)
        theta = sae.threshold.index_select(0, codes.indices.clamp_max(m - 1))
        above, there = codes.values - theta, codes.rows < batch
        on, near = there & (above > 0), there & (above.abs() < half)
        codes.values *= on
        return Active(codes, on, near, theta, overflow=overflow)

    def _check(self, loss: Float64[Tensor, ""], overflow: Bool[Tensor, ""] | None) -> None:
        """Raise the flag, once, where this step must not be taken."""
        over = torch.zeros_like(loss, dtype=torch.bool)
        if overflow is not None:
            over = self.trainer.ranks.total(overflow.int()) > 0
        ok = loss.isfinite() & ~over
        numbers = torch.stack([torch.full_like(loss, self.trainer.steps_done), loss, over.double()])
        self.stopped = torch.where((self.go > 0) & ~ok, numbers, self.stopped)
        self.go *= ok

    def _auxiliary(
        self,
        scores: Float[Tensor, "batch n_latents"],
        weight: Float32[Tensor, "batch"] | None,
        errors: Float32[Tensor, "batch d_model"],
        offset: int,
    ) -> Pulled:
        """What dead latents alone, the only ones with a score, make of the residual; ``offset``: pulls before these."""
        ranks, spec = self.trainer.ranks, self.trainer.run.sae
        codes, _ = ranks.select_device(scores, min(spec.aux_k, spec.n_latents), 1)
        codes = _unweighted(codes, weight)
        target = ranks.target_sparse(-errors, self._read("W_dec"), codes)
        back = sparse.backward(target, self._read("W_dec"), torch.zeros_like(errors[0]), codes, (scores.shape[1],))
        return Pulled(codes, spec.aux_coefficient * back.pulls[0], codes.rows + offset)

    def _backward(
        self,
        active: Active,
        parts: list[Pulled],
        seen: Float32[Tensor, "batch d_model"],
        bias_grad: Float32[Tensor, "d_model"],
        with_ortho: bool,
    ) -> Bool[Tensor, "n_latents"]:
        """Gradients, and the update of everything; which latents fired."""
        t, spec = self.trainer, self.trainer.sae.spec
        by = sparse.by_latent(_joined([p.codes.indices for p in parts]), spec.n_latents)
        values, pull_rows, rows = (
            by.sort(_joined(each))
            for each in zip(*((p.codes.values, p.rows, p.codes.rows) for p in parts), strict=True)
        )
        own = by.where < len(active.on)
        on = own & active.on[by.where.clamp_max(len(active.on) - 1)]
        pulled = sparse.Entries(by, _joined([p.pulls for p in parts]), pull_rows, values)
        code_grads, waiting = self._decoder(pulled, with_ortho)
        if not spec.selects_by_rank:
            penalty = (torch.as_tensor(t.log_penalty).exp() / len(seen)).float()
            if spec.architecture == "relu":
                code_grads = code_grads + penalty
            else:
                assert active.theta is not None and active.near is not None
                pulls = (by.sort(active.theta) * code_grads + penalty) * by.sort(active.near)
                t.grads["threshold"] = sparse.sum_by_latent(pulls, by) / -spec.bandwidth
            code_grads = code_grads * on
        through = sparse.sum_by_latent(code_grads, by)
        t.grads["b_dec"] = bias_grad - through @ t.sae.W_enc.data if spec.centred else bias_grad
        if "b_enc" in t.trained:
            t.grads["b_enc"] = through
        waiting += self._encoder(sparse.Entries(by, seen.to(self.precision), rows, code_grads))
        t.ranks.sum_grads(t.grads)
        self._update([name for name in t.trained if not name.startswith("W_")] + waiting)
        return sparse.sum_by_latent(on.float(), by) > 0

    def _decoder(self, pulled: sparse.Entries, with_ortho: bool) -> tuple[Float32[Tensor, "capacity"], list[str]]:
        """dL/dcode in the order of latents, and W_dec stepped, or named because its gradient stands and waits."""
        t = self.trainer
        if "W_dec" not in t.trained:
            return sparse.code_grads(self._read("W_dec"), pulled), []
        if self.fused and not with_ortho:
            code_grads = cone_step.fused_step(self._rows("W_dec"), pulled, self._adam("W_dec"), self.go)
            assert code_grads is not None
            return code_grads, []
        grad = self._grad("W_dec")
        code_grads = sparse.code_grads(t.sae.W_dec.data, pulled)
        sparse.weight_grads(pulled, grad)
        if with_ortho:
            self._add_orthogonality(grad)
        return code_grads, ["W_dec"]

    def _encoder(self, pulled: sparse.Entries) -> list[str]:
        """W_enc stepped, or named because its gradient stands and waits."""
        if "W_enc" not in self.trainer.trained:
            return []
        if self.fused:
            cone_step.fused_step(self._rows("W_enc"), pulled, self._adam("W_enc"), self.go)
            return []
        sparse.weight_grads(pulled, self._grad("W_enc"))
        return ["W_enc"]

    def _add_orthogonality(self, grad: Float32[Tensor, "n_latents d_model"]) -> None:
        """Gradients of loss.orthogonality; the nearest latent is that of the weights as matmuls read them."""
        spec, W, low = self.trainer.run.sae, self.trainer.sae.W_dec.data, self._read("W_dec")
        own = torch.arange(len(W), device=W.device)
        nearest = torch.empty_like(own)
        for part in own.split(CHUNK):
            cosines = low[part] @ low.T
            nearest[part] = cosines.scatter_(1, part[:, None], -torch.inf).argmax(1)
        pull = (W * W[nearest]).sum(1)
        pull *= 2 * spec.ortho_coefficient * spec.ortho_every * spec.d_model / spec.n_latents
        grad += pull[:, None] * W[nearest]
        back = torch.empty_like(grad)
        by = sparse.by_latent(nearest.int(), len(W))
        sparse.weight_grads(sparse.Entries(by, W, by.sort(own.int()), by.sort(pull)), back)
        grad += back

    def _grad(self, name: str) -> Float32[Tensor, "*shape"]:
        """Where a whole gradient stands, made when first asked for."""
        t = self.trainer
        if name not in t.grads:
            t.grads[name] = torch.empty_like(getattr(t.sae, name).data)
        return t.grads[name]

    def _rows(self, name: str) -> cone_step.Rows:
        t = self.trainer
        start = t.start if name == "W_dec" else None
        return cone_step.Rows(getattr(t.sae, name).data, *t.moments[name], start, self.shadows.get(name))

    def _adam(self, name: str) -> cone_step.Adam:
        t, spec = self.trainer, self.trainer.run.training
        rate, count = spec.rate_at(t.steps_done), t.steps_done + 1
        return cone_step.Adam(rate, spec.beta1, spec.beta2, count, name == "W_dec", t.run.constraint.tau)

    def _update(self, names: list[str]) -> None:
        """Step what has its gradient in ``grads``."""
        for name in names:
            cone_step.step(self._rows(name), self.trainer.grads[name], self._adam(name), self.go)
        if "threshold" in names:
            self.trainer.sae.threshold.clamp_(min=0)

    def _after(self, fired: Bool[Tensor, "n_latents"], l0: Tensor, threshold: Tensor | None) -> None:
        """Silence, the penalty's controller and the running threshold, as in ``Trainer``."""
        t, spec, going = self.trainer, self.trainer.run.sae, self.go[0] > 0
        t.silent = torch.where(going, torch.where(fired, 0, t.silent + 1), t.silent)
        t.l0 = torch.where(going, l0, t.l0)
        if not spec.selects_by_rank:
            gap = (t.l0.clamp_min(0.01 * spec.l0) / spec.l0).log()
            base = (t.log_base + loop.INTEGRAL * gap).clamp(-12, 6)
            t.log_base = torch.where(going, base, t.log_base)
            t.log_penalty = torch.where(going, base + loop.PROPORTIONAL * gap, t.log_penalty)
        elif threshold is not None:
            old = t.sae.threshold
            rate = max(0.01, 1 / (t.steps_done + 1))
            moved = torch.where(old.isnan(), threshold, old + rate * (threshold - old))
            old.copy_(torch.where(going, moved, old))

    def _dense(self, x: Float32[Tensor, "batch d_model"], with_ortho: bool) -> Float64[Tensor, ""]:
        """The definition under autograd, which waits for the device; the host then looks at every step for a while."""
        t = self.trainer
        for name in t.trained:
            self._grad(name)
        loss, fired, active, threshold = t._dense_grads(x, t.silent >= t.run.sae.dead_after, with_ortho)
        self.l0, self.next_look, self.careful_until = active / len(x), t.steps_done + 1, t.steps_done + LOOK_EVERY
        loss, l0 = torch.tensor([loss, self.l0], dtype=torch.float64, device=x.device)
        self._check(loss, None)
        self._update(list(t.trained))
        smallest = None if threshold is None else torch.tensor(threshold, device=x.device)
        self._after(fired, l0, smallest)
        return loss


def _unweighted(codes: DeviceCodes, weight: Float32[Tensor, "batch"] | None) -> DeviceCodes:
    """Codes that were ranked with a weight for each row, without it."""
    if weight is not None:
        codes.values /= weight.index_select(0, codes.rows.clamp_max(len(weight) - 1))
    return codes


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
