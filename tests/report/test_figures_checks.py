"""Figures of the downstream checks: what they mark, and what they say of it."""

# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false, reportOptionalOperand=false
# pandas and matplotlib type what their tables and artists hold too widely for assertions on it.

from typing import Any

import numpy as np
import pandas as pd
import pytest

from saecore.report import figures


@pytest.fixture
def edits(frame):
    """Two seeds of three variants and references of one, for four attributes."""
    made = []
    attributes = ("capital", "continent", "country", "time_zone")
    cells = [("batch_topk", c, "iso", s) for c in ("free", "frozen_decoder", "untrained") for s in range(2)]
    cells += [("", c, "", 0) for c in ("neurons", "mdas", "no_edit")]
    for place, (architecture, constraint, init, seed) in enumerate(cells):
        run = {"architecture": architecture, "constraint": constraint, "init": init, "seed": seed}
        for attribute in attributes:
            for metric, value in (("cause", 0.05 * place), ("isolation", 0.9 - 0.1 * seed)):
                made.append({**run, "metric": f"editing_{metric}_{attribute}", "value": value})
    return frame(*made), attributes


def test_edits_are_shown_by_attribute_with_their_floor(edits):
    made, attributes = edits
    figure = figures.editing_figure(made, attributes)
    assert figures.alt(figure) == figures.ALT["editing_figure"]
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title("left") for ax in shown] == ["capital", "continent", "country", "time zone"]
    assert {ax.get_xlabel() for ax in shown} >= {"Isolation"} and shown[0].get_ylabel() == "Cause"
    floor, *drawn = [(line.get_marker(), np.asarray(line.get_xydata()).tolist()) for line in shown[0].lines]
    assert floor[1] == [[0, 1], [1, 0]]
    marks = {marker: points[0] for marker, points in drawn if len(points) == 1}
    assert marks["o"] == pytest.approx([0.85, 0.025]) and marks["*"] == pytest.approx([0.9, 0.35])
    crosses = [points for _, points in drawn if len(points) == 2]
    assert len(crosses) == 2 * 3, "an interval each way for what has two seeds, none for a reference"
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["trained", "frozen decoder", "untrained", "neurons", "MDAS", "floor"]


def test_two_attributes_take_one_row(edits):
    figure = figures.editing_figure(edits[0], edits[1][:2])
    assert len(figure.axes) == 2 and all(ax.get_xlabel() == "Isolation" for ax in figure.axes)


@pytest.fixture
def told(frame):
    """Two seeds of two variants that change places, with bins, and of a floor and a ceiling."""
    made = []
    for constraint, means in (("free", (0.8, 0.6)), ("frozen_decoder", (0.7, 0.65))):
        for seed in range(2):
            run = {"constraint": constraint, "seed": seed}
            values = {"autointerp_accuracy": means[0], "autointerp_ranks_accuracy": means[1] + 0.02 * seed}
            values |= {f"autointerp_bin_{i}": float(i == 12 + seed) for i in range(20)}
            made += [{**run, "metric": name, "value": value} for name, value in values.items()]
    ends = (("labels", 1.0), ("random_tokens", 0.5))
    edges = frame(*({"constraint": c, "metric": "autointerp_accuracy", "value": v} for c, v in ends))
    return frame(*made), edges


def test_ways_to_ask_are_joined_by_a_line_for_each_variant(told):
    made, edges = told
    figure = figures.ways_figure(made, edges, {"autointerp_accuracy": "squared", "autointerp_ranks_accuracy": "ranks"})
    assert figures.alt(figure) == figures.ALT["ways_figure"]
    (ax,) = figure.axes
    assert ax.get_ylabel() == "accuracy" and [t.get_text() for t in ax.get_xticklabels()] == ["squared", "ranks"]
    joined = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    wide = [line.get_ydata() for line in joined if line.get_xdata()[0] != line.get_xdata()[1]]
    assert list(wide[0]) == pytest.approx([0.8, 0.61]) and list(wide[1]) == pytest.approx([0.7, 0.66])
    assert wide[2][0] == 1 and wide[3][0] == 0.5, "the ceiling and the floor, where they are recorded"
    intervals = [line for line in joined if line.get_xdata()[0] == line.get_xdata()[1]]
    assert len(intervals) == 4
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["trained", "frozen decoder", "the labels themselves", "random tokens"]


