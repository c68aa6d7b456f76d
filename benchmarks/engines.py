"""One function per engine: it puts the common start into that library's SAE and says how to take a step.

Every recipe is made the same through the library's own options: Adam(0.9, 0.999) at a constant rate, encoder
tied at the start, unit decoder rows, a trained decoder bias, the encoder bias held at zero, no auxiliary
loss, no normalisation of the inputs. README.md names what had to be done for each. ``half``: the matrix products in
bfloat16, by autocast, as the library itself offers it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
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


def keep(scores: Float[Tensor, "batch n_latents"], k: int, architecture: str) -> tuple[Tensor, Tensor]:
    """Codes with their zeros, and the scores kept; ``scores`` must not be negative."""
    if architecture == "batch_topk":
        top = scores.flatten().topk(k * len(scores), sorted=False)
        return torch.zeros_like(scores).flatten().scatter(0, top.indices, top.values).view_as(scores), top.values
    top = scores.topk(k, dim=1, sorted=False)
    return torch.zeros_like(scores).scatter(1, top.indices, top.values), top.values


def autocast(device: torch.device, half: bool) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def saecore(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    import saecore
    from saecore.saes.base import SAE
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
    device = problem.start.device
    with device, torch.no_grad():
        sae = SAE(spec)
        sae.W_dec.copy_(problem.start)
        sae.W_enc.copy_(problem.start)
    trainer = Trainer(sae, run)

    def reconstruct(x: Tensor) -> Tensor:
        if device.type == "cuda":
            trainer.settle()  # raises what a step on the GPU met
            return sae.decode(keep(sae.preactivations(x).relu(), spec.l0, architecture)[0])
        from saecore.kernels.batch_topk import cpu as select
        from saecore.kernels.sparse_codes import cpu as sparse

        rows = spec.rows_per_selection(len(x))
        codes, _ = select.select_ranked(sae.encoder_input(x).detach(), sae.W_enc.data, spec.l0, rows)
        return torch.from_numpy(sparse.decode(sae.W_dec.data.numpy(), sae.b_dec.data.numpy(), codes))

    return Engine(f"{saecore.__version__}+{_commit()}", trainer.step, reconstruct)


def plain(shape: Shape, problem: Problem, architecture: str, steps: int, half: bool = False) -> Engine:
    """The dense loop that the others are checked against."""
    device = problem.start.device
    W_enc, W_dec = (problem.start.clone().requires_grad_() for _ in range(2))
    b_dec = torch.zeros(shape.d_model, device=device, requires_grad=True)
    threshold = torch.zeros((), device=device)
    optimizer = torch.optim.Adam([W_enc, W_dec, b_dec], lr=shape.learning_rate, betas=BETAS, fused=True)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, kept = keep(torch.relu((x - b_dec) @ W_enc.T), shape.k, architecture)
        return codes @ W_dec + b_dec, kept

    def step(x: Tensor) -> Tensor:
        with autocast(device, half):
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
                threshold.lerp_(kept.min().float(), THRESHOLD_RATE)
        return loss.detach()

    return Engine(f"torch {torch.__version__}", step, lambda x: forward(x)[0])


def sae_lens(shape: Shape, problem: Problem, architecture: str, steps: int, half: bool = False) -> Engine:
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
        "device": str(problem.start.device),
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
            device=str(problem.start.device),
            autocast=half,
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


def dictionary_learning(shape: Shape, problem: Problem, architecture: str, steps: int, half: bool = False) -> Engine:
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
        device=str(problem.start.device),
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
        with autocast(x.device, half):  # as its trainSAE does
            trainer.update(done, x)

    return Engine(version("dictionary-learning"), step, lambda x: sae.decode(sae.encode(x, use_threshold=False)))


def sparsify(shape: Shape, problem: Problem, architecture: str, steps: int) -> Engine:
    """The library's coder in the order of its Trainer, which itself takes a language model.

    On a GPU it takes bfloat16 for its matrix products of its own accord.
    """
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    config = SparseCoderConfig(num_latents=shape.n_latents, k=shape.k)
    device = problem.start.device
    coder = SparseCoder(shape.d_model, config, device=device, dtype=torch.float32)
    with torch.no_grad():
        coder.W_dec.copy_(problem.start)
        coder.encoder.weight.copy_(problem.start)
    coder.encoder.bias.requires_grad_(False)
    optimizer = torch.optim.Adam(coder.parameters(), lr=shape.learning_rate, betas=BETAS)
    silent = torch.zeros(shape.n_latents, dtype=torch.long, device=device)
    fired = torch.zeros(shape.n_latents, dtype=torch.bool, device=device)

    def step(x: Tensor) -> Tensor:
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
        return out.fvu.detach()

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
    out = torch.empty(shape.batch_size, shape.n_latents, dtype=dtype, device=problem.start.device)

    @torch.no_grad()
    def step(x: Tensor) -> None:
        torch.mm(x.to(dtype), W_enc.to(dtype).T, out=out)
        optimizer.step()

    return Engine(f"torch {torch.__version__}", step, None)


Build = Callable[[Shape, Problem, str, int], Engine]
LIBRARIES = {
    "plain": "torch",
    "limit": "torch",
    "sae-lens": "sae_lens",
    "dictionary-learning": "dictionary_learning",
    "eai-sparsify": "sparsify",
    "saecore": "saecore.training",
}
"""What to import for each, in the order in which they run: first the loop without which nothing is checked, ours last,
which takes what time the others leave."""
HALF = "-bf16"
ENGINES: dict[str, tuple[Build, str]] = {
    "saecore batch_topk": (saecore, "batch_topk"),
    "saecore topk": (saecore, "topk"),
    "sae-lens batch_topk": (sae_lens, "batch_topk"),
    "sae-lens topk": (sae_lens, "topk"),
    "sae-lens-bf16 batch_topk": (partial(sae_lens, half=True), "batch_topk"),
    "sae-lens-bf16 topk": (partial(sae_lens, half=True), "topk"),
    "dictionary-learning batch_topk": (dictionary_learning, "batch_topk"),
    "dictionary-learning-bf16 batch_topk": (partial(dictionary_learning, half=True), "batch_topk"),
    "eai-sparsify topk": (sparsify, "topk"),
    "plain batch_topk": (plain, "batch_topk"),
    "plain topk": (plain, "topk"),
    "plain-bf16 batch_topk": (partial(plain, half=True), "batch_topk"),
    "plain-bf16 topk": (partial(plain, half=True), "topk"),
    "limit float32": (limit, "float32"),
    "limit bfloat16": (limit, "bfloat16"),
}


def package(engine: str) -> str:
    """The key in ``LIBRARIES`` of an engine of ``ENGINES``."""
    return engine.rpartition(" ")[0].removesuffix(HALF)


def _commit() -> str:
    """Short commit of this checkout, ``.dirty`` where the package differs from it; SAECORE_COMMIT stands in."""
    if "SAECORE_COMMIT" in os.environ:
        return os.environ["SAECORE_COMMIT"]

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent.parent
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        dirty = ".dirty" if git("status", "--porcelain", "saecore") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
