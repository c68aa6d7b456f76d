"""Ours beside the paper's: means over seeds, their intervals, verdicts, and what a choice changes.

The rule, written before the runs were read. With the interval over our seeds, and the paper's number known to
half a unit of its last digit:

    undecided   fewer than two seeds
    differs     the paper's number lies outside our interval, widened on both sides by the paper's rounding
                or by a stated tolerance, whichever is larger
    undecided   it lies inside, but the interval reaches further than ``margin`` from its mean
    agrees      it lies inside, and the interval is narrow enough to mean something
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from saecore.report import ledger, names, paper
from saecore.report.paper import PaperError, PaperNumber

LEVEL = 0.95
MARGIN = 0.05
"""Widest half-interval that can still agree, in the units of the metric (explained variance, shares)."""
AGREES, DIFFERS, UNDECIDED, UNSTATED = "agrees", "differs", "undecided", "not stated"
MOVES, STAYS, UNTESTED = "moves it", "no change seen", "one seed"


class CompareError(ValueError):
    """Values that no interval can be made of, or a table that cannot be shown."""


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its t-interval; ``low`` and ``high`` are NaN for one seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def text(self, digits: int = 3, percent: bool = False) -> str:
        """Such as "0.712 ± 0.004 (n=3)"; more digits where the interval is too narrow for ``digits``."""
        return f"{_plus_minus(self.mean, self.half, digits, percent)} ({_n(self.n)})"

    __str__ = text


def interval(values: Iterable[float], level: float = LEVEL) -> Interval:
    """Mean and two-sided t-interval of one value per seed.

    Shares are taken as they come, so an interval may pass 0 or 1. Raises CompareError on NaN or without values.
    """
    data = np.asarray(list(values), dtype=float)
    if not len(data):
        raise CompareError("an interval needs at least one value; none was given")
    if not np.isfinite(data).all():
        raise CompareError(f"values {data.tolist()} are not all finite; a seed diverged or was not measured")
    mean, n = float(data.mean()), len(data)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * data.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def best_of(n: int) -> float:
    """How far the best of ``n`` equally good Gaussian scores lies above their mean by luck, in standard deviations."""
    if n < 1:
        raise CompareError(f"n={n} must be at least 1")
    z = np.linspace(-8, 8, 4001)
    return float(np.trapezoid(n * z * stats.norm.pdf(z) * stats.norm.cdf(z) ** (n - 1), z))


def verdict(ours: Interval, paper: float, slack: float = 0.0, margin: float = MARGIN) -> str:
    """The rule at the head of this module. ``slack`` is the paper's rounding, or a stated tolerance."""
    if math.isnan(paper):
        return UNSTATED
    if ours.n < 2:
        return UNDECIDED
    # 1e-12: so that a value printed on the very edge of the rounding is not lost to binary fractions
    if not ours.low - slack - 1e-12 <= paper <= ours.high + slack + 1e-12:
        return DIFFERS
    return AGREES if ours.half <= margin else UNDECIDED


@dataclass(frozen=True)
class Comparison:
    """One of our numbers beside the paper's. ``paper`` is NaN where the paper does not state it."""

    what: str
    ours: Interval
    paper: float
    slack: float
    margin: float = MARGIN

    @property
    def difference(self) -> float:
        return self.ours.mean - self.paper

    @property
    def verdict(self) -> str:
        return verdict(self.ours, self.paper, self.slack, self.margin)


@dataclass(frozen=True)
class Request:
    """What to compare: rows of the ledger (``where``, one per seed) and a number of the paper, or None."""

    what: str
    where: Mapping[str, Any]
    paper: PaperNumber | None
    tolerance: float = 0.0
    margin: float = MARGIN
    tags: Mapping[str, str] = field(default_factory=dict)

    def answer(self, frame: pd.DataFrame, level: float = LEVEL) -> Comparison:
        rows = ledger.select(frame, **self.where)
        ours = interval(_by_seed(rows, self.what), level)
        stated = self.paper or PaperNumber(math.nan, 0.0, "")
        return Comparison(self.what, ours, stated.value, max(stated.rounding, self.tolerance), self.margin)


def compare_table(frame: pd.DataFrame, requests: Iterable[Request], level: float = LEVEL) -> pd.DataFrame:
    """A row per request: what, tags, mean, low, high, n, paper, difference, slack, margin, verdict, where."""
    rows = []
    for request in requests:
        found = request.answer(frame, level)
        numbers = {name: getattr(found.ours, name) for name in ("mean", "low", "high", "n")}
        rest = {name: getattr(found, name) for name in ("paper", "difference", "slack", "margin", "verdict")}
        where = request.paper.source if request.paper else ""
        rows.append({"what": found.what, **request.tags, **numbers, **rest, "where": where})
    return pd.DataFrame(rows)


