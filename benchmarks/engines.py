"""One function per engine: it puts the common start into that library's SAE and says how to take a step.

Every recipe is made the same through the library's own options: Adam(0.9, 0.999) at a constant rate, encoder
tied at the start, unit decoder rows, a trained decoder bias, the encoder bias held at zero, no auxiliary
loss, no normalisation of the inputs. README.md names what had to be done for each.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from problem import Problem, Shape
from torch import Tensor

BETAS = (0.9, 0.999)
THRESHOLD_RATE = 0.01


@dataclass(frozen=True)
class Engine:
    """``reconstruct`` is the forward of training; None where there is nothing to reconstruct."""

    version: str
    step: Callable[[Float[Tensor, "batch d_model"]], object]
    reconstruct: Callable[[Float[Tensor, "batch d_model"]], Float[Tensor, "batch d_model"]] | None


def saecore(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    import saecore
    from saecore.kernels.batch_topk import cpu as select
    from saecore.kernels.sparse_codes import cpu as sparse
    from saecore.saes.build import build
    from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec
    from saecore.training import Trainer

    spec = SAESpec(
        architecture,
        d_model=shape.d_model,
        n_latents=shape.n_latents,
        l0=shape.k,
        aux_coefficient=0.0,
    )
    source = SourceSpec(d_model=shape.d_model, n_features=shape.n_features, expected_l0=float(shape.k))
    training = TrainingSpec(
        steps=steps,
        batch_size=shape.batch_size,
        learning_rate=shape.learning_rate,
        beta1=BETAS[0],
        beta2=BETAS[1],
    )
    run = RunSpec(spec, source, ConstraintSpec("free"), training)
    sae = build(spec, run.constraint, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.copy_(problem.start)
        sae.W_enc.copy_(problem.start)
    trainer = Trainer(sae, run)

    def reconstruct(x: Tensor) -> Tensor:
        rows = spec.rows_per_selection(len(x))
        codes, _ = select.select_ranked(sae.encoder_input(x).detach(), sae.W_enc.data, spec.l0, rows)
        return torch.from_numpy(sparse.decode(sae.W_dec.data.numpy(), sae.b_dec.data.numpy(), codes))

    return Engine(f"{saecore.__version__}+{_commit()}", trainer.step, reconstruct)


def plain(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    """The dense loop that the others are checked against."""
    W_enc, W_dec = (problem.start.clone().requires_grad_() for _ in range(2))
    b_dec = torch.zeros(shape.d_model, requires_grad=True)
    threshold = torch.zeros(())
    optimizer = torch.optim.Adam([W_enc, W_dec, b_dec], lr=shape.learning_rate, betas=BETAS)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.relu((x - b_dec) @ W_enc.T)
        if architecture == "batch_topk":
            top = scores.flatten().topk(shape.k * len(x), sorted=False)
            codes = torch.zeros_like(scores).flatten().scatter(0, top.indices, top.values).view_as(scores)
        else:
            top = scores.topk(shape.k, dim=1, sorted=False)
            codes = torch.zeros_like(scores).scatter(1, top.indices, top.values)
        return codes @ W_dec + b_dec, top.values

    def step(x: Tensor) -> float:
        x_hat, kept = forward(x)
        loss = (x_hat - x).square().sum(1).mean()
        loss.backward()
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            optimizer.step()
            optimizer.zero_grad()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
            if architecture == "batch_topk":
                threshold.lerp_(kept.min(), THRESHOLD_RATE)
        return loss.item()

    return Engine(f"torch {torch.__version__}", step, lambda x: forward(x)[0])


def sae_lens(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.batchtopk_sae import (  # pyright: ignore[reportMissingImports]
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.topk_sae import (  # pyright: ignore[reportMissingImports]
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    sizes = {
        "d_in": shape.d_model,
        "d_sae": shape.n_latents,
        "aux_loss_coefficient": 0.0,
        "rescale_acts_by_decoder_norm": False,
    }
    if architecture == "batch_topk":
        config = BatchTopKTrainingSAEConfig(k=float(shape.k), topk_threshold_lr=THRESHOLD_RATE, **sizes)
        sae = BatchTopKTrainingSAE(config)
    else:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=shape.k, **sizes))
    with torch.no_grad():
        sae.W_dec.copy_(problem.start)
        sae.W_enc.copy_(problem.start.T)
    sae.b_enc.requires_grad_(False)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * shape.batch_size,
            train_batch_size_samples=shape.batch_size,
            lr=shape.learning_rate,
            lr_end=shape.learning_rate,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            dead_feature_window=1 << 30,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        data_provider=iter(()),
    )
    W_dec = sae.W_dec

    # The library does not keep decoder rows at unit norm; PyTorch's own hooks do here what the others do.
    def unit_rows(*_: object) -> None:
        W_dec.data.div_(W_dec.data.norm(dim=1, keepdim=True))

    W_dec.register_hook(lambda grad: grad - (grad * W_dec).sum(1, keepdim=True) * W_dec)
    trainer.optimizer.register_step_post_hook(unit_rows)

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def reconstruct(x: Tensor) -> Tensor:
        given = TrainStepInput(
            sae_in=x, dead_neuron_mask=None, coefficients={}, n_training_steps=0, is_logging_step=False
        )
        return sae.training_forward_pass(given).sae_out

    return Engine(version("sae-lens"), step, reconstruct)


def dictionary_learning(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    from dictionary_learning.trainers.batch_top_k import (  # pyright: ignore[reportMissingImports]
        BatchTopKTrainer,
    )

    trainer = BatchTopKTrainer(
        steps=steps + 1,
        activation_dim=shape.d_model,
        dict_size=shape.n_latents,
        k=shape.k,
        layer=0,
        lm_name="none",
        lr=shape.learning_rate,
        auxk_alpha=0.0,
        warmup_steps=0,
        threshold_beta=1 - THRESHOLD_RATE,
        threshold_start_step=0,
        device="cpu",
    )
    sae = trainer.ae
    with torch.no_grad():
        sae.decoder.weight.copy_(problem.start.T)
        sae.encoder.weight.copy_(problem.start)
    sae.encoder.bias.requires_grad_(False)
    done = 0

    def step(x: Tensor) -> None:
        nonlocal done
        done += 1  # from 1: at step 0 the trainer would move the decoder bias to the data's geometric median
        trainer.update(done, x)

    return Engine(version("dictionary-learning"), step, lambda x: sae.decode(sae.encode(x, use_threshold=False)))


def sparsify(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    """The library's coder in the order of its Trainer, which itself takes a language model."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    config = SparseCoderConfig(num_latents=shape.n_latents, k=shape.k)
    coder = SparseCoder(shape.d_model, config, dtype=torch.float32)
    with torch.no_grad():
        coder.W_dec.copy_(problem.start)
        coder.encoder.weight.copy_(problem.start)
    coder.encoder.bias.requires_grad_(False)
    optimizer = torch.optim.Adam(coder.parameters(), lr=shape.learning_rate, betas=BETAS)
    silent = torch.zeros(shape.n_latents, dtype=torch.long)
    fired = torch.zeros(shape.n_latents, dtype=torch.bool)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))
        silent[fired] = 0
        fired.zero_()
        return float(out.fvu.detach())

    def reconstruct(x: Tensor) -> Tensor:
        coder.set_decoder_norm_to_unit_norm()
        return coder(x).sae_out

    return Engine(version("eai-sparsify"), step, reconstruct)


