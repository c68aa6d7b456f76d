"""A tiny random Llama reads atlas: the baselines move what they may, and are measured between floor and ceiling."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from saecore.saes.constraints import cov, iso
from saecore.studies import frozen

pytest.importorskip("transformers")

from saecore import paths, sweep
from saecore.activations import open_source
from saecore.metrics.geometry import cosine_to_start
from saecore.report import ledger
from saecore.studies.examine import examiner
from saecore.studies.live import train_variants
from tests.studies.far import far

PLAN = ("free", "soft_frozen_decoder", "frozen_decoder", "frozen_encoder", "both_frozen", "untrained")


@pytest.fixture(scope="module")
def source(tiny_llama, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield open_source(frozen.activation_spec(str(tiny_llama), 0, "atlas", 4000))


@pytest.fixture(scope="module")
def variants(source):
    base = {"source.model": source.spec.model, "source.layer": 0, "source.dataset": "atlas", "source.d_model": 16}
    base |= {"source.rows": 4000, "sae.n_latents": 64, "sae.l0": 4, "architecture": "batch_topk", "training.steps": 40}
    base |= {"training.batch_size": 256, "training.learning_rate": 0.03}
    return train_variants([sweep.make({**base, "constraint": c}) for c in PLAN], source)[0]


def _values(frame, metric):
    rows = frame.loc[frame["metric"] == metric]
    return dict(zip(rows["constraint"], rows["value"], strict=True))


def test_the_spec_takes_d_model_from_the_config(source):
    assert (source.spec.d_model, source.spec.rows, source.spec.context) == (16, 4000, 128)


def test_rows_move_where_they_may(variants, source):
    moved = frozen.rows_moved(variants, source, 400)
    assert set(moved["constraint"]) == set(PLAN) - {"untrained"}
    least: dict[tuple[str, str], float] = {}
    for constraint, side, _, cosine in moved.drop(columns="init").itertuples(index=False):
        least[constraint, side] = min(cosine, least.get((constraint, side), 1.0))
    still = [("frozen_decoder", "decoder"), ("frozen_encoder", "encoder"), *(("both_frozen", s) for s in frozen.SIDES)]
    assert all(least[place] == pytest.approx(1, abs=1e-5) for place in still)
    assert least["soft_frozen_decoder", "decoder"] == pytest.approx(0.8, abs=1e-4)
    assert max(least["free", side] for side in frozen.SIDES) < 0.8 and least["soft_frozen_decoder", "encoder"] < 0.8
    assert least["frozen_encoder", "decoder"] < 0.8 and least["frozen_decoder", "encoder"] < 0.9


def test_what_is_told_of_a_row_is_its_latents(variants, source):
    moved = frozen.rows_moved(variants[:1], source, 400)
    wanted = cosine_to_start(variants[0].sae.W_dec.detach(), variants[0].start.W_dec.detach())
    decoder = moved.loc[moved["side"] == "decoder"]
    assert decoder["cosine"].tolist() == pytest.approx(wanted.tolist())
    fired = variants[0].sae.encode(source.batch(400, 0, 1).x).gt(0).any(0)
    assert decoder["live"].tolist() == fired.tolist()


def test_variants_are_measured_between_floor_and_ceiling(variants, source):
    found = frozen.compare_variants(variants, examiner(source, 500, documents=0), 400)
    assert tuple(found.columns) == ledger.COLUMNS
    ev, loss = (_values(found, metric) for metric in ("explained_variance", "kl"))
    assert set(ev) == set(PLAN) and ev["free"] > ev["frozen_decoder"] > ev["untrained"]
    assert loss["model"] == pytest.approx(0, abs=1e-6) and loss["mean_ablation"] > 0
    assert set(loss) == {*PLAN, "model", "mean_ablation", "zero_ablation"}


def test_massive_rows_stay_as_they_are_in_what_the_model_says(variants, source):
    text = examiner(source, 500, documents=0).text
    assert text is not None
    saes = {"free": variants[0].sae}
    told = frozen.continuations(text, ["Lima is a city in"], saes).loc["Lima is a city in"]
    assert told["the model itself"] != told["mean ablation"]
    every_row_massive = dataclasses.replace(text, norm_limit=0.0)
    told = frozen.continuations(every_row_massive, ["Lima is a city in"], saes)
    assert told.nunique(axis=1).tolist() == [1]


def test_cov_follows_the_data_and_iso_does_not():
    covariance = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]))
    assert frozen.variance_shares(covariance) == pytest.approx(np.cumsum([8, 4, 2, 1, 1]) / 16)
    generator = torch.Generator().manual_seed(0)
    even = frozen.principal_shares(iso(20_000, 5, generator), covariance)
    told = frozen.principal_shares(cov(20_000, covariance, generator), covariance)
    assert even == pytest.approx(np.arange(1, 6) / 5, abs=0.01)
    assert told[-1] == pytest.approx(1) and told[0] > 0.35 and all(told[:-1] > even[:-1] + 0.05)


def test_shares_are_those_of_tensors_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    covariance, directions = torch.diag(torch.arange(1.0, 6)), iso(9, 5, generator)
    told, shares = frozen.principal_shares(far(directions), far(covariance)), frozen.variance_shares(far(covariance))
    assert np.array_equal(told, frozen.principal_shares(directions, covariance))
    assert np.array_equal(shares, frozen.variance_shares(covariance))


@pytest.mark.parametrize(("values", "dimensions"), [((1, 1, 1, 1), 4), ((1, 0, 0, 0), 1), ((3, 1, 0, 0), 1.6)])
def test_effective_dimensions_count_equal_components(values, dimensions):
    assert math.isclose(frozen.effective_dimensions(torch.diag(torch.tensor(values).float())), dimensions)


def test_the_grid_is_that_of_the_recorded_sweep():
    _, groups = sweep.load(sweep.find("reconstruction"))
    base = {"training.steps": 2500, "sae.l0": 9, "sae.n_latents": 4096, "source.d_model": 128}
    base |= {"source.model": "atlas", "source.layer": 1, "source.dataset": "atlas"}
    found = {sweep.make(f).key() for f in frozen.grid(base, ("batch_topk", "topk", "jump_relu", "relu"), (0, 1, 2))}
    recorded = [run for group in groups for run in group if run.source.name == "atlas.1" and run.sae.l0 == 9]
    assert found == {run.key() for run in recorded} and len(found) == len(recorded)