def synthetic_requests(
    frame: pd.DataFrame,
    sources: Sequence[str] = tuple(names.SOURCES),
    metrics: Sequence[str] = ("explained_variance", "fraction_recovered"),
    tolerance: float = 0.0,
    margin: float = MARGIN,
) -> list[Request]:
    """Every cell of the paper's Figures 2, 3 and 9: each source, architecture in ``frame`` and metric.

    ``frame`` holds the headline runs at their last step, one row per seed. Where the paper prints no number
    the request has none, and its verdict is "not stated".
    """
    requests = []
    for source in sources:
        for architecture in names.ordered(ledger.select(frame, source=source)["architecture"]):
            for metric in metrics:
                cell = {"source": source, "architecture": architecture, "metric": metric}
                what = ", ".join((names.label(architecture), source, names.label(metric)))
                where = {**cell, "constraint": "free"}
                stated = _stated(f"synthetic_{source}", architecture, metric)
                requests.append(Request(what, where, stated, tolerance, margin, cell))
    return requests


def summary(frame: pd.DataFrame, by: Sequence[str], metric: str, level: float = LEVEL) -> pd.DataFrame:
    """``by``, then mean, low, high, n over the seeds of each group, in the order in which pages show them.

    Raises CompareError where a group holds one seed twice: then it mixes steps, settings or constraints.
    """
    chosen = ledger.select(frame, metric=metric)
    rows = []
    for where, part in _groups(chosen, by):
        what = ", ".join(f"{name}={value}" for name, value in where.items())
        rows.append({**where, "metric": metric, **_numbers(interval(_by_seed(part, what), level))})
    table = pd.DataFrame(rows)
    keys = {name: _rank(table[name]) for name in by}
    return table.sort_values(list(by), key=lambda column: keys[str(column.name)]).reset_index(drop=True)


def effects(
    frame: pd.DataFrame,
    baseline: Mapping[str, Any],
    metric: str,
    by: Sequence[str] = ("source", "architecture"),
    level: float = LEVEL,
) -> pd.DataFrame:
    """How far each choice moves the headline: the difference, seed by seed, and its t-interval.

    ``baseline`` says what the headline is, such as ``{"settings": "", "l0": 20, "init": "iso"}``; every other
    combination of these columns is a choice, named by what it changes. A seed is the seed of world, start and
    data order in both, so differences are paired; ``n`` counts the seeds that both have. The verdict is
    "moves it" where the interval leaves out zero. Raises LedgerError where a group has no headline.
    """
    chosen = ledger.select(frame, metric=metric)
    rows = []
    for where, part in _groups(chosen, by):
        headline = _by_seed(ledger.select(part, **baseline), f"headline of {where}")
        for values, other in _groups(part, list(baseline)):
            changed = {name: value for name, value in values.items() if value != baseline[name]}
            if not changed:
                continue
            ours = _by_seed(other, f"{changed} of {where}")
            shared = ours.index.intersection(headline.index)
            if shared.empty:
                raise CompareError(f"{changed} of {where} shares no seed with the headline's {list(headline.index)}")
            moved = interval(ours[shared] - headline[shared], level)
            rows.append(
                {
                    **where,
                    "choice": _choice(changed),
                    "metric": metric,
                    "headline": float(headline[shared].mean()),
                    "mean": float(ours[shared].mean()),
                    "difference": moved.mean,
                    "low": moved.low,
                    "high": moved.high,
                    "n": moved.n,
                    "verdict": UNTESTED if moved.n < 2 else STAYS if moved.low <= 0 <= moved.high else MOVES,
                }
            )
    if not rows:
        raise CompareError(f"every row of {metric} is the headline {dict(baseline)}; record runs that differ from it")
    table = pd.DataFrame(rows)
    keys = {name: _rank(table[name]) for name in by}
    table = table.sort_values([*by, "choice"], key=lambda column: keys.get(str(column.name), column))
    return table.reset_index(drop=True)


