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
from saecore.studies.editing import FLOORS, METRIC
from saecore.studies.facts import EditingError

SIZE = "editing_mask_size_"
"""Recorded for each attribute, and for nothing else."""


def attributes(frame: pd.DataFrame) -> list[str]:
    """The attributes that rows of the ledger tell of, by their names there."""
    return sorted({metric.removeprefix(SIZE) for metric in frame["metric"] if metric.startswith(SIZE)})


def priced(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the check ``SMALL`` under their plain metrics, with the price of a latent as the column ``price``."""
    told = frame["metric"].str.extract(r"^(?P<metric>.*)_at_(?P<price>[\d.e-]+)$")
    return frame.assign(metric=told["metric"], price=told["price"].astype(float))


def by_price(frame: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """Mask size (``latents``) and ``disentanglement``, means over these attributes: columns by price, then by name.

    ``frame``: rows with a column ``price``. A row for each constraint and init that is recorded at every price, in the
    order of pages.
    """
    told = {f"{SIZE}{a}": "latents" for a in of} | {f"{METRIC}_{a}": "disentanglement" for a in of}
    rows = frame[frame["metric"].isin(told)]
    rows = rows.assign(metric=rows["metric"].map(told))
    table = rows.pivot_table(index=["constraint", "init"], columns=["price", "metric"], values="value").dropna()
    order = names.ordered(frame["constraint"])
    return table.loc[sorted(table.index, key=lambda key: (order.index(key[0]), key[1] != "iso"))]


def implied(data: Entities) -> pd.DataFrame:
    """How much one attribute says of another: the share of the row's values that leave the column one value."""
    values = pd.DataFrame([dict(entity.values) for entity in data.entities])[list(data.attributes)]
    left = {a: values.groupby(a).nunique().eq(1).mean() for a in data.attributes}
    return pd.DataFrame(left).T.reindex(columns=list(data.attributes))


def heights(references: pd.DataFrame) -> dict[str, float]:
    """How far MDAS lies above the better floor, for each attribute.

    ``references``: rows of Editor.references in the ledger, of one source.
    """
    places = zip(references["constraint"], references["metric"], strict=True)
    score = dict(zip(places, references["value"], strict=True))
    return {
        attribute: score["mdas", name] - max(score[floor, name] for floor in FLOORS)
        for attribute in attributes(references)
        for name in [f"{METRIC}_{attribute}"]
    }


def separable(references: pd.DataFrame) -> list[str]:
    """The attributes that MDAS edits on their own: by more than the margin above the better floor.

    Raises EditingError where there is none.
    """
    above, least = heights(references), inference.margin(METRIC).value
    found = [attribute for attribute, height in above.items() if height > least]
    if not found:
        most = max(above, key=lambda attribute: above[attribute])
        raise EditingError(
            f"MDAS lies {above[most]:.3f} above the floor for {most!r}, and no more for any other attribute; {least} "
            "is the margin: nothing can be edited on its own here, so report each attribute beside its floor"
        )
    return found


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
