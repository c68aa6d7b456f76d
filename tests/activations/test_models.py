"""A model as a residual stream: what leaves a block, which positions count, and what replacing it does."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from saecore import paths
from saecore.activations.models import ModelError, load
from saecore.sources.images import images

DECODERS = ("gpt2", "gpt_neox", "llama", "gemma2", "qwen2", "qwen3")
TEXTS = ("the big cat sees a dog .", "who likes it", "a small house and then the red dog and then a cat .")
FINAL_NORM = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}
REAL = paths.root().parent / "shared" / "real"


def _reference(network, inputs: dict, final_norm: str | None) -> list[torch.Tensor]:
    """transformers' own hidden states after each block, the last without the final norm."""
    plain = copy.deepcopy(network).eval()
    if final_norm:
        setattr(plain.base_model, final_norm, torch.nn.Identity())
    with torch.no_grad():
        return list(plain.base_model(**inputs, output_hidden_states=True).hidden_states[1:])


def _theirs(folder, kind: Any = AutoModelForCausalLM):
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def llama(tiny):
    return load(str(tiny("llama")))


@pytest.mark.parametrize("family", [*DECODERS, "bert"])
def test_residuals_are_transformers_own_hidden_states(tiny, family):
    folder = tiny(family)
    model, encoder = load(str(folder)), family == "bert"
    theirs = _theirs(folder, AutoModel if encoder else AutoModelForCausalLM)
    tokens = model.tokenize(TEXTS, 20)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention.long()}
    reference = _reference(theirs, inputs, None if encoder else FINAL_NORM.get(family, "norm"))
    assert model.n_layers == len(reference) == 3 and model.d_model == 32 and model.context == 24
    for layer, wanted in enumerate(reference):
        found = model.residual(tokens, layer)
        assert found.shape == (*tokens.ids.shape, 32) and found.dtype == torch.float32
        real = tokens.attention
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
        assert wanted[real].std() > 0.1


@pytest.mark.parametrize("family", DECODERS)
def test_replacing_by_identity_changes_no_prediction(tiny, family):
    folder = tiny(family)
    model = load(str(folder))
    tokens = model.tokenize(TEXTS, 20)
    with torch.no_grad():
        wanted = _theirs(folder)(input_ids=tokens.ids, attention_mask=tokens.attention.long()).logits
    real = tokens.attention
    for logits in (model.logits(tokens), model.logits_with(tokens, 1, lambda rows: rows)):
        torch.testing.assert_close(logits[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert model.has_logits and wanted[real].std() > 0.1


@pytest.mark.parametrize("family", DECODERS)
def test_replacing_one_position_moves_it_and_what_follows(tiny, family):
    model = load(str(tiny(family)))
    tokens = model.tokenize(["the big cat sees a dog .", "a small house finds the old cat"], 20)
    keep = torch.zeros_like(tokens.keep)
    keep[0, 3] = True
    seen = []

    def zero(rows):
        seen.append(rows)
        return torch.zeros_like(rows)

    changed = model.logits_with(dataclasses.replace(tokens, keep=keep), 1, zero) - model.logits(tokens)
    moved = changed.abs().amax(-1)
    assert torch.equal(seen[0], model.residual(tokens, 1)[0, 3:4])
    assert (moved[0, 3:7] > 1e-4).all()
    assert moved[0, :3].max() < 1e-6 and moved[1].max() < 1e-6


def test_later_blocks_never_run_and_no_hook_stays(llama):
    ran = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in [*enumerate(llama.blocks), ("head", llama.network.lm_head)]
    ]
    tokens = llama.tokenize(TEXTS, 20)
    llama.residual(tokens, 1)
    assert ran == [0, 1]
    for handle in handles:
        handle.remove()
    assert not any(block._forward_hooks for block in llama.blocks)


def test_gradients_reach_what_replaces_and_not_the_model(llama):
    gain = torch.ones((), requires_grad=True)
    tokens = llama.tokenize(TEXTS, 20)
    llama.logits_with(tokens, 0, lambda rows: gain * rows).square().mean().backward()
    assert gain.grad is not None and gain.grad.abs() > 0
    assert not any(weight.requires_grad for weight in llama.network.parameters())
    assert not llama.logits_with(tokens, 0, lambda rows: rows).requires_grad


@pytest.mark.parametrize("family", DECODERS)
def test_running_on_from_a_block_is_replacing_what_leaves_it(tiny, family):
    model = load(str(tiny(family)))
    tokens = model.tokenize(TEXTS, 20)
    stream = model.residual(tokens, 1)
    stream[0, 3] *= -1
    keep = torch.zeros_like(tokens.keep)
    keep[0, 3] = True
    wanted = model.logits_with(dataclasses.replace(tokens, keep=keep), 1, torch.neg)
    found = model.logits_from(tokens, 1, stream, tokens.attention)
    torch.testing.assert_close(found, wanted[tokens.attention], atol=1e-5, rtol=1e-5)
    assert torch.equal(model.residual(tokens, 1)[0, 3], -stream[0, 3])
    assert model.logits(tokens).shape == wanted.shape
    assert (wanted - model.logits(tokens))[0, 3:7].abs().amax(-1).min() > 1e-4


def test_running_on_from_a_block_runs_no_earlier_one_and_gives_gradients(llama):
    ran = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(llama.blocks)
    ]
    tokens = llama.tokenize(TEXTS, 20)
    stream = torch.randn(*tokens.ids.shape, 32, requires_grad=True)
    last = torch.zeros_like(tokens.keep)
    last[:, 2] = True
    llama.logits_from(tokens, 1, stream, last).square().sum().backward()
    for handle in handles:
        handle.remove()
    assert ran == [2] and stream.grad is not None
    moved = stream.grad.abs().amax(-1)
    assert (moved[:, :3] > 0).all() and not moved[:, 3:].any()
    with pytest.raises(ModelError, match=r"layer=3 must lie between 0 and 2"):
        llama.logits_from(tokens, 3, stream, last)


