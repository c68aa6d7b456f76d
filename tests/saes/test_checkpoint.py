"""A checkpoint is whole or an error that names the file; nothing half-written is ever left."""

import json

import pytest
import torch

from saecore.saes import CheckpointError, build, checkpoint, load, save
from saecore.spec import ARCHITECTURES, ConstraintSpec, RunSpec, SAESpec, SourceSpec


def run_of(architecture: str = "batch_topk") -> RunSpec:
    source = SourceSpec("constant", n_features=20, d_model=6, expected_l0=2.0)
    return RunSpec(SAESpec(architecture, d_model=6, n_latents=12, l0=3), source, ConstraintSpec("frozen_encoder"))


def sae_of(run: RunSpec):
    sae = build(run.sae, run.constraint, generator=torch.Generator().manual_seed(0))
    sae.threshold.copy_(torch.rand(12, generator=torch.Generator().manual_seed(1)))
    sae.b_dec.data.fill_(1 / 3)
    return sae


@pytest.fixture
def saved(tmp_path):
    run = run_of()
    path = tmp_path / "deep" / "sae.safetensors"
    save(path, sae_of(run), run)
    return path


def rewritten(path, change) -> None:
    """The file again, its tensors and metadata changed by ``change``."""
    tensors, metadata = checkpoint.read(path)
    change(tensors, metadata)
    checkpoint.write(path, tensors, metadata)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_loaded_to_the_bit(architecture, tmp_path):
    run = run_of(architecture)
    sae, path = sae_of(run), tmp_path / "a.safetensors"
    save(path, sae, run)
    again, its_run = load(path)
    assert its_run == run and its_run.key() == run.key() and again.spec == run.sae
    assert (
        set(again.state_dict()) == set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "scale"}
    )
    assert all(torch.equal(t, sae.state_dict()[n]) for n, t in again.state_dict().items())
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again(x), sae(x))


def test_saving_again_replaces_and_leaves_no_other_file(saved):
    run = run_of()
    sae = sae_of(run)
    sae.b_dec.data.fill_(7.0)
    save(saved, sae, run)
    assert load(saved)[0].b_dec.tolist() == [7.0] * 6
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is truncated or not a safetensors file .*delete it"):
        load(saved)


def test_another_kind_of_file_is_an_error_that_names_it(saved):
    saved.write_bytes(b"not a checkpoint" * 100)
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is truncated or not"):
        load(saved)


def test_an_absent_file_is_an_error_that_says_how_to_make_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors is missing; `saecore run SWEEP --saes` trains it"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        checkpoint.read(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["threshold", "W_enc", "b_dec"])
def test_a_missing_tensor_is_an_error(saved, name):
    rewritten(saved, lambda tensors, metadata: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"sae\.safetensors: {name} should have shape \(.*\), found nothing"):
        load(saved)


def test_a_tensor_of_another_shape_is_an_error(saved):
    rewritten(saved, lambda tensors, metadata: tensors.update(W_dec=torch.ones(12, 5)))
    with pytest.raises(CheckpointError, match=r"W_dec should have shape \(12, 6\), found \(12, 5\)"):
        load(saved)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_an_error(saved, bad):
    rewritten(saved, lambda tensors, metadata: tensors["W_enc"][3].fill_(bad))
    with pytest.raises(CheckpointError, match=r"sae\.safetensors holds NaN or infinity .*train it again"):
        load(saved)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "carries no run spec"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"sae": {}}), "cannot be read"),
        (json.dumps({"sae": {"architecture": "tpok"}}), "architecture='tpok' is unknown"),
        (json.dumps({"sae": {"architecture": "topk", "width": 3}}), r"no field \['width'\]"),
    ],
)
def test_a_spec_that_cannot_be_read_is_an_error_that_names_the_file(saved, text, said):
    rewritten(saved, lambda tensors, metadata: metadata.pop("run") if text is None else metadata.update(run=text))
    with pytest.raises(CheckpointError, match=rf"sae\.safetensors carries .*{said}|sae\.safetensors {said}"):
        load(saved)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    """A path below a regular file: not to be written for root either."""
    (tmp_path / "file").write_text("")
    run = run_of()
    with pytest.raises(OSError, match=r"cannot write .*file/sae\.safetensors: .*SAECORE_CACHE"):
        save(tmp_path / "file" / "sae.safetensors", sae_of(run), run)


@pytest.mark.parametrize("after", [0, 10], ids=["at once", "half-written"])
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_else(saved, monkeypatch, after):
    before = saved.read_bytes()

    def refuse(tensors, path, metadata):
        if after:
            path.write_bytes(before[:after])
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(OSError, match=r"cannot write .*sae\.safetensors: .*Permission denied; free the disk or choose"):
        save(saved, sae_of(run_of()), run_of())
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
