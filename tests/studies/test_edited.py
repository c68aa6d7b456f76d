"""Recorded edits: which attributes can be edited on their own, and the trained SAE beside the others."""

# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false, reportOptionalOperand=false
# pandas and matplotlib type what their tables and artists hold too widely for assertions on it.

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from saecore.report.compare import UNDECIDED
from saecore.report.inference import DIFFERENT, UNABLE
from saecore.sources.entities import Entities, Entity, Template, open_entities
from saecore.studies import edited
from saecore.studies.editing import AT, METRIC, separable

ATTRIBUTES = ("capital", "continent", "country")


def rows(values: dict[str, tuple[float, ...]], architecture: str = "", init: str = "", seed: int = 0) -> list[dict]:
    """The disentanglement of each attribute, and a mask's size, for each constraint."""
    found = []
    for constraint, scores in values.items():
        same = {"constraint": constraint, "architecture": architecture, "init": init, "seed": seed}
        for attribute, score in zip(ATTRIBUTES, scores, strict=True):
            found.append({**same, "metric": f"{METRIC}_{attribute}", "value": score})
            found.append({**same, "metric": f"editing_mask_size_{attribute}", "value": 7.0})
        found.append({**same, "metric": f"{METRIC}_random", "value": 0.4})
    return found


@pytest.fixture
def references() -> pd.DataFrame:
    told = {"no_edit": (0.5, 0.5, 0.5), "swap_all": (0.49, 0.52, 0.48), "mdas": (0.98, 0.74, 0.51)}
    return pd.DataFrame(rows({**told, "neurons": (0.9, 0.6, 0.4)}))


def study(references: pd.DataFrame, untrained: float, seeds: int = 3) -> pd.DataFrame:
    """Trained at 0.7 on average; the frozen decoder 0.1 below it in every seed."""
    rng = np.random.default_rng(0)
    made = []
    for seed in range(seeds):
        trained = np.array([0.9, 0.7, 0.5]) + 0.004 * rng.standard_normal(3)
        told = {"free": trained, "frozen_decoder": trained - 0.1 - 0.002 * rng.standard_normal(3)}
        told["untrained"] = trained - untrained + 0.02 * rng.standard_normal(3)
        made += rows({name: tuple(values) for name, values in told.items()}, "batch_topk", "iso", seed)
    return pd.concat([pd.DataFrame(made), references], ignore_index=True)


def test_attributes_are_those_with_a_mask_of_their_own(references):
    assert edited.attributes(references) == ["capital", "continent", "country"]


def test_only_what_mdas_edits_apart_is_separable(references):
    assert edited.heights(references) == pytest.approx({"capital": 0.48, "continent": 0.22, "country": 0.01})
    assert separable(edited.heights(references)) == ["capital", "continent"]
    low = references.assign(value=references["value"].clip(upper=0.515))
    assert edited.heights(low)["capital"] == pytest.approx(0.015) and separable(edited.heights(low)) == []


def test_differences_are_over_seeds_and_attributes(references):
    frame = study(references, untrained=0.2)
    found = edited.compared(frame, ATTRIBUTES, np.random.default_rng(0))
    assert list(found["constraint"]) == ["frozen_decoder", "untrained", "neurons", "no_edit", "swap_all", "mdas"]
    table = found.set_index("constraint")
    frozen = table.loc["frozen_decoder"]
    assert frozen["difference"].value == pytest.approx(0.1, abs=0.003)
    assert (frozen["difference"].seeds, frozen["difference"].units) == (3, 3)
    assert frozen["verdict"] == DIFFERENT and 0 < frozen["detectable"] < 0.05
    assert table.loc["neurons"]["difference"].value == pytest.approx(0.7 - (0.9 + 0.6 + 0.4) / 3, abs=0.01)


def test_a_given_set_of_attributes_is_no_sample(references):
    """Their mean is one unit: the interval is Student's t of the seeds' differences."""
    frame = study(references, untrained=0.2)
    table = edited.compared(frame, ["capital", "continent"], np.random.default_rng(0), drawn=False)
    wide = frame.loc[frame["architecture"] != ""].pivot_table("value", ["constraint", "seed"], "metric")
    mean = wide[[f"{METRIC}_capital", f"{METRIC}_continent"]].mean(axis=1)
    gaps = mean["free"] - mean["frozen_decoder"]
    effect = table.set_index("constraint").loc["frozen_decoder", "difference"]
    assert effect.value == pytest.approx(gaps.mean()) and effect.df == 2 and effect.units == 1
    assert effect.error == pytest.approx(gaps.std(ddof=1) / np.sqrt(3), rel=0.05)
    assert 0 < table.set_index("constraint").loc["frozen_decoder", "detectable"] < 0.05


def test_any_two_variants_are_set_side_by_side(references):
    frame = study(references, untrained=0.2)
    for drawn, units in ((True, 2), (False, 1)):
        rng = np.random.default_rng(0)
        told = edited.gap(frame, ("untrained", "iso"), ("frozen_decoder", "iso"), ATTRIBUTES[:2], rng, drawn)
        assert (told.seeds, told.units) == (3, units) and told.value == pytest.approx(-0.1, abs=0.03)
        assert told.low < told.value < told.high
    table = edited.compared(frame, ATTRIBUTES, np.random.default_rng(0)).set_index("constraint")
    same = edited.gap(frame, ("free", "iso"), ("frozen_decoder", "iso"), ATTRIBUTES, np.random.default_rng(0))
    assert same == table.loc["frozen_decoder", "difference"], "as the table of all has it"