def test_half_precision_hands_out_float32(tiny):
    model = load(str(tiny("llama")), dtype=torch.bfloat16)
    tokens = model.tokenize(TEXTS, 20)
    seen = []
    logits = model.logits_with(tokens, 1, lambda rows: seen.append(rows.dtype) or rows)
    assert model.dtype == logits.dtype == torch.bfloat16
    assert seen == [torch.float32] and model.residual(tokens, 1).dtype == torch.float32
    torch.testing.assert_close(logits, model.logits(tokens))


def test_a_batch_does_not_change_its_rows(llama):
    tokens = llama.tokenize(TEXTS, 20)
    together = llama.residual(tokens, 2)
    for row, text in enumerate(TEXTS):
        (alone,) = llama.residual(llama.tokenize([text], 20), 2)
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_rows_start_with_bos_and_long_texts_lose_nothing(llama):
    names = llama.tokenizer.convert_ids_to_tokens
    tokens = llama.tokenize(["the cat sees a big dog .", "a river", "", "who </s> what"], 5)
    assert [" ".join(names(row[there].tolist())) for row, there in zip(tokens.ids, tokens.attention, strict=True)] == [
        "<s> the cat sees a",
        "<s> big dog .",
        "<s> a river",
        "<s> who </s> what",
    ]
    assert tokens.keep.tolist() == [
        [False, True, True, True, True],
        [False, True, True, True, False],
        [False, True, True, False, False],
        [False, True, False, True, False],
    ]


def test_an_unknown_word_counts(llama):
    tokens = llama.tokenize(["the zebra sees"], 8)
    assert tokens.ids[0, 2] == llama.tokenizer.unk_token_id and tokens.keep[0, 2]


def test_position_0_never_counts_without_bos_either(tiny):
    model = load(str(tiny("qwen3")))
    tokens = model.tokenize(["the cat sees a big dog ."], 5)
    assert model.tokenizer.convert_ids_to_tokens(tokens.ids[:, 0].tolist()) == ["the", "dog"]
    assert tokens.keep.tolist() == [[False, True, True, True, True], [False, True, False, False, False]]


def test_an_encoder_drops_cls_and_sep(tiny):
    model = load(str(tiny("bert")))
    tokens = model.tokenize(["the cat sees a", "river"], 5)
    names = [model.tokenizer.convert_ids_to_tokens(row.tolist()) for row in tokens.ids]
    assert names[0] == ["[CLS]", "the", "cat", "sees", "[SEP]"] and names[1][:3] == ["[CLS]", "a", "[SEP]"]
    assert tokens.keep.tolist() == [
        [False, True, True, True, False],
        [False, True, False, False, False],
        [False, True, False, False, False],
    ]
    with pytest.raises(ModelError, match="no language-model head"):
        model.logits(tokens)
    assert not model.has_logits


