"""Two processes reach what one does, and go on from each other's checkpoints."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from saecore import cli, paths, sweep
from saecore.activations import open_source
from saecore.kernels.batch_topk import reference
from saecore.saes import CheckpointError, checkpoint
from saecore.sources.base import Source
from saecore.sources.synthetic import Superposition
from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, SpecError, TrainingSpec
from saecore.training import DivergedError, Trainer, distributed, loop, start, train_many
from saecore.training.ranks import ByLatents, ByRows
from tests.training.rounding import rounded

WORLD = SourceSpec("constant", n_features=128, d_model=16, expected_l0=3.0)
SMALL = SourceSpec("constant", n_features=16, d_model=4, expected_l0=2.0)
"""For Triton's interpreter, which is slow."""
SIZE = 2
CLOSE = 1e-5
HALF_CLOSE = 0.02
"""In bfloat16, as a share of how far a tensor has moved."""


@dataclass(frozen=True)
class Case:
    architecture: str
    spread: str
    constraint: str = "free"
    path: str = "cpu"
    fields: dict[str, Any] = field(default_factory=dict)
    dead: int = 0  # the first so many latents are dead, too weak to be chosen; the others live long
    room: float = 1.0  # DENSE_SHARE
    precision: torch.dtype = torch.float32  # of Triton's matmuls

    @property
    def name(self) -> str:
        extra = [f"{k}={v}" for k, v in self.fields.items()] + [f"dead={self.dead}"] * bool(self.dead)
        extra += ["half"] * (self.precision != torch.float32)
        return "-".join([self.architecture, self.spread, self.constraint, self.path, *extra])

    @property
    def close(self) -> float:
        """In bfloat16 a difference in the last bit of a weight may turn the rounding of what a matmul reads."""
        return CLOSE if self.precision == torch.float32 else HALF_CLOSE

    @property
    def steps(self) -> tuple[int, int]:
        """To the checkpoint, and to the end."""
        return (1, 2) if self.path == "triton" else (10, 20)

    @property
    def run(self) -> RunSpec:
        """Otherwise one silent step makes a latent dead: half of them are, and there is an auxiliary loss."""
        world, l0, batch = (SMALL, 1, 6) if self.path == "triton" else (WORLD, 3, 24)
        fields: dict[str, Any] = {"d_model": world.d_model, "n_latents": world.n_features, "l0": l0, "aux_k": 8}
        fields["dead_after"] = 1000 if self.dead else 1
        training = TrainingSpec(steps=100, batch_size=batch, learning_rate=1e-3, decay=0.9)
        spec = SAESpec(self.architecture, **(fields | self.fields))
        return RunSpec(spec, world, ConstraintSpec(self.constraint, tau=0.98), training)

    @property
    def source(self) -> Source:
        return open_source(self.run.source)

    def alone(self) -> Trainer:
        """Where two processes take Triton's kernels in float32, one has the definition."""
        defined = self.path == "triton" and self.precision == torch.float32
        path = "dense" if defined else self.path
        return self.begun(start(self.run, self.source, path=path, precision=self.precision))

    def spread_out(self) -> Trainer:
        trainer = distributed.start(self.run, self.source, self.spread, path=self.path, precision=self.precision)
        return self.begun(trainer)

    def begun(self, trainer: Trainer) -> Trainer:
        first = trainer.ranks.rank * (self.run.sae.n_latents - len(trainer.silent))
        here = max(self.dead - first, 0)
        trainer.silent[:here] = self.run.sae.dead_after
        trainer.sae.W_enc.data[:here] *= 0.05
        return trainer


