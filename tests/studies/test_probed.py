"""What is said of recorded probes: the trained SAE beside the others, with intervals and verdicts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saecore.report import inference
from saecore.report.ledger import LedgerError
from saecore.studies import probed

FAMILIES = ("language", "news", "profession")


def recorded(constraint: str, values, init="iso", architecture="batch_topk") -> list[dict]:
    """A row for each seed and family of ``values``."""
    run = {"constraint": constraint, "init": init, "architecture": architecture}
    return [
        {**run, "seed": seed, "metric": f"probing_top1_{family}", "value": value}
        for seed, row in enumerate(values)
        for family, value in zip(FAMILIES, row, strict=True)
    ]


def made(seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    noise = np.random.default_rng(0).normal(scale=0.002, size=(5, seeds, 3))
    trained = np.array([0.95, 0.9, 0.85]) + noise[0]
    rows = recorded("free", trained) + recorded("soft_frozen_decoder", trained + noise[1])
    rows += recorded("frozen_decoder", trained - 0.08 + noise[2], "cov")
    rows += recorded("frozen_encoder", trained[:1] - 0.15)
    rows += recorded("untrained", trained - 0.16 + noise[3]) + recorded("pca", trained[:1] - 0.12, "cov", "topk")
    edges = [recorded(name, [[value] * 3], "", "") for name, value in (("majority", 0.5), ("dense_probe", 1.0))]
    edges.append(recorded("neurons", trained[:1] - 0.1, "", ""))
    whole = pd.DataFrame(rows)
    return pd.concat([whole, whole.assign(metric="probing_top1", value=0.0)]), pd.DataFrame(sum(edges, []))


def test_everything_is_held_against_the_trained_sae():
    found: Any = probed.compared(*made(3), np.random.default_rng(0))
    order = ["soft_frozen_decoder", "frozen_decoder", "frozen_encoder", "untrained", "pca", "neurons", "dense_probe"]
    assert found["constraint"].tolist() == order and found["raw"].tolist() == [False] * 5 + [True] * 2
    row: Any = found.set_index("constraint")
    assert row["difference"]["frozen_decoder"] == pytest.approx(0.08, abs=0.003)
    assert row["difference"]["pca"] == pytest.approx(0.12, abs=0.003), "which has no seed, beside three seeds"
    assert row["gained"]["frozen_decoder"] == pytest.approx(0.5, abs=0.03) and row["gained"]["untrained"] == 0
    assert row["verdict"]["soft_frozen_decoder"] == inference.EQUIVALENT
    assert row["verdict"]["frozen_decoder"] == row["verdict"]["pca"] == inference.DIFFERENT
    assert row["verdict"]["frozen_encoder"] == inference.UNDECIDED, "one seed of its own"
    assert row["seeds"].to_dict() == {name: 1 if name == "frozen_encoder" else 3 for name in order}
    assert row["detectable"].isna().tolist() == [name == "frozen_encoder" for name in order]
    assert 0 < row["detectable"]["frozen_decoder"] < 0.08
    assert row["low"]["frozen_decoder"] < row["difference"]["frozen_decoder"] < row["high"]["frozen_decoder"]


def test_an_interval_is_as_wide_as_what_is_taken_as_a_sample():
    """Families that differ widen it, and their tasks are no new families."""
    frame, _ = made(3)
    frame = frame[frame["metric"] != "probing_top1"]
    gaps = {"free": (0.0, 0.0, 0.0), "frozen_decoder": (0.02, 0.1, 0.18)}
    tasks = {
        name: pd.DataFrame(
            {"family": family, "set": family, "task": f"{family}{i}", "k": k, "accuracy": 0.9 - gap + 0.001 * (i % 2)}
            for family, gap in zip(FAMILIES, of, strict=True) for i in range(10) for k in (1, 2)
        )
        for name, of in gaps.items()
    }  # fmt: skip
    iso = frame.assign(init="iso")
    found: Any = probed.widths(iso, tasks, np.random.default_rng(0))
    assert found.index.tolist() == ["frozen_decoder"]
    row = found.loc["frozen_decoder"]
    assert row[probed.FAMILIES] > 3 * row[probed.TASKS] > 0
    assert row[probed.BOTH] > 0 and row[probed.SEEDS] > 0
    wide = (0.18 - 0.02) / 2 * stats.t.ppf(0.975, 2) / np.sqrt(3)  # the deviation of three equal steps is one step
    assert row[probed.FAMILIES] == pytest.approx(wide, rel=0.1)


def test_one_seed_leaves_every_verdict_open():
    found: Any = probed.compared(*made(1), np.random.default_rng(0))
    assert set(found["verdict"]) == {inference.UNDECIDED} and found["detectable"].isna().all()


def test_a_check_that_cannot_tell_trained_from_untrained_is_unable_to_decide():
    frame, edges = made(3)
    same = frame["constraint"].isin(["free", "untrained"]).to_numpy()
    frame.loc[same, "value"] = np.tile([0.9, 0.88, 0.92], same.sum() // 3)
    found: Any = probed.compared(frame, edges, np.random.default_rng(0)).set_index("constraint")
    assert found["verdict"]["frozen_decoder"] == inference.UNABLE and found["gained"].isna().all()


def test_without_an_untrained_sae_nothing_is_compared():
    frame, edges = made(2)
    with pytest.raises(LedgerError, match="no row has constraint='untrained'"):
        probed.compared(frame.loc[frame["constraint"] != "untrained"], edges, np.random.default_rng(0))


def test_rows_of_a_users_texts_are_told_by_table():
    metrics = ["probing_top1_reviews.3fa94c21", "probing_top20_land_animals.00000000", "probing_top5_fancyzhx_ag_news"]
    told = probed.by_table(pd.DataFrame({"metric": metrics, "value": [0.1, 0.2, 0.3]}))
    assert told["k"].tolist() == [1, 20, 5] and told["value"].tolist() == [0.1, 0.2, 0.3]
    assert told["table"].tolist() == ["reviews", "land animals", "fancyzhx ag news"]
