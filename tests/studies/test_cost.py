"""What a run takes, against numbers worked out by hand."""

import dataclasses
import math

import pytest

from saecore.studies import cost

GEMMA = cost.Setup("gemma-2-2b", 2.61e9, 2304, 12, 26)
SMALL = cost.Setup("small", 1e6, 64, 1, 4, width=2)


def test_memory_of_an_sae_of_the_papers_size():
    matrix = 73_728 * 2304 * 4 / 2**30
    assert cost.sae_gib(GEMMA) == pytest.approx(11 * matrix)
    assert cost.codes_gib(GEMMA, 4096) == pytest.approx(4 * 4096 * 73_728 * 4 / 2**30)
    assert cost.store_gib(GEMMA, 2**30) == pytest.approx(4608)


def test_a_card_without_bfloat16_holds_the_model_in_float32():
    assert cost.model_gib(GEMMA, cost.T4) == pytest.approx(2 * cost.model_gib(GEMMA, cost.A10))


def test_hours_are_operations_over_the_cards_speed():
    card = cost.Card("by hand", 10, 1 / 0.36 / cost.UTILISATION)  # 10^16 operations an hour
    assert cost.sae_hours(SMALL, card, 10**6) == pytest.approx(12 * 2 * 64 * 64 * 1e6 / 1e16)
    assert cost.harvest_hours(SMALL, card, 10**9) == pytest.approx(2 * 1e6 / 2 * 1e9 / 1e16)


def test_as_many_saes_as_fit_beside_the_model():
    one = cost.sae_gib(GEMMA)
    taken = cost.model_gib(GEMMA, cost.A10) + cost.codes_gib(GEMMA, 2048)
    for fit, room in ((0, -0.1), (2, 2.1 * one), (3, 3.1 * one)):
        card = cost.Card("by hand", (taken + room) / cost.ROOM, 10)
        assert cost.at_once(GEMMA, card, 2048) == fit


def test_logits_of_the_model_and_of_the_spliced_one():
    """1024 predictions twice in the model's dtype, and five times 256 in float32, of 256,000 tokens."""
    gemma = dataclasses.replace(GEMMA, vocabulary=256_000)
    assert cost.logits_gib(gemma, cost.A10) == pytest.approx(256_000 * (2 * 1024 * 2 + 5 * 256 * 4) / 2**30)
    assert cost.logits_gib(gemma, cost.T4) == pytest.approx(256_000 * (2 * 1024 * 4 + 5 * 256 * 4) / 2**30)
    assert math.isnan(cost.logits_gib(GEMMA, cost.A10))


def test_what_is_larger_of_codes_and_logits_takes_room_from_the_saes():
    gemma, one = dataclasses.replace(GEMMA, vocabulary=256_000), cost.sae_gib(GEMMA)
    logits = cost.logits_gib(gemma, cost.A10)
    assert cost.codes_gib(gemma, 1024) < logits < cost.codes_gib(gemma, 8192)
    card = cost.Card("by hand", (cost.model_gib(gemma, cost.A10) + logits + 1.1 * one) / cost.ROOM, 10)
    assert cost.at_once(gemma, card, 1024) == 1 and cost.at_once(gemma, card, 8192) == 0


def test_a_line_for_each_plan():
    table = cost.table([(GEMMA, cost.A10), (SMALL, cost.T4)], 10**6, 2048, 6)
    assert table["model, layer"].tolist() == ["gemma-2-2b, 12", "small, 1"]
    assert float(table["training (h)"].iloc[0]) == pytest.approx(6 * cost.sae_hours(GEMMA, cost.A10, 10**6))
