"""The operations that decide the speed. Each folder holds ``reference.py`` (plain PyTorch, the definition) and faster
paths that must agree with it; which one runs is chosen at call time by :func:`fast_path` and :func:`triton_path`."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401  # refuses a numpy that is newer than it knows
    except ImportError:
        return False
    return True


def fast_path(tensor: torch.Tensor) -> bool:
    """Whether the compiled CPU path takes this tensor: float32 on the CPU, with numba installed."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and _has_numba()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_path(tensor: torch.Tensor) -> bool:
    """Whether the Triton path takes this tensor: float32 on a CUDA device, with triton installed."""
    return tensor.device.type == "cuda" and tensor.dtype == torch.float32 and _has_triton()