def limit(shape: Shape, problem: Problem, precision: str, steps: int) -> Engine:
    """What a step cannot do without: the encoder's matmul and one fused Adam pass over both weights."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    W_enc, W_dec = (problem.start.clone().requires_grad_() for _ in range(2))
    W_enc.grad, W_dec.grad = problem.start.clone(), problem.start.clone()
    optimizer = torch.optim.Adam([W_enc, W_dec], lr=shape.learning_rate, betas=BETAS, fused=True)
    out = torch.empty(shape.batch_size, shape.n_latents, dtype=dtype)

    @torch.no_grad()
    def step(x: Tensor) -> None:
        torch.mm(x.to(dtype), W_enc.to(dtype).T, out=out)
        optimizer.step()

    return Engine(f"torch {torch.__version__}", step, None)


Build = Callable[[Shape, Problem, str, int], Engine]
ENGINES: dict[str, tuple[Build, str]] = {
    "saecore batch_topk": (saecore, "batch_topk"),
    "saecore topk": (saecore, "topk"),
    "sae-lens batch_topk": (sae_lens, "batch_topk"),
    "sae-lens topk": (sae_lens, "topk"),
    "dictionary-learning batch_topk": (dictionary_learning, "batch_topk"),
    "eai-sparsify topk": (sparsify, "topk"),
    "plain batch_topk": (plain, "batch_topk"),
    "plain topk": (plain, "topk"),
    "limit float32": (limit, "float32"),
    "limit bfloat16": (limit, "bfloat16"),
}


def _commit() -> str:
    """Short commit of this checkout, ``.dirty`` where the package differs from it."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent.parent
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        dirty = ".dirty" if git("status", "--porcelain", "saecore") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