CASES = [
    Case("relu", "data"),
    Case("relu", "latents", "frozen_decoder"),
    Case("relu", "latents", path="dense"),
    Case("jump_relu", "data", "soft_frozen_decoder"),
    Case("jump_relu", "latents"),
    Case("jump_relu", "latents", "frozen_encoder", path="dense"),
    Case("topk", "data", "frozen_encoder"),
    Case("topk", "latents", "soft_frozen_decoder"),
    Case("topk", "latents", "oracle", path="dense"),
    Case("topk", "latents", fields={"group_size": 10}),
    Case("topk", "data", fields={"group_size": 4, "rescale": True}),
    Case("batch_topk", "data"),
    Case("batch_topk", "data", "soft_frozen_decoder", fields={"rescale": True}),
    Case("batch_topk", "data", path="dense"),
    Case("batch_topk", "latents"),
    Case("batch_topk", "latents", "soft_frozen_decoder", path="dense"),
    Case("batch_topk", "latents", "both_frozen", fields={"rescale": True}),
    Case("batch_topk", "latents", dead=40),
    Case("batch_topk", "latents", path="dense", dead=40),
    Case("matryoshka", "data"),
    Case("matryoshka", "data", "soft_frozen_decoder", path="dense"),
    Case("ortho", "data", fields={"ortho_every": 2}),
    Case("ortho", "data", "frozen_decoder", path="dense"),
]
if importlib.util.find_spec("triton"):
    CASES += [
        Case("batch_topk", "data", path="triton"),
        Case("batch_topk", "latents", path="triton"),
        Case("topk", "latents", "soft_frozen_decoder", path="triton", fields={"rescale": True}),
        Case("jump_relu", "data", path="triton"),
        Case("relu", "latents", path="triton", room=0.2),
    ]
    if not torch.cuda.is_available():  # where one process interprets the kernels as well
        CASES += [
            Case("batch_topk", "data", path="triton", precision=torch.bfloat16),
            Case("batch_topk", "latents", "soft_frozen_decoder", path="triton", precision=torch.bfloat16),
        ]
PATHS = sorted({case.path for case in CASES})
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

TIES = {
    "all": (12, 20, 3, 12),
    "row": (12, 20, 3, 1),
    "some": (12, 20, 3, 5),
    "short": (4, 6, 4, 4),
    "none": (4, 6, 2, 4),
}
"""Batch, latents, budget, rows of a group."""
SHARED = [(name, spread) for name in TIES for spread in distributed.SPREADS if (name, spread) != ("some", "data")]
"""Selections that processes share; 5 rows do not divide the 6 of one, which is refused below."""


def scores(name: str) -> torch.Tensor:
    """Few different values, so that most cuts go through a tie; none positive, for ``none``."""
    batch, latents, _, _ = TIES[name]
    found = torch.randint(-2, 4, (batch, latents), generator=torch.Generator().manual_seed(1)).float()
    return found.clamp_max(0) if name == "none" else found


def train(trainer: Trainer, steps: int) -> list[float]:
    losses: list[float] = []
    source = open_source(trainer.run.source)
    train_many([trainer], source, steps, lambda _, loss: losses.append(float(loss)))
    return losses


def work(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=SIZE)
    with rounded():
        for case in CASES:
            train_case(case, folder / case.name, rank)
    checkpoint.write(folder / f"ties{rank}", select(rank), {})
    (folder / f"trouble{rank}").write_text(json.dumps(trouble(folder, rank)))
    distributed.leave()


def train_case(case: Case, folder: Path, rank: int) -> None:
    """To the end; again from the half; and on from the half of one process."""
    loop.DENSE_SHARE = case.room
    if case.path == "triton":
        from saecore.training import device

        device.DENSE_SHARE = case.room
    half, end = case.steps
    trainer = case.spread_out()
    losses = train(trainer, half)
    trainer.save(folder / "half")
    losses += train(trainer, end)
    trainer.save(folder / "end")
    checkpoint.write(folder / f"own{rank}", Trainer.state_dict(trainer), {"losses": json.dumps(losses)})
    whole = trainer.whole().state_dict()
    if rank == 0:
        checkpoint.write(folder / "whole", whole, {})
    for file, then in (("half", "again"), ("one", "on")):
        resumed = case.spread_out()
        assert resumed.resume(folder / file) and resumed.steps_done == half
        train(resumed, end)
        resumed.save(folder / then)


