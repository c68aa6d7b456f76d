"""Every figure of the book: one function each, which returns the figure with its alt text.

Colours are the same through the whole book: one per constraint (``VARIANTS``), or one per architecture
(``ARCHITECTURES``) where a figure shows one constraint. Bands and bars are intervals over seeds (compare.py).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike

from saecore.metrics.detection import Detection
from saecore.metrics.geometry import coherence, typical_best
from saecore.metrics.recovery import RECOVERED
from saecore.report import compare, ledger, names, paper
from saecore.spec import SourceSpec

P = ParamSpec("P")

WIDTH = 7.0
"""Inches: the width of the book's text at 100 dots per inch."""
DPI = 200
GREY, LIGHT, INK = "#707070", "#D9D9D9", "#222222"

THEME: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.06,
}


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    line: Any = "-"


VARIANTS = {
    "free": Style("#0072B2", "o"),
    "soft_frozen_decoder": Style("#56B4E9", "s"),
    "frozen_decoder": Style("#E69F00", "D"),
    "frozen_encoder": Style("#B5400A", "^"),
    "both_frozen": Style(GREY, "v", "--"),
    "untrained": Style("#B5B5B5", "X", ":"),
    "oracle": Style("#000000", "*"),
    "pca": Style("#550055", "P"),
    "neurons": Style("#9922EE", "p"),
}
ARCHITECTURES = {
    "topk": Style("#332288", "o"),
    "batch_topk": Style("#CC3311", "s"),
    "jump_relu": Style("#33BBEE", "^"),
    "matryoshka": Style("#4361EE", "D", "--"),
    "ortho": Style("#EE99AA", "v", "--"),
    "relu": Style("#663333", "X", ":"),
}

ALT = {
    "recovery_curve": (
        "Lines, one per architecture: the share of true features recovered rises with the number of training "
        "samples seen (log scale), with a band over seeds. One panel per source of samples."
    ),
    "recovery_bars": (
        "Bars, one per architecture: explained variance on the left, share of true features recovered on the "
        "right, with intervals over seeds; a hollow diamond marks the paper's value. One row per source of "
        "samples."
    ),
    "cosine_histogram": (
        "Histograms of the best cosine between each true feature and any decoder row. A grey area shows the "
        "same for random directions, a dashed line the threshold above which a feature counts as recovered."
    ),
    "recovery_by_frequency": (
        "Lines: the share of features recovered against how often a feature fires (log scale), one panel per "
        "architecture, one line per constraint, with intervals over seeds."
    ),
    "variants_bars": (
        "Dots with intervals over seeds: explained variance on the left, share of features recovered on the "
        "right, for each architecture and, by colour, each constraint from trained to oracle."
    ),
    "effects_plot": (
        "Dots with intervals: how far each choice that the paper leaves open moves the headline number, one "
        "row per choice, one colour per architecture; a vertical line marks no change."
    ),
    "sweep_line": (
        "Lines with intervals over seeds: a metric against the setting that was swept, one line per "
        "architecture or constraint."
    ),
    "interference_figure": (
        "Left: the distribution of the cosine between pairs of random features, narrower in more dimensions. "
        "Right: the cosine of each feature to its nearest other feature, falling as dimensions grow."
    ),
    "probabilities_figure": (
        "Left: firing probability of each feature, from the most to the least frequent, on log scales. "
        "Right: the share of all activations that the most frequent features carry."
    ),
    "superposition_sketch": (
        "Left: many unit directions in a plane, of which a few are active and add up to one sample. Right: "
        "the sample's dot product with every direction; directions that are not active respond as well."
    ),
    "selection_figure": (
        "Left: how many codes a sample gets against the norm of the sample, for each kind of selection. "
        "Right: the distribution of the number of codes per sample."
    ),
    "headline_figure": (
        "Dots with the paper's spread: each frozen variant and the trained SAE, one panel per metric. A ring marks "
        "the best baseline of each panel."
    ),
    "tradeoff_figure": (
        "Share of features recovered against explained variance, a dot per run, by constraint and architecture. Thin "
        "lines follow trained SAEs through training: explained variance comes first, recovery later."
    ),
    "amplitude_figure": (
        "Density of the amplitude of an active feature under two readings: a narrow bump around one, and a wide one "
        "with a long tail."
    ),
    "norm_figure": (
        "Left: histogram of the norm of a sample. Right: the norm rises with the number of active features, and "
        "spreads around its mean."
    ),
    "sample_figure": (
        "Left: the true amplitudes of one sample's active features, beside its dot product with each. Right: its "
        "largest dot products in order; most belong to features that are not active."
    ),
    "detection_figure": (
        "Left: dot products with features that fire and with those that do not, on a log scale; they overlap, and "
        "the second are far more. Right: precision, recall and F1 against the threshold."
    ),
    "chance_figure": (
        "Best cosine of a true feature to random latents against the number of latents, on a log scale: it rises "
        "slowly along the exact curve and stays below the threshold for recovery."
    ),
}
"""Alt text of each figure function; a chapter's cell repeats it under mystnb: image: alt."""


