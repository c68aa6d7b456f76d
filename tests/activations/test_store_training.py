"""SAEs trained on a store: they resume to the same bits, and a saved one scores what the trained one did."""

import pytest
import torch

from saecore import paths
from saecore.activations import ActivationStream, open_source
from saecore.metrics.evaluate import evaluate
from saecore.saes import checkpoint
from saecore.spec import ActivationSpec, ConstraintSpec, RunSpec, SAESpec, TrainingSpec
from saecore.training import Trainer, start, train_many

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def world(tiny, words, tmp_path_factory):
    """The spec of a small store, and the store."""
    spec = ActivationSpec(str(tiny("llama")), 1, str(words), d_model=32, rows=6000, context=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.CACHE, str(tmp_path_factory.mktemp("cache")))
        return spec, open_source(spec)


def run_of(spec: ActivationSpec, architecture: str, constraint: str) -> RunSpec:
    init = "cov" if constraint == "frozen_decoder" else "iso"
    sae = SAESpec(architecture, d_model=32, n_latents=256, l0=4)
    return RunSpec(sae, spec, ConstraintSpec(constraint, init=init), TrainingSpec(steps=120, batch_size=256))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}


@pytest.mark.parametrize("architecture", ["relu", "topk", "batch_topk", "jump_relu"])
@pytest.mark.parametrize("constraint", ["free", "frozen_decoder"])
def test_resuming_saving_and_loading(architecture, constraint, world, tmp_path):
    spec, store = world
    run = run_of(spec, architecture, constraint)
    whole, first, second = (start(run, store) for _ in range(3))
    before = evaluate(whole.sae, store, rows=600)["explained_variance"] if architecture == "topk" else 0.0
    train_many([whole], store, 120)
    train_many([first], store, 50)
    first.save(tmp_path / "state")
    assert second.resume(tmp_path / "state")
    train_many([second], store, 120)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(second).items())
    assert float(whole.sae.scale) == pytest.approx(store.scale)

    found = evaluate(whole.sae, store, rows=600)["explained_variance"]
    assert found > max(before, 0.2)
    checkpoint.save(tmp_path / "sae", whole.sae, run)
    loaded, loaded_run = checkpoint.load(tmp_path / "sae")
    assert loaded_run == run
    assert evaluate(loaded, store, rows=600)["explained_variance"] == pytest.approx(found, abs=1e-4)


def test_an_sae_trains_on_a_stream_as_on_a_store(world):
    spec, store = world
    stream = ActivationStream(spec)
    trainers = [start(run_of(spec, "topk", "free"), source) for source in (store, stream)]
    scores = []
    for trainer, source in zip(trainers, (store, stream), strict=True):
        train_many([trainer], source, 120)
        scores.append(evaluate(trainer.sae, store, rows=600)["explained_variance"])
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_it_starts_at_the_mean_of_the_data_and_its_scale(world):
    spec, store = world
    sae = start(run_of(spec, "topk", "free"), store).sae
    rows = store.batch(4096, 0).x
    assert torch.allclose(sae.b_dec.detach(), rows.mean(0), atol=0.2) and sae.b_dec.norm() > 0.5
    assert float(sae.scale) == pytest.approx(store.scale)