def test_latents_are_spread_over_accuracies_with_their_mean(told):
    figure = figures.distribution_figure(*told)
    assert figures.alt(figure) == figures.ALT["distribution_figure"]
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["trained", "frozen decoder"]
    assert figure.axes[-1].get_xlabel() == "accuracy of a latent"
    shares, edges, _ = figure.axes[0].patches[0].get_data()
    assert shares[12] == shares[13] == 0.5 and shares.sum() == 1 and (edges[0], edges[-1]) == (0, 1)
    means = [[float(line.get_xdata()[0]) for line in ax.lines] for ax in figure.axes]
    assert means == [pytest.approx([0.8, 0.5]), pytest.approx([0.7, 0.5])]


@pytest.fixture
def probed(frame):
    """Two seeds of two variants and references of one, for two latents' numbers and two families."""
    cells = [("batch_topk", c, "iso", s) for c in ("free", "untrained") for s in range(2)]
    cells += [("", c, "", 0) for c in ("neurons", "majority", "dense_probe")]
    made = []
    for place, (architecture, constraint, init, seed) in enumerate(cells):
        run = {"architecture": architecture, "constraint": constraint, "init": init, "seed": seed}
        level = {"majority": 0.5, "dense_probe": 0.97}.get(constraint, 0.9 - 0.05 * place)
        for reading in ("probing", "probing_short"):
            for metric in ("top1", "top5", "top1_news_topic", "top1_language"):
                made.append({**run, "metric": f"{reading}_{metric}", "value": level})
    rows = frame(*made)
    return rows[rows["architecture"] != ""], rows[rows["architecture"] == ""]


READINGS = {"probing": "whole documents", "probing_short": "first 16 tokens"}


def test_accuracy_is_drawn_over_latents_between_floor_and_ceiling(probed):
    figure: Any = figures.probing_figure(probed[0], probed[1], READINGS)
    assert figures.alt(figure) == figures.ALT["probing_figure"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(READINGS.values())
    for ax in figure.axes:
        curves = {line.get_marker(): list(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 2}
        assert curves["o"] == pytest.approx([0.875, 0.875]) and curves["p"] == pytest.approx([0.7, 0.7])
        flat = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "None"]
        assert flat == [0.5, 0.97]
        assert len(ax.collections) == 2, "a band for each variant with two seeds, none for a reference"
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "5"]
        assert ax.get_xlabel() == "latents in the probe"
    assert figure.axes[0].get_ylabel() == "test accuracy"
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["trained", "untrained", "neurons", "the larger class", "dense probe"]


def test_families_are_rows_with_the_dense_probe_marked(probed):
    figure: Any = figures.families_figure(probed[0], probed[1], READINGS)
    assert figures.alt(figure) == figures.ALT["families_figure"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["language", "news\ntopic"]
    for ax in figure.axes:
        dots = {line.get_marker(): line for line in ax.lines if len(line.get_xdata()) == 1}
        assert dots["o"].get_xdata()[0] == pytest.approx(0.875) and dots["p"].get_xdata()[0] == pytest.approx(0.7)
        ends = [line for line in ax.lines if list(line.get_xdata()) == [0.97, 0.97]]
        assert len(ends) == 2 and ax.get_xlabel() == "test accuracy, one latent"
        assert ax.get_xlim()[0] == 0.5


def test_the_best_latent_is_drawn_by_class():
    table = pd.DataFrame({"activation": [0.0, 0.1, 0.8, 1.0], "holds": [False, False, True, True]})
    silent = table.assign(activation=0.0)
    figure: Any = figures.best_latent_figure({"free": table, "frozen_decoder": table, "untrained": silent}, bins=4)
    assert figures.alt(figure) == figures.ALT["best_latent_figure"]
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in shown] == ["trained", "frozen decoder", "untrained"]
    rest, own = (patch.get_data() for patch in shown[0].patches)
    assert rest.values.tolist() == [1, 0, 0, 0] and own.values.tolist() == [0, 0, 0, 1]
    assert shown[0].get_ylabel() == "share of texts" and shown[2].get_xlabel() == "mean activation of the best latent"