class BookFigure(Figure):
    """A figure outside pyplot's list, so none stays open. Notebooks show it as a PNG of the text's width."""

    alt: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return {"image/png": self.png(), "text/plain": self.alt}, {"image/png": {"width": round(WIDTH * 100)}}

    def png(self) -> bytes:
        """The same bytes on every call: no date and no version inside."""
        with mpl.rc_context(THEME), io.BytesIO() as file:
            self.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
            return file.getvalue()


def alt(figure: Figure) -> str:
    """The figure's alt text. Raises ValueError for a figure that none of this module's functions made."""
    if not isinstance(figure, BookFigure) or not figure.alt:
        raise ValueError(f"{figure!r} has no alt text; make figures with saecore.report.figures")
    return figure.alt


def _figure(make: Callable[P, BookFigure]) -> Callable[P, BookFigure]:
    @functools.wraps(make)
    def draw(*args: P.args, **kwargs: P.kwargs) -> BookFigure:
        with mpl.rc_context(THEME):
            figure = make(*args, **kwargs)
        figure.alt = ALT[make.__name__]
        return figure

    return draw


@_figure
def recovery_curve(
    frame: pd.DataFrame,
    metric: str = "fraction_recovered",
    constraint: str = "free",
    batch_size: int = 2048,
) -> BookFigure:
    """``metric`` against training samples seen; a line per architecture, a panel per source.

    ``frame``: headline rows at every recorded step. ``fraction_recovered`` is made from the recorded counts.
    """
    rows = ledger.select(frame, constraint=constraint)
    rows = ledger.fractions(rows) if metric == "fraction_recovered" else rows
    table = compare.summary(rows.loc[rows["step"] > 0], ["source", "architecture", "step"], metric)
    sources = names.ordered(table["source"])
    figure = BookFigure(figsize=(WIDTH, 4.0))
    axes = _panels(figure, 1, len(sources), sharey=True)
    for ax, source in zip(axes, sources, strict=True):
        for architecture, part in _groups(table.loc[table["source"] == source], "architecture"):
            _line(ax, batch_size * part["step"], part, ARCHITECTURES[architecture])
        ax.set_xscale("log")
        ax.set_title(names.label(source).capitalize())
    _metric_axis(axes[0], metric, "y")
    if metric in names.SHARES:
        axes[0].set_ylim(-0.03, min(1.03, axes[0].get_ylim()[1]))
    _below(axes, "training samples seen")
    _architecture_legend(figure, table)
    return figure


@_figure
def recovery_bars(
    frame: pd.DataFrame, metrics: Sequence[str] = ("explained_variance", "fraction_recovered")
) -> BookFigure:
    """Figures 2, 3 and 9 of the paper: its numbers beside ours, a row per source, a column per metric.

    ``frame``: headline runs of the free SAE at their last step. The paper's numbers come from data/paper.
    """
    table = compare.compare_table(frame, compare.synthetic_requests(frame, metrics=metrics))
    sources, architectures = names.ordered(table["source"]), names.ordered(table["architecture"])
    figure = BookFigure(figsize=(WIDTH, 1.0 + len(sources) * (0.55 + 0.36 * len(architectures))))
    grid = figure.subplots(len(sources), len(metrics), sharex="col", sharey=True, squeeze=False)
    for source, line in zip(sources, grid, strict=True):
        for metric, ax in zip(metrics, line, strict=True):
            part = table.loc[(table["source"] == source) & (table["metric"] == metric)]
            _compared(ax, part.set_index("architecture").reindex(architectures), metric)
            ax.set_yticks(range(len(architectures)), [names.label(a) for a in architectures])
            ax.grid(visible=False, axis="y")
        line[0].set_title(names.label(source).capitalize())
    for metric, ax in zip(metrics, grid[-1], strict=True):
        _metric_axis(ax, metric, "x")
        ax.set_xlim(0, 1.3)
        ax.set_xticks(np.linspace(0, 1, 5))
    grid[0, 0].invert_yaxis()
    ours = Patch(color=VARIANTS["free"].colour, label="ours (interval over seeds)")
    figure.legend(handles=[ours, Line2D([], [], **PAPER, label="paper")], loc="outside lower center", ncol=2)
    return figure


