"""Latents as chapters show them: their sequences, a page of them, and every variant beside the trained SAE."""

# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false, reportOptionalOperand=false
# pandas and matplotlib type what their tables and artists hold too widely for assertions on it.

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from saecore.judges.base import ask
from saecore.metrics.autointerp import Text, choose
from saecore.report import ledger
from saecore.report.inference import InferenceError
from saecore.studies.interpretability import Reading
from saecore.studies.interpreted import best_of, page, scores, sequences, turns, verdicts


class First:
    """Calls every latent the same, and takes every sequence that begins with an even token for active."""

    def describe(self, trials):
        return [f"latent {trial.latent}" for trial in trials]

    def judge(self, questions):
        return [[int(e.tokens[0]) % 2 == 0 for e in excerpts] for _, excerpts in questions]

    def plan(self, trials, price_in, price_out):
        raise AssertionError("nobody asked for a plan")


@pytest.fixture(scope="module")
def reading() -> Reading:
    """Three latents of made-up text, each firing on one token."""
    rng = np.random.default_rng(0)
    ids = rng.integers(60, size=200 * 30)
    text = Text(ids, np.repeat(np.arange(200), 30), {i: f" {i}" for i in range(60)})
    codes = sparse.csc_array(np.stack([(ids == token) * rng.random(len(ids)) for token in (7, 8, 9)], axis=1))
    chosen = choose(text, codes, seed=0)
    return Reading(tuple(ask(First(), chosen.trials)), chosen)


@pytest.fixture
def recorded():
    """Rows of variants by (constraint, init) and seed, each of ``n`` latents with a standard deviation of 0.1."""

    def make(means: dict[tuple[str, str], dict[int, float]], n: int = 200) -> pd.DataFrame:
        made = [
            {"key": f"{c}-{i}-{seed}", "constraint": c, "init": i, "seed": seed, "metric": metric, "value": value}
            for (c, i), by_seed in means.items()
            for seed, mean in by_seed.items()
            for metric, value in (("autointerp_accuracy", mean), ("autointerp_std", 0.1), ("autointerp_scored", n))
        ]
        return pd.DataFrame(made)

    return make


def test_a_latent_is_shown_with_what_was_said_of_its_tests(reading):
    judged = reading.judged[0]
    shown = sequences(judged, several=2)
    assert shown["kind"].tolist()[::2] == ["strongest", "weaker", "silent, random", "silent, hard"] and len(shown) == 8
    assert shown["text"][0] == judged.trial.top[0].marked and "<<" in shown["text"][2] and "<<" not in shown["text"][4]
    place = int(np.flatnonzero(~judged.trial.hard_truth)[0])
    assert shown["text"][6] == judged.trial.hard[place].plain
    assert shown["said"].tolist()[:2] == ["", ""]
    assert shown["said"][6] == ("fires" if int(judged.trial.hard[place].tokens[0]) % 2 == 0 else "silent")
    mute = sequences(dataclasses.replace(judged, said=None, hard_said=None))
    assert set(mute["said"]) == {"", "no answer"}


def test_a_page_has_a_column_for_each_sae(reading):
    few = dataclasses.replace(reading, judged=reading.judged[:2])
    shown = page({"one": reading, "two": few}, latents=4, several=1)
    assert list(shown.columns) == ["one", "two"] and len(shown) == 2 * 4
    assert shown["one"].tolist() == shown["two"].tolist()
    second = reading.judged[1]
    assert shown["one"].tolist()[4:7] == [second.description, f"{second.accuracy:.2f}", second.trial.top[0].marked]
    firing = np.flatnonzero(second.trial.truth)
    assert shown["one"].iloc[7] == second.trial.test[firing[0]].marked


@pytest.mark.parametrize("n", [1, 2, 7])
def test_scores_have_the_recorded_mean_and_spread(recorded, n):
    found = scores(recorded({("free", "iso"): {0: 0.7}}, n=n))
    assert list(found) == [0] and len(found[0]) == n and found[0].mean() == pytest.approx(0.7)
    assert found[0].std() == pytest.approx(0.1 if n > 1 else 0)
    bare = recorded({("free", "iso"): {0: 0.7}}, n=n).query("metric != 'autointerp_std'")
    assert scores(bare)[0].tolist() == pytest.approx([0.7])
    with pytest.raises(InferenceError, match="seed 0 has a metric more than once"):
        scores(pd.concat([bare, bare]))


def test_verdicts_follow_the_rule(recorded):
    means = {
        ("free", "iso"): {0: 0.80, 1: 0.81, 2: 0.80},
        ("soft_frozen_decoder", "iso"): {0: 0.80, 1: 0.80, 2: 0.81},
        ("frozen_decoder", "cov"): {0: 0.60, 1: 0.61, 2: 0.60},
        ("untrained", "iso"): {0: 0.50, 1: 0.51, 2: 0.50},
        ("pca", "cov"): {0: 0.55},
    }
    edges = recorded({("random_tokens", ""): {0: 0.5}, ("labels", ""): {0: 1.0}})
    rng = np.random.default_rng(0)
    told = verdicts(recorded(means), edges, rng).set_index("constraint")
    assert told["verdict"].to_dict() == {
        "soft_frozen_decoder": "equivalent", "frozen_decoder": "different", "untrained": "different", "pca": "different"
    }  # fmt: skip
    assert told["share"]["frozen_decoder"] == pytest.approx(0.2067, abs=1e-3)
    assert told["difference"]["frozen_decoder"].value == pytest.approx(0.2) and 0 < told["detectable"]["pca"] < 0.1
    one = verdicts(recorded({name: {0: of[0]} for name, of in means.items()}), edges, rng)
    assert set(one["verdict"]) == {"undecided"} and one["detectable"].isna().all()
    same = recorded({name: means["free", "iso"] for name in means if name[0] != "pca"})
    assert set(verdicts(same, edges, rng)["verdict"]) == {"unable to decide"}
    with pytest.raises(ledger.LedgerError, match="no row has constraint='untrained'"):
        verdicts(recorded({("free", "iso"): {0: 0.8}}), edges, rng)


def test_a_turn_is_the_change_of_the_difference(recorded):
    trained, frozen, pca = ("free", "iso"), ("frozen_decoder", "cov"), ("pca", "cov")
    squared = recorded({trained: {0: 0.80, 1: 0.81}, frozen: {0: 0.70, 1: 0.70}, pca: {0: 0.5}})
    ranks = recorded({trained: {0: 0.60, 1: 0.61}, frozen: {0: 0.66, 1: 0.66}, pca: {0: 0.5}})
    ranks = ranks.query("metric != 'autointerp_scored'")
    ranks = ranks.assign(metric=ranks["metric"].str.replace("autointerp", "autointerp_ranks"))
    found = turns(pd.concat([squared, ranks]), np.random.default_rng(0))
    change = found.set_index("constraint")["change"]
    assert change["frozen_decoder"].value == pytest.approx(-0.16) and change["pca"].value == pytest.approx(-0.2)
    assert change["frozen_decoder"].high < 0 and (change["pca"].seeds, change["pca"].units) == (2, 200)


def test_the_best_of_several_is_told_over_the_seeds_that_all_have(recorded):
    means = {("free", "iso"): {0: 0.7, 1: 0.7}, ("frozen_decoder", "cov"): {0: 0.6, 1: 0.6}}
    means |= {("frozen_encoder", "iso"): {0: 0.65}}
    found = best_of(recorded(means), list(means)[1:], np.random.default_rng(0))
    assert found.best == pytest.approx(0.65) and found.mean == pytest.approx(0.625) and found.lift > 0
