"""How every figure of the book looks: the theme, the palettes, and the parts that figures share."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from saecore.report import names

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
PAPER: dict[str, Any] = {
    "marker": "D",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markeredgecolor": INK,
    "markeredgewidth": 1.6,
    "markersize": 7,
}
INK_LINE, BLUE_LINE = Style(GREY, "o", "--"), Style(VARIANTS["free"].colour, "o")

ALT: dict[str, str] = {}
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


def drawn(text: str) -> Callable[[Callable[P, BookFigure]], Callable[P, BookFigure]]:
    """A figure function in the book's theme; ``text`` is the alt text of what it returns."""

    def decorate(make: Callable[P, BookFigure]) -> Callable[P, BookFigure]:
        ALT[make.__name__] = text

        @functools.wraps(make)
        def draw(*args: P.args, **kwargs: P.kwargs) -> BookFigure:
            with mpl.rc_context(THEME):
                figure = make(*args, **kwargs)
            figure.alt = text
            return figure

        return draw

    return decorate


def panels(figure: Figure, rows: int, columns: int, **shared: Any) -> list[Axes]:
    return list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())


def below(axes: Sequence[Axes], text: str, single: bool = False) -> None:
    """The label under a row of panels: under the middle one where ``single``, under each otherwise.

    A label of the whole figure would run into the legend below it.
    """
    for ax in [axes[len(axes) // 2]] if single else axes:
        ax.set_xlabel(text)


def groups_of(table: pd.DataFrame, by: str) -> list[tuple[str, pd.DataFrame]]:
    return [(name, table.loc[table[by] == name]) for name in names.ordered(table[by])]


def styles_of(keys: Sequence[str]) -> list[Style]:
    """The book's style of each name; of names that have none, those of the architectures in turn."""
    known = {**ARCHITECTURES, **VARIANTS}
    spare = iter([style for name, style in ARCHITECTURES.items() if name not in keys] * (1 + len(keys)))
    return [known[key] if key in known else next(spare) for key in keys]


def line_of(ax: Axes, x: Any, part: pd.DataFrame, style: Style, **options: Any) -> None:
    if max(part["n"]) > 1:
        ax.fill_between(x, part["low"], part["high"], color=style.colour, alpha=0.15, linewidth=0)
    options = {"markersize": 4.5, **options}
    ax.plot(x, part["mean"], color=style.colour, linestyle=style.line, marker=style.marker, **options)


def dot_of(ax: Axes, y: float, row: Mapping[str, Any], style: Style) -> None:
    if row["n"] > 1:
        ax.plot([row["low"], row["high"]], [y, y], color=style.colour, linewidth=1.8)
    size = 10 if style.marker == "*" else 7
    options: dict[str, Any] = {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.5}
    ax.plot(row["mean"], y, marker=style.marker, color=style.colour, **options)


def metric_axis(ax: Axes, metric: str, axis: str, label: bool = True) -> None:
    text = names.label(metric)
    if metric in names.SHARES:
        getattr(ax, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    if label:
        getattr(ax, f"set_{axis}label")(text)


def architecture_legend(figure: Figure, table: pd.DataFrame, line: bool = True) -> None:
    _legend(figure, names.ordered(table["architecture"]), ARCHITECTURES, line)


def variant_legend(figure: Figure, table: pd.DataFrame, line: bool = True) -> None:
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