def test_given_tokens_follow_the_same_rule(llama):
    tokens = llama.tokenize(TEXTS, 20)
    again = llama.from_ids(tokens.ids, tokens.attention)
    assert torch.equal(again.keep, tokens.keep)
    assert llama.from_ids(torch.tensor([[7, 0, 8, 9]])).keep.tolist() == [[False, False, True, True]]
    with pytest.raises(ModelError, match="pad rows on the right"):
        llama.from_ids(torch.tensor([[7, 8]]), torch.tensor([[False, True]]))


@pytest.mark.parametrize("family", ["llama", "qwen3", "bert"])
def test_a_batch_without_a_word_has_nothing_to_keep(tiny, family):
    model = load(str(tiny(family)))
    for texts in ([], ["", " "]):
        tokens = model.tokenize(texts, 8)
        assert not tokens.keep.any() and not tokens.attention.any()
        assert model.residual(tokens, 1)[tokens.keep].shape == (0, 32)


def test_what_is_out_of_range_is_named(llama):
    with pytest.raises(ModelError, match="layer=3 must lie between 0 and 2"):
        llama.residual(llama.tokenize(TEXTS, 20), 3)
    for context in (25, 1):
        with pytest.raises(ModelError, match=rf"context={context} must lie between 2 and .*'s 24"):
            llama.tokenize(TEXTS, context)
    with pytest.raises(ModelError, match="reads text"):
        llama.pixels([])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A whole CLIP, of which the vision tower is read."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = CLIPConfig(vision_config={**sizes, "image_size": 16, "patch_size": 8}, text_config=sizes)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_clips_vision_tower_reads_a_folder_of_images(clip_folder, tmp_path):
    from PIL import Image

    for i in range(10):
        Image.new("RGB", (20 + i, 30), (25 * i, 100, 255 - 25 * i)).save(tmp_path / f"{i}.png")
    model = load(str(clip_folder))
    batch = model.pixels(list(images(tmp_path)))
    assert batch.pixels.shape == (9, 3, 16, 16) and model.context == 5
    assert batch.keep.tolist() == [[False, True, True, True, True]] * 9
    theirs = CLIPModel.from_pretrained(clip_folder, attn_implementation="eager").vision_model
    for layer, wanted in enumerate(_reference(theirs, {"pixel_values": batch.pixels}, None)):
        torch.testing.assert_close(model.residual(batch, layer), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="sees images"):
        model.tokenize(TEXTS, 5)
    with pytest.raises(ModelError, match="sees images"):
        model.tokenizer.decode([0])


def test_images_are_split_and_damaged_ones_named(tmp_path):
    from PIL import Image

    from saecore.sources.images import ImageError

    with pytest.raises(ImageError, match="holds 0 images"):
        images(tmp_path)
    for i in range(20):
        Image.new("L", (2, 2), i).save(tmp_path / f"{i:02d}.png")
    train, test = list(images(tmp_path)), list(images(tmp_path, "test"))
    assert [image.getpixel((0, 0)) for image in test] == [(9, 9, 9), (19, 19, 19)] and len(train) == 18
    (tmp_path / "00.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"00\.png is damaged"):
        next(images(tmp_path))


@pytest.mark.skipif(not (REAL / "stories260K").is_dir(), reason="stories260K is not here")
def test_a_really_pretrained_llama():
    folder = REAL / "stories260K"
    model = load(str(folder))
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. "
        "One day, the dog ran away. Lily was very sad and looked for him everywhere. Then her mom came and helped her. "
        "They found the dog under a big tree. Lily was so happy that she hugged him."
    )
    tokens = model.tokenize([story, "The cat sat."], 128)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention.long()}
    theirs = _theirs(folder)
    for layer, wanted in enumerate(_reference(theirs, inputs, "norm")):
        real = tokens.attention
        torch.testing.assert_close(model.residual(tokens, layer)[real], wanted[real], atol=1e-5, rtol=1e-5)
    plain = AutoTokenizer.from_pretrained(folder)
    assert tokens.ids[0, 1:].tolist() == plain(story, add_special_tokens=False)["input_ids"][:127]
    with torch.no_grad():
        wanted = theirs(**inputs).logits
    spliced = model.logits_with(tokens, 2, lambda rows: rows)
    torch.testing.assert_close(spliced[tokens.attention], wanted[tokens.attention], atol=1e-4, rtol=1e-5)
    chosen = spliced[0, :-1].log_softmax(-1).gather(1, tokens.ids[0, 1:, None])
    assert 0.5 < -chosen.mean() < 2.5  # nats a token; guessing gives log 512 = 6.2