def test_an_untrained_sae_as_good_leaves_the_metric_unable(references):
    frame = study(references, untrained=0.0)
    for drawn in (True, False):
        found = edited.compared(frame, ATTRIBUTES, np.random.default_rng(0), drawn)
        assert set(found["verdict"]) == {UNABLE}


def test_one_seed_decides_nothing(references):
    found = edited.compared(study(references, 0.2, seeds=1), ATTRIBUTES, np.random.default_rng(0))
    assert set(found["verdict"]) == {UNDECIDED} and found["detectable"].isna().all()
    shown = edited.show(found)
    assert set(shown["could be found from"]) == {"–"}
    assert set(shown["seeds"]) == {1}
    assert all(re.fullmatch(r"[+−]0\.\d{3} \[.*\]", text) for text in shown["difference"])


def test_what_shares_no_seed_or_lacks_an_attribute_is_left_out(references):
    frame = study(references, untrained=0.2)
    frame = frame.loc[(frame["constraint"] != "frozen_decoder") | (frame["seed"] == 2)]
    later = frame.loc[frame["constraint"] != "untrained"]
    later = pd.concat([later, frame.loc[(frame["constraint"] == "untrained") & (frame["seed"] < 2)]])
    later = later.loc[(later["constraint"] != "neurons") | (later["metric"] != f"{METRIC}_country")]
    found = edited.compared(later, ATTRIBUTES, np.random.default_rng(0))
    assert not {"frozen_decoder", "neurons"} & set(found["constraint"])
    assert found.set_index("constraint").loc["untrained", "difference"].seeds == 2


def test_a_variant_of_either_start_is_told_by_it(references):
    frame = study(references, untrained=0.2)
    other = frame.loc[frame["constraint"] == "frozen_decoder"].assign(init="cov")
    shown = edited.show(edited.compared(pd.concat([frame, other]), ATTRIBUTES, np.random.default_rng(0)))
    assert list(shown["trained minus"])[:3] == ["frozen decoder, iso", "frozen decoder, cov", "untrained, iso"]
    assert {"neurons", "no edit", "MDAS"} <= set(shown["trained minus"])
    assert all(re.fullmatch(r"0\.\d{3}", text) for text in shown["could be found from"])


def test_a_mean_over_attributes_is_one_row_for_each_sae(references):
    frame = study(references, untrained=0.2).assign(key="k", source="atlas.1", l0=9.0)
    found = edited.over(frame, ["capital", "continent"])
    assert len(found) == 3 * 3 + len(references["constraint"].unique()) and set(found["metric"]) == {METRIC}
    assert found.loc[found["constraint"] == "neurons", "value"].item() == pytest.approx((0.9 + 0.6) / 2)
    gap = edited.gap(frame, ("free", "iso"), ("untrained", "iso"), ["capital", "continent"], np.random.default_rng(0))
    trained, untrained = (found.loc[found["constraint"] == c, "value"].mean() for c in ("free", "untrained"))
    assert trained - untrained == pytest.approx(gap.value)


def test_one_attribute_implies_another():
    """Two countries on one continent and one on another, of which one has cities with two languages."""
    cities = {
        "A": ("Peru", "South America", "Spanish"),
        "B": ("Peru", "South America", "Quechua"),
        "C": ("Chile", "South America", "Spanish"),
        "D": ("Spain", "Europe", "Spanish"),
    }
    names = ("country", "continent", "language")
    data = Entities(
        "made up",
        tuple(Entity(name, "train", dict(zip(names, values, strict=True))) for name, values in cities.items()),
        tuple(Template(name, "", " is", "train") for name in names),
    )
    found = edited.implied(data)
    assert list(found.index) == list(found.columns) == list(names)
    told = {(a, b): found.loc[a, b] for a, b in itertools.permutations(names, 2)}
    assert told == {
        ("country", "continent"): 1.0,
        ("country", "language"): pytest.approx(2 / 3),
        ("continent", "country"): 0.5,
        ("continent", "language"): 0.5,
        ("language", "country"): 0.5,
        ("language", "continent"): 0.5,
    }
    assert all(np.isnan(found.loc[name, name]) for name in names)


def test_atlas_cities_imply_all_but_whether_they_are_capitals():
    found = edited.implied(open_entities("atlas"))
    assert list(found.loc["country", ["continent", "language", "currency"]]) == [1, 1, 1]
    assert found.loc[["continent"]].drop(columns="continent").max(axis=None) < 0.2
    assert found["capital"].max() < 0.5 and found.loc["capital"].max() == 0


def test_masks_are_read_by_their_price(references):
    at = {f"{price:g}": study(references, 0.1) for price in (0.001, 0.5)}
    small = pd.concat([frame.assign(metric=frame["metric"] + AT + price) for price, frame in at.items()])
    told = edited.priced(small)
    assert sorted(told["price"].unique()) == [0.001, 0.5] and "key" not in told
    plain = told[told["price"] == 0.5].drop(columns="price").reset_index(drop=True)
    pd.testing.assert_frame_equal(plain, at["0.5"], check_like=True)
    rest = told[~((told["constraint"] == "neurons") & (told["price"] == 0.5))]
    table = edited.by_price(rest, ["capital", "continent"])
    keys = [
        ("free", "iso"),
        ("frozen_decoder", "iso"),
        ("untrained", "iso"),
        ("no_edit", ""),
        ("swap_all", ""),
        ("mdas", ""),
    ]
    assert table.index.tolist() == keys, "in the order of pages, without what one price lacks"
    assert table.loc[("mdas", ""), (0.001, edited.SCORE)] == pytest.approx(0.86)
    assert (table[0.5][edited.LATENTS] == 7).all()
