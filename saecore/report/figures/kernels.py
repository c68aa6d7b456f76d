"""Speed: engines side by side, and how the cost of a step grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from saecore.report import names, speed
from saecore.report.figures.base import (
    ARCHITECTURES,
    GREY,
    INK,
    VARIANTS,
    WIDTH,
    BookFigure,
    Style,
    below,
    drawn,
    panels,
)

OURS = VARIANTS["free"].colour
LIMITS: dict[str, Literal["--", ":"]] = {"float32": "--", "bfloat16": ":"}
LINES = {
    "plain batch_topk": Style(GREY, "s"),
    f"{speed.OURS} batch_topk": Style(OURS, "o"),
    "limit float32": Style(INK, "", "--"),
    "limit bfloat16": Style(INK, "", ":"),
}


@drawn(
    "Dots on a logarithmic scale: steps per second of each library, one panel per shape and device, TopK and "
    "BatchTopK with markers of their own, ours in blue; vertical lines mark the limits in float32 and bfloat16."
)
def speed_figure(table: pd.DataFrame) -> BookFigure:
    """Steps per second by library, a panel per device and shape. ``table``: rows of ``speed.rows``."""
    runs = list(table.groupby(["device", "shape"], sort=False))
    columns = min(2, len(runs))
    lines = -(-len(runs) // columns)
    figure = BookFigure(figsize=(WIDTH, 0.9 + 2.5 * lines))
    axes = panels(figure, lines, columns)
    for ax in axes[len(runs) :]:
        ax.set_axis_off()
    for ax, (key, run) in zip(axes, runs, strict=False):
        device, shape = cast(tuple, key)
        libraries = _by_speed(run)
        for row in run.loc[run["library"] != speed.LIMIT].to_dict("records"):
            colour = OURS if row["library"] == speed.OURS else GREY
            marker = ARCHITECTURES[row["architecture"]].marker
            ax.plot(row["steps_per_s"], libraries.index(row["library"]), color=colour, marker=marker, linestyle="none")
        for row in run.loc[run["library"] == speed.LIMIT].to_dict("records"):
            ax.axvline(row["steps_per_s"], color=INK, linestyle=LIMITS[row["architecture"]], linewidth=1.4)
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis, (1.0, 3.0))
        ax.tick_params(axis="x", labelsize=9)
        ax.set_yticks(range(len(libraries)), libraries)
        ax.set_ylim(-0.6, len(libraries) - 0.4)
        ax.set_title(f"{shape}\n{device}")
    below(axes[max(0, len(runs) - columns) : len(runs)], "steps per second")
    known = [a for a in ARCHITECTURES if a in set(table["architecture"])]
    handles = [
        Line2D([], [], color=GREY, marker=ARCHITECTURES[a].marker, linestyle="none", label=names.label(a))
        for a in known
    ]
    handles += [Line2D([], [], color=INK, linestyle=line, label=f"limit, {p}") for p, line in LIMITS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=4)
    return figure


def _by_speed(run: pd.DataFrame) -> list[str]:
    best = run.loc[run["library"] != speed.LIMIT].groupby("library").steps_per_s.max()
    return list(best.sort_values().index)


@drawn(
    "Lines on logarithmic scales: the milliseconds of a training step against the number of latents, the active "
    "latents per row and the rows per batch, for a plain loop, for ours, and for the limits; one row per device."
)
def growth_figure(grown: pd.DataFrame) -> BookFigure:
    """Milliseconds a step along each axis, a row of panels per device. ``grown``: from ``speed.growth``."""
    devices = list(dict.fromkeys(grown["device"]))
    figure = BookFigure(figsize=(WIDTH, 1.0 + 2.5 * len(devices)))
    if not devices:
        figure.text(0.5, 0.5, "no row of benchmarks/run.py --grow yet", ha="center", va="center")
        return figure
    grid = figure.subplots(len(devices), len(speed.AXES), sharey="row", squeeze=False)
    for device, line in zip(devices, grid, strict=True):
        for (axis, words), ax in zip(speed.AXES.items(), line, strict=True):
            part = grown.loc[(grown["device"] == device) & (grown["axis"] == axis)]
            _growth(ax, part)
            ax.set_xlabel(words)
        line[0].set_ylabel("ms per step")
        line[0].set_title(device)
    shown = [engine for engine in LINES if engine in set(grown["engine"])]
    handles = [_sample(LINES[engine], engine.removesuffix(" batch_topk")) for engine in shown]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles))
    return figure


def _growth(ax, part: pd.DataFrame) -> None:
    for engine, style in LINES.items():
        own = part.loc[part["engine"] == engine].sort_values("size")
        ax.plot(own["size"], own["milliseconds"], color=style.colour, marker=style.marker, linestyle=style.line)
    sizes: Sequence[int] = sorted(set(part["size"]))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis, (1.0, 2.0, 5.0))
    ax.set_xticks(sizes[::2] if len(sizes) > 4 else sizes, minor=False)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", labelsize=9)


def _plain_ticks(axis, subs: tuple[float, ...]) -> None:
    """``subs`` of each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _sample(style: Style, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=label)
