"""Activations without a disk: the rows of the store, whatever is asked for and when."""

import numpy as np
import pytest
import torch

from saecore import paths
from saecore.activations import ActivationStore, ActivationStream, harvest, models, open_source
from saecore.sources.base import EVALUATION
from saecore.spec import ActivationSpec, SpecError

pytest.importorskip("transformers")

ROWS, BUFFER = 1500, 400


@pytest.fixture(scope="module")
def spec(tiny, words) -> ActivationSpec:
    return ActivationSpec(str(tiny("llama")), 1, str(words), d_model=32, rows=ROWS, context=24)


@pytest.fixture(scope="module")
def model(spec):
    return models.load(spec.model)


@pytest.fixture
def stream(spec, model) -> ActivationStream:
    return ActivationStream(spec, model=model, buffer_rows=BUFFER)


class Counted:
    """A model that counts its calls."""

    def __init__(self, model) -> None:
        self.model, self.calls = model, 0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def residual(self, tokens, layer):
        self.calls += 1
        return self.model.residual(tokens, layer)


def ordered(rows: torch.Tensor) -> torch.Tensor:
    """Rows in an order that does not depend on theirs."""
    return rows[torch.from_numpy(np.lexsort(rows.numpy().T))]


def test_stream_and_store_have_the_same_rows_and_the_same_scale(spec, model, stream, tmp_path, monkeypatch):
    monkeypatch.setenv(paths.CACHE, str(tmp_path))
    harvest(spec, model=model)
    store = ActivationStore(spec)
    assert stream.input_scale == store.input_scale
    for first in (0, ROWS):
        rows = torch.cat([stream.batch(100, first // 100 + step, 2).x for step in range(ROWS // 100)])
        assert torch.equal(ordered(rows), ordered(store.batch(ROWS, first // ROWS).x))
    test = [source.batch(ROWS // 10, 0, EVALUATION).x for source in (stream, store)]
    assert torch.equal(ordered(test[0]), ordered(test[1]))
    assert torch.allclose(stream.mean(), store.mean(), atol=1e-5)
    assert torch.allclose(stream.covariance(), store.covariance(), atol=1e-4)


def test_nothing_is_written(spec, tmp_path, monkeypatch):
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    found = open_source(spec, stream=True)
    assert isinstance(found, ActivationStream)
    assert found.batch(64, 0).x.shape == (64, 32) and found.batch(64, 0, EVALUATION).x.shape == (64, 32)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("step", [0, 3, 17, 40])
def test_a_step_is_the_same_in_a_new_process_and_after_going_back(step, spec, model, stream):
    """Steps of 90 rows cross buffers of 400 and, from 17 on, epochs of 1500."""
    new = ActivationStream(spec, model=model, buffer_rows=BUFFER).batch(90, step, 4).x
    for before in range(step):
        stream.batch(90, before, 4)
    assert torch.equal(stream.batch(90, step, 4).x, new)
    stream.batch(90, 60, 4)
    stream.batch(90, 1, 8)
    assert torch.equal(stream.batch(90, step, 4).x, new)


def test_seeds_and_epochs_have_orders_of_their_own(stream):
    first = stream.batch(BUFFER, 0, 0).x
    assert torch.equal(ordered(first), ordered(stream.batch(BUFFER, 0, 2).x))
    assert not torch.equal(first, stream.batch(BUFFER, 0, 2).x)
    second = stream.batch(ROWS, 1, 0).x[:BUFFER]
    assert torch.equal(ordered(first), ordered(second)) and not torch.equal(first, second)


def test_steps_in_order_run_the_model_once(spec, model):
    counted = Counted(model)
    stream = ActivationStream(spec, model=counted, buffer_rows=BUFFER)  # type: ignore[arg-type]
    before = counted.calls
    for step in range(ROWS // 50):
        stream.batch(50, step)
    once = counted.calls - before
    for step in range(ROWS // 50):
        stream.batch(50, step, EVALUATION)
        stream.batch(50, ROWS // 50 - 1)
    held_out = counted.calls - before - once
    assert 1 <= held_out <= 2
    whole = ActivationStream(spec, model=counted, buffer_rows=ROWS)  # type: ignore[arg-type]
    before = counted.calls
    whole.batch(ROWS, 0)
    assert counted.calls - before == once


def test_a_text_that_ends_says_how_many_rows_it_has(spec, model):
    endless = ActivationStream(ActivationSpec(**{**spec.as_dict(), "rows": 10**6}), model=model, buffer_rows=20_000)
    with pytest.raises(SpecError, match=r"rows=1,000,000: .* has only .* rows of training text .*; set rows to"):
        endless.batch(10, 0)