def gaps(frame: pd.DataFrame, metric: str, by: Sequence[str] = ("source", "architecture")) -> pd.DataFrame:
    """What each baseline lacks: the trained SAE (``free``, ``iso``) minus the variant, seed by seed, and its interval.

    A row per group, constraint and init: ``trained`` and ``value`` are means over the ``n`` seeds that both have,
    ``difference``, ``low`` and ``high`` their paired difference. Variants without a trained SAE of their seed are left
    out. Raises LedgerError where no group has one, CompareError where there are no variants.
    """
    chosen = ledger.select(frame, metric=metric)
    ledger.select(chosen, constraint="free", init="iso")
    rows = []
    for where, part in _groups(chosen, by):
        trained = part.loc[(part["constraint"] == "free") & (part["init"] == "iso")]
        best = _by_seed(trained, f"trained of {where}")
        for which, other in _groups(part, ["constraint", "init"]):
            values = _by_seed(other, f"{which} of {where}")
            shared = values.index.intersection(best.index)
            if shared.empty or which == {"constraint": "free", "init": "iso"}:
                continue
            lost = interval(best[shared] - values[shared])
            same = {**where, **which, "metric": metric, "trained": float(best[shared].mean())}
            numbers = {"difference": lost.mean, "low": lost.low, "high": lost.high, "n": lost.n}
            rows.append({**same, "value": float(values[shared].mean()), **numbers})
    if not rows:
        raise CompareError(f"there is nothing but the trained SAE among the rows of {metric}; record its baselines")
    order = [*by, "constraint"]
    table = pd.DataFrame(rows)
    keys = {name: _rank(table[name]) for name in order}
    return table.sort_values(order, key=lambda column: keys[str(column.name)], kind="stable").reset_index(drop=True)


def show(table: pd.DataFrame, digits: int = 3, percent: bool | None = None) -> pd.DataFrame:
    """A table of this module as the book prints it, in strings such as "0.712 ± 0.004 (n=3)".

    Takes what :func:`compare_table`, :func:`summary` and :func:`effects` return. ``percent`` prints shares as
    percentages; left out, it follows each row's ``metric``.
    """
    missing = [name for name in ("mean", "low", "high", "n") if name not in table]
    if missing:
        raise CompareError(f"the table has no {missing}; show() takes compare_table, summary or effects")
    rows = []
    for row in table.to_dict("records"):
        as_percent = row.get("metric") in names.SHARES if percent is None else percent
        rows.append(_shown({str(k): v for k, v in row.items()}, digits, as_percent))
    return pd.DataFrame(rows)


