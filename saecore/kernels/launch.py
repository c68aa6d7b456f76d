"""What the Triton kernels share: how wide they are launched, and the one place where they allocate.

Triton is imported by the ``triton.py`` files alone, so that nothing here needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """An array that a kernel fills; tests put NaN into it first, to see that every element is written."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def power(n: int, least: int = 16, most: int = 1 << 30) -> int:
    """The smallest power of two that is no less than ``n``, held between two others."""
    return min(max(1 << max(n - 1, 0).bit_length(), least), most)


def warps(block: int) -> int:
    """Warps for a block of numbers: about 16 for each thread, and no more warps than a program may have."""
    return min(max(block // 512, 1), 16)


def parts(n: int, block: int) -> int:
    """How many blocks cover ``n``."""
    return -(-n // block)
