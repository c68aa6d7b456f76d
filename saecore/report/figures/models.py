"""SAEs on a model's activations: the baselines, how far their rows move, and what is lost beside the paper's."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from saecore.metrics.geometry import log10_cap_bound, log10_cap_probability
from saecore.report import compare, names
from saecore.report.figures.base import (
    BLUE_LINE,
    GREY,
    INK,
    INK_LINE,
    LIGHT,
    PAPER,
    VARIANTS,
    WIDTH,
    BookFigure,
    Style,
    below,
    dot_of,
    drawn,
    groups_of,
    line_of,
    metric_axis,
    panels,
)
from saecore.report.figures.recovery import variants_bars

LEAST = -0.4
"""Where an axis of a range ends, so that one SAE far below its floor does not hide the others."""
LIVES: dict[str, Any] = {"live": "-", "dead": ":"}
PARTS = {"encoder": Style("#117733", "o"), "decoder": Style("#CC6677", "s"), "biases": Style(GREY, "^")}
"""Parts of an SAE, which carry shares of what training gained."""


@drawn(
    "Lines: the share of squared length that lies in the first principal components of the data, for the data, for "
    "cov directions and for iso directions. The cov line follows the data's; the iso line is straight."
)
def principal_figure(shares: Mapping[str, ArrayLike]) -> BookFigure:
    """``shares``: by name, the cumulative share within the first 1, 2, ... components; the data's first."""
    figure = BookFigure(figsize=(WIDTH, 3.4))
    ax = figure.subplots()
    styles = ((LIGHT, "-", 7.0), (BLUE_LINE.colour, BLUE_LINE.line, 2.0), (INK_LINE.colour, INK_LINE.line, 2.0))
    for (name, values), (colour, line, width) in zip(shares.items(), styles, strict=False):
        share = np.concatenate([[0], np.asarray(values)])
        ax.plot(np.arange(len(share)), share, color=colour, linestyle=line, linewidth=width, label=name)
    ax.set_xlabel("first principal components of the data")
    ax.set_ylabel("share of squared length")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_ylim(0, 1.02)
    ax.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Bars from the 5th to the 95th percentile, thick from the 25th to the 75th, with a mark at the median: the cosine "
    "of encoder rows (left) and decoder rows (right) to their start, by variant, filled for live latents, hollow for "
    "dead ones."
)
def moved_figure(moved: pd.DataFrame, tau: float) -> BookFigure:
    """``moved``: constraint, init, side, live and cosine of every latent (studies.frozen.rows_moved)."""
    rows = _variants(moved)
    figure = BookFigure(figsize=(WIDTH, 1.5 + 0.5 * len(rows)))
    axes = panels(figure, 1, 2, sharex=True, sharey=True)
    for ax, side in zip(axes, ("encoder", "decoder"), strict=True):
        for y, (constraint, init) in enumerate(rows):
            part = moved.loc[(moved["constraint"] == constraint) & (moved["init"] == init) & (moved["side"] == side)]
            for live, place in ((True, y - 0.16), (False, y + 0.2)):
                cosine = part.loc[part["live"] == live, "cosine"]
                if len(cosine):
                    _spread(ax, place, cosine, VARIANTS[constraint], live)
        ax.axvline(tau, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
        ax.set_title(f"{side} rows")
        ax.set_xlabel("cosine to the start")
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [names.variant(*row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    mark = {"color": INK, "marker": "o", "markersize": 7}
    handles = [
        Line2D([], [], **mark, label="live latents"),
        Line2D([], [], **mark, markerfacecolor="white", label="dead latents"),
        Line2D([], [], color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label=f"tau = {tau:g}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Histograms of the angle between a decoder row and its start after training: trained rows spread widely, "
    "soft-frozen rows stand at the edge of their cone, and random directions lie around a right angle."
)
def cone_figure(cosines: Mapping[str, ArrayLike], tau: float, d_model: int, width: float = 2.0) -> BookFigure:
    """``cosines`` to the start by constraint; grey: the angle of two random directions in ``d_model`` dimensions."""
    figure = BookFigure(figsize=(WIDTH, 3.4))
    ax = figure.subplots()
    edges = np.arange(0, 120 + width, width)
    fine = np.radians((edges[1:] + edges[:-1]) / 2)
    random = np.sin(fine) ** (d_model - 2)
    ax.stairs(random / random.sum(), edges, fill=True, color=LIGHT, label="random direction")
    for name, values in cosines.items():
        angle = np.degrees(np.arccos(np.clip(np.asarray(values), -1, 1)))
        shares = np.histogram(angle, edges)[0] / len(angle)
        style = VARIANTS[name]
        ax.stairs(shares, edges, color=style.colour, linestyle=style.line, linewidth=2, label=names.label(name))
    edge = np.degrees(np.arccos(tau))
    ax.axvline(edge, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    ax.annotate(
        f"edge of the cone, cosine {tau:g}",
        (edge, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=11,
    )
    ax.set_xlim(0, 120)
    ax.set_xlabel("angle between a decoder row and its start (degrees)")
    ax.set_ylabel(f"latents per {width:g} degrees")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    figure.legend(loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Dots with intervals over seeds, one row per variant and one panel per metric, between a dotted line at the floor "
    "and a solid line at the ceiling."
)
def range_figure(
    frame: pd.DataFrame,
    metrics: Sequence[str],
    floors: Mapping[str, float],
    ceilings: Mapping[str, float],
) -> BookFigure:
    """``frame``: last rows of one source; a row per constraint and init, a panel per metric, its range marked.

    A mean below ``LEAST`` is a number at the left edge.
    """
    tables = {m: compare.summary(frame, ["constraint", "init"], m) for m in metrics}
    rows = _variants(pd.concat(tables.values()))
    figure = BookFigure(figsize=(WIDTH, 1.4 + 0.36 * len(rows)))
    axes = panels(figure, 1, len(metrics), sharey=True)
    for ax, (metric, table) in zip(axes, tables.items(), strict=True):
        for row in table.to_dict("records"):
            place, style = float(rows.index((row["constraint"], row["init"]))), VARIANTS[row["constraint"]]
            if row["mean"] < LEAST:
                ax.plot(LEAST, place, marker="<", color=style.colour, markersize=7)
                ax.annotate(
                    f" {row['mean']:.1f}".replace("-", "−"), (LEAST, place), va="center", ha="left", fontsize=10
                )
            else:
                dot_of(ax, place, row, style)
        for values, line in ((floors, ":"), (ceilings, "-")):
            if metric in values:
                ax.axvline(values[metric], color=GREY, linestyle=line, linewidth=1.5)
        metric_axis(ax, metric, "x")
        ax.set_xlabel(textwrap.fill(ax.get_xlabel(), 17))
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [names.variant(*row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.5, label="floor"),
        Line2D([], [], color=GREY, linewidth=1.5, label="ceiling"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=2)
    return figure


@drawn(
    "Dots with intervals over seeds: explained variance on the left, cross-entropy recovered on the right, for each "
    "architecture and, by colour, the trained SAE, its frozen variants and controls without training."
)
def reconstruction_bars(frame: pd.DataFrame) -> BookFigure:
    """:func:`variants_bars` of what is lost on rows and in the model. ``frame``: one source, an init a constraint."""
    return variants_bars(frame, ("explained_variance", "ce_recovered"))


@drawn(
    "Dots with intervals over seeds: a metric of the trained SAE minus that of each frozen variant, one panel per "
    "architecture. Hollow diamonds mark the same differences in the paper's three settings."
)
def gaps_figure(table: pd.DataFrame, stated: pd.DataFrame) -> BookFigure:
    """``table``: compare.gaps of one source; ``stated``: paper.gaps. A row per constraint and init."""
    rows = _variants(table)
    architectures = names.ordered(table["architecture"])
    figure = BookFigure(figsize=(WIDTH, 1.6 + 0.4 * len(rows)))
    axes = panels(figure, 1, len(architectures), sharex=True, sharey=True)
    for ax, architecture in zip(axes, architectures, strict=True):
        theirs = stated.loc[stated["architecture"] == architecture]
        for y, (constraint, init) in enumerate(rows):
            same = (theirs["constraint"] == constraint) & (theirs["init"] == init)
            for gap in theirs.loc[same, "gap"]:
                ax.plot(
                    gap,
                    y,
                    **PAPER | {"markersize": 6, "markeredgewidth": 1.2, "markerfacecolor": "none", "clip_on": False},
                )
        for row in table.loc[table["architecture"] == architecture].to_dict("records"):
            place = float(rows.index((row["constraint"], row["init"])))
            dot_of(ax, place, {**row, "mean": row["difference"]}, VARIANTS[row["constraint"]])
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_title(names.label(architecture))
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [names.variant(*row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    below(axes, f"{names.label(str(table['metric'].iloc[0]))},\ntrained minus variant", single=True)
    ours = Line2D([], [], color=INK, marker="o", linestyle="none", label="ours")
    theirs = Line2D([], [], **{**PAPER, "markersize": 6, "markeredgewidth": 1.2}, label="the paper, three settings")
    figure.legend(handles=[ours, theirs], loc="outside lower center", ncol=2)
    return figure


@drawn(
    "Dots with intervals over seeds, a row per concept: F1 of the best single latent of each variant, between a grey "
    "tick for a latent that always fires and a black tick for a linear probe."
)
def concepts_figure(frame: pd.DataFrame, references: pd.DataFrame) -> BookFigure:
    """``frame``: last rows of one architecture and source, one init a constraint; ``references``: its floors."""
    metrics = [m for m in dict.fromkeys(frame["metric"]) if m.startswith("concept_f1_")]
    ends = references.loc[references["metric"].isin(metrics)].set_index(["constraint", "metric"])["value"]
    metrics = sorted(metrics, key=lambda m: -ends.get(("probe", m), 0.0))
    constraints = names.ordered(frame["constraint"])
    step = 0.7 / max(len(constraints) - 1, 1)
    figure = BookFigure(figsize=(WIDTH, 1.4 + 0.42 * len(metrics)))
    ax = figure.subplots()
    for place, metric in enumerate(metrics):
        for row in compare.summary(frame, ["constraint"], metric).to_dict("records"):
            dot_of(ax, place + step * constraints.index(row["constraint"]) - 0.35, row, VARIANTS[row["constraint"]])
        for name, colour in (("always", GREY), ("probe", INK)):
            if (name, metric) in ends.index:
                ax.plot([ends[name, metric]] * 2, [place - 0.4, place + 0.4], color=colour, linewidth=2)
        if place:
            ax.axhline(place - 0.5, color=LIGHT, linewidth=0.8)
    ax.set_yticks(range(len(metrics)), [m.removeprefix("concept_f1_").replace("_", " ") for m in metrics])
    ax.set_ylim(len(metrics) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("F1 of the best latent")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    marks = [
        Line2D([], [], color=VARIANTS[c].colour, marker=VARIANTS[c].marker, linestyle="none", label=names.label(c))
        for c in constraints
    ]
    ticks = {"marker": "|", "linestyle": "none", "markersize": 12, "markeredgewidth": 2}
    marks.append(Line2D([], [], color=GREY, **ticks, label="always fires"))
    marks.append(Line2D([], [], color=INK, **ticks, label="linear probe"))
    figure.legend(handles=marks, loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Left: the cosine of decoder rows to their start against the share of the training steps, solid for live latents "
    "and dotted for dead ones. Right: explained variance against the same. One colour per constraint."
)
def lazy_figure(frame: pd.DataFrame) -> BookFigure:
    """``frame``: rows of one source and architecture at every recorded step, one init a constraint."""
    figure = BookFigure(figsize=(WIDTH, 3.8))
    left, right = panels(figure, 1, 2)
    constraints = names.ordered(frame["constraint"])
    drawings = {f"cosine_to_start_{name}": (left, line) for name, line in LIVES.items()}
    drawings["explained_variance"] = (right, "-")
    for metric, (ax, line) in drawings.items():
        if metric not in set(frame["metric"]):
            continue
        table = compare.summary(frame, ["constraint", "step"], metric)
        for constraint, part in groups_of(table, "constraint"):
            shares = part["step"] / frame.loc[frame["constraint"] == constraint, "step"].max()
            style = VARIANTS[constraint]
            line_of(ax, shares, part, Style(style.colour, style.marker if line == "-" else "", line))
    for ax in (left, right):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        ax.set_xlabel("share of the training steps")
    left.set_ylabel("cosine to the start, mean")
    left.set_ylim(top=1.02)
    metric_axis(right, "explained_variance", "y")
    handles = [
        Line2D([], [], color=VARIANTS[c].colour, marker=VARIANTS[c].marker, label=names.label(c)) for c in constraints
    ]
    handles += [Line2D([], [], color=INK, linestyle=line, label=f"{name} latents") for name, line in LIVES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Lines on a logarithmic scale: the share of directions whose cosine to a given one is at least so large. Random "
    "directions fall off steeply, exactly and by the paper's bound; trained decoder rows lie far above both."
)
def bound_figure(cosines: Mapping[str, ArrayLike], tau: float, d_model: int) -> BookFigure:
    """``cosines``: of decoder rows to their start, by constraint; beside them random directions in ``d_model``."""
    figure = BookFigure(figsize=(WIDTH, 3.8))
    ax = figure.subplots()
    at = np.linspace(0.01, 0.99, 99)
    for f, line, text in ((log10_cap_probability, "-", "exact"), (log10_cap_bound, "--", "paper's bound")):
        ax.plot(at, [f(d_model, t) for t in at], color=GREY, linestyle=line, label=f"random direction, {text}")
    for name, values in cosines.items():
        cosine = np.sort(np.asarray(values))
        share = 1 - np.arange(len(cosine)) / len(cosine)
        ax.step(cosine, np.log10(share), color=VARIANTS[name].colour, where="pre", label=names.label(name))
    ax.axvline(tau, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label=f"tau = {tau:g}")
    ax.set_xlim(0, 1)
    ax.set_ylim(1.1 * min(f(d_model, tau) for f in (log10_cap_probability, log10_cap_bound)), 0.5)
    ax.set_xlabel("cosine to a given direction")
    ax.set_ylabel("share of directions with\nat least this cosine, log10")
    figure.legend(loc="outside lower center", ncol=2)
    return figure


@drawn(
    "Dots with intervals over seeds: how much of the explained variance that training gained is carried by the "
    "encoder, the decoder and the biases, for each architecture and variant."
)
def gain_figure(frame: pd.DataFrame) -> BookFigure:
    """``frame``: last rows of one source; the metrics ``gain_<part>`` of metrics.lazy.swaps."""
    tables = {p: compare.summary(frame, ["architecture", "constraint", "init"], f"gain_{p}") for p in PARTS}
    keys = ["architecture", "constraint", "init"]
    rows = list(dict.fromkeys(map(tuple, pd.concat(tables.values())[keys].itertuples(index=False))))
    figure = BookFigure(figsize=(WIDTH, 1.7 + 0.45 * len(rows)))
    ax = figure.subplots()
    for place, (part, table) in enumerate(tables.items()):
        for row in table.to_dict("records"):
            dot_of(ax, rows.index(tuple(row[k] for k in keys)) + 0.2 * (place - 1), row, PARTS[part])
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), [f"{names.label(a)}, {names.variant(c, i)}" for a, c, i in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("explained variance gained in training")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    marks = [Line2D([], [], color=s.colour, marker=s.marker, linestyle="none", label=p) for p, s in PARTS.items()]
    figure.legend(handles=marks, loc="outside lower center", ncol=3)
    return figure


def _variants(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The constraints and inits of a frame, in the book's order."""
    there = set(zip(frame["constraint"], frame["init"], strict=True))
    return [(c, i) for c in names.ordered(frame["constraint"]) for i in ("iso", "cov", "") if (c, i) in there]


def _spread(ax: Axes, y: float, values: pd.Series, style: Style, filled: bool) -> None:
    low, first, middle, third, high = values.quantile([0.05, 0.25, 0.5, 0.75, 0.95])
    ax.plot([low, high], [y, y], color=style.colour, linewidth=1.2)
    ax.plot([first, third], [y, y], color=style.colour, linewidth=4, solid_capstyle="butt")
    face: Any = style.colour if filled else "white"
    ax.plot(middle, y, "o", color=style.colour, markerfacecolor=face, markersize=6)
