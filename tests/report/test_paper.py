"""The paper's numbers, by name."""

from typing import Any

import pandas as pd
import pytest

from saecore.report import paper
from saecore.report.paper import PaperError

CONSTANT: dict[str, Any] = {"setting": "synthetic_constant", "variant": "free"}
GEMMA: dict[str, Any] = {"setting": "gemma-2-2b/12", "architecture": "batch_topk"}


def test_numbers_of_the_text_and_of_the_tables():
    assert paper.number(**CONSTANT, architecture="batch_topk", metric="explained_variance") == 0.67
    assert paper.number(**GEMMA, variant="soft_frozen_decoder", metric="explained_variance") == 0.785
    assert paper.number(**GEMMA, variant="trained", metric="autointerp") == 0.90


def test_trained_is_free():
    both = {paper.number(**GEMMA, variant=v, metric="explained_variance") for v in ("free", "trained")}
    assert both == {0.852}


@pytest.mark.parametrize(
    ("architecture", "metric", "value", "rounding"),
    [
        ("batch_topk", "explained_variance", 0.67, 0.005),
        ("batch_topk", "features_recovered", 3, 0.5),
        ("batch_topk", "fraction_recovered", 3 / 3200, 0.5 / 3200),
        ("topk", "fraction_recovered", 0.999, 0.0005),
        ("matryoshka", "fraction_recovered", 0.0003, 0.00005),
    ],
)
def test_a_number_is_known_to_half_a_unit_of_its_last_digit(architecture, metric, value, rounding):
    found = paper.lookup(**CONSTANT, architecture=architecture, metric=metric)
    assert found.value == pytest.approx(value) and found.rounding == pytest.approx(rounding)


def test_several_numbers_must_be_told_apart():
    frozen: dict[str, Any] = {**GEMMA, "variant": "frozen_decoder", "metric": "explained_variance"}
    with pytest.raises(PaperError, match=r"gives 2 numbers.*name init, l0 or source.*iso.*0.430.*cov.*0.570"):
        paper.number(**frozen)
    assert paper.number(**frozen, init="cov") == 0.570
    probing: dict[str, Any] = {**GEMMA, "variant": "frozen_decoder", "metric": "sparse_probing_top1"}
    assert paper.number(**probing, l0=225) == 0.70
    assert paper.number(**probing, source="Table 2", init="iso") == 0.669


def test_what_the_paper_does_not_give_lists_what_is_near():
    with pytest.raises(PaperError, match="near it:.*synthetic_constant topk trained fraction_recovered"):
        paper.number(**CONSTANT, architecture="topk", metric="explained_varianse")


def test_pairs_are_read_by_pair():
    wanted: dict[str, Any] = {**GEMMA, "metric": "autointerp"}
    baseline, trained = paper.pair(**wanted)
    assert (baseline.value, trained.value, trained.rounding) == (0.87, 0.90, 0.005)
    with pytest.raises(PaperError, match="'0.87 vs 0.90'.*pair"):
        paper.number(**wanted, variant="best baseline vs trained")
    with pytest.raises(PaperError, match="no pair"):
        paper.pair(**{**wanted, "metric": "l0"})


def test_every_number_of_the_tables_can_be_read():
    rows = paper.table()
    tables = rows.loc[rows["source"].str.startswith("Table")]
    assert len(tables) == 144
    for row in tables.to_dict("records"):
        names = ("setting", "architecture", "variant", "metric", "init", "source")
        assert paper.number(**{name: row[name] for name in names}) == float(row["value"])


def test_what_the_papers_variants_lack():
    table = paper.gaps("explained_variance")
    gaps = {tuple(row[:4]): row[4] for row in table.itertuples(index=False)}
    assert gaps["gemma-2-2b/12", "batch_topk", "soft_frozen_decoder", "iso"] == pytest.approx(0.852 - 0.785)
    assert gaps["llama-3.1-8b/16", "jump_relu", "frozen_decoder", "cov"] == pytest.approx(0.805)
    assert len(gaps) == 30 and "trained" not in set(table["constraint"])
    with pytest.raises(PaperError, match="Tables 2-4 have no metric 'l0'"):
        paper.gaps("l0")


def test_the_main_figures_take_one_init_of_each_variant():
    rows = [(c, i) for c in ("free", "frozen_decoder", "pca") for i in ("iso", "cov")]
    kept = paper.main_variants(pd.DataFrame(rows, columns=["constraint", "init"]))
    assert list(kept.itertuples(index=False, name=None)) == [("free", "iso"), ("frozen_decoder", "cov"), ("pca", "cov")]
