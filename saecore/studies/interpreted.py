"""What was read of latents, as chapters show it: sequences, a page, and each variant beside the trained SAE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from saecore.metrics.autointerp import Excerpt, Judged
from saecore.report import inference, ledger, names
from saecore.spec import DICTIONARIES
from saecore.studies.interpretability import Reading

METRIC = "autointerp_accuracy"
MARGIN = inference.margin(METRIC)
Scores = Mapping[int, Float[np.ndarray, "latents"]]
"""By seed."""


def sequences(judged: Judged, several: int = 3) -> pd.DataFrame:
    """A latent's strongest sequences, then some of each kind in its tests: kind, what the judge said, text."""
    trial = judged.trial
    rows = [("strongest", "", excerpt.marked) for excerpt in trial.top[:several]]
    tests = list(_answered(trial.test, trial.truth, judged.said))
    hard = list(_answered(trial.hard, trial.hard_truth, judged.hard_said))
    kinds = (("weaker", tests, True), ("silent, random", tests, False), ("silent, hard", hard, False))
    for kind, answers, fires in kinds:
        rows += [(kind, said, text) for truth, said, text in answers if truth == fires][:several]
    return pd.DataFrame(rows, columns=["kind", "said", "text"])


def page(readings: Mapping[str, Reading], latents: int = 4, several: int = 2) -> pd.DataFrame:
    """The first latents of each reading side by side, a column each; they were drawn at random.

    For each its description, its accuracy, the strongest sequences and as many from the test.
    """
    latents = min([latents, *(len(reading.judged) for reading in readings.values())])
    kinds = ["told as", "accuracy", *["strongest"] * several, *["weaker"] * several]
    columns = {}
    for name, reading in readings.items():
        columns[name] = []
        for judged in reading.judged[:latents]:
            weaker = [excerpt for excerpt, fires in zip(judged.trial.test, judged.trial.truth, strict=True) if fires]
            shown = [excerpt.marked for excerpt in (*judged.trial.top[:several], *weaker[:several])]
            columns[name] += [judged.description or "–", f"{judged.accuracy:.2f}", *shown]
    index = pd.MultiIndex.from_tuples([(n, kind) for n in range(1, latents + 1) for kind in kinds])
    return pd.DataFrame(columns, index=index)


def scores(frame: pd.DataFrame, metric: str = METRIC) -> dict[int, Float[np.ndarray, "latents"]]:
    """By seed, as many made-up scores as latents were judged, with the recorded mean and standard deviation.

    A mean and its error depend on the latents through these alone. One score, the mean, where no standard deviation is
    recorded. ``frame``: rows of one variant. Raises InferenceError where a seed has several.
    """
    found = {}
    for seed, part in frame.groupby("seed"):
        row: dict[str, float] = dict(zip(part["metric"], part["value"], strict=True))
        if len(row) < len(part):
            raise inference.InferenceError(f"seed {seed} has a metric more than once; select one run of each")
        if metric in row:
            spread = row.get(metric.replace("accuracy", "std"))
            n = 1 if spread is None else int(row["autointerp_scored"])
            sides = np.sign(np.arange(n) * 2.0 - (n - 1))
            found[int(str(seed))] = row[metric] + (spread * sides / sides.std() if spread and n > 1 else 0 * sides)
    return found


