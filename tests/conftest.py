"""One thread each: the kernels then need no second compilation, and two test processes do not fight over two cores."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from saecore.sources import atlas

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where kernels are defined; nothing has imported triton yet
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["*_triton.py", "*/test_device.py"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama, as transformers writes it, with byte-level BPE learnt from atlas."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("world") / "tiny"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], show_progress=False, initial_alphabet=bpe.pre_tokenizer.alphabet()
    )
    bpe.train_from_iterator((atlas.document("train", i).text for i in range(100)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
