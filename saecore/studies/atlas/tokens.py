"""The byte-level BPE tokenizer of the embedded world, and documents as tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saecore import paths
from saecore.sources.atlas import AtlasError, documents
from saecore.sources.atlas.generator import Document

VOCABULARY = 4096
CONTEXT = 128
SAMPLE = 40_000
"""Documents that the merges are learnt from."""
BOS, PAD = "<s>", "<pad>"
IGNORED = -100
"""The target that cross-entropy leaves out."""


def required() -> None:
    """Raises AtlasError where `transformers` is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise AtlasError(f"the model needs transformers and tokenizers; {paths.install_hint('models')}")


def train_tokenizer() -> Any:
    """A `transformers` tokenizer that puts BOS first, its merges learnt from training documents.

    A leading space is added, so that a text's first word is the token that it is elsewhere.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = documents("train")
    tokenizer.train_from_iterator((next(stream).text for _ in range(SAMPLE)), trainer, length=SAMPLE)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def batch(tokenizer: Any, texts: Iterable[str]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Token ids, and as targets the same ids with BOS and padding ignored: the first is given, not predicted."""
    found = tokenizer(list(texts), padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    targets = found["input_ids"].masked_fill(found["attention_mask"] == 0, IGNORED)
    targets[:, 0] = IGNORED
    return found["input_ids"], targets


def lengths(tokenizer: Any, sample: Sequence[Document]) -> list[int]:
    """Tokens of each document without truncation, BOS included."""
    return [len(ids) for ids in tokenizer([document.text for document in sample])["input_ids"]]


def loss(logits: Float[Tensor, "batch seq vocabulary"], targets: Int[Tensor, "batch seq"]) -> Tensor:
    """Cross-entropy of the next token, summed, in nats."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