def verdicts(frame: pd.DataFrame, edges: pd.DataFrame, rng: np.random.Generator, metric: str = METRIC) -> pd.DataFrame:
    """Every variant of one architecture and source beside its trained SAE (``free``, ``iso``), a row each.

    ``edges``: floor and ceiling; ``share`` is where the variant's mean stands between them, NaN without them.
    ``difference`` is trained minus variant (inference.Effect), ``detectable`` what these seeds and latents would find,
    NaN for one seed. Latents differ from SAE to SAE, so they are not paired. A variant without the metric is left out.
    Raises LedgerError without a trained and an untrained SAE.
    """
    floor, ceiling = (_bound(edges, name, metric) for name in ("random_tokens", "labels"))
    trained, untrained = (scores(ledger.select(frame, constraint=c, init="iso"), metric) for c in ("free", "untrained"))
    ability = inference.difference(*_sides([trained], [untrained], False), paired=False, rng=rng)
    rows = []
    for constraint, init, part in _variants(frame, metric):
        other = scores(part, metric)
        value = float(np.mean([row.mean() for row in other.values()]))
        sides = _sides([trained], [other], constraint in DICTIONARIES)
        gap = inference.difference(*sides, paired=False, rng=rng)
        known = min(gap.seeds, gap.units) > 1
        least = inference.detectable(inference.noise(*sides, paired=False)) if known else math.nan
        told = {"difference": gap, "detectable": least, "verdict": inference.verdict(gap, MARGIN, ability)}
        share = (value - floor) / (ceiling - floor)
        rows.append({"constraint": constraint, "init": init, "value": value, "share": share, **told})
    return pd.DataFrame(rows)


def turns(
    frame: pd.DataFrame,
    rng: np.random.Generator,
    before: str = METRIC,
    after: str = "autointerp_ranks_accuracy",
) -> pd.DataFrame:
    """How far trained minus variant moves from one metric to another: constraint, init, change (inference.Effect).

    Both read the same latents and are taken as independent, so that intervals err on the wide side.
    """
    trained = [scores(ledger.select(frame, constraint="free", init="iso"), metric) for metric in (before, after)]
    rows = []
    for constraint, init, part in _variants(frame, after):
        sides = _sides(trained, [scores(part, metric) for metric in (before, after)], constraint in DICTIONARIES)
        moved = inference.estimate(lambda a, b, c, d: (b - d) - (a - c), *sides, paired=False, rng=rng)
        rows.append({"constraint": constraint, "init": init, "change": moved})
    return pd.DataFrame(rows)


def best_of(
    frame: pd.DataFrame,
    variants: Sequence[tuple[str, str]],
    rng: np.random.Generator,
    metric: str = METRIC,
) -> inference.BestOf:
    """What taking the best of these variants (constraint, init) does, over the seeds that all and the trained have."""
    found = [scores(ledger.select(frame, constraint=c, init=i), metric) for c, i in (("free", "iso"), *variants)]
    seeds = sorted(set.intersection(*(set(side) for side in found)))
    return inference.best_of(*([side[s] for s in seeds] for side in found), paired=False, rng=rng)


def _bound(edges: pd.DataFrame, name: str, metric: str) -> float:
    """NaN where it is not recorded."""
    return float(edges.loc[(edges["constraint"] == name) & (edges["metric"] == metric), "value"].mean())


def _variants(frame: pd.DataFrame, metric: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Constraint, init and rows of all that have the metric, but for the trained SAE."""
    for constraint, init in product(names.ordered(frame["constraint"]), ("iso", "cov")):
        part = frame.loc[(frame["constraint"] == constraint) & (frame["init"] == init)]
        if metric in set(part["metric"]) and (constraint, init) != ("free", "iso"):
            yield constraint, init, part


def _sides(trained: Sequence[Scores], other: Sequence[Scores], seedless: bool) -> list[inference.Side]:
    """Sides of the trained SAE, then of the other, over the seeds that both have; ``seedless`` has but one row."""
    seeds = sorted(trained[0]) if seedless else sorted(set(trained[0]) & set(other[0]))
    return [[of[s] for s in seeds] for of in trained] + [
        next(iter(of.values())) if seedless else [of[s] for s in seeds] for of in other
    ]


def _answered(
    excerpts: Sequence[Excerpt], truth: Bool[np.ndarray, "tests"], said: Sequence[bool] | None
) -> Iterator[tuple[bool, str, str]]:
    """Of each sequence whether the latent fires, what the judge said, and the text with its marks."""
    told = ["no answer"] * len(excerpts) if said is None else ["fires" if fires else "silent" for fires in said]
    for excerpt, fires, answer in zip(excerpts, truth, told, strict=True):
        yield bool(fires), answer, excerpt.marked
