"""What recorded probes say: the trained SAE beside the others, and how wide an interval is by what is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd

from saecore.report import inference, ledger, names
from saecore.spec import DICTIONARIES

CONTROLS = ("neurons", "pca", "dense_probe")
"""References that a trained SAE is held against."""
MARGIN = inference.margin("probing_top1")
BOTH, SEEDS, FAMILIES, TASKS = "families and seeds", "seeds alone", "families, live", "tasks, live"
"""Columns of :func:`widths`: what is taken as a sample."""


def by_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of texts that a user named (probing.Texts), with columns ``k`` and ``table``, a name in words."""
    told = frame["metric"].str.extract(r"^probing_top(?P<k>\d+)_(?P<table>\w+)")
    return frame.assign(k=told["k"].astype(int), table=told["table"].str.replace("_", " "))


def compared(
    frame: pd.DataFrame, references: pd.DataFrame, rng: np.random.Generator, name: str = "probing"
) -> pd.DataFrame:
    """The trained SAE (``free``, ``iso``) minus everything else, with one latent, over families and seeds.

    ``frame``: rows of one source and architecture, and of the dictionaries on it; ``references``: of its ``CONTROLS``,
    whose ``raw`` is true. A row each: ``value``; ``difference``, ``low``, ``high`` over ``seeds``; ``detectable``, the
    smallest true difference that 80 % of such runs find, NaN for one seed; ``gained``, how much of what training adds
    to an untrained SAE the other has, NaN where that is not above zero; and the ``verdict`` by the margin of one
    latent. Values are means over families, not over sets, of which a family may have two. What shares no seed with the
    trained and the untrained SAE is left out. Raises LedgerError without these two, InferenceError as scores does.
    """
    families = sorted(metric for metric in set(frame["metric"]) if metric.startswith(f"{name}_top1_"))
    always = [ledger.select(frame, constraint=c, init="iso") for c in ("free", "untrained")]
    shared = set(always[0]["seed"]) & set(always[1]["seed"])
    every = pd.concat([frame, references.loc[references["constraint"].isin(CONTROLS)]])
    rows = []
    for key, part in every.groupby(["constraint", "init", "architecture"]):
        constraint, init, architecture = cast(tuple[str, str, str], key)
        seedless = architecture == "" or constraint in DICTIONARIES
        if (constraint, init) == ("free", "iso") or not (seedless or shared & set(part["seed"])):
            continue
        trained, untrained, *rest = inference.scores([*always, *([] if seedless else [part])], families)
        other = inference.scores([part], families)[0][0] if seedless else rest[0]
        gap, ability = (inference.difference(trained, side, paired=True, rng=rng) for side in (other, untrained))
        least = inference.detectable(inference.noise(trained, other, paired=True)) if gap.seeds > 1 else math.nan
        said = {"constraint": constraint, "init": init, "raw": architecture == "", "value": float(np.mean(other))}
        said |= {"difference": gap.value, "low": gap.low, "high": gap.high, "seeds": gap.seeds, "detectable": least}
        gained = 1 - gap.value / ability.value if ability.low > 0 else math.nan
        rows.append({**said, "gained": gained, "verdict": inference.verdict(gap, MARGIN, ability)})
    order = names.ordered(every["constraint"])
    return pd.DataFrame(rows).sort_values(
        ["raw", "constraint", "init"],
        ascending=[True, True, False],
        key=lambda column: column.map(order.index) if column.name == "constraint" else column,
    )


def widths(
    frame: pd.DataFrame, tasks: Mapping[str, pd.DataFrame], rng: np.random.Generator, name: str = "probing"
) -> pd.DataFrame:
    """How far the interval of trained minus another reaches to either side, by what is taken as a sample.

    With one latent, a row for each constraint of ``tasks`` but ``free``. From ``frame``, rows of one architecture:
    families and seeds, as :func:`compared` draws them, and seeds alone. From ``tasks``, tables of Prober.tasks of one
    seed: families alone, and tasks as if each stood for itself. NaN for seeds alone where there is one. Raises as
    :func:`compared`.
    """
    families = sorted(metric for metric in set(frame["metric"]) if metric.startswith(f"{name}_top1_"))
    found = {}
    for constraint in tasks:
        if constraint == "free":
            continue
        both = ("free", constraint)
        drawn = inference.scores([ledger.select(frame, constraint=c, init="iso") for c in both], families)
        one = [t.loc[t["k"] == 1].groupby(["family", "set", "task"]).accuracy.mean() for t in (tasks[c] for c in both)]
        by_family = [t.groupby(["family", "set"]).mean().groupby("family").mean() for t in one]
        sides = {
            BOTH: drawn,
            SEEDS: [side.mean(1, keepdims=True) for side in drawn],
            FAMILIES: [side.to_numpy() for side in by_family],
            TASKS: [side.to_numpy() for side in one],
        }
        effects = {key: inference.difference(*pair, paired=True, rng=rng) for key, pair in sides.items()}
        found[constraint] = {key: (effect.high - effect.low) / 2 for key, effect in effects.items()}
    return pd.DataFrame.from_dict(found, orient="index")
