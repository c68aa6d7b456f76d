"""Statistics that can say "no difference": intervals over seeds and units together, equivalence, power, best of five.

A score is measured on units (tasks, data sets, latents) of several SAEs, one per seed. ``paired`` sides have the same
units in every SAE, as tasks are; otherwise each SAE has its own, as latents are. Seeds are always paired: the SAEs of
one seed share start and data order. The rule, written before the runs were read:

    undecided          fewer than two seeds
    unable to decide   the metric does not put the trained SAE above the untrained one
    equivalent         the difference lies within the margin by two one-sided tests, and the metric is seen to tell more
                       than the margin: trained lies above untrained by more than that
    different          the interval of the difference leaves out zero
    undecided          anything else

A difference within the margin does not matter, so it is "equivalent" even where its interval leaves out zero. That
the metric must tell more than the margin is assay sensitivity (ICH E10, 2000): where nothing is seen, all is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.random import Generator
from scipy import optimize, stats

from saecore.report import paper
from saecore.report.compare import LEVEL, UNDECIDED

RESAMPLES = 4000
"""The error of a standard error is then about 1 %."""
ALPHA, POWER = 1 - LEVEL, 0.8
DIFFERENT, EQUIVALENT, UNABLE = "different", "equivalent", "unable to decide"

Side = Any
"""A number known exactly (0.5 for chance); a score per unit, for a reference without a seed; or, for SAEs, such a row
of scores for each seed."""


class InferenceError(ValueError):
    """Scores that no statement can be made of."""


@dataclass(frozen=True)
class Margin:
    """The largest difference that does not matter, in units of the metric, and why; given before the runs.

    ``paper``: what the paper calls the metric.
    """

    metric: str
    paper: str
    value: float
    reason: str


TENTH = "a tenth of what training adds to chance (0.5) in the paper, Gemma-2-2B layer 12, BatchTopK, L0 160"
MARGINS = (
    Margin("autointerp_accuracy", "autointerp", 0.040, TENTH),
    Margin("probing_top1", "sparse_probing_top1", 0.022, TENTH),
    Margin("editing_disentanglement", "ravel_disentanglement", 0.022, TENTH),
)
"""Absolute, and from the paper: a tenth of our own distance would be a margin that our own noise moves."""


def margin(metric: str) -> Margin:
    """By our name of the metric or the paper's. Raises InferenceError where none was given."""
    for known in MARGINS:
        if metric in (known.metric, known.paper):
            return known
    raise InferenceError(f"no margin was given for {metric!r}, only for {', '.join(m.metric for m in MARGINS)}")


@dataclass(frozen=True)
class Effect:
    """An estimate with its standard error; NaN where nothing varies. ``units``: the least number in any SAE."""

    value: float
    error: float
    df: float
    seeds: int
    units: int

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided, by Student's t with ``df`` degrees of freedom."""
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.error
        return self.value - half, self.value + half

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    def text(self, digits: int = 3) -> str:
        """Such as "+0.031 [+0.012, +0.050] (3 seeds; 200 units)"; says which level the interval leaves out."""
        bounds = "" if math.isnan(self.error) else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        levels = [(self.seeds, "seed"), (self.units, "unit")]
        notes = [f"{n} {name}s" if n > 1 else f"1 {name}, no interval over {name}s" for n, name in levels]
        return f"{self.value:+.{digits}f}{bounds} ({'; '.join(notes)})".replace("-", "−")

    __str__ = text


def estimate(
    statistic: Callable[..., Any], *sides: Side, paired: bool, rng: Generator, resamples: int = RESAMPLES
) -> Effect:
    """A statistic of the sides' means, with an error from a bootstrap over seeds and units together.

    Each level draws n - 1 of its n with replacement, which makes the variance of a mean unbiased (Rao and Wu 1988), and
    a draw takes the deviations of both. What varies by unit and seed at once is then counted twice, so that intervals
    err on the wide side, by up to 1.4. A percentile interval over three seeds could not pass their extremes, which
    cover 75 %; hence Student's t, with the degrees of freedom of the two levels joined (Satterthwaite 1946). Raises
    InferenceError where sides do not match.
    """
    table = _Table.of(sides, paired)
    means = table.means()
    value = float(statistic(*means))
    if not table.freedom.any():
        return Effect(value, math.nan, math.nan, table.seeds, table.units)
    moved = table.deviations(rng, resamples)
    single = np.array([np.var(statistic(*(means[:, None] + moved[:, level]))) for level in (0, 1)])
    total = float(np.var(statistic(*(means[:, None] + moved.sum(1)))))
    return Effect(value, math.sqrt(total), _joined(single, table.freedom, total), table.seeds, table.units)


