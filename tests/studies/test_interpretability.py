"""The embedded model reads a little of atlas: what is measured on its SAEs, and what happens where nothing can be."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from saecore import paths, sweep
from saecore.activations import open_source
from saecore.judges import Ask, Endpoint, EndpointError, LanguageJudge
from saecore.report import ledger
from saecore.saes.base import SAE
from saecore.sources import atlas
from saecore.sources.synthetic import Superposition
from saecore.sources.text import TextError
from saecore.spec import ActivationSpec, SourceSpec, SpecError
from saecore.studies import interpretability
from saecore.studies.interpretability import BINS, EXPERIMENT, Reader, pieces, prepare, prepare_both
from saecore.training import start

SPEC = ActivationSpec("atlas", 1, "atlas", 128, rows=2000)
TOKENS = 24_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def source(cache):
    return open_source(SPEC)


@pytest.fixture(scope="module")
def reader(source) -> Reader:
    return prepare(source, tokens=TOKENS, latents=20)


@pytest.fixture(scope="module")
def sae(source) -> SAE:
    return untrained(source)


def untrained(source, **others) -> SAE:
    fields = {"source.model": "atlas", "source.layer": 1, "source.dataset": "atlas", "source.d_model": 128}
    fields |= {"source.rows": 2000, "architecture": "topk", "sae.n_latents": 256, "sae.l0": 4, "seed": 0} | others
    return start(sweep.make(fields), source).sae


class Talk:
    """Says the same to everything and counts the questions."""

    def __init__(self, answer: str = "1, 2") -> None:
        self.answer, self.asked = answer, 0

    def complete(self, asks: Sequence[Ask]) -> list[str]:
        self.asked += len(asks)
        return [self.answer] * len(asks)

    def known(self, ask: Ask) -> None:
        return None


def test_the_text_is_the_documents_and_labels_stand_on_their_tokens(reader):
    text = reader.text
    first = "".join(text.pieces[i] for i in text.ids[text.row == 0].tolist())
    assert first.strip() == atlas.document("test", 0).text
    assert len(reader.x) == len(text.ids) >= TOKENS and reader.x.shape[1] == 128
    place = next(i for i, label in enumerate(reader.labels["entity"]) if label)
    name = reader.labels["entity"][place]
    assert name.startswith(text.pieces[int(text.ids[place])].strip())
    assert {len(told) for told in reader.labels.values()} == {len(text.ids)}


def test_rows_are_those_that_the_sae_was_made_for(reader, source):
    from saecore.activations import models

    model = models.load("atlas")
    tokens = model.tokenize([atlas.document("test", 0).text], SPEC.context)
    wanted = model.residual(tokens, SPEC.layer)[tokens.keep] * source.scale
    assert torch.allclose(reader.x[: len(wanted)], wanted, atol=1e-4)


def test_metrics_are_what_the_table_says_and_can_be_recorded(reader, sae, tmp_path, monkeypatch):
    values, table = reader.measure(sae), reader.latents(sae)
    assert list(table.columns) == ["latent", "description", "accuracy", "accuracy_hard", "frequency", "same_token"]
    assert len(table) == values["autointerp_scored"] == 20 and table["latent"].is_unique
    for name, column in (("", "accuracy"), ("_hard", "accuracy_hard")):
        assert values[f"autointerp_accuracy{name}"] == pytest.approx(table[column].mean())
        assert values[f"autointerp_std{name}"] == pytest.approx(table[column].std(ddof=0))
        assert values[f"autointerp_share_90{name}"] == (table[column] >= 0.9 - 1e-9).mean()
    codes = reader.codes(sae)
    assert values["autointerp_live"] == ((codes > 0).sum(0) > 0).sum()
    fired = (codes[:, table["latent"].to_numpy()] > 0).mean(0)
    assert table["frequency"].to_numpy() == pytest.approx(np.asarray(fired).ravel())
    bins = [values[f"autointerp_bin_{i}"] for i in range(BINS)]
    assert sum(bins) == pytest.approx(1) and sum(bins[-2:]) == values["autointerp_share_90"]
    assert values["autointerp_unanswered"] == 0 and values == reader.measure(sae)
    monkeypatch.setenv(paths.RESULTS, str(tmp_path))
    run = sweep.make({"architecture": "topk", "seed": 0})
    ledger.record(EXPERIMENT, ledger.rows(run, 0, values, 0.0, "cpu"))


def test_codes_are_those_that_the_sae_gives(reader, sae):
    dense = sae.encode(reader.x[:300]).detach().numpy()
    assert reader.codes(sae)[:300].toarray() == pytest.approx(dense, abs=1e-5)


def test_floor_and_ceiling(reader):
    found = reader.references()
    assert set(found) == {"random_tokens", "labels"}
    assert found["labels"]["autointerp_accuracy"] > 0.9 and found["labels"]["autointerp_accuracy_hard"] > 0.9
    assert found["random_tokens"]["autointerp_accuracy"] == pytest.approx(0.5, abs=0.05)


def test_no_latent_fires_on_a_massive_row(source, sae):
    """It was left out of training, but stands in the text."""
    odd, plain = copy.copy(source), prepare(source, tokens=3000)
    norms = (plain.x / source.scale).norm(dim=1)
    limit = float(norms.sort().values[len(norms) // 2 :][:2].mean())  # between two rows
    odd.input_scale = dataclasses.replace(source.input_scale, norm_limit=limit)
    reader, massive = prepare(odd, tokens=3000), (norms > limit).numpy()
    assert np.array_equal(reader.text.ids, plain.text.ids)
    codes, wanted = (held.codes(sae).toarray() for held in (reader, plain))
    assert not codes[massive].any() and np.array_equal(codes[~massive], wanted[~massive])
    assert plain.counts.all() and wanted[massive].any(1).all()


def test_no_live_latents_is_a_stated_result(reader, source, caplog):
    sae = untrained(source, architecture="relu")
    torch.nn.init.constant_(sae.b_enc, -1e6)
    assert reader.measure(sae) == {
        "autointerp_live": 0.0, "autointerp_left_out": 0.0, "autointerp_scored": 0.0, "autointerp_unanswered": 0.0
    }  # fmt: skip
    assert "none of 0 live latents can be tested" in caplog.text and reader.latents(sae).empty


def test_a_judge_without_answers_is_a_stated_result(reader, sae):
    mute = dataclasses.replace(reader, judge=LanguageJudge(Talk("This neuron fires on sounds")))
    values = mute.measure(sae)
    assert values["autointerp_unanswered"] == 20 and values["autointerp_scored"] == 0
    assert not [name for name in values if "accuracy" in name] and np.isfinite(list(values.values())).all()


def test_a_plan_asks_nothing(reader, sae):
    talk = Talk()
    plan = dataclasses.replace(reader, judge=LanguageJudge(talk)).plan(sae, price_in=0.15, price_out=0.6)
    assert plan.calls == 60 and talk.asked == 0 and plan.cost > 0


def test_an_endpoint_that_is_down_is_a_clear_error(reader, sae):
    down = Endpoint("http://127.0.0.1:9/v1", "judge-1", first_wait=0.01, attempts=2)
    with pytest.raises(EndpointError, match="http://127.0.0.1:9/v1: no answer after 2 attempts"):
        dataclasses.replace(reader, judge=LanguageJudge(down)).measure(sae)


def test_any_text_is_read_by_a_judge_that_needs_no_labels(tmp_path, sae):
    path = tmp_path / "some.txt"
    path.write_text("\n\n".join(atlas.document("train", i).text for i in range(600)))
    local = open_source(dataclasses.replace(SPEC, dataset=str(path)))
    with pytest.raises(SpecError, match="the oracle needs labelled text and dataset=.*has no labels"):
        prepare(local)
    talk = Talk()
    reader = prepare(local, LanguageJudge(talk), latents=2)
    assert reader.labels is None and set(reader.references()) == {"random_tokens"}
    assert len(reader.latents(sae)) == 2 and talk.asked > 0


def test_too_little_text_and_no_text_are_refused(tmp_path, source):
    judge, path = LanguageJudge(Talk()), tmp_path / "short.txt"
    local = dataclasses.replace(SPEC, dataset=str(path))
    for text, error, wanted in (
        ("\n\n".join(["A few words."] * 30), SpecError, "has 21 tokens of atlas"),
        ("\n\n".join(["word " * 60] * 30), ValueError, "need 10 rows"),
        ("\n\n", TextError, "has no test document"),
    ):
        path.write_text(text)
        with pytest.raises(error, match=wanted):
            prepare(stand_in(source, local), judge)


def test_a_context_that_no_document_fits_ends_in_an_error(source):
    short = stand_in(source, dataclasses.replace(SPEC, context=30))
    with pytest.raises(SpecError, match="has 21 tokens of atlas; give longer texts or context"):
        prepare(short, tokens=2000)


def stand_in(source, spec: ActivationSpec) -> Any:
    """A source of another text, without a store of its rows."""
    other = copy.copy(source)
    other.spec = spec
    return other


def test_sources_that_are_no_text_are_refused():
    with pytest.raises(SpecError, match="variable is no model that reads text"):
        prepare(Superposition(SourceSpec(), torch.device("cpu")))
    with pytest.raises(SpecError, match="spread='even' is unknown"):
        prepare(stand_in(Superposition(SourceSpec(), torch.device("cpu")), SPEC), spread="even")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["in", "##ter", "on"], [" in", "ter", " on"]),
        (["▁in", "ter", "▁on"], [" in", "ter", " on"]),
        (["Ġin", "ter", "Ġon"], [" in", "ter", " on"]),
    ],
)
def test_pieces_hold_the_blank_before_a_word(names, wanted):
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [names[i] for i in ids]

        def decode(self, ids):
            return names[ids[0]].replace("Ġ", " ")

    assert list(pieces(Tokenizer(), np.array([2, 0, 1, 0])).values()) == wanted


def test_both_spreads_stand_side_by_side(reader, sae, source, monkeypatch):
    both = interpretability.Readings((reader, dataclasses.replace(reader, spread="ranks")))
    values, ranked = both.measure(sae), dataclasses.replace(reader, spread="ranks").measure(sae)
    assert {name: values[name] for name in reader.measure(sae)} == reader.measure(sae)
    assert values["autointerp_ranks_accuracy_hard"] == ranked["autointerp_accuracy_hard"]
    assert values["autointerp_ranks_std"] == ranked["autointerp_std"] and "autointerp_ranks_live" not in values
    assert both.references()["labels"]["autointerp_ranks_accuracy"] > 0.9


def test_text_without_labels_is_read_by_the_endpoint_that_is_set(source, monkeypatch, tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\n\n".join(atlas.document("train", i).text for i in range(300)))
    local = stand_in(source, dataclasses.replace(SPEC, dataset=str(path)))
    monkeypatch.delenv("SAECORE_JUDGE_URL", raising=False)
    with pytest.raises(EndpointError, match="no judge is set"):
        prepare_both(local)
    monkeypatch.setenv("SAECORE_JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("SAECORE_JUDGE_MODEL", "judge-1")
    judges: list[Any] = [r.judge for r in prepare_both(local).readers]
    assert all(isinstance(judge, LanguageJudge) for judge in judges) and judges[0].talk.model == "judge-1"


def test_each_language_model_that_judges_has_a_file_of_its_own(monkeypatch):
    other = dataclasses.replace(SPEC, dataset="openwebtext")
    monkeypatch.delenv("SAECORE_JUDGE_MODEL", raising=False)
    assert {interpretability.recorded_as(spec) for spec in (SPEC, other, SourceSpec())} == {EXPERIMENT}
    monkeypatch.setenv("SAECORE_JUDGE_MODEL", "gpt-4o-mini")
    assert interpretability.recorded_as(SPEC) == EXPERIMENT == interpretability.recorded_as(SourceSpec())
    assert interpretability.recorded_as(other) == "interpretability_gpt_4o_mini"
    assert interpretability.by_judge("Qwen/Qwen2.5-7B-Instruct") == "interpretability_qwen_qwen2_5_7b_instruct"
    assert ledger.path(interpretability.by_judge("Qwen/Qwen2.5-7B-Instruct")).name.endswith("instruct.csv")
