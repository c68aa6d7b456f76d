"""How many threads a kernel takes, and that torch keeps its own number."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

STEP = """
import sys
import numpy as np
import torch
torch.set_num_threads(int(sys.argv[1]))
torch.get_num_threads()  # torch settles its number here; what changes it later shows
import numba
from saecore.kernels.cone_step import cpu
W, grad, m, v = (np.ones((8, 3), dtype=np.float32) for _ in range(4))
cpu.step(W, grad, m, v, 1e-3, 0.9, 0.99, 1, unit=True)
print(torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize(("asked", "numba"), [(1, 4), (2, 2), (3, 3), (6, 4)])
def test_a_kernel_takes_torchs_number_of_threads_and_leaves_it(asked, numba):
    """In a process of its own: numba's pool starts once. With one thread it never does, and reads as it was."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    command = [sys.executable, "-c", STEP, str(asked)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"{asked} {numba}\n"), run.stderr
