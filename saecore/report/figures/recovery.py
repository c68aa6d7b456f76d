"""What SAEs reach: recovery, reconstruction and effects, by architecture and constraint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from saecore.report import compare, ledger, names, paper
from saecore.report.figures.base import (
    ARCHITECTURES,
    GREY,
    INK,
    LIGHT,
    PAPER,
    THEME,
    VARIANTS,
    WIDTH,
    BookFigure,
    architecture_legend,
    below,
    dot_of,
    drawn,
    groups_of,
    line_of,
    metric_axis,
    panels,
    variant_legend,
)
from saecore.spec import SourceSpec


@drawn(
    "Lines, one per architecture: a metric, such as the share of true features recovered, against the number of "
    "training samples seen (log scale), with a band where there are several seeds. One panel per source of samples."
)
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
    axes = panels(figure, 1, len(sources), sharey=True)
    for ax, source in zip(axes, sources, strict=True):
        for architecture, part in groups_of(table.loc[table["source"] == source], "architecture"):
            line_of(ax, batch_size * part["step"], part, ARCHITECTURES[architecture])
        ax.set_xscale("log")
        ax.set_title(names.label(source).capitalize())
    metric_axis(axes[0], metric, "y")
    if metric in names.SHARES:
        axes[0].set_ylim(-0.03, min(1.03, axes[0].get_ylim()[1]))
    below(axes, "training samples seen")
    architecture_legend(figure, table)
    return figure


@drawn(
    "Bars, one per architecture: explained variance on the left, share of true features recovered on the right, "
    "with intervals over seeds; a hollow diamond marks the paper's value. One row per source of samples."
)
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
        metric_axis(ax, metric, "x")
        ax.set_xlim(0, 1.3)
        ax.set_xticks(np.linspace(0, 1, 5))
    grid[0, 0].invert_yaxis()
    ours = Patch(color=VARIANTS["free"].colour, label="ours (interval over seeds)")
    figure.legend(handles=[ours, Line2D([], [], **PAPER, label="paper")], loc="outside lower center", ncol=2)
    return figure


@drawn(
    "Lines: the share of features recovered against how often a feature fires (log scale), one panel per "
    "architecture, one line per constraint, with intervals over seeds."
)
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
    axes = panels(figure, lines, columns, sharex=True, sharey=True)
    for place, (ax, architecture) in enumerate(zip(axes, architectures, strict=False)):
        for constraint, part in groups_of(table.loc[table["architecture"] == architecture], "constraint"):
            line_of(ax, part["p"], part, VARIANTS[constraint], markersize=4)
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
        metric_axis(ax, "recovered_bin", "y", label=False)
    figure.supylabel("features recovered", fontsize=THEME["axes.labelsize"])
    below(axes[columns * (lines - 1) : len(architectures)], "firing probability p of a feature", single=True)
    if samples:
        figure.suptitle("times the feature was seen in training", fontsize=THEME["axes.labelsize"])
    variant_legend(figure, table)
    return figure


@drawn(
    "Dots with intervals over seeds: explained variance on the left, share of features recovered on the right, "
    "for each architecture and, by colour, each constraint from trained to oracle."
)
def variants_bars(
    frame: pd.DataFrame, metrics: Sequence[str] = ("explained_variance", "fraction_recovered")
) -> BookFigure:
    """A row per architecture, a dot per constraint. ``frame``: one source and init, last steps."""
    tables = [compare.summary(frame, ["architecture", "constraint"], metric) for metric in metrics]
    architectures = names.ordered(tables[0]["architecture"])
    constraints = names.ordered(pd.concat(tables)["constraint"])
    step = 0.78 / max(len(constraints) - 1, 1)
    figure = BookFigure(figsize=(WIDTH, 1.3 + 0.95 * len(architectures)))
    axes = panels(figure, 1, len(metrics), sharey=True)
    for ax, metric, table in zip(axes, metrics, tables, strict=True):
        for row in table.to_dict("records"):
            y = architectures.index(row["architecture"]) + step * constraints.index(row["constraint"]) - 0.39
            dot_of(ax, y, row, VARIANTS[row["constraint"]])
        for edge in range(1, len(architectures)):
            ax.axhline(edge - 0.5, color=LIGHT, linewidth=0.8)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(len(architectures) - 0.5, -0.5)
        ax.set_yticks(range(len(architectures)), [names.label(a) for a in architectures])
        ax.tick_params(axis="y", length=0)
        metric_axis(ax, metric, "x")
        ax.set_xlim(min(-0.02, 1.05 * np.nanmin(table[["mean", "low"]].to_numpy())), 1.03)
    variant_legend(figure, pd.concat(tables), line=False)
    return figure


@drawn(
    "Dots with intervals: how far each choice that the paper leaves open moves the headline number, one row per "
    "choice, one colour per architecture; a vertical line marks no change."
)
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
    axes = panels(figure, 1, len(sources), sharey=True)
    for ax, source in zip(axes, sources, strict=True):
        for row in scaled.loc[scaled["source"] == source].to_dict("records"):
            place = architectures.index(row["architecture"]) - (len(architectures) - 1) / 2
            dot_of(ax, choices.index(row["choice"]) + step * place, row, ARCHITECTURES[row["architecture"]])
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(choices)), [names.setting(c) for c in choices])
        ax.set_ylim(len(choices) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.set_title(names.label(source).capitalize())
        for edge in range(1, len(choices)):
            ax.axhline(edge - 0.5, color=LIGHT, linewidth=0.8)
    unit = "\n(percentage points)" if share else ""
    below(axes, f"change in {names.label(metric)}{unit}")
    architecture_legend(figure, table, line=False)
    return figure


@drawn(
    "Lines with intervals over seeds: a metric against the setting that was swept, one line per architecture or "
    "constraint."
)
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
    for name, part in groups_of(table, by):
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
    metric_axis(ax, metric, "y")
    if metric in names.SHARES:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    (variant_legend if by == "constraint" else architecture_legend)(figure, table)
    return figure


@drawn(
    "Dots with the paper's spread: each frozen variant and the trained SAE, one panel per metric. A ring marks "
    "the best baseline of each panel."
)
def headline_figure(table: pd.DataFrame, metrics: Sequence[str], floors: Mapping[str, float]) -> BookFigure:
    """The paper's numbers for each variant, a panel per metric, with the best baseline ringed.

    ``table``: one architecture's rows of :func:`saecore.report.paper.table`, ``value`` and ``spread`` as numbers.
    """
    shown = table.assign(variant=table["variant"].replace({v: k for k, v in paper.VARIANTS.items()}))
    pairs = set(zip(shown["variant"], shown["init"], strict=True))
    order = [(v, i) for v in names.ordered(shown["variant"]) for i in sorted(i for w, i in pairs if w == v)]
    figure = BookFigure(figsize=(WIDTH, 1.3 + 0.36 * len(order)))
    axes = panels(figure, 1, len(metrics), sharey=True)
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


@drawn(
    "Share of features recovered against explained variance, a dot per run, by constraint and architecture. Thin "
    "lines follow trained SAEs through training: explained variance comes first, recovery later."
)
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
    metric_axis(ax, "fraction_recovered", "y")
    colours = [Patch(color=VARIANTS[c].colour, label=names.label(c)) for c in names.ordered(table["constraint"])]
    shapes = [
        Line2D([], [], color=INK, marker=ARCHITECTURES[a].marker, linestyle="none", label=names.label(a))
        for a in names.ordered(table["architecture"])
    ]
    figure.legend(handles=[*shapes, *colours], loc="outside lower center", ncol=3)
    return figure


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


def _times(samples: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From a firing probability to times seen, and back."""
    return (lambda p: p * samples), (lambda n: n / samples)
