"""The embedded world's model reads labelled texts, and SAEs on it are probed."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from saecore import checks, paths, sweep
from saecore.activations import models, open_source
from saecore.metrics.probing import KS
from saecore.report import inference, ledger
from saecore.saes import checkpoint
from saecore.sources.probing import SAEBENCH, Examples, LabelledSet, LabelledSetError, Task, atlas_sets, csv_set
from saecore.spec import ActivationSpec, SourceSpec, SpecError
from saecore.studies import probed, probing
from saecore.studies.probing import OnTexts, Prober, Texts, prepare
from saecore.training import start, train_many

REAL = paths.root().parent / "shared" / "real"
FIELDS = {
    "source.model": "atlas", "source.layer": 1, "source.dataset": "atlas", "source.d_model": 128,
    "source.rows": 3000, "source.context": 32, "architecture": "topk", "sae.n_latents": 512, "sae.l0": 5, "seed": 0,
}  # fmt: skip


def world(**others) -> ActivationSpec:
    return ActivationSpec(**({"model": "atlas", "layer": 1, "dataset": "atlas", "d_model": 128, "rows": 3000} | others))


@pytest.fixture(scope="module")
def source():
    return open_source(world(context=32), stream=True)


@pytest.fixture(scope="module")
def sae(source):
    return start(sweep.make(FIELDS | {"constraint": "untrained"}), source).sae


@pytest.fixture(scope="module")
def prober(source) -> Prober:
    return prepare(source, atlas_sets(train=16, test=16))


def small(*texts: str) -> LabelledSet:
    half = Examples(texts, np.arange(len(texts)) % 2)
    return LabelledSet("small", "small", (Task("odd", half, half),))


def by_hand(source, sae, text: str, context: int) -> torch.Tensor:
    model = models.load("atlas")
    tokens = model.tokenize([text], context)
    x = model.residual(tokens, 1)[0][tokens.keep[0]] * source.scale
    return sae.encode(x.half().float()).mean(0)  # rows are kept in half precision


@torch.no_grad()
def test_a_text_is_its_first_tokens_encoded_then_averaged(source, sae):
    long = "Anna Miller is a nurse from Oslo. She cares for patients at the clinic. " * 4
    texts = ("A short text.", long, "SELECT name FROM users;", "The home team won the final on Monday.")
    for context in (32, 8):
        codes = prepare(source, [small(*texts)], ks=(1,), context=context).codes(sae).toarray()
        wanted = torch.stack([by_hand(source, sae, text, context) for text in texts]).numpy()
        np.testing.assert_allclose(codes, wanted, atol=1e-5)


@torch.no_grad()
def test_massive_rows_play_no_part(source, sae):
    """They were left out of training."""
    texts, odd = ("The home team won the final on Monday.", "SELECT name FROM users;"), copy.copy(source)
    model, wanted = models.load("atlas"), []
    rows = [model.residual(tokens, 1)[tokens.keep] for tokens in (model.tokenize([text], 32) for text in texts)]
    norms = torch.cat(rows).norm(dim=1).sort().values
    limit = float(norms[len(norms) // 2 :][:2].mean())  # between two rows
    odd.input_scale = replace(source.input_scale, norm_limit=limit)
    prober = prepare(odd, [small(*texts)], ks=(1,))
    wanted = [sae.encode((x[x.norm(dim=1) <= limit] * source.scale).half().float()).mean(0) for x in rows]
    np.testing.assert_allclose(prober.codes(sae).toarray(), torch.stack(wanted).numpy(), atol=1e-5)
    assert sum(len(part.x) for part in prober.rows) < sum(map(len, rows))


def test_rows_are_encoded_in_parts_of_about_a_batch_on_any_device(source, monkeypatch):
    monkeypatch.setattr(probing, "BATCH", 256)
    monkeypatch.setattr(probing, "call_positions", lambda device: 32_768)  # as on a GPU
    rows = prepare(source, atlas_sets(train=16, test=16)).rows
    assert len(rows) > 2 and max(len(part.x) for part in rows) < 2 * 256


def test_every_task_is_scored_for_every_k_and_averaged(prober, sae):
    table = prober.tasks(sae)
    assert len(table) == 37 * len(KS) and table.accuracy.between(0, 1).all()
    values = prober.measure(sae)
    families = {"profession", "product_sentiment", "language", "programming_language", "news_topic"}
    assert set(values) == {f"probing_top{k}{end}" for k in KS for end in ("", *(f"_{f}" for f in families))}
    first = table[table.k == 1].groupby("set").accuracy.mean()
    assert values["probing_top1"] == pytest.approx(first.mean())
    assert values["probing_top1_product_sentiment"] == pytest.approx((first["product"] + first["sentiment"]) / 2)
    assert prober.tasks(sae).equals(table)


def test_a_text_of_several_tasks_is_read_once(prober):
    texts = {
        t for named in atlas_sets(16, 16) for task in named.tasks for p in (task.train, task.test) for t in p.texts
    }
    assert sum(len(rows.ends) - 1 for rows in prober.rows) == len(texts) == len(prober.residual)
    assert all(len(rows.x) == rows.ends[-1] for rows in prober.rows) and len(prober.rows) > 1


def test_floors_and_ceiling(prober):
    found = prober.references()
    assert set(found["majority"].values()) == {0.5}
    assert len(set(round(found["dense_probe"][f"probing_top{k}"], 9) for k in KS)) == 1
    for name in ("neurons", "pca"):
        assert 0.55 < found[name]["probing_top1"] < found["dense_probe"]["probing_top1"]
        assert found[name]["probing_top1"] < found[name]["probing_top20"]
    assert found["dense_probe"]["probing_top1"] > 0.9


def test_all_components_hold_what_all_neurons_hold(source):
    """PCA only turns the residual stream: distances between texts stay."""
    prober = prepare(source, [small("one text", "another text", "a third one", "x = 1")], ks=(1,))
    x, turned = prober.residual, prober._components()
    np.testing.assert_allclose(
        turned @ turned.T, (x - source.mean().numpy()) @ (x - source.mean().numpy()).T, atol=0.02
    )


def test_the_random_model_is_read_for_a_random_source(prober):
    random = prepare(open_source(world(context=32, weights="random"), stream=True), atlas_sets(train=16, test=16))
    assert random.residual.shape == prober.residual.shape
    assert np.abs(random.residual - prober.residual).mean() > 0.1
    floor, real = (p.references()["dense_probe"]["probing_top1"] for p in (random, prober))
    assert 0.6 < floor < real


def test_metrics_take_the_name_given(source, sae):
    prober = prepare(source, [small("one text", "another text")], ks=(2,), name="short")
    assert set(prober.measure(sae)) == {"short_top2", "short_top2_small"} == set(prober.references()["neurons"])


def test_a_text_without_a_token_that_counts_is_reported_and_holds_nothing(source, sae, caplog):
    codes = prepare(source, [small("one text", "", "another text", "x")], ks=(1,)).codes(sae)
    assert "1 of 4 texts have no token that counts" in caplog.text
    assert (codes.sum(1) > 0).tolist() == [True, False, True, True]


def test_what_cannot_be_probed_is_refused(source):
    with pytest.raises(SpecError, match="source 'variable' is no model's"):
        prepare(open_source(SourceSpec()))
    with pytest.raises(SpecError, match="sets is empty"):
        prepare(source, [])
    with pytest.raises(SpecError, match=r"ks=\(0, 1\) must be one number of latents or more"):
        prepare(source, [small("a", "b")], ks=(0, 1))
    with pytest.raises(models.ModelError, match="context=1000 must lie between"):
        prepare(source, [small("a", "b")], context=1000)
    with pytest.raises(ValueError, match="k=200 must lie between 1 and the 128 latents"):
        prepare(source, [small("a", "b")], ks=(200,)).references()


def test_a_source_on_another_text_needs_sets(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(f"Document {i} tells of the river and the old town." for i in range(200)))
    with pytest.raises(SpecError, match="words.txt' has no labelled sets; give sets="):
        prepare(open_source(world(dataset=str(path), rows=500), stream=True))


def test_named_texts_are_a_check_of_their_own(source, sae):
    check = OnTexts.prepare(source, small("one text", "another text"))
    assert check.measure(sae).keys() == {f"probing_top{k}_small" for k in KS} == check.references()["majority"].keys()
    whole = prepare(source, [small("one text", "another text")], context=32).measure(sae)
    assert check.measure(sae).items() <= whole.items()
    with pytest.raises(SpecError, match="source 'variable' is no model's"):
        OnTexts.prepare(open_source(SourceSpec()), small("a", "b"))


def test_texts_are_named_by_their_file_or_by_saebench(monkeypatch):
    assert Texts("/some/where/Film reviews.csv.zst").mark == "probing_top1_film_reviews"
    with pytest.raises(SpecError, match="'review' and 'stars' are given for fancyzhx/ag_news, a set of SAEBench that"):
        Texts("fancyzhx/ag_news", "review", "stars")
    names = [Texts(name).name for name in SAEBENCH]
    assert len(set(names)) == 8 and Texts("fancyzhx/ag_news").name == "fancyzhx_ag_news"
    monkeypatch.setattr(probing, "hub_set", lambda name: replace(small("a", "b"), name=name, family="news_topic"))
    held = Texts("fancyzhx/ag_news").open()
    assert (held.name, held.family) == ("fancyzhx/ag_news", "fancyzhx_ag_news"), "a family may have several sets"
    with pytest.raises(LabelledSetError, match="'ag_news' are no file and none of SAEBench's sets; give a CSV, or one"):
        Texts("ag_news").open()


def test_a_table_that_changes_has_another_name(tmp_path):
    table = tmp_path / "reviews.csv"
    table.write_text("review,stars\ngood,5\n")
    first, other = Texts(str(table), "review", "stars").name, Texts(str(table), "review", "kind").name
    (tmp_path / "again").mkdir()
    copy = tmp_path / "again" / "reviews.csv"
    copy.write_text(table.read_text())
    assert Texts(str(copy), "review", "stars").name == first != other, "where it lies says nothing"
    table.write_text("review,stars\nbad,1\n")
    names = {first, other, Texts(str(table), "review", "stars").name}
    assert len(names) == 3 and all(re.fullmatch(r"reviews\.[0-9a-f]{8}", name) for name in names)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real model and data are not here")
def test_a_real_model_on_a_real_table():
    spec = ActivationSpec(str(REAL / "stories260K"), 2, str(REAL / "text" / "tinystories_1000.json"), 64, rows=3000)
    held = csv_set(REAL / "probing" / "105_click_bait.csv", train=400, test=200)
    found = prepare(open_source(spec, stream=True), [held], ks=(1, 5)).references()
    assert found["dense_probe"]["probing_top1"] > 0.85 > found["neurons"]["probing_top1"] > 0.55


@pytest.mark.skipif(not REAL.is_dir(), reason="the real model and data are not here")
def test_a_real_models_sae_on_six_real_tables(tmp_path, monkeypatch):
    """What a user does: train on text of their own, measure on their tables, read trained minus untrained."""
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "results"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    fields = {"source.model": str(REAL / "stories260K"), "source.layer": 2, "source.d_model": 64, "source.rows": 60_000}
    fields |= {"source.dataset": str(REAL / "text" / "tinystories_1000.json"), "architecture": "batch_topk", "seed": 0}
    fields |= {"sae.l0": 5, "sae.n_latents": 512, "training.steps": 300, "training.batch_size": 512}
    runs = [sweep.make({**fields, "constraint": constraint}) for constraint in ("free", "untrained")]
    held = open_source(runs[0].source)
    for run in runs:
        trainer = start(run, held)
        train_many([trainer], held, 0 if run.constraint.name == "untrained" else run.training.steps)
        checkpoint.save(sweep.sae_path(run), trainer.sae, run)
    texts = [Texts(str(path)) for path in sorted((REAL / "probing").glob("*.csv"))]
    assert checks.run_all("sparse_probing", [runs], texts=texts) == {} and len(texts) == 6
    found = ledger.read(probing.ON_TEXTS)
    one = found.loc[found["metric"].isin([named.mark for named in texts])]
    means = one.groupby("constraint").value.mean()
    assert len(one) == 6 * (2 + 4) and means["dense_probe"] > means["free"] > 0.55 > means["majority"] == 0.5
    of_none = found["architecture"] == ""
    table = probed.compared(found.loc[~of_none], found.loc[of_none], np.random.default_rng(0))
    assert set(table["verdict"]) == {inference.UNDECIDED} and set(table["seeds"]) == {1}


def test_the_best_latent_of_a_task_is_the_one_that_is_probed(prober, sae):
    asked = next(t for t in prober.asked if t.task == "nurse")
    best, codes = prober.best(sae, "nurse"), prober.codes(sae)
    assert best["holds"].tolist() == [bool(label) for label in asked.binary.test_labels] and len(best) == 16
    latent = best["latent"].unique().item()
    train = codes[asked.binary.train].toarray()
    holds = asked.binary.train_labels == 1
    gaps = np.abs(train[holds].mean(0) - train[~holds].mean(0))
    assert gaps[latent] == pytest.approx(gaps.max()) and gaps.max() > 0
    np.testing.assert_array_equal(best["activation"], codes[asked.binary.test].toarray()[:, latent])
    with pytest.raises(SpecError, match="task='baker' is unknown; choose one of accountant"):
        prober.best(sae, "baker")


def test_probing_never_looks_at_the_decoder(prober, source, sae):
    other = start(sweep.make(FIELDS | {"constraint": "untrained"}), source).sae
    other.W_dec = torch.nn.Parameter(-sae.W_dec.detach().flip(0))
    assert prober.tasks(other).equals(prober.tasks(sae))


def test_other_texts_are_read_once_and_on_the_sets_of_the_hub(source, monkeypatch):
    monkeypatch.setattr(probing, "hub_sets", lambda: (small("one text", "another text"),))
    there = replace(source.spec, dataset="openwebtext")
    given = []
    monkeypatch.setattr(probing, "prepare", lambda *args, **kwargs: given.append((args, kwargs)))

    class Elsewhere:
        spec = there

    probing.prepare_both(Elsewhere())  # type: ignore[arg-type]
    ((_, sets), options) = given[0]
    assert len(given) == 1 and sets[0].name == "small" and options == {"context": 32}
    probing.prepare_both(source)
    assert len(given) == 3 and {"context": 16, "name": "probing_short"} in [options for _, options in given]


def test_texts_that_repeat_a_training_text_can_be_left_out(source, sae):
    first, second = Examples(("one text", "another text", "a third"), np.array([1, 0, 1])), ("one text and more", "new")
    test = Examples((*second, "another text"), np.array([1, 0, 0]))
    held = LabelledSet("small", "small", (Task("odd", first, test),))
    whole = prepare(source, [held], ks=(1,))
    short = prepare(source, [held], ks=(1,), context=len(models.load("atlas").tokenize(["one text"], 32).ids[0]))
    assert whole.fresh().asked[0].binary.test_labels.tolist() == [1, 0], "what stands there again goes"
    assert short.fresh().asked[0].binary.test_labels.tolist() == [0], "and what begins alike where no more is read"
    assert whole.asked[0].binary.test_labels.tolist() == [1, 0, 0]
    assert set(whole.fresh().measure(sae)) == set(whole.measure(sae))
