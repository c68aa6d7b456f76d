"""Figures of speed: whose dot is where, and which lines stand for what."""

# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false

import numpy as np
import pandas as pd
import pytest

from saecore.report import figures

SPEEDS = {
    ("saecore", "topk"): 100.0,
    ("saecore", "batch_topk"): 80.0,
    ("peer", "topk"): 30.0,
    ("plain", "batch_topk"): 10.0,
    ("limit", "float32"): 120.0,
    ("limit", "bfloat16"): 200.0,
}


@pytest.fixture
def table():
    names = [
        {"device": d, "shape": s, "library": lib, "architecture": a, "steps_per_s": v}
        for d, s in (("cpu-2t", "small"), ("cpu-2t", "big"), ("nvidia-x", "big"))
        for (lib, a), v in SPEEDS.items()
    ]
    return pd.DataFrame(names)


def test_each_shape_has_a_panel_with_the_fastest_on_top(table):
    figure = figures.speed_figure(table)
    assert figures.alt(figure) == figures.ALT["speed_figure"]
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title("left") for ax in shown] == ["small\ncpu-2t", "big\ncpu-2t", "big\nnvidia-x"]
    assert len(figure.axes) == 4, "the empty place is switched off"
    ax = shown[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["plain", "peer", "saecore"]
    dots = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() != "None"}
    assert dots == {(100.0, 2), (80.0, 2), (30.0, 1), (10.0, 0)}
    walls = {line.get_xdata()[0]: line.get_linestyle() for line in ax.lines if line.get_marker() == "None"}
    assert walls == {120.0: "--", 200.0: ":"}
    colours = {line.get_ydata()[0]: line.get_color() for line in ax.lines if line.get_marker() != "None"}
    assert colours[2] == figures.VARIANTS["free"].colour and colours[1] == colours[0] != colours[2]


def test_growth_has_a_panel_for_each_axis():
    made = [
        {"device": "cpu-2t", "engine": engine, "axis": axis, "size": size, "milliseconds": factor * size}
        for axis in ("n_latents", "k", "batch_size")
        for size in (4, 1, 2)
        for engine, factor in (("saecore batch_topk", 1.0), ("plain batch_topk", 5.0), ("limit float32", 0.5))
    ]
    figure = figures.growth_figure(pd.DataFrame(made))
    assert [ax.get_xlabel() for ax in figure.axes] == ["latents", "active latents per row", "rows per batch"]
    ours = next(line for line in figure.axes[0].lines if line.get_color() == figures.VARIANTS["free"].colour)
    assert np.asarray(ours.get_xydata()).tolist() == [[1, 1], [2, 2], [4, 4]]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["plain", "saecore", "limit float32"]


def test_growth_says_so_where_there_is_no_row():
    empty = pd.DataFrame(columns=["device", "engine", "axis", "size", "milliseconds"])
    figure = figures.growth_figure(empty)
    assert not figure.axes and "no row" in figure.texts[0].get_text()
