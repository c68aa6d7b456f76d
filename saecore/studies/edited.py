"""What recorded edits say: the attributes that can be edited on their own, and the trained SAE beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.random import Generator

from saecore.report import inference, names
from saecore.sources.entities import Entities
from saecore.studies import editing
from saecore.studies.editing import AT, METRIC

SIZE = "editing_mask_size_"
"""Recorded for each attribute, and for nothing else."""
LATENTS, SCORE = "latents", "disentanglement"
"""Columns of :func:`by_price`."""


def attributes(frame: pd.DataFrame) -> list[str]:
    """The attributes that rows of the ledger tell of, by their names there."""
    return sorted({metric.removeprefix(SIZE) for metric in frame["metric"] if metric.startswith(SIZE)})


def priced(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the check ``SMALL`` under their plain metrics, with the price of a latent as the column ``price``."""
    told = [metric.rpartition(AT) for metric in frame["metric"]]
    return frame.assign(metric=[name for name, _, _ in told], price=[float(price) for *_, price in told])


def by_price(frame: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """Mask size (``LATENTS``) and disentanglement (``SCORE``), means over these attributes: columns by price, then so.

    ``frame``: rows with a column ``price``. A row for each constraint and init that is recorded at every price, in the
    order of pages.
    """
    told = {f"{SIZE}{a}": LATENTS for a in of} | {f"{METRIC}_{a}": SCORE for a in of}
    rows = frame.loc[frame["metric"].isin(told)]
    rows = rows.assign(metric=rows["metric"].map(told))
    table = rows.pivot_table(index=["constraint", "init"], columns=["price", "metric"], values="value").dropna()
    order = names.ordered(frame["constraint"])
    return table.loc[sorted(table.index, key=lambda key: (order.index(key[0]), key[1] != "iso"))]


def over(frame: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """One row for each SAE or reference: the disentanglement's mean over these attributes, under the metric METRIC."""
    rows = frame.loc[frame["metric"].isin([f"{METRIC}_{a}" for a in of])]
    same = ["key", "source", "architecture", "constraint", "init", "l0", "seed"]
    return rows.groupby(same, dropna=False, as_index=False)["value"].mean().assign(metric=METRIC)


def implied(data: Entities) -> pd.DataFrame:
    """How much one attribute says of another: the share of the row's values that leave the column one value."""
    values = pd.DataFrame([dict(entity.values) for entity in data.entities])[list(data.attributes)]
    left = {a: values.groupby(a).nunique().eq(1).mean() for a in data.attributes}
    return pd.DataFrame(left).T.reindex(columns=list(data.attributes))


def heights(references: pd.DataFrame) -> dict[str, float]:
    """As editing.heights. ``references``: rows of Editor.references in the ledger, of one source."""
    named = references.groupby("constraint")
    values = {str(name): dict(zip(part["metric"], part["value"], strict=True)) for name, part in named}
    return editing.heights(values, attributes(references))


def gap(
    frame: pd.DataFrame,
    one: tuple[str, str],
    other: tuple[str, str],
    of: Sequence[str],
    rng: Generator,
    drawn: bool = True,
) -> inference.Effect:
    """The disentanglement of one variant (constraint, init) minus another's; the rest as for :func:`compared`."""
    sides = [frame.loc[(frame["constraint"] == c) & (frame["init"] == i)] for c, i in (one, other)]
    found = inference.scores(sides, [f"{METRIC}_{attribute}" for attribute in of])
    means = found if drawn else [side.mean(-1, keepdims=True) for side in found]
    return inference.difference(*means, paired=True, rng=rng)


def compared(frame: pd.DataFrame, of: Sequence[str], rng: Generator, drawn: bool = True) -> pd.DataFrame:
    """The trained SAE minus each variant and each reference, in disentanglement over these attributes.

    ``frame``: rows of one source and architecture, and of the references on it, which have none. ``drawn``: the
    attributes stand for others like them, so that intervals are over seeds and attributes; without it they are all that
    is asked, and intervals are over seeds. Columns: constraint, init, difference (an Effect), verdict and detectable
    (the smallest true difference that is found in 80 % of such runs, NaN with one seed). Variants that share no seed
    with the trained and the untrained SAE are left out. Raises InferenceError.
    """
    metrics = [f"{METRIC}_{attribute}" for attribute in of]
    groups = {cast(tuple, where): part for where, part in frame.groupby(["constraint", "init"])}
    always = [groups["free", "iso"], groups["untrained", "iso"]]
    order = names.ordered(frame["constraint"])
    rows = []
    for constraint, init in sorted(groups, key=lambda key: (order.index(key[0]), key[1] != "iso")):
        part = groups[constraint, init]
        known = [] if set(part["architecture"]) == {""} else [part]
        shared = set.intersection(*(set(other["seed"]) for other in [*always, *known]))
        if (constraint, init) == ("free", "iso") or not shared or not set(metrics) <= set(part["metric"]):
            continue
        trained, untrained, *rest = inference.scores([*always, *known], metrics)
        other = rest[0] if rest else inference.scores([part], metrics)[0][0]
        if not drawn:
            trained, untrained, other = (side.mean(-1, keepdims=True) for side in (trained, untrained, other))
        gap, ability = (inference.difference(trained, side, paired=True, rng=rng) for side in (other, untrained))
        decided = inference.verdict(gap, inference.margin(METRIC), ability)
        found = {"difference": gap, "verdict": decided, "detectable": _detectable(trained, other)}
        rows.append({"constraint": constraint, "init": init, **found})
    return pd.DataFrame(rows)


def _detectable(trained: Float[np.ndarray, "seeds units"], other: Float[np.ndarray, "*seeds units"]) -> float:
    if len(trained) < 2:
        return float("nan")
    if trained.shape[1] > 1:
        return inference.detectable(inference.noise(trained, other, paired=True))
    of_seeds = float(np.var(trained - other, ddof=1))
    return inference.detectable(inference.Noise(of_seeds, 0.0, 0.0, len(trained), 1, True))


def show(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table of :func:`compared` as the book prints it."""
    least = ["–" if np.isnan(value) else f"{value:.{digits}f}" for value in table["detectable"]]
    return pd.DataFrame(
        {
            "trained minus": [names.variant(c, i) for c, i in zip(table["constraint"], table["init"], strict=True)],
            "difference": [effect.text(digits).split(" (")[0] for effect in table["difference"]],
            "seeds": [effect.seeds for effect in table["difference"]],
            "could be found from": least,
            "verdict": table["verdict"],
        }
    )
