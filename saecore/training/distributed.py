"""One SAE in training on several processes that torchrun started: its rows or its latents spread over them.

Every process draws the whole batch and builds the same start, so that a run does not depend on how many there are.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor

from saecore.saes import checkpoint
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.spec import SPREADS, RunSpec, one_of, require
from saecore.training import loop
from saecore.training.loop import Trainer
from saecore.training.ranks import PLACES, ByLatents, ByRows

PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for the first one, which harvests and measures alone."""


class SpreadTrainer(Trainer):
    """One process's part of an SAE in training. All of them call the same methods, in the same order.

    ``step`` takes the whole batch. ``state_dict``, and what ``save`` writes, are the whole SAE's, so that any number of
    processes can resume them, by one spread or the other.
    """

    ranks: ByRows

    def __init__(
        self,
        sae: SAE,
        run: RunSpec,
        spread: str,
        fast: bool | None = None,
        path: str | None = None,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        """``sae`` is whole, the same everywhere; this process keeps its share. Raises SpecError as :func:`refuse`."""
        refuse(run, spread, dist.get_world_size())
        ranks = ByRows() if spread == "data" else ByLatents(run.sae.n_latents // dist.get_world_size())
        super().__init__(_share(sae, ranks) if isinstance(ranks, ByLatents) else sae, run, fast, ranks, path, precision)

    def _sparse_grads(self, x, dead, with_ortho):
        found = super()._sparse_grads(self.ranks.rows(x), dead, with_ortho)
        return found and self._together(*found)

    def _dense_grads(self, x, dead, with_ortho):
        return self._together(*super()._dense_grads(self.ranks.rows(x), dead, with_ortho))

    def _together(
        self, loss: float, fired: Bool[Tensor, "n_latents"], active: float, threshold: float | None
    ) -> tuple[float, Bool[Tensor, "n_latents"], float, float | None]:
        """What the whole batch and all latents say."""
        self.ranks.sum_grads(self.grads)
        own, codes = torch.tensor([loss, active], dtype=torch.float64, device=fired.device)
        return float(self.ranks.mean(own)), self.ranks.fired(fired), float(self.ranks.total(codes)), threshold

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state on rank 0; elsewhere nothing."""
        return self.ranks.gathered(super().state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a whole state. Raises KeyError where a tensor is missing."""
        super().load_state_dict(self.ranks.shared(state))

    def save(self, path: Path) -> None:
        """Rank 0 writes the one file of the whole state. Raises OSError there."""
        state = self.state_dict()
        if state:
            self.write(path, state)

    def resume(self, path: Path) -> bool:
        """Every rank reads ``path``. All raise CheckpointError where one cannot, or they find different ones."""
        apart = checkpoint.CheckpointError(
            f"the processes do not all find the same {path}; put the cache on a disk that all of them see"
        )
        if not _alike(path.exists()):
            raise apart
        state = failure = None
        try:
            state = self.read(path)
        except checkpoint.CheckpointError as error:
            failure = error
        if not everywhere(failure is None):
            raise failure or checkpoint.CheckpointError(f"another process cannot read {path}, and says why")
        if state is not None:
            self.load_state_dict(state)
        if not _alike(self.steps_done):
            raise apart
        return state is not None

    def whole(self) -> SAE:
        """The SAE with all its latents on rank 0; elsewhere what this rank has of it."""
        state = self.ranks.gathered(self.sae.state_dict())
        if not state or len(state["W_enc"]) == len(self.sae.W_enc):
            return self.sae
        return _filled(self.run.sae.n_latents, self.sae, state)


def _share(sae: SAE, ranks: ByLatents) -> SAE:
    return _filled(ranks.n_latents, sae, ranks.shared(sae.state_dict()))


def _filled(n_latents: int, like: SAE, state: dict[str, Tensor]) -> SAE:
    """An SAE like another, with so many latents and this state."""
    sae = SAE(dataclasses.replace(like.spec, n_latents=n_latents)).to(like.W_enc)
    sae.load_state_dict(state)
    return sae


def start(
    run: RunSpec,
    source: Source,
    spread: str,
    fast: bool | None = None,
    path: str | None = None,
    precision: torch.dtype = torch.bfloat16,
) -> Trainer:
    """As ``loop.start``, spread over the processes; a plain one where nothing is trained. Raises SpecError."""
    if not run.constraint.trains_anything:
        return loop.start(run, source, fast, path, precision)
    return SpreadTrainer(loop.beginning(run, source), run, spread, fast, path, precision)


def refuse(run: RunSpec, spread: str, size: int) -> None:
    """Raises SpecError where ``run`` cannot be spread so over ``size`` processes."""
    one_of("spread", spread, SPREADS)
    spec, batch = run.sae, run.training.batch_size
    group = spec.rows_per_selection(batch)
    require(
        group * spec.n_latents <= PLACES,
        f"{group} rows of n_latents={spec.n_latents} share one selection, more than the 2**32 entries that processes "
        "can rank together; set a smaller batch_size or group_size",
    )
    if spread == "data":
        require(
            batch % size == 0,
            f"batch_size={batch} does not divide among {size} processes; set a multiple of {size}",
        )
        require(
            group == batch or batch // size % group == 0,
            f"group_size={group} does not divide the {batch // size} rows of each of {size} processes; "
            "choose one that does, or spread='latents'",
        )
        return
    require(
        spec.architecture not in ("matryoshka", "ortho"),
        f"architecture={spec.architecture!r} needs all its latents in one process; use spread='data'",
    )
    require(
        spec.n_latents % size == 0,
        f"n_latents={spec.n_latents} does not divide among {size} processes; set a multiple of {size}, "
        "or spread='data'",
    )
    require(
        spec.l0 <= spec.n_latents // size,
        f"l0={spec.l0} is more than the {spec.n_latents // size} latents of each of {size} processes; "
        "start fewer of them, or use spread='data'",
    )


def join(device: str, spread: str, runs: Iterable[RunSpec]) -> str:
    """Meet the other processes that torchrun started, for these runs; returns this one's device.

    Raises SpecError where torchrun started none, or more than there are GPUs, or a run cannot be spread so.
    """
    require(
        {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ),
        f"--spread {spread} needs several processes; start them with "
        f"torchrun --standalone --nproc_per_node 2 -m saecore run SWEEP --spread {spread}",
    )
    if device.startswith("cuda"):
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        require(local < count, f"process {local} has no GPU of its own; --nproc_per_node can be {count} here at most")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    for run in runs:
        if run.constraint.trains_anything:
            refuse(run, spread, dist.get_world_size())
    return device


def leave() -> None:
    """Take leave of the other processes, if :func:`join` met any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process records: it is alone, or rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def agreed(flags: Sequence[bool]) -> list[bool]:
    """What rank 0 says, on every rank."""
    if not dist.is_initialized():
        return list(flags)
    said = torch.tensor(flags, dtype=torch.uint8)
    dist.broadcast(said, 0)
    return said.bool().tolist()


def _alike(number: int) -> bool:
    """Whether every rank has the same."""
    ends = torch.tensor([number, -number])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return int(ends.sum()) == 0


def everywhere(flag: bool) -> bool:
    """Whether every rank says so."""
    if not dist.is_initialized():
        return flag
    said = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(said, dist.ReduceOp.MIN)
    return bool(said)