def difference(a: Side, b: Side, *, paired: bool, rng: Generator) -> Effect:
    """The mean of ``a`` minus that of ``b``, in units of the metric."""
    return estimate(lambda x, y: x - y, a, b, paired=paired, rng=rng)


def verdict(difference: Effect, margin: Margin, ability: Effect) -> str:
    """The rule at the head of this module. ``ability``: trained minus untrained, on the same metric."""
    if min(difference.seeds, ability.seeds) < 2:
        return UNDECIDED
    if not ability.low > 0:
        return UNABLE
    return _decided(difference, margin.value if ability.low > margin.value else 0.0)


def _decided(effect: Effect, margin: float) -> str:
    """Two one-sided tests at ``ALPHA`` are an interval of level 1 - 2 ``ALPHA`` within the margin (Schuirmann 1987)."""
    low, high = effect.interval(1 - 2 * ALPHA)
    if -margin < low and high < margin:
        return EQUIVALENT
    return DIFFERENT if effect.low > 0 or effect.high < 0 else UNDECIDED


@dataclass(frozen=True)
class Noise:
    """Variances of the difference of two SAEs: from seed to seed, from unit to unit, and of a unit in a seed."""

    of_seeds: float
    of_units: float
    of_cells: float
    seeds: int
    units: int
    paired: bool


def noise(a: Side, b: Side, *, paired: bool) -> Noise:
    """By the mean squares of the differences; a variance that comes out below zero is zero.

    Raises InferenceError with fewer than two seeds or units.
    """
    table = _Table.of((a, b), paired)
    seeds, units = table.seeds, table.units
    if min(seeds, units) < 2:
        raise InferenceError(f"seeds={seeds}, units={units}: noise is known from two of each; measure more")
    first, second = (side * seeds if len(side) == 1 else side for side in table.rows)
    if paired:
        cells = np.array([x - y for x, y in zip(first, second, strict=True)])
        by_seed, by_unit = cells.mean(1), cells.mean(0)
        rest = cells - by_seed[:, None] - by_unit + cells.mean()
        of_cells = float((rest**2).sum()) / ((seeds - 1) * (units - 1))
        of_units = max(0.0, float(by_unit.var(ddof=1)) - of_cells / seeds)
    else:
        by_seed = np.array([x.mean() - y.mean() for x, y in zip(first, second, strict=True)])
        of_cells = sum(float(np.mean([row.var(ddof=1) for row in side if len(row) > 1] or 0)) for side in table.rows)
        of_units = 0.0
    of_seeds = max(0.0, float(by_seed.var(ddof=1)) - of_cells / units)
    return Noise(of_seeds, of_units, of_cells, seeds, units, paired)


