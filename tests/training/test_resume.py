"""A run that is interrupted ends with the same bits as one that is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saecore.saes import CheckpointError
from saecore.sources.synthetic import Superposition
from saecore.spec import ARCHITECTURES, ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
from saecore.training import Trainer, start, train_many

WORLD = SourceSpec("variable", n_features=120, d_model=24, p_min=1e-3, p_max=0.1)
CONSTRAINT = {"topk": "soft_frozen_decoder", "matryoshka": "frozen_encoder", "ortho": "soft_frozen_decoder"}


def run_of(architecture: str) -> RunSpec:
    """Latents count as dead after one silent step, so that many are and the auxiliary path is taken."""
    sae = SAESpec(architecture, d_model=24, n_latents=120, l0=2, aux_k=16, dead_after=1)
    training = TrainingSpec(steps=1000, batch_size=16, learning_rate=1e-2, decay=0.5)
    return RunSpec(sae, WORLD, ConstraintSpec(CONSTRAINT.get(architecture, "free"), tau=0.95), training)


def bits(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All of the state but the seconds."""
    state = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
    state["scalars"] = state["scalars"][:4]
    return state


def differing(one: Trainer, other: Trainer) -> list[str]:
    a, b = bits(one), bits(other)
    assert set(a) == set(b)
    return [name for name in a if not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]


def child(code: str, *arguments: str) -> subprocess.Popen:
    """A Python process that knows this file as ``work``."""
    setup = (
        "import importlib.util, sys, torch\nfrom pathlib import Path\ntorch.set_num_threads(1)\n"
        f"spec = importlib.util.spec_from_file_location('work', {__file__!r})\n"
        "work = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(work)\n"
    )
    return subprocess.Popen([sys.executable, "-c", setup + code, *arguments], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stopping_and_starting_in_one_process(architecture, tmp_path):
    source, run = Superposition(WORLD), run_of(architecture)
    whole, first, second = (start(run, source) for _ in range(3))
    train_many([whole], source, 30)
    if run.sae.has_auxiliary_loss:
        assert 16 < int((whole.silent >= 1).sum()) < 120
    train_many([first], source, 15)
    first.save(tmp_path / "state.safetensors")
    assert second.resume(tmp_path / "state.safetensors") and second.steps_done == 15
    assert differing(first, second) == []
    train_many([second], source, 30)
    assert differing(whole, second) == []
    assert differing(whole, first) != []


RESUME = """
source = work.Superposition(work.WORLD)
for name in work.ARCHITECTURES:
    path = Path(sys.argv[1]) / name
    trainer = work.start(work.run_of(name), source)
    assert trainer.resume(path) and trainer.steps_done == 15
    work.train_many([trainer], source, 30)
    trainer.save(path)
"""


def test_a_new_process_continues_to_the_same_bits(tmp_path):
    source = Superposition(WORLD)
    trainers = [start(run_of(name), source) for name in ARCHITECTURES]
    train_many(trainers, source, 15)
    for trainer in trainers:
        trainer.save(tmp_path / trainer.run.sae.architecture)
    train_many(trainers, source, 30)
    process = child(RESUME, str(tmp_path))
    assert process.wait(timeout=120) == 0, process.communicate()[1]
    for trainer in trainers:
        continued = start(trainer.run, source)
        assert continued.resume(tmp_path / trainer.run.sae.architecture)
        assert differing(trainer, continued) == [], trainer.run.sae.architecture


ENDLESS = """
source = work.Superposition(work.WORLD)
trainer = work.start(work.run_of("batch_topk"), source)
while True:
    work.train_many([trainer], source, trainer.steps_done + 2)
    trainer.save(Path(sys.argv[1]))
"""


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    path = tmp_path / "state.safetensors"
    process = child(ENDLESS, str(path))
    until = time.monotonic() + 120
    while not path.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    source = Superposition(WORLD)
    resumed, whole = (start(run_of("batch_topk"), source) for _ in range(2))
    assert resumed.resume(path)
    assert resumed.steps_done >= 2 and resumed.steps_done % 2 == 0
    steps = resumed.steps_done + 5
    train_many([resumed], source, steps)
    train_many([whole], source, steps)
    assert differing(whole, resumed) == []


def saved(path: Path) -> Path:
    trainer = start(run_of("topk"), Superposition(WORLD))
    trainer.save(path)
    return path


def test_nothing_to_resume_is_no_error(tmp_path):
    trainer = start(run_of("topk"), Superposition(WORLD))
    assert not trainer.resume(tmp_path / "none.safetensors")


def test_the_state_of_another_run_is_refused(tmp_path):
    other = start(run_of("ortho"), Superposition(WORLD))
    with pytest.raises(CheckpointError, match=rf"topk belongs to another run than {other.run.key()}; delete it"):
        other.resume(saved(tmp_path / "topk"))


def test_a_truncated_state_is_refused(tmp_path):
    path = saved(tmp_path / "state")
    path.write_bytes(path.read_bytes()[:-10])
    trainer = start(run_of("topk"), Superposition(WORLD))
    with pytest.raises(CheckpointError, match="state is truncated"):
        trainer.resume(path)
    assert trainer.steps_done == 0