def show_gaps(table: pd.DataFrame, stated: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table of :func:`gaps` as the book prints it, with a column for each setting of :func:`paper.gaps`."""
    keys = ["architecture", "constraint", "init"]
    wide = stated.pivot(index=keys, columns="setting", values="gap")
    rows = []
    for row in table.to_dict("records"):
        place = tuple(row[key] for key in keys)
        found = Interval(row["difference"], row["low"], row["high"], row["n"])
        theirs = wide.loc[place] if place in wide.index else pd.Series(math.nan, wide.columns)
        told = {name: "–" if math.isnan(gap) else f"{gap:.3f}" for name, gap in theirs.items()}
        variant = names.variant(row["constraint"], row["init"])
        rows.append({"": names.label(row["architecture"]), "variant": variant, "ours": found.text(digits), **told})
    return pd.DataFrame(rows)


def gaps_beside(table: pd.DataFrame, column: str, digits: int = 3) -> pd.DataFrame:
    """A table of :func:`gaps` with a line per variant and, side by side, the values of ``column``, as strings."""
    lines = []
    for row in table.to_dict("records"):
        lost = Interval(row["difference"], row["low"], row["high"], row["n"]).text(digits)
        lines.append({"variant": names.variant(row["constraint"], row["init"]), column: row[column], "lost": lost})
    wide = pd.DataFrame(lines).pivot_table("lost", "variant", column, "first", "–", sort=False)
    return wide.rename_axis(columns=None)


def verdicts_beside(tables: Mapping[Any, pd.DataFrame], digits: int = 3) -> pd.DataFrame:
    """Tables of verdicts side by side, a line per variant: "+0.031 [+0.012, +0.050], n=3, different".

    Each holds constraint, init, verdict and difference: an inference.Effect, or a number with the columns ``low``,
    ``high`` and ``seeds``. Raises CompareError where a table has a variant twice.
    """
    lines = []
    for name, table in tables.items():
        for row in table.to_dict("records"):
            gap = _gap(row)
            bounds = "" if math.isnan(gap["low"]) else f" [{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
            said = f"{gap['difference']:+.{digits}f}{bounds}, n={gap['seeds']}, {row['verdict']}".replace("-", "−")
            lines.append({"variant": names.variant(row["constraint"], row["init"]), "table": name, "said": said})
    frame = pd.DataFrame(lines, columns=pd.Index(["variant", "table", "said"]))
    if (twice := frame.duplicated(["variant", "table"])).any():
        variant, name = frame.loc[twice, ["variant", "table"]].iloc[0]
        raise CompareError(f"the table {name!r} has {variant!r} twice; select one architecture, or one kind of control")
    wide = frame.pivot_table("said", "variant", "table", "first", "–", sort=False)
    return wide.reindex(columns=list(tables)).rename_axis(columns=None)


def told_in(tables: Mapping[Any, pd.DataFrame], variant: tuple[str, str], verdict: str, sign: int = 0) -> str:
    """Which tables of verdicts_beside give a variant (constraint, init) this verdict: "TopK and ReLU", or "none".

    With ``sign`` 1 the trained SAE is ahead there as well, with -1 behind.
    """
    found = [
        str(name)
        for name, table in tables.items()
        for row in table.to_dict("records")
        if (row["constraint"], row["init"], row["verdict"]) == (*variant, verdict)
        and (not sign or sign * _gap(row)["difference"] > 0)
    ]
    return ", ".join([*found[:-2], " and ".join(found[-2:])]) if found else "none"


def _gap(row: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """difference, low, high and seeds, which an Effect brings in one."""
    gap = row["difference"]
    if isinstance(gap, float):
        return row
    return {"difference": gap.value, "low": gap.low, "high": gap.high, "seeds": gap.seeds}


def _shown(row: dict[str, Any], digits: int, percent: bool) -> dict[str, str]:
    found = Interval(row["mean"], row["low"], row["high"], row["n"])
    if "what" in row:
        shown = {"": row["what"]}
    else:
        known = ("mean", "low", "high", "n", "verdict", "difference", "headline", "choice", "metric")
        shown = {name: names.label(str(value)) for name, value in row.items() if name not in known}
    if "choice" in row:
        change = _plus_minus(row["difference"], found.half, digits, percent, sign=True)
        headline = _plus_minus(row["headline"], math.nan, digits, percent)
        with_it = _plus_minus(row["mean"], math.nan, digits, percent)
        return {
            **shown,
            "choice": names.setting(row["choice"]),
            "headline": headline,
            "with it": with_it,
            "change": f"{change} ({_n(row['n'])})",
            "verdict": row["verdict"],
        }
    shown["ours"] = found.text(digits, percent)
    if "paper" in row:
        stated = not math.isnan(row["paper"])
        shown["paper"] = _exactly(row["paper"], percent) if stated else "–"
        shown["difference"] = _plus_minus(row["difference"], math.nan, digits, percent, sign=True) if stated else "–"
        shown["verdict"] = row["verdict"]
    return shown


def _numbers(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _n(n: int) -> str:
    return f"n={n}" if n > 1 else "n=1, no interval"


def _plus_minus(mean: float, half: float, digits: int, percent: bool = False, sign: bool = False) -> str:
    factor, unit = (100.0, " points" if sign else " %") if percent else (1.0, "")
    places = max(digits - 2, 0) if percent else digits
    for number in (abs(mean), half):
        small = number * factor
        if math.isfinite(small) and 0 < small < 10.0**-places:
            places = min(-math.floor(math.log10(small)), places + 3)
    plus = "+" if sign else ""
    spread = "" if math.isnan(half) else f" ± {half * factor:.{places}f}"
    return f"{mean * factor:{plus}.{places}f}{spread}{unit}".replace("-", "−")


def _exactly(value: float, percent: bool) -> str:
    """The paper's number with the digits it has (a share made of a count: three significant ones)."""
    return f"{100 * value:.3g} %" if percent else f"{value:g}".replace("-", "−")


def _stated(setting: str, architecture: str, metric: str) -> PaperNumber | None:
    try:
        return paper.lookup(setting=setting, architecture=architecture, variant="free", metric=metric)
    except PaperError:
        return None


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each group's values by column, and its rows."""
    for values, part in frame.groupby(list(by), sort=False, dropna=False):
        yield dict(zip(by, cast(tuple, values), strict=True)), part


def _by_seed(rows: pd.DataFrame, what: str) -> pd.Series:
    seeds = rows["seed"].tolist()
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        varied = [c for c in ledger.COLUMNS if c in rows and c not in ("value", "seconds", "key", "seed", "commit")]
        varied = [c for c in varied if len(set(rows[c])) > 1] or ["key"]
        raise CompareError(
            f"{what} holds seed {twice[0]} more than once: its rows differ in {', '.join(varied)}; select one of each"
        )
    return pd.Series(rows["value"].tolist(), index=pd.Index(seeds))


def _rank(column: Any) -> Any:
    if pd.api.types.is_numeric_dtype(column):
        return column
    order = {value: place for place, value in enumerate(names.ordered(column))}
    return column.map(order)


def _choice(changed: Mapping[str, Any]) -> str:
    """As settings are written: ``l0=10;training.learning_rate=0.001``."""
    parts = [str(v) if name == "settings" else f"{name}={_plain(v)}" for name, v in changed.items()]
    return ";".join(part for part in parts if part)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
