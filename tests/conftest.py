"""One thread each: the kernels then need no second compilation, and two test processes do not fight over two cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
