"""Settings shared by the CPU kernels."""

from __future__ import annotations

import ctypes
import functools
import sys
import types

import numba
import torch

FASTMATH = {"reassoc", "nsz", "contract", "arcp"}


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed arrays instead of returning each to the system.

    A step frees and takes the same few arrays of 1 to 30 MB; mapping them anew costs more than the arithmetic
    (ten times as much on a virtual machine).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            m_trim_threshold, m_mmap_threshold = -1, -3
            mallopt(m_mmap_threshold, 1 << 25)
            mallopt(m_trim_threshold, (1 << 31) - 1)


_keep_freed_memory()


def kernel(function):
    """Compile twice: with threads over the outermost ``prange``, and without for when torch has one thread.

    numba's waiting threads spin, which costs ten times the work where two processes share two cores. Reductions may be
    reordered by the vectoriser, but every sum has one owner thread and a fixed order, so equal inputs give equal bits
    on one machine. One thread and several are compiled apart and agree up to rounding. torch says how many threads,
    and goes on saying it: where both use one OpenMP, numba's pool sets torch's number to its own when it starts.
    """
    threaded = numba.njit(parallel=True, fastmath=FASTMATH, cache=True, nogil=True)(function)
    twin = types.FunctionType(function.__code__, function.__globals__, f"{function.__name__}_serial")
    twin.__qualname__, twin.__module__ = (
        f"{function.__qualname__}_serial",
        function.__module__,
    )  # its own cache file
    serial = numba.njit(fastmath=FASTMATH, cache=True, nogil=True)(twin)

    @functools.wraps(function)
    def call(*args):
        asked = torch.get_num_threads()
        wanted = min(asked, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if wanted == 1:
            return serial(*args)
        numba.set_num_threads(wanted)
        if torch.get_num_threads() != asked:
            torch.set_num_threads(asked)
        return threaded(*args)

    return call


def helper(function):
    """A function inlined into kernels."""
    return numba.njit(fastmath=FASTMATH, cache=True, nogil=True)(function)
