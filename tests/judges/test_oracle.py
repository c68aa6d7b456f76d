"""The oracle's rules, on text whose labels are known."""

import dataclasses

import numpy as np
import pytest

from saecore.judges import Oracle
from saecore.judges.base import ask


@pytest.fixture(scope="module")
def labels(text):
    rng = np.random.default_rng(1)
    topic = np.repeat(rng.choice(["sport", "law", "art", "war", "food", "film"], len(text.ids) // 10), 10)
    mood = rng.choice(np.array(["good", "bad", ""]), len(text.ids))
    return {"topic": topic.tolist(), "mood": [str(m) or None for m in mood]}


@pytest.fixture(scope="module")
def oracle(text, labels):
    return Oracle(text, labels)


def holds(labels, concept, value):
    return np.array([label == value for label in labels[concept]])


def test_a_label_is_found_and_scores_fully(oracle, labels, make_trials):
    (judged,) = ask(oracle, make_trials(holds(labels, "topic", "law")))
    assert judged.description == "topic = law"
    assert judged.accuracy == judged.accuracy_hard == 1.0


def test_tokens_and_what_follows_them_are_found(text, oracle, make_trials):
    after = np.concatenate([[False], (text.ids[:-1] == 9) & (np.diff(text.row) == 0)])
    token, follows = ask(oracle, make_trials(text.ids == 5, after))
    assert token.description == "the token ' t5'" and token.accuracy == token.accuracy_hard == 1.0
    assert follows.description == "after the token ' t9'" and follows.accuracy == 1.0


def test_a_pair_is_found_where_one_part_says_too_much(labels, oracle, make_trials):
    both = holds(labels, "topic", "law") & holds(labels, "mood", "good")
    (judged,) = ask(oracle, make_trials(both))
    assert judged.description == "topic = law and mood = good"
    assert judged.accuracy == 1.0


def test_a_label_comes_before_the_token_that_says_the_same(text, make_trials):
    labels = {"name": ["Ann" if i == 5 else None for i in text.ids.tolist()]}
    (judged,) = ask(Oracle(text, labels), make_trials(text.ids == 5))
    assert judged.description == "name = Ann"


def test_random_tokens_are_told_by_chance(text, oracle, make_trials):
    rng = np.random.default_rng(2)
    fires = [rng.random(len(text.ids)) < 0.01 for _ in range(20)]
    judged = ask(oracle, make_trials(*fires))
    assert np.mean([j.accuracy for j in judged]) == pytest.approx(0.5, abs=0.03)


def test_the_rule_depends_on_nothing_in_the_test(oracle, labels, make_trials):
    (trial,) = make_trials(holds(labels, "topic", "law"))
    blind = dataclasses.replace(trial, test=(), hard=(), truth=trial.truth[:0], hard_truth=trial.hard_truth[:0])
    assert oracle.describe([blind]) == oracle.describe([trial])


def test_every_sequence_with_one_such_token_is_named_and_no_other(text, labels, oracle, make_trials):
    (trial,) = make_trials(text.ids == 5)
    (description,) = oracle.describe([trial])
    (said,) = oracle.judge([(description, trial.test)])
    assert said == [5 in text.ids[e.start : e.start + 21] for e in trial.test]


def test_a_foreign_description_and_missing_labels_are_refused(text, labels, oracle, trials):
    with pytest.raises(ValueError, match="'the moon' is none of this oracle's"):
        oracle.judge([("the moon", trials[0].test)])
    with pytest.raises(ValueError, match=r"8000 positions, but \{'mood': 2\} labels"):
        Oracle(text, {"mood": ["a", "b"]})


def test_parts_of_characters_are_told_apart(text, make_trials):
    broken = dataclasses.replace(text, pieces={i: "\ufffd" for i in text.pieces})
    first, second = ask(Oracle(broken, {}), make_trials(text.ids == 5, text.ids == 6))
    assert (first.description, second.description) == ("the token #5", "the token #6")
    assert first.accuracy == second.accuracy == 1.0


def test_it_costs_nothing(oracle, trials):
    assert oracle.plan(trials, 1.0, 1.0).calls == 0