def detectable(noise: Noise, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest true difference that :func:`difference` finds with this power, by the noncentral t.

    For other numbers than were run: ``dataclasses.replace(noise, seeds=5)``. Simulated power at the answer lies between
    0.70 and 0.82 for three to five seeds, where 0.80 is asked. Raises InferenceError for one seed.
    """
    seeds, units = noise.seeds, noise.units
    if seeds < 2:
        raise InferenceError(f"seeds={seeds}: one seed decides nothing; give at least 2")
    cells = noise.of_cells / (seeds * units)
    single = np.array([noise.of_seeds / seeds + cells, noise.of_units / units + cells])
    freedom = np.array([seeds - 1.0, (1 if noise.paired else seeds) * (units - 1.0)])
    single = single * (freedom > 0)
    reported, true = single.sum(), single.sum() - cells * (units > 1)
    if true == 0:
        return 0.0
    df = _joined(single, freedom, reported)
    critical = float(stats.t.ppf(1 - alpha / 2, df)) * math.sqrt(reported / true)
    found = optimize.root_scalar(
        lambda shift: float(stats.nct.sf(critical, df, shift)) - power, bracket=(0, 5 * critical + 5)
    )
    return float(found.root) * math.sqrt(true)


@dataclass(frozen=True)
class BestOf:
    """What choosing the best of several baselines does.

    ``lift``: how far the best lies above the common mean by luck, if all are equally good. ``beats``: how often the
    best then reaches a single trained SAE that is no better either; one baseline does so in half the cases.
    """

    best: float
    mean: float
    lift: float
    beats: float

    @staticmethod
    def of(values: Float[np.ndarray, "k"], luck: Float[np.ndarray, "one_and_k resamples"]) -> BestOf:
        """``luck``: deviations of the trained SAE, then of each baseline, in worlds where nothing differs."""
        best = luck[1:].max(0)
        beats = np.where(np.isnan(best - luck[0]), np.nan, best >= luck[0])
        return BestOf(float(values.max()), float(values.mean()), float(best.mean()), float(beats.mean()))


def best_of(trained: Side, *baselines: Side, paired: bool, rng: Generator) -> BestOf:
    """By resampling all sides together, each about its own mean; :func:`saecore.report.compare.best_of` for one number.

    The paper's abstract sets the best of five variants, chosen for each metric anew, beside one trained SAE.
    """
    table = _Table.of((trained, *baselines), paired)
    return BestOf.of(table.means()[1:], table.deviations(rng, RESAMPLES).sum(1))


def headline(rng: Generator, setting: str = "gemma-2-2b/12", architecture: str = "batch_topk") -> pd.DataFrame:
    """The abstract's comparison with each baseline by itself: a row per metric and variant, at L0 160.

    The paper's spread is taken as a standard error, and variants as independent: it states neither, and shared tasks
    would make ``lift`` smaller. ``difference`` is trained minus baseline, ``detectable`` what 80 % power needs,
    ``verdict`` that of the margins, without the untrained SAE that the paper lacks. Raises InferenceError where the
    paper has nothing.
    """
    frame = paper.table().query("setting == @setting and architecture == @architecture and l0 == '160'")
    made = []
    for known in MARGINS:
        part = frame.loc[frame["metric"] == known.paper, ["variant", "init", "value", "spread"]]
        part = (
            part.replace({"spread": {"": "nan"}})
            .astype({"value": float, "spread": float})
            .sort_values("variant", key=lambda v: v != "trained")
        )
        if len(part) < 2:
            continue
        values, errors = part["value"].to_numpy(), part["spread"].to_numpy()
        luck = BestOf.of(values[1:], rng.normal(size=(len(part), 100_000)) * errors[:, None])
        for row in part.iloc[1:].to_dict("records"):
            gap = Effect(values[0] - row["value"], math.hypot(errors[0], row["spread"]), math.inf, 0, 0)
            needed = (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * gap.error
            found = {"difference": gap.value, "low": gap.low, "high": gap.high, "detectable": needed}
            best = {"best": row["value"] == luck.best, "mean_of_all": luck.mean, "lift": luck.lift, "beats": luck.beats}
            decided = {"margin": known.value, "verdict": _decided(gap, known.value)}
            made.append({"metric": known.paper, **row, "trained": values[0], **found, **decided, **best})
    if not made:
        raise InferenceError(
            f"the paper compares nothing for {setting!r}, {architecture!r} at L0 160; see paper.table()"
        )
    return pd.DataFrame(made)


def scores(frames: Sequence[pd.DataFrame], metrics: Sequence[str]) -> list[Float[np.ndarray, "seeds units"]]:
    """A matrix for each frame of a ledger, with a column for each metric, over the seeds that all frames have.

    Raises InferenceError where they share none, or where a metric of a seed is missing or recorded twice.
    """
    tables = []
    for frame in frames:
        rows = frame.loc[frame["metric"].isin(metrics), ["seed", "metric", "value"]]
        twice = rows.loc[rows.duplicated(["seed", "metric"])]
        if len(twice):
            seed, metric, _ = twice.iloc[0]
            raise InferenceError(f"seed {seed} has {metric} more than once; select one run of each")
        tables.append(rows.pivot(index="seed", columns="metric", values="value").reindex(columns=list(metrics)))
    shared = sorted(set.intersection(*(set(table.index) for table in tables)))
    if not shared:
        raise InferenceError(f"the frames have seeds {[list(table.index) for table in tables]}, none in all of them")
    for table in tables:
        if missing := sorted(set(table.columns[table.loc[shared].isna().any()])):
            raise InferenceError(f"one of the seeds {shared} has no {', '.join(missing)}; record it")
    return [table.loc[shared].to_numpy(dtype=float) for table in tables]


@dataclass(frozen=True)
class _Table:
    """Scores by side, seed and unit. ``freedom``: degrees of freedom of seeds and of units, 0 for what is not drawn."""

    rows: list[list[Float[np.ndarray, "..."]]]
    paired: bool
    seeds: int
    units: int
    freedom: Float[np.ndarray, "two"]

    @staticmethod
    def of(sides: Sequence[Side], paired: bool) -> _Table:
        single = [np.isscalar(side) or not len(side) or np.isscalar(side[0]) for side in sides]
        rows = [
            [np.asarray(row, dtype=float) for row in ([side] if alone else side)]
            for side, alone in zip(sides, single, strict=True)
        ]
        if not all(row.size and row.ndim < 2 and np.isfinite(row).all() for side in rows for row in side):
            raise InferenceError("a side has no scores or some that are not finite; each seed needs a score per unit")
        counts = {len(side) for side, alone in zip(rows, single, strict=True) if not alone} or {1}
        sizes = {row.size for side in rows for row in side if row.ndim} or {1}
        if len(counts) > 1:
            raise InferenceError(f"sides have {sorted(counts)} seeds; pass the seeds that all of them have")
        if paired and len(sizes) > 1:
            raise InferenceError(f"paired sides have {sorted(sizes)} units; pass the same units, or paired=False")
        seeds, units = min(counts), min(sizes)
        own = [sum(row.size - 1.0 for row in side) for side in rows]
        of_units = units - 1.0 if paired else min((n for n in own if n > 0), default=0.0)
        known = [[row.reshape(-1) for row in side] for side in rows]
        return _Table(known, paired, seeds, units, np.array([seeds - 1.0, of_units]))

    def means(self) -> Float[np.ndarray, "sides"]:
        """Every seed counts alike, however many units it has."""
        return np.array([np.mean([row.mean() for row in side]) for side in self.rows])

    def deviations(self, rng: Generator, resamples: int) -> Float[np.ndarray, "sides two resamples"]:
        """How far resampled seeds, and resampled units, move the mean of each side."""
        of_seeds, of_units = (_weights(n, resamples, rng) for n in (self.seeds, self.units))
        found = np.zeros((len(self.rows), 2, resamples))
        for moved, side in zip(found, self.rows, strict=True):
            if len(side) > 1:
                by_seed = np.array([row.mean() for row in side])
                moved[0] = of_seeds @ by_seed - by_seed.mean()
            for row in side:
                if len(row) > 1:
                    weights = of_units if self.paired else _weights(len(row), resamples, rng)
                    moved[1] += (weights @ row - row.mean()) / len(side)
        return found


def _weights(n: int, resamples: int, rng: Generator) -> Float[np.ndarray, "resamples n"]:
    """Weights of a mean over n - 1 draws from n."""
    return rng.multinomial(max(n - 1, 1), np.full(n, 1 / n), size=resamples) / max(n - 1, 1)


def _joined(single: Float[np.ndarray, "two"], freedom: Float[np.ndarray, "two"], total: float) -> float:
    """Degrees of freedom of the sum of independent variances (Satterthwaite 1946)."""
    drawn = freedom > 0
    spread = float((single[drawn] ** 2 / freedom[drawn]).sum())
    return total**2 / spread if spread > 0 else float(freedom[drawn].min())