def select(rank: int) -> dict[str, torch.Tensor]:
    """This rank's part of the masks of ``TIES``, by each path (x is the identity)."""
    found = {}
    for name, spread in SHARED:
        _, latents, budget, rows = TIES[name]
        ranks = ByRows() if spread == "data" else ByLatents(latents // SIZE)
        part = scores(name).chunk(SIZE, 0 if spread == "data" else 1)[rank].contiguous()
        found[f"{name}-{spread}-dense"] = ranks.select_dense(part, budget, rows)
        codes, _ = ranks.select_sparse(torch.eye(len(part)), part.T.contiguous(), budget, rows)
        found[f"{name}-{spread}-cpu"] = torch.from_numpy(codes.dense(part.shape[1])) > 0
        if "triton" in PATHS:
            codes = ranks.select_device(part, budget, rows)[0].to_host()
            found[f"{name}-{spread}-triton"] = torch.from_numpy(codes.dense(part.shape[1])) > 0
    return found


def trouble(folder: Path, rank: int) -> dict[str, Any]:
    """What is said where a batch holds NaN or is of odd size, where ranks find different checkpoints, or no source."""
    said: dict[str, Any] = {}
    for spread in distributed.SPREADS:
        case = Case("batch_topk", spread)
        trainer = case.spread_out()
        x = case.source.batch(24, 0).x
        x[-1, 3] = torch.nan  # in the rows of the last rank
        said[f"nan-{spread}"] = raised(DivergedError, lambda trainer=trainer, x=x: trainer.step(x))
        (folder / case.name / f"damaged{rank}").write_bytes(b"" if rank else (folder / case.name / "end").read_bytes())
        files = {"apart": "half" if rank else "end", "missing": "none" if rank else "end", "damaged": f"damaged{rank}"}
        for what, file in files.items():
            place = folder / case.name / file
            said[f"{what}-{spread}"] = raised(CheckpointError, lambda trainer=trainer, p=place: trainer.resume(p))
    odd = Case("topk", "data")
    said["odd"] = raised(ValueError, lambda: odd.spread_out().step(odd.source.batch(25, 0).x))
    return said | {"source": [unopened(rank == failing) for failing in range(SIZE)]}


def unopened(here: bool) -> str:
    """What a process says where the source of a sweep cannot be opened, ``here`` or by another one."""

    def opened(spec: SourceSpec, device: str, stream: bool) -> Superposition:
        if here:
            raise SpecError("it is gone")
        return Superposition(spec)

    with mock.patch.object(sweep, "_opened", opened):
        return raised(SpecError, lambda: sweep._examined(WORLD, "cpu", False))


def raised(kind: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module", autouse=True)
def as_a_gpu_rounds():
    with rounded():
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, tuple[Trainer, list[float]]]]:
    """One process's trainers at the end, their losses, and its checkpoints of the half in a folder."""
    folder, found = tmp_path_factory.mktemp("spread"), {}
    for case in CASES:
        half, end = case.steps
        trainer = case.alone()
        losses = train(trainer, half)
        trainer.save(folder / case.name / "one")
        found[case.name] = trainer, losses + train(trainer, end)
    return folder, found


@pytest.fixture(scope="module")
def folder(alone) -> Path:
    """What the two processes have written."""
    spawn(work, (alone[0],), SIZE)
    return alone[0]


def state(path: Path) -> dict[str, torch.Tensor]:
    return without_seconds(checkpoint.read(path)[0])


