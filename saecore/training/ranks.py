"""What one training step asks of the other processes that train the same SAE, and the answers.

A rank holds some rows of the batch (:class:`ByRows`), or all rows and some latents (:class:`ByLatents`). Little crosses
between ranks: the candidates of a selection, each rank's part of the reconstruction, gradients and counts. So the plain
collectives of ``torch.distributed`` are enough, whatever the backend. DDP, FSDP and DTensor wrap modules under
autograd: the compiled gradients do not pass through it, and a selection over the whole batch is no operator of theirs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from saecore.kernels.batch_topk import dense
from saecore.kernels.sparse_codes.codes import DeviceCodes, SparseCodes, row_starts

PLACES = 2**32
"""Entries of one selection that a key can tell apart."""


class Alone:
    """One process: it holds every row and every latent."""

    rank, size = 0, 1
    sums_weights = False
    """Whether other ranks have a part of the gradient of every weight."""

    def rows(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "share d_model"]:
        """This rank's rows of the whole batch. Raises ValueError where it cannot be shared out evenly."""
        return x

    def batch(self, rows: int) -> int:
        """Rows of the whole batch, of which ``rows`` are here."""
        return rows

    def select_dense(
        self, scores: Float[Tensor, "batch n_latents"], budget: int, rows: int
    ) -> Bool[Tensor, "batch n_latents"]:
        """``batch_topk.reference.select_ranked`` among all ranks; ``rows`` counts rows of the whole batch."""
        return dense.select_ranked(scores, budget, rows)

    def select_sparse(
        self,
        x: Float[Tensor, "batch d_model"],
        weight: Float[Tensor, "n_latents d_model"],
        budget: int,
        rows: int,
        guess: float | None = None,
        weighting: Float[Tensor, "batch"] | None = None,
    ) -> tuple[SparseCodes, float]:
        """``batch_topk.cpu.select_ranked`` among all ranks; ``rows`` counts rows of the whole batch."""
        from saecore.kernels.batch_topk import cpu

        return cpu.select_ranked(x, weight, budget, rows, guess, weighting)

    def select_device(
        self, scores: Float[Tensor, "batch n_latents"], budget: int, rows: int
    ) -> tuple[DeviceCodes, Float[Tensor, ""]]:
        """``batch_topk.triton.select_ranked`` among all ranks; ``rows`` counts rows of the whole batch."""
        from saecore.kernels.batch_topk import triton

        return triton.select_ranked(scores, budget, rows)

    def mean_smallest(self, smallest: Float[np.ndarray, "groups"], shared: bool) -> float:
        """Mean over the selections of the smallest score kept, infinity where none was; 0 where all are empty.

        ``shared``: other ranks hold rows of the same selection.
        """
        found = smallest[np.isfinite(smallest)]
        return float(found.mean()) if len(found) else 0.0

    def target(
        self,
        x: Float[Tensor, "batch d_model"],
        rebuilt: Float[Tensor, "batch d_model"],
        bias: Float[Tensor, "d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """What is left of ``x`` for this rank's latents, which with ``bias``, where there is one, give ``rebuilt``."""
        return x

    def target_sparse(
        self,
        x: Float[Tensor, "batch d_model"],
        W_dec: Float[Tensor, "n_latents d_model"],
        codes: SparseCodes | DeviceCodes,
        bias: Float[Tensor, "d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """As :meth:`target`, from sparse codes."""
        return x

    def sum_grads(self, grads: dict[str, Tensor]) -> None:
        """From this rank's part of the gradients of what it holds, in place, to the whole batch's."""

    def mean(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Of what every rank has found for its rows."""
        return loss

    def total(self, number: Num[Tensor, ""]) -> Num[Tensor, ""]:
        """The sum over all ranks of a number of codes."""
        return number

    def fired(self, here: Bool[Tensor, "n_latents"]) -> Bool[Tensor, "n_latents"]:
        """Whether latents of this rank, which fired ``here``, did for any row of the batch."""
        return here

    def longest(self, silent: int) -> int:
        """The longest silence of any latent, of which this rank's longest is ``silent``."""
        return silent

    def count(self, marked: Bool[Tensor, "n_latents"]) -> int:
        """Latents marked, of all ranks."""
        return int(marked.sum())


ALONE = Alone()


class ByRows(Alone):
    """Each rank has its share of consecutive rows of the batch, and all latents. Gradients are averaged."""

    sums_weights = True

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def rows(self, x):
        share, left = divmod(len(x), self.size)
        if left:
            raise ValueError(f"a batch of {len(x)} rows does not divide among {self.size} ranks; give a multiple")
        return x[self.rank * share : (self.rank + 1) * share]

    def batch(self, rows):
        return rows * self.size

    def select_dense(self, scores, budget, rows):
        if rows <= len(scores):
            return super().select_dense(scores, budget, rows)
        mask = super().select_dense(scores, budget * self.size, len(scores))
        at, latents = mask.nonzero(as_tuple=True)
        mask[at, latents] = self._kept(scores[at, latents], at, latents, budget, *scores.shape)
        return mask

    def select_sparse(self, x, weight, budget, rows, guess=None, weighting=None):
        if rows <= len(x):
            return super().select_sparse(x, weight, budget, rows, guess, weighting)
        codes, guess = super().select_sparse(x, weight, budget * self.size, len(x), guess, weighting)
        scores, at, latents = _entries(codes, weighting)
        return _only(codes, self._kept(scores, at, latents, budget, len(x), len(weight))), guess

    def select_device(self, scores, budget, rows):
        if rows <= len(scores):
            codes, _ = super().select_device(scores, budget, rows)
            return codes, self._mean_least(_least(codes, rows), False)
        codes, _ = super().select_device(scores, budget * self.size, len(scores))
        at, latents = codes.rows.long(), codes.indices.long()
        codes = _only_device(codes, self._kept(codes.values, at, latents, budget, *scores.shape), scores.shape[1])
        return codes, self._mean_least(_least(codes, rows), True)

    def _kept(self, scores, at, latents, budget, rows, n_latents):
        """Of this rank's candidates, those among the best of the whole batch."""
        places = (self.rank * rows + at) * n_latents + latents
        return cut(scores, torch.zeros_like(at), places, budget, self.batch(rows), self.batch(rows))

    def mean_smallest(self, smallest, shared):
        return float(self._mean_least(torch.from_numpy(smallest), shared))

    def _mean_least(self, smallest, shared):
        """:meth:`mean_smallest` on the device."""
        if shared:
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
        found = smallest.isfinite()
        sums = torch.stack([torch.where(found, smallest, 0).sum(dtype=torch.float64), found.sum()])
        if not shared:
            dist.all_reduce(sums)
        return (sums[0] / sums[1].clamp_min(1)).float()

    def sum_grads(self, grads):
        for grad in grads.values():
            dist.all_reduce(grad)
            grad.div_(self.size)

    def mean(self, loss):
        return self.total(loss) / self.size

    def total(self, number):
        dist.all_reduce(number := number.clone())
        return number

    def fired(self, here):
        dist.all_reduce(anywhere := here.byte(), dist.ReduceOp.MAX)
        return anywhere.bool()

    def shared(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a whole state."""
        return state

    def gathered(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole state, of which each rank has ``state``; on rank 0, elsewhere nothing."""
        return {} if self.rank else state


class ByLatents(ByRows):
    """Each rank has all rows, and its share of ``n_latents`` consecutive latents. Reconstructions are summed."""

    sums_weights = False

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.n_latents = n_latents
        self.bias_pull: Tensor | None = None

    def rows(self, x):
        return x

    def batch(self, rows):
        return rows

    def select_dense(self, scores, budget, rows):
        mask = dense.select_ranked(scores, budget, rows) if scores.shape[1] else scores > 0
        at, latents = mask.nonzero(as_tuple=True)
        mask[at, latents] = self._best(scores[at, latents], at, latents, budget, rows, len(scores))
        return mask

    def select_sparse(self, x, weight, budget, rows, guess=None, weighting=None):
        codes, guess = Alone.select_sparse(self, x, weight, budget, rows, guess, weighting)
        return _only(codes, self._best(*_entries(codes, weighting), budget, rows, len(x))), guess

    def select_device(self, scores, budget, rows):
        codes, _ = Alone.select_device(self, scores, budget, rows)
        keep = self._best(codes.values, codes.rows.long(), codes.indices.long(), budget, rows, len(scores))
        codes = _only_device(codes, keep, scores.shape[1])
        return codes, self._mean_least(_least(codes, rows), True)

    def _best(self, scores, at, latents, budget, rows, batch):
        """Of this rank's candidates, those among the best of all latents in their group of ``rows`` rows."""
        places = (at % rows * self.size + self.rank) * self.n_latents + latents
        return cut(scores, at // rows, places, budget, rows, batch)

    def mean_smallest(self, smallest, shared):
        return super().mean_smallest(smallest, True)

    def target(self, x, rebuilt, bias=None):
        part = rebuilt if bias is None else rebuilt - bias
        whole = self.total(part)
        if bias is not None:
            self.bias_pull = 2 * (whole + bias - x).mean(0)
        return x - (whole - part)

    def target_sparse(self, x, W_dec, codes, bias=None):
        start = torch.zeros_like(x[0]) if bias is None else bias
        if isinstance(codes, DeviceCodes):
            from saecore.kernels.sparse_codes import triton

            return self.target(x, triton.decode(W_dec, start, codes), bias)
        from saecore.kernels.sparse_codes import cpu

        return self.target(x, torch.from_numpy(cpu.decode(W_dec.numpy(), start.numpy(), codes)), bias)

    def count(self, marked):
        return int(self.total(marked.sum()))

    def sum_grads(self, grads):
        """The bias is pulled by the encoders of all ranks, and once by the error, which every rank has found."""
        assert self.bias_pull is not None
        grads["b_dec"].sub_(self.bias_pull, alpha=1 - 1 / self.size)
        dist.all_reduce(grads["b_dec"])

    def fired(self, here):
        return here

    def longest(self, silent):
        dist.all_reduce(longest := torch.tensor(silent), dist.ReduceOp.MAX)
        return int(longest)

    def shared(self, state):
        part = slice(self.rank * self.n_latents, (self.rank + 1) * self.n_latents)
        return {name: tensor if _undivided(name) else tensor[part] for name, tensor in state.items()}

    def gathered(self, state):
        whole = {}
        for name, tensor in state.items():
            if _undivided(name):
                whole[name] = tensor
                continue
            parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else None
            dist.gather(tensor.contiguous(), parts)
            if parts is not None:
                whole[name] = torch.cat([part.cpu() for part in parts])
        return {} if self.rank else whole


def cut(
    scores: Float[Tensor, "candidates"],
    groups: Int64[Tensor, "candidates"],
    places: Int64[Tensor, "candidates"],
    budget: int,
    rows: int,
    batch: int,
) -> Bool[Tensor, "candidates"]:
    """Of this rank's candidates, those among all ranks' ``budget * rows`` best of each group of ``rows`` rows.

    ``batch`` rows are in groups; a last one with fewer has a budget in proportion. Candidates come in the order of
    their groups; a score that is not positive is none. Exact in one exchange, if a rank brings its own
    ``budget * rows`` best. A candidate's key is the bit pattern of its float32 score, then the complement of its place
    (below ``PLACES``): keys order like the scores, ties go to the lower place, and no two are equal.
    """
    most, device = budget * rows, scores.device
    need = torch.full((-(-batch // rows),), most, device=device)
    need[-1] -= budget * (len(need) * rows - batch)
    keys = torch.where(scores > 0, (scores.float().view(torch.int32).long() << 32) + (PLACES - 1 - places), 0)
    first = torch.searchsorted(groups, torch.arange(len(need), device=device))
    groups = groups.clamp_max(len(need) - 1)
    slots = torch.where(keys > 0, groups * most + torch.arange(len(keys), device=device) - first[groups], 0)
    mine = keys.new_zeros(len(need) * most).scatter_reduce_(0, slots, keys, "amax").view(len(need), most)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    best = torch.topk(torch.cat(everyone, 1), most, dim=1).values
    return keys >= best.gather(1, need[:, None] - 1).clamp_min(1)[groups, 0]


def _entries(
    codes: SparseCodes, weighting: Float[Tensor, "batch"] | None
) -> tuple[Float[Tensor, "n_active"], Int64[Tensor, "n_active"], Int64[Tensor, "n_active"]]:
    """Score, row and latent of each entry."""
    batch = len(codes.indptr) - 1
    at = torch.from_numpy(np.repeat(np.arange(batch), np.diff(codes.indptr)))
    scores = torch.from_numpy(codes.values)
    return scores if weighting is None else scores * weighting[at], at, torch.from_numpy(codes.indices).long()


def _only(codes: SparseCodes, keep: Bool[Tensor, "n_active"]) -> SparseCodes:
    """The entries to keep."""
    kept = keep.numpy()
    indptr = np.append(0, kept.cumsum(dtype=np.int64))[codes.indptr]
    return SparseCodes(indptr, codes.indices[kept], codes.values[kept])


def _only_device(codes: DeviceCodes, keep: Bool[Tensor, "capacity"], n_latents: int) -> DeviceCodes:
    """The entries to keep, before void ones; nothing is read by the host."""
    order = torch.argsort(~keep, stable=True)
    kept, batch = keep[order], codes.batch
    rows = torch.where(kept, codes.rows[order], batch)
    indices = torch.where(kept, codes.indices[order], n_latents)
    return DeviceCodes(row_starts(rows, batch), rows, indices, torch.where(kept, codes.values[order], 0))


def _least(codes: DeviceCodes, rows: int) -> Float[Tensor, "groups"]:
    """The smallest value of each group of rows; infinity where there is none."""
    groups = -(-codes.batch // rows)
    found = torch.where(codes.rows < codes.batch, codes.values, torch.inf)
    at = (codes.rows // rows).clamp_max(groups - 1).long()
    return torch.full((groups,), torch.inf, device=found.device).scatter_reduce_(0, at, found, "amin")


def _undivided(name: str) -> bool:
    """Whether every rank holds the whole of a tensor of the state."""
    return name.rpartition(".")[2] in ("b_dec", "scale", "scalars")
