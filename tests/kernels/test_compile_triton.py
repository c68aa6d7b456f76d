"""Every kernel compiles for a Hopper GPU, with the arguments that training gives it; that needs no GPU."""

import os
import subprocess
import sys

COMPILES = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from saecore.kernels import launch
from saecore.kernels.batch_topk import triton as select
from saecore.saes.build import build
from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
from saecore.training import Trainer, device

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
compiled = {}


def kind(value):
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if value < 1 << 31 else "i64"


def run(kernel, *args, grid, warmup, **named):
    names = [p.name for p in kernel.params]
    given = dict(zip(names, args)) | {n: v for n, v in named.items() if n in names}
    fixed = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    fixed |= {n: 1 for n, v in given.items() if isinstance(v, int) and v == 1}
    signature = {n: "constexpr" if n in fixed else kind(given[n]) for n in names}
    key = (kernel.__name__, *signature.items(), *fixed.items())
    if key not in compiled:
        source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in fixed.items()})
        options = {n: v for n, v in named.items() if n not in names}
        compiled[key] = compile(source, target=GPUTarget("cuda", 90, 32), options=options)


JITFunction.run = run  # a launch compiles and does nothing: arrays stay as they are made, here full of zeros
launch.empty = lambda shape, dtype, like: torch.zeros(shape, dtype=dtype)
device.DENSE_SHARE = 1.0
torch.set_num_threads(1)
for name, constraint, precision in (
    ("matryoshka", "soft_frozen_decoder", torch.bfloat16),
    ("ortho", "free", torch.bfloat16),
    ("jump_relu", "frozen_decoder", torch.float32),
):
    spec = SAESpec(name, d_model=2304, n_latents=300, l0=30, dead_after=1)
    run_spec = RunSpec(spec, SourceSpec(d_model=2304, n_features=2305), ConstraintSpec(constraint), TrainingSpec())
    sae = build(spec, run_spec.constraint, generator=torch.Generator().manual_seed(0))
    sae.threshold.zero_()
    trainer = Trainer(sae, run_spec, path="triton", precision=precision)
    for step in range(2):
        trainer.step(torch.ones(4, 2304))
        trainer.gpu.go.fill_(1)
select.encode_above(torch.ones(4, 2304), sae.W_enc.data, sae.b_enc.data, sae.threshold, 100)
print(*sorted({key[0] for key in compiled}))
assert all(len(kernel.asm["cubin"]) for kernel in compiled.values())
"""

KERNELS = """_code_grads _count_above _decode _encode _fused_step _fused_unit_step _gather _histogram _maxima
_narrow _place _place_above _step _sums _tally _unit_step _weight_grads"""


def test_every_kernel_compiles_for_a_hopper_gpu(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == KERNELS.split()
