"""A tiny random Llama with a chat template: what it is given, and what is made of what it says."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from saecore.activations.models import ModelError
from saecore.judges import Ask, LanguageJudge, Local
from saecore.judges.base import ask

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}[assistant]"


def build(folder: Path, context: int = 512, template: str | None = TEMPLATE) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", "[user]", "[end]", "[assistant]"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False, initial_alphabet=bytewise.pre_tokenizer.alphabet()
    )
    bytewise.train_from_iterator(["a few words"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bytewise.get_vocab_size(), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=context, bos_token_id=0, eos_token_id=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture
def local(folder) -> Local:
    return Local(str(folder), batch=2)


def asks(*contents: str, room: int = 5) -> list[Ask]:
    return [Ask((("user", content),), room) for content in contents]


def told(local: Local, monkeypatch, tokens: list[list[int]]) -> list[dict]:
    """The network is given these continuations, in the order of its rows; what it was asked comes back."""
    seen, left = [], list(tokens)

    def generate(input_ids, **options):
        seen.append({"input_ids": input_ids, **options})
        rows = [left.pop(0) for _ in input_ids]
        new = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        return torch.cat([input_ids, new], 1)

    monkeypatch.setattr(local.model.network, "generate", generate)
    return seen


def test_questions_are_padded_on_the_left_and_answered_greedily(local, monkeypatch):
    words = [local.model.tokenizer(text)["input_ids"] for text in ("3", "1, 2", "None")]
    seen = told(local, monkeypatch, [[*row, 1] for row in words])
    assert local.complete(asks("bb", "a", "a much longer question")) == ["1, 2", "3", "None"]
    first = seen[0]
    assert first["do_sample"] is False and first["max_new_tokens"] == 5 and len(first["input_ids"]) == 2
    assert first["attention_mask"].tolist()[0][0] == 0 and first["attention_mask"].sum(1).tolist() == [4, 5]
    assert local.model.tokenizer.decode(first["input_ids"][1]) == "[user]bb[end][assistant]"


def test_an_answer_that_does_not_end_counts_as_none(local, monkeypatch):
    words = local.model.tokenizer("1, 2")["input_ids"]
    told(local, monkeypatch, [words])
    assert local.complete(asks("a")) == [""]


def test_answers_do_not_depend_on_what_stands_beside_them(local, monkeypatch):
    monkeypatch.setattr(local, "_ends", lambda: [])
    alone = [local.complete(asks(content))[0] for content in ("short", "a rather longer question")]
    assert local.complete(asks("short", "a rather longer question")) == alone


def test_a_random_model_leaves_every_question_unanswered(folder, trials, monkeypatch):
    long = build(folder.parent / "long", context=16_384)
    judge = LanguageJudge(Local(str(long)))
    one = trials[0]
    short = type(one)(one.latent, one.frequency, one.top[:1], one.silent, one.test[:4], one.truth[:4], one.hard[:4],
                      one.hard_truth[:4], one.same_token)  # fmt: skip
    (judged,) = ask(judge, [short])
    assert judged.accuracy != judged.accuracy and judge.malformed >= 3 and judge.talk.known(asks("a")[0]) is None


def test_models_without_a_chat_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="has no chat template and answers no questions; give an instruct model"):
        Local(str(build(tmp_path / "plain", template=None)))


def test_a_question_beyond_the_context_is_refused(local):
    with pytest.raises(ModelError, match=r"an answer of 5 exceed its context of 512"):
        local.complete(asks("word " * 500))
