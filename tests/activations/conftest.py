"""Tiny random models of every family, saved with a word tokenizer as transformers saves them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = "the a cat dog house river sees finds likes big small red old and then . , who what where".split()
LETTERS = [*"bcdefghijklmnopqrstuvwxyz", "Ġ"]
"""For Qwen2, whose tokenizer class reads any vocabulary as byte pairs."""
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
OPTIONS = {
    "gpt2": {},
    "gpt_neox": {},
    "llama": GROUPED,
    "gemma2": {**GROUPED, "attn_logit_softcapping": 2.0, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "bert": {},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny model by its family, the same at every call."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model"
            _save(family, made[family])
        return made[family]

    return folder


def _save(family: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    tokenizer = _tokenizer(family)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SIZES, **OPTIONS[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = AutoModel if family == "bert" else AutoModelForCausalLM
        kind.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(family: str):
    """Words apart; Qwen has no BOS, BERT has [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if family.startswith("qwen"):
        roles = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    elif family == "bert":
        roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "<unk>"}
    known = ["<s>", "</s>", "<unk>", "[CLS]", "[SEP]", "[PAD]", *WORDS, *LETTERS]
    words = models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP, of which the vision tower is read: a class token and four patches."""
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip") / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = CLIPConfig(vision_config={**sizes, "image_size": 16, "patch_size": 8}, text_config=sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A file of 400 documents of 1 to 60 words, many of them longer than a tiny model's context."""
    rng = random.Random(0)
    lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))}) for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "words.jsonl"
    path.write_text("\n".join(lines))
    return path
