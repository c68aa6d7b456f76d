"""Intervals against scipy, the verdict at its edges, and tables worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saecore.report import compare, paper
from saecore.report.compare import AGREES, DIFFERS, UNDECIDED, UNSTATED, CompareError, Interval
from saecore.report.inference import Effect
from saecore.report.ledger import LedgerError
from saecore.report.paper import PaperNumber


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_is_scipys(level):
    data = [0.31, 0.35, 0.29, 0.40]
    low, high = stats.t.interval(level, len(data) - 1, np.mean(data), stats.sem(data))
    found = compare.interval(data, level)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.3375, low, high, 4))


def test_the_interval_by_hand():
    found = compare.interval([1.0, 2.0, 3.0])
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval_and_says_so():
    found = compare.interval([0.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    assert found.text() == "0.500 (n=1, no interval)"


@pytest.mark.parametrize(("data", "message"), [([], "none was given"), ([0.1, math.nan], "not all finite")])
def test_no_interval_of_nothing_or_nan(data, message):
    with pytest.raises(CompareError, match=message):
        compare.interval(data)


@pytest.mark.parametrize(
    ("found", "percent", "text"),
    [
        (Interval(0.712, 0.708, 0.716, 3), False, "0.712 ± 0.004 (n=3)"),
        (Interval(0.71234, 0.71230, 0.71238, 3), False, "0.71234 ± 0.00004 (n=3)"),
        (Interval(0.5, 0.5, 0.5, 3), False, "0.500 ± 0.000 (n=3)"),
        (Interval(-0.017, -0.093, 0.059, 2), False, "−0.017 ± 0.076 (n=2)"),
        (Interval(0.0928, 0.0898, 0.0958, 3), True, "9.3 ± 0.3 % (n=3)"),
        (Interval(0.0003, 0.0001, 0.0005, 3), True, "0.03 ± 0.02 % (n=3)"),
    ],
)
def test_an_interval_in_words(found, percent, text):
    assert found.text(percent=percent) == text


@pytest.mark.parametrize(
    ("ours", "paper", "slack", "verdict"),
    [
        (Interval(0.70, 0.68, 0.72, 3), 0.70, 0.0, AGREES),
        (Interval(0.70, 0.68, 0.72, 3), 0.72, 0.0, AGREES),
        (Interval(0.70, 0.68, 0.72, 3), 0.7201, 0.0, DIFFERS),
        (Interval(0.70, 0.68, 0.72, 3), 0.725, 0.005, AGREES),
        (Interval(0.70, 0.68, 0.72, 3), 0.675, 0.005, AGREES),
        (Interval(0.70, 0.68, 0.72, 3), 0.7251, 0.005, DIFFERS),
        (Interval(0.70, 0.68, 0.72, 3), 0.60, 0.1, AGREES),
        (Interval(0.70, 0.65, 0.75, 2), 0.70, 0.0, AGREES),
        (Interval(0.70, 0.64, 0.76, 2), 0.70, 0.0, UNDECIDED),
        (Interval(0.70, 0.64, 0.76, 2), 0.90, 0.0, DIFFERS),
        (Interval(0.70, math.nan, math.nan, 1), 0.70, 0.0, UNDECIDED),
        (Interval(0.70, math.nan, math.nan, 1), 0.10, 0.0, UNDECIDED),
        (Interval(0.70, 0.68, 0.72, 3), math.nan, 0.0, UNSTATED),
    ],
)
def test_the_verdict_at_its_edges(ours, paper, slack, verdict):
    assert compare.verdict(ours, paper, slack) == verdict
    assert compare.Comparison("it", ours, paper, slack).verdict == verdict


def test_a_comparison_knows_its_difference():
    assert compare.Comparison("it", Interval(0.7, 0.6, 0.8, 3), 0.67, 0.005).difference == pytest.approx(0.03)


def seeds(*values, **columns):
    return [{"seed": seed, "value": value, **columns} for seed, value in enumerate(values)]


EV = {"metric": "explained_variance", "architecture": "batch_topk", "source": "constant"}


def test_a_table_of_comparisons(frame):
    made = frame(*seeds(0.66, 0.67, 0.68, **EV), *seeds(0.5, **{**EV, "architecture": "relu"}))
    requests = [
        compare.Request("EV", {**EV}, PaperNumber(0.67, 0.005, "Fig 2"), tags={"metric": "explained_variance"}),
        compare.Request("alone", {**EV, "architecture": "relu"}, None),
    ]
    table = compare.compare_table(made, requests)
    first, second = table.to_dict("records")
    assert (first["mean"], first["paper"], first["n"]) == (pytest.approx(0.67), 0.67, 3)
    assert first["verdict"] == AGREES and first["slack"] == 0.005 and first["where"] == "Fig 2"
    assert math.isnan(second["paper"]) and second["verdict"] == UNSTATED
    shown = compare.show(table)
    assert shown.to_dict("records") == [
        {"": "EV", "ours": "0.670 ± 0.025 (n=3)", "paper": "0.67", "difference": "+0.000", "verdict": AGREES},
        {
            "": "alone",
            "ours": "0.500 (n=1, no interval)",
            "paper": "–",
            "difference": "–",
            "verdict": UNSTATED,
        },
    ]


def test_a_stated_tolerance_counts_where_it_is_wider(frame):
    made = frame(*seeds(0.70, 0.70, **EV))
    near = PaperNumber(0.72, 0.005, "text")
    verdicts = [compare.Request("x", EV, near, tolerance=t).answer(made).verdict for t in (0.0, 0.001, 0.03)]
    assert verdicts == [DIFFERS, DIFFERS, AGREES]


def test_the_cells_of_figures_2_3_and_9(frame):
    shares = {**EV, "metric": "fraction_recovered"}
    made = frame(
        *seeds(0.67, 0.66, **EV),
        *seeds(0.001, 0.0005, **shares),
        *seeds(0.7, 0.7, **{**EV, "architecture": "ortho"}),
        *seeds(0.1, 0.1, **{**shares, "architecture": "ortho"}),
    )
    table = compare.compare_table(made, compare.synthetic_requests(made, sources=["constant"]))
    assert table["architecture"].tolist() == ["batch_topk", "batch_topk", "ortho", "ortho"]
    assert table["paper"].tolist()[:2] == [0.67, 3 / 3200]
    assert table["verdict"].tolist()[2:] == [UNSTATED, UNSTATED]
    shown = compare.show(table)
    assert shown.loc[1, "paper"] == "0.0938 %" and shown.loc[1, "difference"].endswith("points")


def test_summary_groups_in_the_books_order(frame):
    relu, topk = {**EV, "architecture": "relu"}, {**EV, "architecture": "topk"}
    made = frame(*seeds(0.1, 0.3, **relu), *seeds(0.5, **topk), *seeds(9, **{**topk, "metric": "l0"}))
    table = compare.summary(made, ["architecture"], "explained_variance")
    assert table["architecture"].tolist() == ["topk", "relu"]
    assert table["mean"].tolist() == [0.5, 0.2] and table["n"].tolist() == [1, 2]
    assert table.loc[1, "high"] == pytest.approx(0.2 + stats.t.ppf(0.975, 1) * 0.1)
    assert list(compare.show(table).columns) == ["architecture", "ours"]


def test_summary_sorts_numbers_as_numbers(frame):
    made = frame(*({**EV, "l0": l0} for l0 in (100, 20, 3)))
    assert compare.summary(made, ["l0"], "explained_variance")["l0"].tolist() == [3, 20, 100]


def test_a_seed_twice_in_a_group_names_what_differs(frame):
    made = frame({**EV, "step": 1}, {**EV, "step": 2})
    with pytest.raises(CompareError, match="architecture=batch_topk holds seed 0 more than once.*differ in step"):
        compare.summary(made, ["architecture"], "explained_variance")


HEADLINE = {"settings": "", "l0": 20}


def test_effects_are_paired_by_seed(frame):
    made = frame(
        *seeds(0.10, 0.20, 0.30, **EV),
        *seeds(0.15, 0.26, 0.34, **EV, settings="source.sigma=0.5"),
        *seeds(0.11, 0.19, 0.30, **EV, l0=10),
        *seeds(0.50, **EV, l0=40, settings="constraint.tied=False"),
    )
    table = compare.effects(made, HEADLINE, "explained_variance").set_index("choice")
    sigma, half, both = (table.loc[c] for c in ("source.sigma=0.5", "l0=10", "constraint.tied=False;l0=40"))
    expected = stats.ttest_rel([0.15, 0.26, 0.34], [0.1, 0.2, 0.3]).confidence_interval()
    assert sigma["difference"] == pytest.approx(0.05)
    assert (sigma["low"], sigma["high"]) == pytest.approx(tuple(expected))
    assert (sigma["headline"], sigma["mean"], sigma["n"]) == (pytest.approx(0.2), pytest.approx(0.25), 3)
    assert sigma["verdict"] == compare.MOVES and half["verdict"] == compare.STAYS
    assert both["n"] == 1 and both["verdict"] == compare.UNTESTED and math.isnan(both["low"])
    assert both["headline"] == pytest.approx(0.1), "beside the headline's same seed"


def test_effects_in_words(frame):
    share = {**EV, "metric": "fraction_recovered"}
    made = frame(*seeds(0.1, 0.2, **share), *seeds(0.15, 0.25, **share, settings="training.learning_rate=0.001"))
    (shown,) = compare.show(compare.effects(made, HEADLINE, "fraction_recovered")).to_dict("records")
    assert shown == {
        "source": "constant probability",
        "architecture": "BatchTopK",
        "choice": "learning rate = 0.001",
        "headline": "15.0 %",
        "with it": "20.0 %",
        "change": "+5.0 ± 0.0 points (n=2)",
        "verdict": compare.MOVES,
    }


def test_effects_need_a_headline_and_a_choice(frame):
    with pytest.raises(LedgerError, match="no row has settings=''"):
        compare.effects(frame({**EV, "settings": "source.sigma=0.5"}), HEADLINE, "explained_variance")
    with pytest.raises(CompareError, match="is the headline"):
        compare.effects(frame(EV), HEADLINE, "explained_variance")
    other = frame({**EV, "seed": 0}, {**EV, "seed": 1, "l0": 10})
    with pytest.raises(CompareError, match="shares no seed"):
        compare.effects(other, HEADLINE, "explained_variance")


def test_show_wants_a_table_of_its_own():
    with pytest.raises(CompareError, match=r"no \['mean', 'low', 'high', 'n'\]"):
        compare.show(pd.DataFrame({"a": [1]}))


def test_the_best_of_several_lies_above_their_mean():
    assert compare.best_of(1) == pytest.approx(0, abs=1e-9)
    assert compare.best_of(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-6)
    draws = np.random.default_rng(0).standard_normal((100_000, 5)).max(axis=1).mean()
    assert compare.best_of(5) == pytest.approx(draws, abs=0.01)
    with pytest.raises(CompareError, match="n=0 must be at least 1"):
        compare.best_of(0)


def test_gaps_are_trained_minus_variant_seed_by_seed(frame):
    frozen = {**EV, "constraint": "frozen_decoder", "init": "cov"}
    made = frame(
        *seeds(0.8, 0.9, 0.7, **EV), *seeds(0.5, 0.7, **frozen), *seeds(0.4, **{**frozen, "source": "variable"})
    )
    (row,) = compare.gaps(made, "explained_variance").to_dict("records")
    expected = stats.ttest_rel([0.8, 0.9], [0.5, 0.7]).confidence_interval()
    assert (row["constraint"], row["init"], row["n"]) == ("frozen_decoder", "cov", 2)
    assert (row["low"], row["difference"], row["high"]) == pytest.approx((expected[0], 0.25, expected[1]))
    assert (row["trained"], row["value"]) == (pytest.approx(0.85), pytest.approx(0.6))
    with pytest.raises(LedgerError, match="no row has constraint='free'"):
        compare.gaps(frame(frozen), "explained_variance")


def test_gaps_stand_beside_the_papers(frame):
    frozen = {**EV, "constraint": "frozen_decoder", "init": "cov"}
    table = compare.gaps(frame(EV, {**EV, "constraint": "free", "init": "cov"}, frozen), "explained_variance")
    trained, random = compare.show_gaps(table, paper.gaps("explained_variance")).to_dict("records")
    assert (random["variant"], random["gemma-2-2b/12"]) == ("frozen decoder, cov", "0.282")
    assert random["ours"] == "0.000 (n=1, no interval)" and trained["gemma-2-2b/12"] == "–"


def test_gaps_side_by_side(frame):
    frozen = {**EV, "constraint": "frozen_decoder", "init": "cov", "value": 0.4}
    made = frame(EV, frozen, {**EV, "l0": 10}, {**frozen, "l0": 10, "constraint": "pca", "value": 0.1})
    table = compare.gaps_beside(compare.gaps(made, "explained_variance", ["l0"]), "l0")
    assert table.columns.tolist() == [10, 20] and table.index.tolist() == ["PCA", "frozen decoder, cov"]
    assert table.to_numpy().tolist() == [["0.400 (n=1, no interval)", "–"], ["–", "0.100 (n=1, no interval)"]]


def test_gaps_need_a_variant(frame):
    with pytest.raises(CompareError, match="nothing but the trained SAE"):
        compare.gaps(frame(EV), "explained_variance")


def test_verdicts_side_by_side():
    """A difference may be an Effect, or a number with its bounds beside it; a dash stands where there is none."""
    same = {"constraint": "frozen_decoder", "init": "cov", "verdict": "different"}
    effect = Effect(0.25, 0.05, math.inf, 3, 200)
    tables = {
        "TopK": pd.DataFrame([{**same, "difference": effect}]),
        "ReLU": pd.DataFrame(
            [
                {**same, "difference": -0.1, "low": -0.3, "high": 0.1, "seeds": 2, "verdict": "undecided"},
                {**same, "constraint": "neurons", "difference": 0.5, "low": math.nan, "high": math.nan, "seeds": 1},
            ]
        ),
    }
    found = compare.verdicts_beside(tables, digits=2)
    assert found.columns.tolist() == ["TopK", "ReLU"]
    assert found.loc["frozen decoder, cov"].tolist() == [
        "+0.25 [+0.15, +0.35], n=3, different",
        "−0.10 [−0.30, +0.10], n=2, undecided",
    ]
    assert found.loc["neurons"].tolist() == ["–", "+0.50, n=1, different"]
    with pytest.raises(CompareError, match="'TopK' has 'frozen decoder, cov' twice"):
        compare.verdicts_beside({"TopK": pd.concat([tables["TopK"]] * 2)})
    assert compare.told_in(tables, ("frozen_decoder", "cov"), "different") == "TopK"
    assert compare.told_in(tables, ("frozen_decoder", "cov"), "different", -1) == "none"
    three = tables | {"BatchTopK": tables["TopK"], "JumpReLU": tables["TopK"]}
    assert compare.told_in(three, ("frozen_decoder", "cov"), "different", 1) == "TopK, BatchTopK and JumpReLU"
    assert compare.told_in(tables, ("frozen_decoder", "cov"), "undecided", -1) == "ReLU"