def without_seconds(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return found | {"scalars": found["scalars"][:4]}


def apart(case: Case, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any tensor; in bfloat16 as a share of how far one process has moved it."""
    if case.precision == torch.float32:
        return max(gaps(found, wanted).values(), default=0)
    start = without_seconds(case.alone().state_dict())
    assert set(found) == set(wanted) == set(start)
    shares = []
    for name, end in wanted.items():
        moved = float((end - start[name]).double().nan_to_num().norm())
        off = float((found[name] - end).double().nan_to_num().norm())
        shares.append(off / moved if moved else off)
    return max(shares)


def gaps(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each tensor that has any."""
    assert set(found) == set(wanted)
    assert all(torch.equal(found[n].isnan(), wanted[n].isnan()) for n in wanted)
    largest = {n: float((found[n].nan_to_num() - wanted[n].nan_to_num()).abs().max()) for n in wanted}
    return {n: gap for n, gap in largest.items() if gap > 0}


@EACH
def test_two_processes_reach_what_one_does(case, alone, folder):
    """Weights, moments, thresholds, silent steps, the controller's scalars and every loss."""
    trainer, losses = alone[1][case.name]
    found = state(folder / case.name / "end")
    assert apart(case, found, without_seconds(trainer.state_dict())) < case.close
    own = json.loads(checkpoint.read(folder / case.name / "own0")[1]["losses"])
    assert own == pytest.approx(losses, rel=case.close) and len(own) == case.steps[1]
    if case.run.sae.has_auxiliary_loss:
        assert int((trainer.silent >= case.run.sae.dead_after).sum()) >= case.run.sae.aux_k


@EACH
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(case, folder):
    assert gaps(state(folder / case.name / "again"), state(folder / case.name / "end")) == {}


@EACH
def test_two_go_on_from_one_and_one_from_two(case, alone, folder):
    half, end = case.steps
    wanted = without_seconds(alone[1][case.name][0].state_dict())
    assert apart(case, state(folder / case.name / "on"), wanted) < case.close
    resumed = case.alone()
    assert resumed.resume(folder / case.name / "half") and resumed.steps_done == half
    train(resumed, end)
    assert apart(case, without_seconds(resumed.state_dict()), wanted) < case.close


@EACH
def test_the_processes_agree_to_the_bit_on_what_both_hold(case, folder):
    one, other = (state(folder / case.name / f"own{rank}") for rank in range(SIZE))
    both = one if case.spread == "data" else [n for n in one if n.endswith(("b_dec", "scale", "scalars"))]
    assert len(both) >= 4 and gaps({n: one[n] for n in both}, {n: other[n] for n in both}) == {}
    shares = {len(part["sae.W_enc"]) for part in (one, other)}
    assert shares == {case.run.sae.n_latents // (1 if case.spread == "data" else SIZE)}


@EACH
def test_the_whole_sae_is_that_of_the_checkpoint(case, folder):
    saved = state(folder / case.name / "end")
    whole = checkpoint.read(folder / case.name / "whole")[0]
    assert gaps(whole, {n.removeprefix("sae."): t for n, t in saved.items() if n.startswith("sae.")}) == {}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "spread"), SHARED)
def test_ties_between_processes_go_where_the_definition_says(name, spread, path, folder):
    _, _, budget, rows = TIES[name]
    parts = [checkpoint.read(folder / f"ties{rank}")[0][f"{name}-{spread}-{path}"] for rank in range(SIZE)]
    found = torch.cat(parts, 0 if spread == "data" else 1)
    assert torch.equal(found, reference.select_ranked(scores(name), budget, rows))


def said(folder: Path, what: str) -> list[Any]:
    return [json.loads((folder / f"trouble{rank}").read_text())[what] for rank in range(SIZE)]


@pytest.mark.parametrize("spread", distributed.SPREADS)
def test_trouble_of_one_process_stops_both(spread, folder):
    diverged, other = said(folder, f"nan-{spread}")
    assert diverged == other
    assert diverged.startswith(f"loss=nan at step 0 of run {Case('batch_topk', spread).run.key()}")
    for what in ("apart", "missing"):
        assert all(
            line.startswith("the processes do not all find the same") for line in said(folder, f"{what}-{spread}")
        )
    sound, damaged = said(folder, f"damaged-{spread}")
    assert sound.startswith("another process cannot read ") and "damaged1" in damaged and "delete it" in damaged
    assert said(folder, "odd") == ["a batch of 25 rows does not divide among 2 ranks; give a multiple"] * SIZE


def test_a_source_that_one_process_cannot_open_is_left_out_by_both(folder):
    elsewhere = "another process of this run cannot open it, and says why"
    assert said(folder, "source") == [["it is gone", elsewhere], [elsewhere, "it is gone"]]


@pytest.mark.parametrize(
    ("architecture", "spread", "size", "fields", "message"),
    [
        ("topk", "rows", 2, {}, "spread='rows' is unknown; choose one of data, latents"),
        ("topk", "data", 5, {}, "batch_size=24 does not divide among 5 processes; set a multiple of 5"),
        ("topk", "data", 2, {"group_size": 8}, "group_size=8 does not divide the 12 rows of each of 2 processes"),
        ("topk", "latents", 3, {}, "n_latents=128 does not divide among 3 processes; set a multiple of 3, or"),
        ("topk", "latents", 64, {}, "l0=3 is more than the 2 latents of each of 64 processes; start fewer"),
        ("matryoshka", "latents", 2, {}, "architecture='matryoshka' needs all its latents in one process; use spread"),
        ("ortho", "latents", 2, {}, "architecture='ortho' needs all its latents"),
        ("batch_topk", "data", 2, {"n_latents": 2**29}, "24 rows of n_latents=536870912 share one selection"),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_is_refused(architecture, spread, size, fields, message):
    with pytest.raises(SpecError, match=message):
        distributed.refuse(Case(architecture, spread, fields=fields).run, spread, size)


TINY = """
experiment: tiny
defaults: {training.steps: 120, source.n_features: 24, source.d_model: 8, source.expected_l0: 2, sae.l0: 2,
           training.batch_size: 64, probability: constant, seed: 0}
blocks:
  - {architecture: [batch_topk, jump_relu]}
  - {architecture: topk, constraint: [frozen_decoder, untrained]}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yml"
    path.write_text(TINY)
    return path


def test_without_torchrun_the_command_says_how(tiny, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["run", str(tiny), "--spread", "latents"]) == cli.REFUSED
    assert "torchrun --standalone --nproc_per_node 2 -m saecore run SWEEP --spread latents" in capsys.readouterr().err


def spread_run(tiny: Path, spread: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in two processes that torchrun starts."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(SIZE)]
    places = {paths.RESULTS: str(folder / "results"), paths.CACHE: str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "saecore", "run", str(tiny), "--spread", spread]
    return subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=300)


def test_the_command_records_once_what_one_process_records(tiny, tmp_path, monkeypatch):
    run = spread_run(tiny, "latents", tmp_path / "two")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "tiny: 4 runs recorded\n"
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "one" / "results"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "one" / "cache"))
    assert cli.main(["run", str(tiny)]) == 0
    two, one = (pd.read_csv(tmp_path / name / "results" / "tiny.csv") for name in ("two", "one"))
    same = [column for column in one if column not in ("value", "seconds")]
    pd.testing.assert_frame_equal(two.loc[:, same], one.loc[:, same])
    assert two["value"].tolist() == pytest.approx(one["value"].tolist(), abs=1e-3)
    assert {"silent_share", "explained_variance"} <= set(one["metric"])
    assert sorted(p.name for p in (tmp_path / "two/cache/saes").iterdir()) == sorted(
        p.name for p in (tmp_path / "one/cache/saes").iterdir()
    )
    assert list((tmp_path / "two/cache/training").glob("*")) == []


def test_the_command_refuses_what_cannot_be_spread(tiny, capsys, monkeypatch):
    """Joined, and left again, by a process that torchrun might have started alone."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    tiny.write_text(TINY.replace("architecture: topk", "architecture: matryoshka"))
    assert cli.main(["run", str(tiny), "--spread", "latents"]) == cli.REFUSED
    assert "saecore: architecture='matryoshka' needs all its latents in one process" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
