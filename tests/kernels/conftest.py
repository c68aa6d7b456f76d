"""Where the Triton kernels are tested: on a GPU if there is one, else in Triton's interpreter, on the CPU.

Whatever they are given to fill holds NaN or nonsense first. The interpreter reads and writes memory as it is told, so
every access is held against the arguments of the launch.
"""

import numpy as np
import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def spoilt(monkeypatch) -> None:
    """Arrays that a kernel fills are full of NaN, or of a number that is no index."""
    from saecore.kernels import launch

    def empty(shape, dtype, like):
        return torch.full(shape, torch.nan if dtype.is_floating_point else -(1 << 30), dtype=dtype, device=like.device)

    monkeypatch.setattr(launch, "empty", empty)


@pytest.fixture
def guarded(monkeypatch, spoilt) -> None:
    """Also an error where an access lies outside all arguments; it says how far from the start of each, in bytes."""
    if torch.cuda.is_available():
        return
    from triton.runtime import interpreter

    arguments: list[tuple[int, int]] = []
    begin, builder = interpreter.GridExecutor._init_args_hst, interpreter.InterpreterBuilder

    def begun(self, args, kwargs):
        tensors, named = begin(self, args, kwargs)
        arguments[:] = [extent(t) for t in tensors if hasattr(t, "data_ptr")]
        return tensors, named

    def extent(tensor) -> tuple[int, int]:
        storage = tensor.untyped_storage()
        end = min(tensor.data_ptr() + tensor.numel() * tensor.element_size(), storage.data_ptr() + storage.nbytes())
        return tensor.data_ptr(), end

    def check(pointers, mask) -> None:
        whole = np.broadcast_arrays(pointers.data, mask.data)
        used = whole[0][whole[1].astype(bool)]
        inside = np.zeros(used.shape, dtype=bool)
        for start, end in arguments:
            inside |= (used >= start) & (used < end)
        if not inside.all():
            first = int(used[~inside].min())
            raise MemoryError(f"outside, at {[first - start for start, _ in arguments]}")

    def guard(name, place):
        original = getattr(builder, name)

        def access(self, *args):
            check(args[place], args[{"create_masked_load": 1, "create_masked_store": 2, "create_atomic_rmw": 3}[name]])
            return original(self, *args)

        monkeypatch.setattr(builder, name, access)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", begun)
    guard("create_masked_load", 0)
    guard("create_masked_store", 0)
    guard("create_atomic_rmw", 1)
