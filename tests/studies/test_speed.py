"""What the chapter on kernels shows can fail: a wrong kernel has a difference, and a wrong training no speed."""

import pandas as pd
import pytest
import torch

from saecore.kernels.batch_topk import cpu as selection
from saecore.kernels.sparse_codes import cpu
from saecore.report import speed as rows
from saecore.spec import SAESpec, SpecError
from saecore.studies import speed

SPEC = SAESpec("batch_topk", d_model=19, n_latents=67, l0=5)


@pytest.fixture
def case(generator):
    return speed.Case.random(SPEC, 33, generator)


def test_every_kernel_agrees_with_its_definition(case):
    table = speed.agreement(case)
    assert set(table["kernel"]) == {"selection", "sparse codes", "cone step"} and len(table) == 7
    assert all(difference < speed.TOLERANCE for difference in table["difference"]), table
    numbers = dict(zip(table["quantity"], table["numbers"], strict=True))
    assert numbers["TopK's codes"] == 33 * 67 and numbers["gradient of the encoder"] == 67 * 19


def test_a_wrong_kernel_shows(case, monkeypatch):
    right = cpu.decode
    monkeypatch.setattr(cpu, "decode", lambda *given: 1.001 * right(*given))
    table = speed.agreement(case)
    assert table.loc[table["difference"] > speed.TOLERANCE, "quantity"].tolist() == ["reconstruction"]


def test_a_race_has_both_ways_and_one_loss():
    table = speed.race(SPEC, batch=32, steps=5)
    assert list(table.index) == ["definition", "kernels"] and all(took > 0 for took in table["milliseconds"])
    definition, kernels = table["loss"]
    assert kernels == pytest.approx(definition, rel=1e-4)


def test_a_race_without_one_loss_has_no_speed(monkeypatch):
    right = cpu.weight_grads

    def wrong(*given):
        counts = right(*given)
        given[5][:] *= -1  # up the gradient
        return counts

    monkeypatch.setattr(cpu, "weight_grads", wrong)
    with pytest.raises(speed.DisagreementError, match="after 40 steps, more than 1%; .* says which kernel"):
        speed.race(SPEC, batch=32, steps=40)


def test_what_cannot_be_timed_is_refused(case, monkeypatch):
    with pytest.raises(SpecError, match="steps=2: the first 2 are not timed; give at least 3"):
        speed.race(SPEC, batch=32, steps=2)
    monkeypatch.setattr(selection, "select_above", lambda *given: None)
    with pytest.raises(speed.DisagreementError, match="gave up on a threshold"):
        speed.agreement(case)


def test_work_by_hand():
    shape = pd.DataFrame({"batch_size": [10], "d_model": [100], "n_latents": [1000], "k": [10]}, index=["a"])
    told = speed.work(shape).loc["a"]
    assert told["dense"] == pytest.approx(5 * 2e-3) and told["active"] == 0.01
    assert told["dense / needed"] == pytest.approx(5 / 1.04)
    assert set(speed.work(rows.shapes()).index) == set(rows.shapes().index)


def test_cases_are_drawn_from_the_generator():
    first, again = (speed.Case.random(SPEC, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.x, again.x) and torch.equal(first.start, again.start)
    assert not torch.equal(first.W_enc, first.W_dec)
