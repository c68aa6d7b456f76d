"""A tiny random Llama reads atlas: what is measured on its SAEs, and what a sweep and a live run record of them."""

import copy
import dataclasses
import io
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from saecore import cli, paths, sweep
from saecore.activations import models, open_source
from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics import concepts
from saecore.metrics.evaluate import evaluate
from saecore.report import ledger
from saecore.saes import load
from saecore.sources import atlas
from saecore.spec import ActivationSpec
from saecore.studies.examine import Examiner, concept_recovery, examiner, labelled, offsets
from saecore.studies.live import train_live
from saecore.training import start

ROWS = 1500


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Path:
    return tiny_llama


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "results"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def at_hand(model: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield examiner(open_source(spec(model)), tokens=2000, documents=100)


def spec(model: Path) -> ActivationSpec:
    return ActivationSpec(str(model), 0, "atlas", 16, rows=ROWS, context=256)


def fields(model: Path, **others) -> dict:
    found = {"source.model": str(model), "source.layer": 0, "source.dataset": "atlas", "source.d_model": 16}
    found |= {"source.rows": ROWS, "source.context": 256, "sae.l0": 3, "training.steps": 12, "training.batch_size": 64}
    return found | {"architecture": "topk", "seed": 0} | others


def measured(at_hand: Examiner, **others) -> dict[str, float]:
    run = sweep.make(fields(Path(at_hand.source.spec.model), **others))
    trainer, fresh = start(run, at_hand.source), start(run, at_hand.source).sae
    return at_hand.measure(trainer.sae, fresh, run)


def test_every_kind_of_metric_is_there(at_hand):
    found = measured(at_hand)
    assert {"explained_variance", "explained_variance_per_row", "l0", "dead_share", "cosine_to_start", "cross_entropy",
            "kl", "concept_f1", "concept_f1_kind", "swapped_none", "gain_encoder"} <= set(found)  # fmt: skip
    assert found["cosine_to_start"] == pytest.approx(1)
    assert "swapped_none" not in measured(at_hand, constraint="frozen_decoder")


def test_a_pca_with_every_component_loses_nothing(at_hand):
    found = measured(at_hand, constraint="pca", **{"sae.l0": 16})
    assert found["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["cross_entropy"] == pytest.approx(at_hand.bounds.model.cross_entropy(), abs=1e-4)


def test_floors_and_ceilings_that_need_no_sae(at_hand):
    found = at_hand.references()
    assert set(found) == {"model", "mean_ablation", "zero_ablation", "always", "probe"}
    assert found["model"]["kl"] == 0 < found["mean_ablation"]["kl"]
    assert set(found["probe"]) == set(found["always"]) >= {"concept_f1", "concept_f1_kind", "concept_f1_city_country"}
    assert all(0 <= value <= 1 for name in ("probe", "always") for value in found[name].values())


def test_labels_stand_at_the_tokens_that_their_text_made(model, at_hand):
    """Tokens labelled with an entity, put together, are the names of the cities."""
    reader = models.load(str(model))
    for index in range(12):
        document = atlas.document("test", index)
        tokens = reader.tokenize([document.text], 256)
        places = offsets(reader, document.text, tokens)
        assert len(places) == tokens.ids.shape[1] and places[0] == (0, 0)
        entity = atlas.token_labels(document, places)["entity"]
        for name in {e for e in entity if e}:
            pieces = [document.text[a:b] for (a, b), e in zip(places, entity, strict=True) if e == name]
            assert "".join(pieces).replace(" ", "").startswith(name.replace(" ", ""))
    rows = at_hand.labelled
    assert len(rows.x) == len(rows.concepts.half) == rows.concepts.holds.shape[0]


def test_massive_rows_have_no_part_in_concepts(model, at_hand):
    reader, odd = models.load(str(model)), copy.copy(at_hand.source)
    norms = (at_hand.labelled.x / odd.scale).norm(dim=1)
    limit = float(norms.sort().values[len(norms) // 2 :][:2].mean())  # between two rows
    odd.input_scale = dataclasses.replace(odd.input_scale, norm_limit=limit)
    found, usual = labelled(reader, odd, 100), norms <= limit
    assert found is not None
    assert torch.equal(found.x, at_hand.labelled.x[usual]) and 0 < len(found.x) < len(usual)
    assert np.array_equal(found.concepts.half, at_hand.labelled.concepts.half[usual.numpy()])


@pytest.mark.parametrize(
    ("context", "documents", "said"), [(8, 100, "no document fits context=8"), (256, 1, "in each half of the")]
)
def test_too_little_labelled_text_is_a_warning(model, at_hand, caplog, context, documents, said):
    """A context that no document fits, and too few documents: everything else is measured."""
    short = copy.copy(at_hand.source)
    short.spec = dataclasses.replace(short.spec, context=context)
    found = examiner(short, tokens=500, documents=documents)
    assert found.labelled is None and found.bounds is not None
    assert "no concept is looked for" in caplog.text and said in caplog.text


def test_labels_of_other_tokens_are_refused(model):
    reader = models.load(str(model))
    with pytest.raises(ValueError, match="are not in its row of"):
        offsets(reader, "Paris is in France.", reader.tokenize(["Rome is a city in Italy, south of the Alps."], 256))


def test_concepts_are_read_from_the_codes_that_the_sae_gives(model, at_hand):
    text, run = at_hand.labelled, sweep.make(fields(model, architecture="jump_relu"))
    sae = start(run, at_hand.source).sae
    codes = SparseCodes.from_dense(sae.encode(text.x).detach())
    wanted = concepts.best_latents(text.concepts, concepts.firing([codes], sae.spec.n_latents))
    assert concept_recovery(sae, text) == pytest.approx(wanted.values())


SWEEP = """
experiment: tiny
defaults: {{source.model: {model}, source.layer: 0, source.dataset: atlas, source.d_model: 16, source.rows: 1500,
           source.context: 256, sae.l0: 3, training.steps: 40, training.batch_size: 64}}
blocks:
  - {{seed: 0, architecture: batch_topk, constraint: [free, frozen_decoder], constraint.init: [iso, cov]}}
  - {{seed: 0, architecture: topk, constraint: [pca, neurons, untrained]}}
"""


def test_a_sweep_records_curves_ends_floors_and_ceilings_once(places, model, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "examiner", partial(examiner, tokens=2000, documents=100))
    path = places / "tiny.yml"
    path.write_text(SWEEP.format(model=model))
    experiment, groups = sweep.load(path)
    sweep.run_all(experiment, groups)
    frame = ledger.read("tiny")
    runs = [run for group in groups for run in group]
    assert {run.key() for run in runs} == ledger.finished("tiny")
    curve = ledger.select(frame, constraint="free", init="iso", metric="cosine_to_start_live")
    assert curve["step"].tolist() == [1, 2, 4, 8, 14, 20, 30, 40]
    assert curve["value"].is_monotonic_decreasing and curve["value"].iloc[-1] < 1
    references = ledger.select(frame, key=runs[0].source.key())
    assert set(references["constraint"]) == {"model", "mean_ablation", "zero_ablation", "always", "probe"}
    found = ledger.last(ledger.select(frame, metric="explained_variance"))
    ends = dict(zip(found["constraint"], found["value"], strict=True))
    assert ends["pca"] > ends["neurons"]
    sae, run = load(sweep.sae_path(runs[0]))
    again = evaluate(sae, open_source(run.source))
    same = ledger.select(frame, key=run.key(), metric="explained_variance", step=40)["value"].item()
    assert again["explained_variance"] == pytest.approx(same, abs=1e-4)
    before = ledger.path("tiny").read_bytes()
    sweep.run_all(experiment, groups)
    assert ledger.path("tiny").read_bytes() == before
    assert cli.main(["run", str(path), "--plan"]) == 0
    assert capsys.readouterr().out.count(" recorded ") == len(runs) == 7


def test_a_streamed_sweep_records_the_same_metrics_and_keeps_no_activations(places, model, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "examiner", partial(examiner, tokens=2000, documents=100))
    path = places / "tiny.yml"
    few = SWEEP.replace("[free, frozen_decoder], constraint.init: [iso, cov]", "free")
    path.write_text(few.format(model=model))
    metrics = []
    for arguments in ([], ["--stream"]):
        shutil.rmtree(places / "results", ignore_errors=True)
        assert cli.main(["run", str(path), *arguments]) == 0
        assert capsys.readouterr().err.count("rows/s") == 0  # no bar where stderr is no terminal
        metrics.append(ledger.read("tiny").pivot(index=["key", "step", "constraint"], columns="metric", values="value"))
        assert (places / "cache" / "activations").exists() == (not arguments)
        shutil.rmtree(places / "cache")
    stored, streamed = metrics
    assert streamed.notna().equals(stored.notna())
    for constraint in ("untrained", "pca", "mean_ablation"):  # what trained saw its rows in another order
        wanted, found = (frame.xs(constraint, level="constraint")["kl"].dropna() for frame in metrics)
        assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_harvest_is_shown_on_a_terminal(places, model, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sweep, "BAR_DELAY", 0)
    sweep._opened(spec(model), "cpu", stream=False)
    assert "tiny.0.atlas: 100%" in screen.getvalue() and "1.65k/1.65k" in screen.getvalue()


MIXED = """
experiment: tiny
defaults: {{training.steps: 5, training.batch_size: 64, sae.l0: 2, seed: 0, architecture: topk}}
blocks:
  - {{source.model: {missing}, source.layer: 0, source.dataset: atlas, source.d_model: 16,
      constraint: [free, untrained], sae.n_latents: [32, 64]}}
  - {{source.model: {model}, source.layer: 0, source.dataset: {missing}.txt, source.d_model: 16}}
  - {{source.n_features: 24, source.d_model: 8, source.expected_l0: 2}}
"""


def test_a_source_that_cannot_be_opened_keeps_no_other_from_its_runs(places, model, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(
        sweep, "open_source", lambda spec, *a, **k: (opened.append(spec), open_source(spec, *a, **k))[1]
    )
    path = places / "tiny.yml"
    path.write_text(MIXED.format(model=model, missing=places / "missing"))
    assert cli.main(["run", str(path)]) == cli.FAILED
    experiment, groups = sweep.load(path)
    *lost, synthetic = [run for group in groups for run in group]
    assert ledger.finished(experiment) == {synthetic.key()}
    assert len(opened) == 3, "each source is tried once"
    last = capsys.readouterr().err.split("saecore: ")[-1]
    assert last.startswith("tiny: 5 of 6 runs are not recorded\n")
    first, second = last.splitlines()[1:]
    assert all(run.key() in first for run in lost[:-1]) and "missing' is no folder" in first
    assert lost[-1].key() in second and "missing.txt' is no file" in second


def test_a_live_run_takes_activations(places, model):
    runs = [sweep.make(fields(model, constraint=c)) for c in ("free", "frozen_decoder")]
    frame = train_live(runs, marks=(4,), rows=512)
    assert set(frame["source"]) == {"tiny.0.atlas"}
    assert sorted(set(ledger.select(frame, metric="cosine_to_start_live")["step"])) == [4, 12]
    found = ledger.last(ledger.select(frame, metric="cosine_to_start"))
    ends = dict(zip(found["constraint"], found["value"], strict=True))
    assert ends["frozen_decoder"] == pytest.approx(1) and ends["free"] < 1
