"""A tiny CLIP sees a folder of images: their patches are rows like those of a text."""

import random

import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image

from saecore import cli, paths
from saecore.activations import ActivationStore, ActivationStream, harvest, models, open_source
from saecore.activations.rows import RowReader, probe
from saecore.sources.base import EVALUATION
from saecore.sources.images import ImageError, images
from saecore.spec import ActivationSpec, SpecError

IMAGES, PATCHES = 80, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of noise, so that their rows vary; 72 are for training, 8 are held out."""
    place, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    for i in range(IMAGES):
        Image.frombytes("RGB", (20, 16 + i % 3), rng.randbytes(20 * (16 + i % 3) * 3)).save(place / f"{i:02d}.png")
    return place


@pytest.fixture(scope="module")
def spec(clip_folder, folder) -> ActivationSpec:
    return ActivationSpec(str(clip_folder), 1, str(folder), d_model=32, rows=280)


@pytest.fixture(scope="module")
def model(spec):
    return models.load(spec.model)


@torch.no_grad()
def patches(model, folder, split: str) -> torch.Tensor:
    """By hand: every image alone, without its class token."""
    return torch.cat([model.residual(model.pixels([image]), 1)[0, 1:] for image in images(folder, split)])


def test_rows_are_the_patches_in_the_order_of_the_images(spec, model, folder):
    scale = probe(model, spec).scale
    for split in ("train", "test"):
        rows = RowReader(model, spec, split, scale, positions=30).take(10**4)
        wanted = patches(model, folder, split) * scale.scale
        assert len(rows) == {"train": 72, "test": 8}[split] * PATCHES
        torch.testing.assert_close(rows.float(), wanted, atol=5e-3, rtol=2e-3)


def test_reading_is_taken_up_again_at_any_row(spec, model):
    scale = probe(model, spec).scale
    whole = RowReader(model, spec, "train", scale, positions=30).take(280)
    for done in (3, 24, 128, 131, 200):
        first = RowReader(model, spec, "train", scale, positions=30)
        first.take(done)
        rest = RowReader(model, spec, "train", scale, positions=30, place=first.place).take(280 - done)
        assert torch.equal(rest, whole[done:])


def test_a_store_and_a_stream_hold_them(spec, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(paths.CACHE, str(tmp_path))
    assert cli.main(["harvest", spec.model, "1", spec.dataset, "--rows=280"]) == 0
    store, stream = open_source(spec), ActivationStream(spec, model=model)
    assert isinstance(store, ActivationStore)
    assert (store.rows, store.held_out_rows, stream.held_out_rows) == (280, 28, 28)
    for which in (0, EVALUATION):
        n = 28 if which else 280
        found = [source.batch(n, 0, which).x.sort(0).values for source in (store, stream)]
        assert torch.equal(*found)


def test_too_few_images_say_how_many_rows_there_are(spec, model, tmp_path, monkeypatch):
    monkeypatch.setenv(paths.CACHE, str(tmp_path))
    many = ActivationSpec(**{**spec.as_dict(), "rows": 300})
    with pytest.raises(SpecError, match="has only 288 rows of training"):
        harvest(many, model=model)


def test_a_text_is_no_folder_of_images(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(paths.CACHE, str(tmp_path))
    with pytest.raises(ImageError, match="atlas holds 0 images"):
        open_source(ActivationSpec(**{**spec.as_dict(), "dataset": "atlas"}), stream=True)
    assert cli.main(["harvest", spec.model, "1", "atlas"]) == cli.REFUSED
    assert "atlas holds 0 images" in capsys.readouterr().err
