"""The paper's numbers, from data/paper/*.csv. Its variant "trained" is our constraint "free"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import pandas as pd

from saecore import paths

FILES = ("text_numbers.csv", "tables_2_to_4.csv")
COLUMNS = ("setting", "architecture", "variant", "init", "l0", "metric", "value", "spread", "source", "note")
VARIANTS = {"free": "trained"}
MAIN_INIT = {"frozen_decoder": "cov", "pca": "cov"}
"""Where rows start in the main figures; ``iso`` for every other variant (Sec. 4.2)."""
FEATURES = 3200
"""Ground-truth features of the synthetic study (Sec. 3.1)."""


class PaperError(LookupError):
    """A number that the paper does not give, or gives more than once; the message lists what is near."""


@dataclass(frozen=True)
class PaperNumber:
    """One number as the paper prints it, and half a unit of its last digit."""

    value: float
    rounding: float
    source: str
    note: str = ""

    def share(self, of: int) -> PaperNumber:
        return PaperNumber(self.value / of, self.rounding / of, self.source, self.note)


def table() -> pd.DataFrame:
    """Every number of the paper's text and Tables 2-4 as text, a row each; ``l0`` may be empty."""
    frames = []
    for name in FILES:
        file = paths.paper() / name
        if not file.exists():
            raise PaperError(f"{file} is missing; data/README.md says where it comes from")
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        if "model" in frame:
            frame = frame.assign(setting=frame["model"] + "/" + frame["layer"])
        else:
            frame = frame.assign(l0=frame["note"].str.extract(r"L0=(\d+)")[0].fillna(""))
        frames.append(frame.reindex(columns=list(COLUMNS), fill_value=""))
    return pd.concat(frames, ignore_index=True)


def number(
    *,
    setting: str,
    architecture: str,
    variant: str,
    metric: str,
    init: str = "",
    l0: int = 0,
    source: str = "",
) -> float:
    """One number. ``init``, ``l0`` or ``source`` ("Table 2") decide where the paper gives several."""
    return lookup(
        setting=setting,
        architecture=architecture,
        variant=variant,
        metric=metric,
        init=init,
        l0=l0,
        source=source,
    ).value


def lookup(
    *,
    setting: str,
    architecture: str,
    variant: str,
    metric: str,
    init: str = "",
    l0: int = 0,
    source: str = "",
) -> PaperNumber:
    """As :func:`number`, with the rounding and the place in the paper.

    ``fraction_recovered`` is also found where the paper gives a count of its features. Raises PaperError.
    """
    wanted = {
        "setting": setting,
        "architecture": architecture,
        "variant": VARIANTS.get(variant, variant),
        "metric": metric,
        "init": init,
        "l0": str(l0) if l0 else "",
        "source": source,
    }
    rows = _matching(wanted)
    if rows.empty and metric == "fraction_recovered":
        rows = _matching({**wanted, "metric": "features_recovered"})
    if rows.empty:
        raise PaperError(f"the paper gives no {_said(wanted)}; near it: {_near(wanted)}")
    if len(rows) > 1:
        several = "; ".join(_said(row) + f" = {row['value']}" for row in rows.to_dict("records"))
        raise PaperError(f"the paper gives {len(rows)} numbers for {_said(wanted)}; name init, l0 or source: {several}")
    row = rows.iloc[0]
    found = _parsed(row["value"], row["source"], row["note"])
    return found.share(FEATURES) if row["metric"] == "features_recovered" and metric != row["metric"] else found


def pair(*, setting: str, architecture: str, metric: str) -> tuple[PaperNumber, PaperNumber]:
    """The abstract's "0.87 vs 0.90": its best baseline, and the trained SAE."""
    wanted = {
        "setting": setting,
        "architecture": architecture,
        "variant": "best baseline vs trained",
        "metric": metric,
    }
    rows = _matching(wanted)
    if len(rows) != 1:
        raise PaperError(f"the paper gives no pair {_said(wanted)}; near it: {_near(wanted)}")
    row = rows.iloc[0]
    baseline, trained = row["value"].split(" vs ")
    return _parsed(baseline, row["source"], row["note"]), _parsed(trained, row["source"], row["note"])


def main_variants(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a ledger's frame whose constraint starts as in the paper's main figures."""
    return frame.loc[frame["init"] == [MAIN_INIT.get(name, "iso") for name in frame["constraint"]]]


def gaps(metric: str) -> pd.DataFrame:
    """Trained minus frozen in Tables 2-4: setting, architecture, constraint, init, gap. Raises PaperError."""
    frame = table()
    rows = frame.loc[frame["source"].str.startswith("Table") & (frame["metric"] == metric)]
    if rows.empty:
        raise PaperError(f"Tables 2-4 have no metric {metric!r}; they have {', '.join(sorted(set(frame['metric'])))}")
    group = ["setting", "architecture"]
    rows = rows.astype({"value": float})
    best = rows.loc[rows["variant"] == "trained"].set_index(group)["value"]
    frozen = rows.loc[rows["variant"] != "trained"].rename(columns={"variant": "constraint"})
    gap = best.loc[pd.MultiIndex.from_frame(frozen[group])].to_numpy() - frozen["value"]
    return frozen.assign(gap=gap)[[*group, "constraint", "init", "gap"]].reset_index(drop=True)


def _matching(wanted: Mapping[str, str]) -> pd.DataFrame:
    rows = table()
    for name, value in wanted.items():
        if value:
            rows = rows.loc[rows[name] == value]
    return rows


def _parsed(text: str, source: str, note: str) -> PaperNumber:
    try:
        exact = Decimal(text)
    except InvalidOperation:
        raise PaperError(f"the paper prints {text!r} ({source}), not one number; paper.pair() reads it") from None
    exponent = exact.as_tuple().exponent
    assert isinstance(exponent, int)
    return PaperNumber(float(exact), float(Decimal(1).scaleb(exponent) / 2), source, note)


def _said(row: Mapping[str, str]) -> str:
    order = ("setting", "architecture", "variant", "init", "l0", "metric", "source")
    shown = [f"L0 {row[name]}" if name == "l0" else row[name] for name in order if row.get(name)]
    return " ".join(re.sub(r"\s+", " ", item) for item in shown)


def _near(wanted: Mapping[str, str], most: int = 5) -> str:
    known = {_said({**row, "source": ""}): None for row in table().to_dict("records")}
    close = difflib.get_close_matches(_said({**wanted, "source": ""}), known, n=most, cutoff=0.3)
    return "; ".join(close) or "nothing"
