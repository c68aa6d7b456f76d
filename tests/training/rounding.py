"""bfloat16 in Triton's interpreter as on a GPU."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch


@contextmanager
def rounded() -> Iterator[None]:
    """The interpreter cuts float32 to bfloat16, which makes every weight smaller; a GPU rounds."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(values, of, to, mode):
        if (of, to) != (tl.float32, tl.bfloat16):
            return cut(values, of, to, mode)
        return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    with mock.patch.object(interpreter, "_convert_float", convert):
        yield
