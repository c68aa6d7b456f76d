"""A machine with torch alone, as a GPU machine may be: no numba, none of the book's tools, no model libraries."""

import subprocess
import sys

from saecore.spec import ARCHITECTURES

TRAINS = """
import sys

for name in ("numba", "llvmlite", "transformers", "datasets", "tokenizers", "papermill", "nbformat", "dask"):
    sys.modules[name] = None  # an import of it fails, as where it is not installed

import torch
from saecore import cli, kernels, sweep
from saecore.metrics.evaluate import evaluate
from saecore.sources.synthetic import Superposition
from saecore.training import start, train_many

torch.set_num_threads(1)
assert not kernels.fast_path(torch.zeros(1))
small = {"probability": "variable", "source.n_features": 24, "source.d_model": 8, "sae.l0": 2, "source.p_min": 0.01}
small |= {"training.batch_size": 64, "training.steps": 3}
for architecture in sys.argv[1:]:
    run = sweep.make(small | {"architecture": architecture, "constraint": "soft_frozen_decoder"})
    source = Superposition(run.source)
    trainer = start(run, source)
    before = {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}
    train_many([trainer], source, 3)
    moved = [name for name in ("W_enc", "W_dec") if not torch.equal(before[name], trainer.sae.state_dict()[name])]
    values = evaluate(trainer.sae, source, rows=256)
    print(architecture, *moved, 0 < values["l0"] < 24)
"""


def test_every_architecture_trains_and_is_measured_without_numba():
    run = subprocess.run([sys.executable, "-c", TRAINS, *ARCHITECTURES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{name} W_enc W_dec True" for name in ARCHITECTURES]