@_figure
def cosine_histogram(
    cosines: Mapping[str, ArrayLike], chance: ArrayLike, threshold: float = RECOVERED, width: float = 0.02
) -> BookFigure:
    """Best cosine of each feature to any decoder row, by name; ``chance``: to as many random rows."""
    figure = BookFigure(figsize=(WIDTH, 3.4))
    ax = figure.subplots()
    edges = np.arange(0, 1 + width, width)
    random = np.histogram(np.asarray(chance), edges)[0] / np.asarray(chance).size
    ax.stairs(random, edges, fill=True, color=LIGHT, label="chance")
    for (name, values), style in zip(cosines.items(), _styles(list(cosines)), strict=True):
        shares = np.histogram(np.clip(np.asarray(values), 0, 1 - 1e-9), edges)[0] / np.asarray(values).size
        ax.stairs(shares, edges, color=style.colour, linestyle=style.line, linewidth=2, label=names.label(name))
    ax.axvline(threshold, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    ax.annotate(
        f"recovered: above {threshold:g}",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=11,
    )
    ax.set_xlim(0, 1)
    ax.set_xlabel("best cosine to a decoder row")
    ax.set_ylabel(f"features per bin of {width:g}")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    figure.legend(loc="outside lower center", ncol=min(4, len(cosines) + 1))
    return figure


@_figure
def recovery_by_frequency(
    frame: pd.DataFrame, samples: float = 0.0, spec: SourceSpec | None = None, bins: int = 8
) -> BookFigure:
    """Share recovered in each bin of p, a panel per architecture, a line per constraint.

    ``frame``: finished runs in the variable setting. With ``samples``, the number of training samples, a
    second axis counts how often a feature was seen.
    """
    spec = spec or SourceSpec()
    rows = ledger.binned(frame, "recovered_bin")
    edges = np.linspace(np.log10(spec.p_min), np.log10(spec.p_max), bins + 1)
    rows = rows.assign(p=10 ** ((edges[:-1] + edges[1:]) / 2)[rows["bin"]])
    table = compare.summary(rows, ["architecture", "constraint", "p"], "recovered_bin")
    architectures = names.ordered(table["architecture"])
    columns = min(3, len(architectures))
    lines = -(-len(architectures) // columns)
    figure = BookFigure(figsize=(WIDTH, 1.1 + lines * (2.35 if samples else 2.0)))
    axes = _panels(figure, lines, columns, sharex=True, sharey=True)
    for place, (ax, architecture) in enumerate(zip(axes, architectures, strict=False)):
        for constraint, part in _groups(table.loc[table["architecture"] == architecture], "constraint"):
            _line(ax, part["p"], part, VARIANTS[constraint], markersize=4)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.set_title(names.label(architecture))
        ax.tick_params(labelbottom=place + columns >= len(architectures))
        if samples and place < columns:
            top = ax.secondary_xaxis("top", functions=_times(samples))
            top.xaxis.set_major_locator(LogLocator(numticks=4))
            top.xaxis.set_minor_formatter(NullFormatter())
            top.tick_params(labelsize=10, pad=1)
            ax.set_title(names.label(architecture), pad=22)
    for ax in axes[len(architectures) :]:
        ax.remove()
    for ax in axes[:: max(columns, 1)]:
        _metric_axis(ax, "recovered_bin", "y", label=False)
    figure.supylabel("features recovered", fontsize=THEME["axes.labelsize"])
    _below(axes[columns * (lines - 1) : len(architectures)], "firing probability p of a feature", single=True)
    if samples:
        figure.suptitle("times the feature was seen in training", fontsize=THEME["axes.labelsize"])
    _variant_legend(figure, table)
    return figure


@_figure
def variants_bars(
    frame: pd.DataFrame, metrics: Sequence[str] = ("explained_variance", "fraction_recovered")
) -> BookFigure:
    """A row per architecture, a dot per constraint. ``frame``: one source and init, last steps."""
    tables = [compare.summary(frame, ["architecture", "constraint"], metric) for metric in metrics]
    architectures = names.ordered(tables[0]["architecture"])
    constraints = names.ordered(pd.concat(tables)["constraint"])
    step = 0.78 / max(len(constraints) - 1, 1)
    figure = BookFigure(figsize=(WIDTH, 1.3 + 0.95 * len(architectures)))
    axes = _panels(figure, 1, len(metrics), sharey=True)
    for ax, metric, table in zip(axes, metrics, tables, strict=True):
        for row in table.to_dict("records"):
            y = architectures.index(row["architecture"]) + step * constraints.index(row["constraint"]) - 0.39
            _dot(ax, y, row, VARIANTS[row["constraint"]])
        for edge in range(1, len(architectures)):
            ax.axhline(edge - 0.5, color=LIGHT, linewidth=0.8)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(len(architectures) - 0.5, -0.5)
        ax.set_yticks(range(len(architectures)), [names.label(a) for a in architectures])
        ax.tick_params(axis="y", length=0)
        _metric_axis(ax, metric, "x")
        ax.set_xlim(min(-0.02, 1.05 * np.nanmin(table[["mean", "low"]].to_numpy())), 1.03)
    _variant_legend(figure, pd.concat(tables), line=False)
    return figure


@_figure
def effects_plot(table: pd.DataFrame) -> BookFigure:
    """Plot of :func:`compare.effects`: a row per choice, a colour per architecture, a panel per source."""
    metric = str(table["metric"].iloc[0])
    sources = names.ordered(table["source"])
    choices = list(dict.fromkeys(table["choice"]))
    architectures = names.ordered(table["architecture"])
    share = metric in names.SHARES
    scaled = table.assign(mean=table["difference"] * (100 if share else 1))
    scaled[["low", "high"]] = table[["low", "high"]] * (100 if share else 1)
    step = 0.6 / max(len(architectures) - 1, 1)
    figure = BookFigure(figsize=(WIDTH, 1.4 + max(0.42, 0.16 * len(architectures)) * len(choices)))
    axes = _panels(figure, 1, len(sources), sharey=True)
    for ax, source in zip(axes, sources, strict=True):
        for row in scaled.loc[scaled["source"] == source].to_dict("records"):
            place = architectures.index(row["architecture"]) - (len(architectures) - 1) / 2
            _dot(ax, choices.index(row["choice"]) + step * place, row, ARCHITECTURES[row["architecture"]])
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(choices)), [names.setting(c) for c in choices])
        ax.set_ylim(len(choices) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.set_title(names.label(source).capitalize())
        for edge in range(1, len(choices)):
            ax.axhline(edge - 0.5, color=LIGHT, linewidth=0.8)
    unit = "\n(percentage points)" if share else ""
    _below(axes, f"change in {names.label(metric)}{unit}")
    _architecture_legend(figure, table, line=False)
    return figure


@_figure
def sweep_line(
    frame: pd.DataFrame,
    x: str,
    metric: str,
    by: str = "architecture",
    label: str = "",
    headline: float | None = None,
    log: bool = False,
) -> BookFigure:
    """``metric`` against ``x``, a column that ledger.expand or the caller added; a line per ``by``.

    ``headline``: the value of x in the headline runs, marked by a dotted line.
    """
    table = compare.summary(frame, [by, x], metric)
    styles = VARIANTS if by == "constraint" else ARCHITECTURES
    figure = BookFigure(figsize=(WIDTH, 4.0))
    ax = figure.subplots()
    for name, part in _groups(table, by):
        style = styles[name]
        part = part.sort_values(x)
        ax.errorbar(
            part[x],
            part["mean"],
            yerr=(part["high"] - part["mean"]).fillna(0),
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            capsize=3,
        )
    if log:
        ax.set_xscale("log")
        values = sorted(table[x].unique())
        ax.set_xticks(values if len(values) <= 8 else values[:: -(-len(values) // 8)])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
    if headline is not None:
        ax.axvline(headline, color=GREY, linestyle=":", linewidth=1.5)
        ax.annotate(
            "headline",
            (headline, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=GREY,
            fontsize=11,
        )
    ax.set_xlabel(label or names.SETTINGS.get(x, names.label(x)))
    _metric_axis(ax, metric, "y")
    if metric in names.SHARES:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    (_variant_legend if by == "constraint" else _architecture_legend)(figure, table)
    return figure


@_figure
def interference_figure(features: Mapping[int, ArrayLike], pairs: int = 500) -> BookFigure:
    """Cosines between features, by dimension. ``features``: unit rows for each number of dimensions.

    Left: all pairs among the first ``pairs`` features, and the exact density of random directions, dashed.
    """
    figure = BookFigure(figsize=(WIDTH, 3.8))
    left, right = _panels(figure, 1, 2)
    dimensions = sorted(features)
    shades = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(dimensions)))
    edges = np.linspace(-1, 1, 101)
    middle = (edges[1:] + edges[:-1]) / 2
    for place, (d, colour) in enumerate(zip(dimensions, shades, strict=True)):
        rows = np.asarray(features[d], dtype=np.float64)
        some = rows[:pairs]
        cosines = (some @ some.T)[np.triu_indices(len(some), 1)]
        left.stairs(np.histogram(cosines, edges, density=True)[0], edges, color=colour, linewidth=2)
        exact = (1 - middle**2) ** ((d - 3) / 2)
        left.plot(middle, exact / exact.sum() / (edges[1] - edges[0]), color=INK, linestyle="--", linewidth=1)
        nearest = coherence(torch.from_numpy(rows)).numpy()
        low, mid, high = np.quantile(nearest, [0.05, 0.5, 0.95])
        right.plot([place, place], [low, high], color=colour, alpha=0.4, linewidth=12, solid_capstyle="butt")
        right.plot(place, mid, "_", color=colour, markersize=12, markeredgewidth=2.5)
    left.set_xlabel("cosine of two features")
    left.set_ylabel("density")
    left.set_xlim(-1, 1)
    left.set_ylim(bottom=0)
    right.set_xticks(range(len(dimensions)), [str(d) for d in dimensions])
    right.set_xlim(-0.5, len(dimensions) - 0.5)
    right.set_ylim(0, 1.02)
    right.set_xlabel("dimensions n")
    right.set_ylabel("cosine to the nearest feature")
    right.set_title("median, middle 90 %", fontsize=11)
    handles = [Line2D([], [], color=c, label=f"n = {d}") for d, c in zip(dimensions, shades, strict=True)]
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="exact"))
    figure.legend(handles=handles, loc="outside lower center", ncol=min(6, len(handles)))
    return figure


@_figure
def probabilities_figure(probabilities: Mapping[str, ArrayLike]) -> BookFigure:
    """Firing probabilities by source: each feature's, and how few features carry most activations."""
    figure = BookFigure(figsize=(WIDTH, 3.8))
    left, right = _panels(figure, 1, 2)
    for (name, values), style in zip(probabilities.items(), (INK_LINE, BLUE_LINE), strict=False):
        p = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        left.plot(np.arange(1, len(p) + 1), p, color=style.colour, linestyle=style.line, label=names.label(name))
        carried = np.concatenate([[0], np.cumsum(p) / p.sum()])
        right.plot(np.linspace(0, 1, len(p) + 1), carried, color=style.colour, linestyle=style.line)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("rank of the feature")
    left.set_ylabel("firing probability p")
    right.set_xlabel("most frequent features")
    right.set_ylabel("share of all activations")
    right.set_xlim(0, 1)
    right.set_ylim(0, 1.02)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    figure.legend(loc="outside lower center", ncol=2)
    return figure


@_figure
def superposition_sketch(
    features: ArrayLike, active: Sequence[int] = (0, 4), amplitudes: Sequence[float] = (1.0, 0.8)
) -> BookFigure:
    """More unit directions (n_features by 2) than dimensions, one sample, and what each direction sees of it."""
    rows, amplitude = np.asarray(features, dtype=np.float64), dict(zip(active, amplitudes, strict=True))
    x = sum((c * rows[i] for i, c in amplitude.items()), np.zeros(2))
    colours = {i: c for i, c in zip(amplitude, (BLUE_LINE.colour, "#E69F00", "#B5400A", "#56B4E9"), strict=False)}
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for i, row in enumerate(rows):
        if i not in amplitude:
            _arrow(left, np.zeros(2), row, LIGHT, 1.5)
            left.annotate(str(i), 1.1 * row, ha="center", va="center", color=GREY, fontsize=10)
    start = np.zeros(2)
    for i, c in amplitude.items():
        _arrow(left, np.zeros(2), rows[i], colours[i], 2.5)
        left.annotate(str(i), 1.1 * rows[i], ha="center", va="center", color=INK, fontsize=10, weight="bold")
        left.plot(*zip(start, start + c * rows[i], strict=True), color=colours[i], linestyle=":", linewidth=2)
        start = start + c * rows[i]
    _arrow(left, np.zeros(2), x, INK, 2.5)
    left.annotate("x", 1.1 * x, ha="center", va="center", weight="bold", fontsize=13)
    left.set_aspect("equal")
    reach = 1.2 * max(1.0, np.abs(x).max())
    left.set_xlim(-1.25, max(1.25, reach))
    left.set_ylim(-1.25, max(1.25, reach))
    left.set_axis_off()
    left.set_title(f"{len(rows)} features in 2 dimensions")
    dots = rows @ x
    right.bar(range(len(rows)), dots, color=[colours.get(i, "#BBBBBB") for i in range(len(rows))])
    for i, c in amplitude.items():
        right.plot([i - 0.4, i + 0.4], [c, c], color=INK, linewidth=2.5)
    right.axhline(0, color=GREY, linewidth=1)
    right.set_xticks(range(len(rows)))
    right.grid(visible=False, axis="x")
    right.set_xlabel("feature")
    right.set_ylabel("dot product with x")
    right.set_title("bars: seen in x; lines: the truth", fontsize=11)
    return figure


@_figure
def selection_figure(norms: ArrayLike, counts: Mapping[str, ArrayLike], l0: int = 20, groups: int = 16) -> BookFigure:
    """How many codes each row gets. ``norms``: of the centred input's rows; ``counts``: codes per row, by name.

    Left: mean and the middle 90 % of the rows in ``groups`` groups of equal size by norm.
    """
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = _panels(figure, 1, 2)
    norm = np.asarray(norms, dtype=np.float64)
    order = np.array_split(np.argsort(norm), groups)
    top = max(int(np.asarray(c).max()) for c in counts.values())
    edges = np.arange(-0.5, top + 1.5, max(1, top // 60))
    for (name, values), style in zip(counts.items(), _styles(list(counts)), strict=True):
        codes = np.asarray(values, dtype=np.float64)
        if len(codes) != len(norm):
            raise ValueError(f"{name} has {len(codes)} rows of counts beside {len(norm)} norms; pass the same rows")
        centre = [norm[rows].mean() for rows in order]
        low, high = np.array([np.quantile(codes[rows], [0.05, 0.95]) for rows in order]).T
        left.fill_between(centre, low, high, color=style.colour, alpha=0.18, linewidth=0)
        left.plot(centre, [codes[r].mean() for r in order], color=style.colour, marker=style.marker, markersize=4)
        shares = np.histogram(codes, edges)[0] / len(codes)
        right.stairs(shares, edges, color=style.colour, linewidth=2, label=names.label(name), fill=False)
    left.axhline(l0, color=GREY, linestyle=":", linewidth=1.5)
    left.set_xlabel("norm of the sample")
    left.set_ylabel("codes selected")
    left.set_ylim(bottom=0)
    right.set_xlabel("codes selected")
    right.set_ylabel("samples")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    figure.legend(loc="outside lower center", ncol=min(4, len(counts)))
    return figure


@_figure
def headline_figure(table: pd.DataFrame, metrics: Sequence[str], floors: Mapping[str, float]) -> BookFigure:
    """The paper's numbers for each variant, a panel per metric, with the best baseline ringed.

    ``table``: one architecture's rows of :func:`saecore.report.paper.table`, ``value`` and ``spread`` as numbers.
    """
    shown = table.assign(variant=table["variant"].replace({v: k for k, v in paper.VARIANTS.items()}))
    pairs = set(zip(shown["variant"], shown["init"], strict=True))
    order = [(v, i) for v in names.ordered(shown["variant"]) for i in sorted(i for w, i in pairs if w == v)]
    figure = BookFigure(figsize=(WIDTH, 1.3 + 0.36 * len(order)))
    axes = _panels(figure, 1, len(metrics), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = shown.loc[shown["metric"] == metric].set_index(["variant", "init"])
        values = [float(rows.at[which, "value"]) for which in order]
        best = max((v, y) for y, (v, which) in enumerate(zip(values, order, strict=True)) if which[0] != "free")
        for y, (which, value) in enumerate(zip(order, values, strict=True)):
            style, spread = VARIANTS[which[0]], float(rows.at[which, "spread"])
            ax.plot([value - spread, value + spread], [y, y], color=style.colour, linewidth=1.8)
            ax.plot(value, y, marker=style.marker, color=style.colour, markersize=7)
            if which[0] == "free":
                ax.axvline(value, color=style.colour, linewidth=1)
        ax.plot(*best, "o", markersize=15, markerfacecolor="none", markeredgecolor=INK)
        if metric in floors:
            ax.axvline(floors[metric], color=GREY, linestyle=":", linewidth=1.5)
        ax.set_xlabel(names.label(metric).replace(", ", ",\n").replace(" (", "\n("))
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(order)), [f"{names.label(v)}, {init}" for v, init in order])
    axes[0].set_ylabel("variant, initialisation")
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    ring = Line2D([], [], **{**PAPER, "marker": "o", "markersize": 12, "markeredgewidth": 1}, label="best baseline")
    floor = Line2D([], [], color=GREY, linestyle=":", linewidth=1.5, label="floor")
    trained = Line2D([], [], color=VARIANTS["free"].colour, linewidth=1, label="trained")
    figure.legend(handles=[ring, trained, floor], loc="outside lower center", ncol=3)
    return figure


@_figure
def tradeoff_figure(frame: pd.DataFrame) -> BookFigure:
    """Share of features recovered against explained variance, a dot per run, a thin line through a trained SAE's steps.

    ``frame``: one source; runs at their last step, and trained ones at earlier steps as well.
    """
    rows = pd.concat([ledger.select(frame, metric="explained_variance"), ledger.fractions(frame)])
    keys = ["architecture", "constraint", "seed", "step"]
    table = rows.pivot_table(index=keys, columns="metric", values="value").reset_index()
    figure = BookFigure(figsize=(WIDTH, 4.2))
    ax = figure.subplots()
    for _, part in table.groupby(keys[:3]):
        architecture, constraint = (str(part[name].iloc[0]) for name in keys[:2])
        style, marker = VARIANTS[constraint], ARCHITECTURES[architecture].marker
        x, y = part["explained_variance"], part["fraction_recovered"]
        if constraint == "free":
            ax.plot(x, y, color=style.colour, linewidth=0.9, alpha=0.6)
        size = {"marker": marker, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
        ax.plot(x.iloc[-1], y.iloc[-1], color=style.colour, linestyle="none", **size)
    ax.set_xlabel(names.label("explained_variance"))
    ax.set_ylim(-0.03, 1.03)
    _metric_axis(ax, "fraction_recovered", "y")
    colours = [Patch(color=VARIANTS[c].colour, label=names.label(c)) for c in names.ordered(table["constraint"])]
    shapes = [
        Line2D([], [], color=INK, marker=ARCHITECTURES[a].marker, linestyle="none", label=names.label(a))
        for a in names.ordered(table["architecture"])
    ]
    figure.legend(handles=[*shapes, *colours], loc="outside lower center", ncol=3)
    return figure


@_figure
def amplitude_figure(sigmas: Mapping[str, float]) -> BookFigure:
    """Density of LogNormal(0, sigma) for each reading, by name."""
    figure = BookFigure(figsize=(WIDTH, 2.8))
    ax = figure.subplots()
    amplitude = np.linspace(0.01, 4, 500)
    for (name, sigma), style in zip(sigmas.items(), (BLUE_LINE, INK_LINE), strict=False):
        density = np.exp(-(np.log(amplitude) ** 2) / (2 * sigma**2)) / (amplitude * sigma * np.sqrt(2 * np.pi))
        ax.plot(amplitude, density, color=style.colour, linestyle=style.line, label=name)
    ax.set_xlim(0, 4)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("amplitude c of an active feature")
    ax.set_ylabel("density")
    ax.legend()
    return figure


@_figure
def norm_figure(norms: ArrayLike, active: ArrayLike) -> BookFigure:
    """How the norm of a sample varies (left), and follows the number of its active features (right)."""
    norm, count = np.asarray(norms, dtype=np.float64), np.asarray(active)
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = _panels(figure, 1, 2)
    left.hist(norm, bins=50, weights=np.full(len(norm), 1 / len(norm)), color=BLUE_LINE.colour)
    left.set_xlabel("norm of the sample")
    left.set_ylabel("share of samples")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    groups = [k for k in np.unique(count) if (count == k).sum() >= 20]
    low, high = np.array([np.quantile(norm[count == k], [0.05, 0.95]) for k in groups]).T
    right.fill_between(groups, low, high, color=BLUE_LINE.colour, alpha=0.18, linewidth=0)
    right.plot(groups, [norm[count == k].mean() for k in groups], color=BLUE_LINE.colour)
    right.set_xlabel("active features in the sample")
    right.set_ylabel("norm of the sample")
    right.set_title("mean, middle 90 %", fontsize=11)
    return figure


@_figure
def sample_figure(dots: ArrayLike, active: ArrayLike, amplitudes: ArrayLike, shown: int = 60) -> BookFigure:
    """One sample: ``dots`` with every feature, the indices that are active and their true amplitudes."""
    dot, on, amplitude = np.asarray(dots), np.asarray(active), np.asarray(amplitudes)
    order = np.argsort(-amplitude)
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5), sharey=True)
    left.bar(range(len(on)), dot[on][order], color=BLUE_LINE.colour)
    left.plot(range(len(on)), amplitude[order], "_", color=INK, markersize=9, markeredgewidth=2)
    left.set_xlabel("active features,\nlargest amplitude first")
    left.set_ylabel("dot product with x")
    first = np.argsort(-dot)[:shown]
    right.bar(range(shown), dot[first], color=np.where(np.isin(first, on), BLUE_LINE.colour, "#BBBBBB"))
    right.set_xlabel(f"all features, the {shown} largest\ndot products in order")
    for ax in (left, right):
        ax.axhline(0, color=GREY, linewidth=1)
        ax.grid(visible=False, axis="x")
    handles = [
        Patch(color=BLUE_LINE.colour, label="active"),
        Patch(color="#BBBBBB", label="not active"),
        Line2D([], [], color=INK, marker="_", linestyle="none", markeredgewidth=2, label="true amplitude"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


@_figure
def detection_figure(found: Detection, rows: int) -> BookFigure:
    """Scores of features that fire and of those that do not, per sample (left); what each threshold tells (right)."""
    figure = BookFigure(figsize=(WIDTH, 3.6))
    left, right = _panels(figure, 1, 2)
    best = found.best()
    join = max(1, round(0.1 / float(found.edges[1] - found.edges[0])))  # thresholds are finer than a histogram can be
    starts, edges = np.arange(0, len(found.fired), join), np.append(found.edges[:-1:join], found.edges[-1])
    per = rows * np.diff(edges)
    for counts, style, name in ((found.silent, INK_LINE, "not active"), (found.fired, BLUE_LINE, "active")):
        shown = np.add.reduceat(counts, starts) / per
        left.stairs(shown, edges, color=style.colour, linestyle=style.line, linewidth=2, label=name)
    left.set_yscale("log")
    left.set_xlabel("dot product with the sample")
    left.set_ylabel("features per sample and unit")
    left.set_ylim(bottom=0.5 / per.max())
    seen = found.edges[:-1][found.fired + found.silent > 0]
    left.set_xlim(seen.min(), seen.max())
    thresholds = found.edges[:-1]
    positive = thresholds >= 0
    for values, colour, line, name in (
        (found.precision(), "#B5400A", "--", "precision"),
        (found.recall(), "#E69F00", "-.", "recall"),
        (found.f1(), INK, "-", "F1"),
    ):
        right.plot(thresholds[positive], values[positive], color=colour, linestyle=line, label=name)
    right.plot(best.threshold, best.f1, "o", color=INK)
    right.set_xlim(0, min(3.0, float(seen.max())))
    right.set_ylim(0, 1.02)
    right.set_xlabel("threshold on the dot product")
    right.set_ylabel("precision, recall, F1")
    for ax in (left, right):
        ax.axvline(best.threshold, color=GREY, linestyle=":", linewidth=1.5)
    figure.legend(loc="outside lower center", ncol=5, columnspacing=1.0)
    return figure


@_figure
def chance_figure(frame: pd.DataFrame, d_model: int, threshold: float = RECOVERED) -> BookFigure:
    """Best cosine of a feature to random latents. ``frame``: latents, seed, mean and max over the features."""
    figure = BookFigure(figsize=(WIDTH, 3.4))
    ax = figure.subplots()
    latents = np.geomspace(frame["latents"].min(), frame["latents"].max(), 60)
    ax.plot(
        latents,
        [typical_best(d_model, round(n)) for n in latents],
        color=INK,
        linestyle="--",
        linewidth=1.2,
        label="exact median",
    )
    for column, style, name in (("max", INK_LINE, "largest over features"), ("mean", BLUE_LINE, "mean over features")):
        ax.plot(frame["latents"], frame[column], style.marker, color=style.colour, alpha=0.6, label=name)
    ax.axhline(threshold, color=INK, linewidth=1.2, linestyle=(0, (1, 1)))
    note = {"xycoords": ("axes fraction", "data"), "xytext": (0, -4), "textcoords": "offset points", "va": "top"}
    ax.annotate(f"recovered: above {threshold:g}", (0.01, threshold), fontsize=11, **note)
    ax.set_xscale("log")
    ax.set_ylim(0, 1)
    ax.set_xlabel("random latents")
    ax.set_ylabel("best cosine to a latent")
    figure.legend(loc="outside lower center", ncol=3, columnspacing=1.0)
    return figure


PAPER: dict[str, Any] = {
    "marker": "D",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markeredgecolor": INK,
    "markeredgewidth": 1.6,
    "markersize": 7,
}
INK_LINE, BLUE_LINE = Style(GREY, "o", "--"), Style(VARIANTS["free"].colour, "o")


def _panels(figure: Figure, rows: int, columns: int, **shared: Any) -> list[Axes]:
    return list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())


def _times(samples: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From a firing probability to times seen, and back."""
    return (lambda p: p * samples), (lambda n: n / samples)


def _below(axes: Sequence[Axes], text: str, single: bool = False) -> None:
    """The label under a row of panels: under the middle one where ``single``, under each otherwise.

    A label of the whole figure would run into the legend below it.
    """
    for ax in [axes[len(axes) // 2]] if single else axes:
        ax.set_xlabel(text)


def _groups(table: pd.DataFrame, by: str) -> list[tuple[str, pd.DataFrame]]:
    return [(name, table.loc[table[by] == name]) for name in names.ordered(table[by])]


def _styles(keys: Sequence[str]) -> list[Style]:
    """The book's style of each name; of names that have none, those of the architectures in turn."""
    known = {**ARCHITECTURES, **VARIANTS}
    spare = iter([style for name, style in ARCHITECTURES.items() if name not in keys] * (1 + len(keys)))
    return [known[key] if key in known else next(spare) for key in keys]


def _line(ax: Axes, x: Any, part: pd.DataFrame, style: Style, **options: Any) -> None:
    if max(part["n"]) > 1:
        ax.fill_between(x, part["low"], part["high"], color=style.colour, alpha=0.15, linewidth=0)
    options = {"markersize": 4.5, **options}
    ax.plot(x, part["mean"], color=style.colour, linestyle=style.line, marker=style.marker, **options)


def _dot(ax: Axes, y: float, row: Mapping[str, Any], style: Style) -> None:
    if row["n"] > 1:
        ax.plot([row["low"], row["high"]], [y, y], color=style.colour, linewidth=1.8)
    size = 10 if style.marker == "*" else 7
    options: dict[str, Any] = {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.5}
    ax.plot(row["mean"], y, marker=style.marker, color=style.colour, **options)


def _compared(ax: Axes, part: pd.DataFrame, metric: str) -> None:
    """Ours as bars with intervals and numbers, the paper's as hollow diamonds, on rows 0, 1, ..."""
    y = np.arange(len(part))
    ax.barh(y, part["mean"], height=0.62, color=VARIANTS["free"].colour)
    for place, row in zip(y, part.to_dict("records"), strict=True):
        if not np.isfinite(row["mean"]):
            continue
        if row["n"] > 1:
            ax.plot([max(row["low"], 0), row["high"]], [place, place], color=INK, linewidth=1.5)
        if np.isfinite(row["paper"]):
            ax.plot(row["paper"], place, **PAPER, clip_on=False, zorder=4)
        right = np.nanmax([row["mean"], row["high"], row["paper"]])
        text = _percent(row["mean"]) if metric in names.SHARES else f"{row['mean']:.2f}"
        ax.annotate(text, (right, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=10.5)


def _percent(share: float) -> str:
    return "0 %" if share == 0 else f"{100 * share:.2f} %" if share < 0.01 else f"{100 * share:.1f} %"


def _metric_axis(ax: Axes, metric: str, axis: str, label: bool = True) -> None:
    text = names.label(metric)
    if metric in names.SHARES:
        getattr(ax, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    if label:
        getattr(ax, f"set_{axis}label")(text)


def _architecture_legend(figure: Figure, table: pd.DataFrame, line: bool = True) -> None:
    _legend(figure, names.ordered(table["architecture"]), ARCHITECTURES, line)


def _variant_legend(figure: Figure, table: pd.DataFrame, line: bool = True) -> None:
    _legend(figure, names.ordered(table["constraint"]), VARIANTS, line)


def _legend(figure: Figure, shown: Sequence[str], styles: Mapping[str, Style], line: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=styles[name].colour,
            marker=styles[name].marker,
            linestyle=styles[name].line if line else "none",
            label=names.label(name),
        )
        for name in shown
    ]
    columns = len(handles) if len(handles) <= 3 else 3 if len(handles) <= 6 else 4
    figure.legend(handles=handles, loc="outside lower center", ncol=columns)


def _arrow(ax: Axes, start: ArrayLike, end: ArrayLike, colour: str, width: float) -> None:
    props = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=tuple(np.asarray(end)), xytext=tuple(np.asarray(start)), arrowprops=props)
