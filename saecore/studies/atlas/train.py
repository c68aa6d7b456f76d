"""Trains the embedded world's model: a small Llama on the generator's documents."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saecore import paths
from saecore.saes import checkpoint
from saecore.sources.atlas import document
from saecore.spec import Keyed
from saecore.studies.atlas import tokens

log = logging.getLogger(__name__)

LOG_EVERY = 50
SAVE_SECONDS = 120
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe(Keyed):
    """How the model is made. The learning rate warms up, stays, and falls to zero over the last part of the steps.

    Matmuls in bfloat16 and plain attention were the fastest on one AMD core; weights stay in float32.
    """

    layers: int = 4
    d_model: int = 128
    heads: int = 4
    d_mlp: int = 384
    steps: int = 4200
    documents: int = 32
    learning_rate: float = 2e-3
    warm_up: int = 200
    decay: float = 0.35
    weight_decay: float = 0.05
    seed: int = 0

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step."""
        return min((step + 1) / self.warm_up, 1.0, (self.steps - step) / (self.decay * self.steps))


def folder() -> Path:
    """The shipped model and its tokenizer, as `transformers` saves them."""
    return paths.data() / "atlas" / "model"


def fresh(recipe: Recipe, vocabulary: int) -> Any:
    """The model before training."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=tokens.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    return model


def train(recipe: Recipe, threads: int = 1) -> Path:
    """Trains and writes data/atlas/model; goes on where an interrupted run of this recipe was saved.

    Raises AtlasError where the extra is not installed, CheckpointError where what was saved is damaged.
    """
    tokens.required()
    torch.set_num_threads(threads)
    work = paths.writable(paths.cache() / "atlas" / recipe.key())
    tokenizer = _tokenizer(work / "tokenizer")
    model = fresh(recipe, len(tokenizer)).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    state = work / "training.safetensors"
    step, spent = _resume(state, model, optimiser)
    start = saved = time.monotonic()
    lost, count = 0.0, 0
    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.factor(step)
        found = _step(model, optimiser, tokenizer, recipe, step)
        step, lost, count = step + 1, lost + found[0], count + found[1]
        now = time.monotonic()
        if step % LOG_EVERY == 0 or step == recipe.steps:
            log.info("step %d loss %.4f minutes %.1f", step, lost / count, (spent + now - start) / 60)
            lost, count = 0.0, 0
        if now - saved > SAVE_SECONDS or step == recipe.steps:
            _save(state, model, optimiser, step, spent + now - start)
            saved = now
    return _ship(model, tokenizer)


def _step(model: Any, optimiser: torch.optim.Optimizer, tokenizer: Any, recipe: Recipe, step: int) -> tuple[float, int]:
    """One update; the summed loss and the number of tokens predicted."""
    first = step * recipe.documents
    texts = [document("train", first + i, recipe.seed).text for i in range(recipe.documents)]
    ids, targets = tokens.batch(tokenizer, texts)
    asked = targets[:, 1:] != tokens.IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[asked])
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[:, 1:][asked])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    count = int(asked.sum())
    return loss.item() * count, count


def _tokenizer(made: Path) -> Any:
    """The tokenizer of the run, made at its start."""
    from transformers import AutoTokenizer

    if not made.exists():
        _replace(made, [tokens.train_tokenizer()])
    return AutoTokenizer.from_pretrained(made)


def _resume(state: Path, model: Any, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Steps done and seconds spent; the model and the optimiser take their saved state."""
    try:
        tensors, metadata = checkpoint.read(state)
    except FileNotFoundError:
        return 0, 0.0
    step = int(metadata["step"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
    log.info("going on from step %d", step)
    return step, float(metadata["seconds"])


def _save(state: Path, model: Any, optimiser: torch.optim.Optimizer, step: int, seconds: float) -> None:
    tensors = {f"weight.{name}": weight for name, weight in model.named_parameters()}
    for moment in MOMENTS:
        tensors.update({f"{moment}.{name}": optimiser.state[w][moment] for name, w in model.named_parameters()})
    checkpoint.write(state, tensors, {"step": str(step), "seconds": str(seconds)})


def _ship(model: Any, tokenizer: Any) -> Path:
    _replace(folder(), [model, tokenizer])
    return folder()


def _replace(made: Path, parts: list[Any]) -> None:
    """A folder with everything that ``parts`` save, renamed into place as a whole.

    Killed at any moment, it leaves the old folder or the new one, whole: under its name, or beside it as ``.old`` and
    ``.partial`` between the two renames.
    """
    aside, old = (made.with_name(f"{made.name}.{end}") for end in ("partial", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    for part in parts:
        part.save_pretrained(aside)
    if made.exists():
        shutil.rmtree(old, ignore_errors=True)
        made.rename(old)
    aside.rename(made)
    shutil.rmtree(old, ignore_errors=True)
