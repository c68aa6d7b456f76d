"""The synthetic world: its features, its samples, what can be read off them, and what chance gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import ArrayLike

from saecore.metrics.detection import Detection
from saecore.metrics.geometry import coherence, typical_best
from saecore.metrics.recovery import RECOVERED
from saecore.report import names
from saecore.report.figures.base import (
    BLUE_LINE,
    GREY,
    INK,
    INK_LINE,
    LIGHT,
    WIDTH,
    BookFigure,
    drawn,
    panels,
    styles_of,
)


@drawn(
    "Histograms of the best cosine between each true feature and any decoder row. A grey area shows the same for "
    "random directions, a dashed line the threshold above which a feature counts as recovered."
)
def cosine_histogram(
    cosines: Mapping[str, ArrayLike], chance: ArrayLike, threshold: float = RECOVERED, width: float = 0.02
) -> BookFigure:
    """Best cosine of each feature to any decoder row, by name; ``chance``: to as many random rows."""
    figure = BookFigure(figsize=(WIDTH, 3.4))
    ax = figure.subplots()
    edges = np.arange(0, 1 + width, width)
    random = np.histogram(np.asarray(chance), edges)[0] / np.asarray(chance).size
    ax.stairs(random, edges, fill=True, color=LIGHT, label="chance")
    for (name, values), style in zip(cosines.items(), styles_of(list(cosines)), strict=True):
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
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    figure.legend(loc="outside lower center", ncol=min(4, len(cosines) + 1))
    return figure


@drawn(
    "Left: the distribution of the cosine between pairs of random features, narrower in more dimensions. Right: "
    "the cosine of each feature to its nearest other feature, falling as dimensions grow."
)
def interference_figure(features: Mapping[int, ArrayLike], pairs: int = 500) -> BookFigure:
    """Cosines between features, by dimension. ``features``: unit rows for each number of dimensions.

    Left: all pairs among the first ``pairs`` features, and the exact density of random directions, dashed.
    """
    figure = BookFigure(figsize=(WIDTH, 3.8))
    left, right = panels(figure, 1, 2)
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


@drawn(
    "Left: firing probability of each feature, from the most to the least frequent, on log scales. Right: the "
    "share of all activations that the most frequent features carry."
)
def probabilities_figure(probabilities: Mapping[str, ArrayLike]) -> BookFigure:
    """Firing probabilities by source: each feature's, and how few features carry most activations."""
    figure = BookFigure(figsize=(WIDTH, 3.8))
    left, right = panels(figure, 1, 2)
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


@drawn(
    "Left: many unit directions in a plane, of which a few are active and add up to one sample. Right: the "
    "sample's dot product with every direction; directions that are not active respond as well."
)
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


@drawn(
    "Left: how many codes a sample gets against the norm of the sample, for each kind of selection. Right: the "
    "distribution of the number of codes per sample."
)
def selection_figure(norms: ArrayLike, counts: Mapping[str, ArrayLike], l0: int = 20, groups: int = 16) -> BookFigure:
    """How many codes each row gets. ``norms``: of the centred input's rows; ``counts``: codes per row, by name.

    Left: mean and the middle 90 % of the rows in ``groups`` groups of equal size by norm.
    """
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = panels(figure, 1, 2)
    norm = np.asarray(norms, dtype=np.float64)
    order = np.array_split(np.argsort(norm), groups)
    top = max(int(np.asarray(c).max()) for c in counts.values())
    edges = np.arange(-0.5, top + 1.5, max(1, top // 60))
    for (name, values), style in zip(counts.items(), styles_of(list(counts)), strict=True):
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


@drawn(
    "Density of the amplitude of an active feature under two readings: a narrow bump around one, and a wide one "
    "with a long tail."
)
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


@drawn(
    "Left: histogram of the norm of a sample. Right: the norm rises with the number of active features, and "
    "spreads around its mean."
)
def norm_figure(norms: ArrayLike, active: ArrayLike) -> BookFigure:
    """How the norm of a sample varies (left), and follows the number of its active features (right)."""
    norm, count = np.asarray(norms, dtype=np.float64), np.asarray(active)
    figure = BookFigure(figsize=(WIDTH, 3.4))
    left, right = panels(figure, 1, 2)
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


@drawn(
    "Left: the true amplitudes of one sample's active features, beside its dot product with each. Right: its "
    "largest dot products in order; most belong to features that are not active."
)
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


@drawn(
    "Left: dot products with features that fire and with those that do not, on a log scale; they overlap, and the "
    "second are far more. Right: precision, recall and F1 against the threshold."
)
def detection_figure(found: Detection, rows: int) -> BookFigure:
    """Scores of features that fire and of those that do not, per sample (left); what each threshold tells (right)."""
    figure = BookFigure(figsize=(WIDTH, 3.6))
    left, right = panels(figure, 1, 2)
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


@drawn(
    "Best cosine of a true feature to random latents against the number of latents, on a log scale: it rises "
    "slowly along the exact curve and stays below the threshold for recovery."
)
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


def _arrow(ax: Axes, start: ArrayLike, end: ArrayLike, colour: str, width: float) -> None:
    props = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=tuple(np.asarray(end)), xytext=tuple(np.asarray(start)), arrowprops=props)
