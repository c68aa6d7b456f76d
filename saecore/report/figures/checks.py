"""The downstream checks: interpretability, sparse probing and causal editing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from saecore.report import compare, ledger, names
from saecore.report.figures.base import (
    GREY,
    INK,
    LIGHT,
    VARIANTS,
    WIDTH,
    BookFigure,
    Style,
    dot_of,
    drawn,
    groups_of,
    line_of,
    panels,
)

EDITED = VARIANTS | {"mdas": Style("#000000", "*")}
"""What edits are made by; the floors are a line."""
ENDS = {"labels": (0, (4, 3)), "random_tokens": ":"}


@drawn(
    "Cause against Isolation, a panel per attribute: marks for the trained SAE, its variants, neurons, PCA and MDAS, "
    "with intervals over seeds. A dashed diagonal joins no edit and everything swapped; what lies above it is edited "
    "apart from the rest."
)
def editing_figure(frame: pd.DataFrame, attributes: Sequence[str]) -> BookFigure:
    """``frame``: rows of one source and architecture, one init a constraint, and of the references on it."""
    shown = [c for c in names.ordered(frame["constraint"]) if c in EDITED]
    columns = min(3, len(attributes))
    rows = -(-len(attributes) // columns)
    figure = BookFigure(figsize=(WIDTH, 1.2 + 2.3 * rows))
    axes = panels(figure, rows, columns, sharex=True, sharey=True)
    for ax, attribute in zip(axes, attributes, strict=False):
        ax.plot([0, 1], [1, 0], color=GREY, linestyle="--", linewidth=1.2)
        sides = [compare.summary(frame, ["constraint"], f"editing_{m}_{attribute}") for m in ("isolation", "cause")]
        x, y = (side.set_index("constraint").to_dict("index") for side in sides)
        for name in shown:
            _cross_of(ax, x[name], y[name], EDITED[name])
        ax.set_title(attribute.replace("_", " "))
    for ax in axes[len(attributes) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel("Cause")
    for ax in axes[max(0, len(attributes) - columns) : len(attributes)]:
        ax.set_xlabel("Isolation")
    axes[0].set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    handles = [
        Line2D([], [], color=EDITED[n].colour, marker=EDITED[n].marker, linestyle="none", label=names.label(n))
        for n in shown
    ]
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.2, label="floor"))
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


def _cross_of(ax: Axes, x: Mapping[str, Any], y: Mapping[str, Any], style: Style) -> None:
    """A mark, with an interval each way where there are several seeds."""
    for along, across in ((x, y), (y, x)):
        if along["n"] > 1:
            line = [along["low"], along["high"]], [across["mean"]] * 2
            ax.plot(*(line if along is x else line[::-1]), color=style.colour, linewidth=1.4)
    size = 11 if style.marker == "*" else 7
    options: dict[str, Any] = {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.5}
    ax.plot(x["mean"], y["mean"], marker=style.marker, color=style.colour, **options)


@drawn(
    "Lines: the accuracy of each variant under each way to ask, with intervals over seeds. A dashed line above is the "
    "ceiling, made of labels; a dotted line below is the floor, made of random tokens. Lines of variants cross."
)
def ways_figure(frame: pd.DataFrame, edges: pd.DataFrame, ways: Mapping[str, str]) -> BookFigure:
    """``frame``: last rows of one architecture and source, one init a constraint; ``ways``: a label for each metric.

    ``edges``: rows of the constraints ``labels`` and ``random_tokens``.
    """
    shown = names.ordered(frame["constraint"])
    figure = BookFigure(figsize=(WIDTH, 4.6))
    ax = figure.subplots()
    tables = {m: compare.summary(frame, ["constraint"], m).set_index("constraint") for m in ways}
    for i, name in enumerate(shown):
        rows = [(x, table.loc[name]) for x, table in enumerate(tables.values()) if name in table.index]
        at = [x + 0.05 * (i - (len(shown) - 1) / 2) for x, _ in rows]
        style = VARIANTS[name]
        ax.plot(at, [row["mean"] for _, row in rows], color=style.colour, linestyle=style.line, linewidth=1.3)
        for place, (_, row) in zip(at, rows, strict=True):
            if row["n"] > 1:
                ax.plot([place, place], [row["low"], row["high"]], color=style.colour, linewidth=1.6)
            ax.plot(place, row["mean"], marker=style.marker, color=style.colour, markeredgecolor="white")
    for name, line in ENDS.items():
        values = edges.loc[edges["constraint"] == name].set_index("metric")["value"].reindex(list(ways))
        ax.plot(range(len(ways)), values, color=GREY, linestyle=line, linewidth=1.5)
    ax.set_xticks(range(len(ways)), [label.replace(", ", ",\n") for label in ways.values()])
    ax.set_xlim(-0.4, len(ways) - 0.6)
    ax.set_ylabel("accuracy")
    ax.grid(visible=False, axis="x")
    handles: list[Line2D] = []
    for name in shown:
        style = VARIANTS[name]
        handles.append(
            Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=names.label(name))
        )
    handles += [Line2D([], [], color=GREY, linestyle=line, label=names.label(name)) for name, line in ENDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


@drawn(
    "A row per variant: bars show the share of its latents at each accuracy, a black line their mean, a dotted line "
    "the mean of the floor at about 0.5."
)
def distribution_figure(frame: pd.DataFrame, edges: pd.DataFrame, metric: str = "autointerp") -> BookFigure:
    """``frame``: last rows of one architecture and source, one init a constraint; ``<metric>_bin_<i>`` parts 0 to 1.

    ``edges``: rows of ``random_tokens``. Bars are means over seeds.
    """
    bins = groups_of(ledger.binned(frame, f"{metric}_bin"), "constraint")
    shown = {name: np.asarray(part.groupby("bin")["value"].mean()) for name, part in bins}
    means = compare.summary(frame, ["constraint"], f"{metric}_accuracy").set_index("constraint")["mean"].to_dict()
    floor = ledger.select(edges, constraint="random_tokens", metric=f"{metric}_accuracy")["value"].to_numpy().mean()
    figure = BookFigure(figsize=(WIDTH, 1.0 + 0.85 * len(shown)))
    axes = panels(figure, len(shown), 1, sharex=True, sharey=True)
    for ax, (name, shares) in zip(axes, shown.items(), strict=True):
        ax.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True, color=VARIANTS[name].colour)
        ax.axvline(means[name], color=INK, linewidth=1.6)
        ax.axvline(floor, color=GREY, linestyle=":", linewidth=1.5)
        ax.text(0.98, 0.9, names.label(name), transform=ax.transAxes, va="top", ha="right")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes[0].set(xlim=(0.4, 1), ylim=(0, 1.1 * max(shares.max() for shares in shown.values())))
    axes[-1].set_xlabel("accuracy of a latent")
    axes[len(shown) // 2].set_ylabel("share of latents")
    marks = [
        Line2D([], [], color=INK, linewidth=1.6, label="mean"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.5, label="mean of the floor, random tokens"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncol=2)
    return figure


@drawn(
    "A panel per SAE: histograms of the mean activation of its best latent over texts, filled grey for texts of other "
    "classes, a coloured outline for texts of the class. The further the outline stands from the grey, the better."
)
def best_latent_figure(best: Mapping[str, pd.DataFrame], bins: int = 20) -> BookFigure:
    """``best``: by constraint, the columns ``activation`` and ``holds`` of studies.probing.Prober.best."""
    columns = min(2, len(best))
    figure = BookFigure(figsize=(WIDTH, 1.0 + 1.9 * -(-len(best) // columns)))
    axes = panels(figure, -(-len(best) // columns), columns, sharey=True)
    for ax, (name, table) in zip(axes, best.items(), strict=False):
        edges = np.linspace(0, max(*table["activation"], 1e-9), bins + 1)
        for holds, colour in ((False, LIGHT), (True, VARIANTS[name].colour)):
            values = table.loc[table["holds"] == holds, "activation"].to_numpy()
            shares = np.histogram(values, edges)[0] / len(values)
            ax.stairs(shares, edges, fill=not holds, color=colour, linewidth=2)
        ax.set_title(names.label(name))
        ax.set_xlim(left=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        ax.set_xlabel("mean activation of the best latent")
    for ax in axes[len(best) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel("share of texts")
    handles = [
        Line2D([], [], color=INK, linewidth=2, label="texts of the class"),
        Line2D([], [], color=LIGHT, linewidth=6, label="texts of other classes"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=2)
    return figure


@drawn(
    "Test accuracy against the number of latents that a probe may use, a panel per reading: lines with intervals over "
    "seeds for the variants, for raw neurons and raw PCA components, between a dotted floor and a black dense probe."
)
def probing_figure(frame: pd.DataFrame, references: pd.DataFrame, readings: Mapping[str, str]) -> BookFigure:
    """``frame``: rows of one source and architecture, one init a constraint; ``readings``: a title for each name.

    ``references``: the rows of the same source without an SAE.
    """
    raw = references.loc[references["constraint"].isin(VARIANTS)]
    figure = BookFigure(figsize=(WIDTH, 4.4))
    for ax, (name, title) in zip(panels(figure, 1, len(readings), sharey=True), readings.items(), strict=True):
        ks = sorted(int(m.rpartition("_top")[2]) for m in set(frame["metric"]) if re.fullmatch(rf"{name}_top\d+", m))
        for part in (frame, raw):
            for constraint in names.ordered(part["constraint"]):
                own = part.loc[part["constraint"] == constraint]
                rows = pd.concat([compare.summary(own, ["constraint"], f"{name}_top{k}") for k in ks])
                line_of(ax, ks, rows, VARIANTS[constraint])
        ends = references.loc[references["metric"] == f"{name}_top1"].set_index("constraint")["value"]
        for end, line, colour in (("majority", ":", GREY), ("dense_probe", "-", INK)):
            ax.axhline(ends[end], color=colour, linestyle=line, linewidth=1.5)
        ax.set_xscale("log")
        ax.set_xticks(ks, [str(k) for k in ks])
        ax.minorticks_off()
        ax.set_title(title)
        ax.set_xlabel("latents in the probe")
    figure.axes[0].set_ylabel("test accuracy")
    shown = [*names.ordered(frame["constraint"]), *names.ordered(raw["constraint"])]
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=names.label(c))
        for c in shown
        for style in [VARIANTS[c]]
    ]
    handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.5, label=names.label("majority")))
    handles.append(Line2D([], [], color=INK, linewidth=1.5, label=names.label("dense_probe")))
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


@drawn(
    "Dots with intervals over seeds, a row per concept family and a panel per reading: test accuracy of one latent of "
    "each variant, of one raw neuron and one raw component. A black tick marks the dense probe; the axis starts at the "
    "floor."
)
def families_figure(frame: pd.DataFrame, references: pd.DataFrame, readings: Mapping[str, str]) -> BookFigure:
    """As :func:`probing_figure`, for one latent."""
    shown = pd.concat([frame, references.loc[references["constraint"].isin(VARIANTS)]])
    constraints = names.ordered(shown["constraint"])
    step = 0.7 / max(len(constraints) - 1, 1)
    prefixes = {name: f"{name}_top1_" for name in readings}
    first = next(iter(prefixes.values()))
    families = sorted(m.removeprefix(first) for m in set(frame["metric"]) if m.startswith(first))
    figure = BookFigure(figsize=(WIDTH, 1.8 + 0.8 * len(families)))
    axes = panels(figure, 1, len(readings), sharey=True, sharex=True)
    for ax, (name, title) in zip(axes, readings.items(), strict=True):
        for place, family in enumerate(families):
            metric = prefixes[name] + family
            for row in compare.summary(shown, ["constraint"], metric).to_dict("records"):
                dot_of(ax, place + step * constraints.index(row["constraint"]) - 0.35, row, VARIANTS[row["constraint"]])
            is_end = (references["constraint"] == "dense_probe") & (references["metric"] == metric)
            end = references.loc[is_end, "value"].item()
            ax.plot([end, end], [place - 0.4, place + 0.4], color=INK, linewidth=2, zorder=1)
            if place:
                ax.axhline(place - 0.5, color=LIGHT, linewidth=0.8)
        ax.set_title(title)
        ax.set_xlabel("test accuracy, one latent")
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(families)), [family.replace("_", "\n") for family in families])
    axes[0].set_ylim(len(families) - 0.5, -0.5)
    axes[0].set_xlim(min(0.5, 0.98 * shown.loc[shown["metric"].str.startswith(first), "value"].min()), 1.02)
    handles = [
        Line2D([], [], color=VARIANTS[c].colour, marker=VARIANTS[c].marker, linestyle="none", label=names.label(c))
        for c in constraints
    ]
    tick: dict[str, Any] = {"marker": "|", "linestyle": "none", "markersize": 12, "markeredgewidth": 2}
    handles.append(Line2D([], [], color=INK, **tick, label=names.label("dense_probe")))
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure
