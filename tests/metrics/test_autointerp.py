"""The sequences of a latent, on made-up text and codes, against the rules read off the dense activations."""

import numpy as np
import pytest
from scipy import sparse

from saecore.metrics import autointerp
from saecore.metrics.autointerp import HALF, LEAST, WIDTH, Text, accuracy, choose, trial
from saecore.spec import SpecError

ROWS, LENGTH, VOCABULARY = 400, 50, 300


def text(rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> Text:
    ids = np.random.default_rng(seed).integers(VOCABULARY, size=rows * length)
    return Text(ids, np.repeat(np.arange(rows), length), {i: f" t{i}" for i in range(VOCABULARY)})


def codes(dense: np.ndarray) -> sparse.csc_array:
    return sparse.csc_array(dense.astype(np.float32))


def fired(size: int, share: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < share, rng.lognormal(0, 1, size), 0.0)


def windows(excerpts) -> np.ndarray:
    return np.array([e.start for e in excerpts])[:, None] + np.arange(WIDTH)


@pytest.mark.parametrize(
    ("said", "truth", "wanted"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0.0),
        ([1, 1, 1, 1], [1, 1, 0, 0], 0.5),
        ([0, 0, 0], [1, 0, 0], 0.5),
        ([1, 0, 0, 0], [1, 1, 0, 0], 0.75),
        ([1, 0, 1, 1, 0], [1, 1, 1, 1, 0], (0.75 + 1) / 2),
    ],
)
def test_accuracy(said, truth, wanted):
    assert accuracy([bool(s) for s in said], np.array(truth, dtype=bool)) == wanted


def test_no_answer_has_no_accuracy():
    assert np.isnan(accuracy(None, np.array([True, False])))


def test_sequences_are_moved_inside_their_rows():
    found = text(rows=20, length=30)
    assert found.start[:12].tolist() == [0] * 11 + [1]
    assert found.start[28:33].tolist() == [9, 9, 30, 30, 30]
    assert (found.row[found.start] == found.row[found.start + WIDTH - 1]).all()
    inside = found.start + HALF == np.arange(len(found.ids))
    assert inside.reshape(20, 30)[:, HALF : 30 - HALF].all()


def test_tiles_lie_side_by_side_in_the_reserved_rows():
    assert text(rows=20, length=50).tiles.tolist() == [450, 471, 950, 971]


def test_content_is_equal_where_the_tokens_are():
    ids = np.tile(np.arange(30), 12)
    found = Text(ids, np.repeat(np.arange(12), 30), {i: str(i) for i in range(30)})
    assert found.content[0] == found.content[30] != found.content[1]
    assert len(set(found.content[:10].tolist())) == 10


@pytest.mark.parametrize(("rows", "length"), [(20, WIDTH - 1), (9, 50)])
def test_too_little_text_is_refused(rows, length):
    with pytest.raises(ValueError, match="need 10 rows, numbered from 0, of 21 tokens"):
        text(rows, length)


@pytest.mark.parametrize("spread", autointerp.SPREADS)
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_trial_keeps_the_rules(spread, share):
    world = text()
    values = fired(len(world.ids), share)
    found = trial(world, codes(values[:, None]), 0, seed=3, spread=spread)
    assert found is not None and len(found.top) == 15
    assert len(found.test) == len(found.hard) == 100
    assert found.frequency == pytest.approx((values > 0).mean())
    assert found.truth.sum() == found.hard_truth.sum() == 50
    limit = 0.01 * values.max()
    for tests, truth in ((found.test, found.truth), (found.hard, found.hard_truth)):
        inside = values[windows(tests)]
        assert ((inside > limit).any(1) == truth).all()
        assert (inside[~truth] == 0).all()
        everything = windows([*found.top, *tests])
        assert len(set(world.row[everything[:, 0]])) == len({tuple(world.ids[w]) for w in everything}) == 115
        assert not world.reserved[everything].any()
        assert (world.row[everything] == world.row[everything[:, :1]]).all()
    best = np.where(world.reserved, 0, values).reshape(ROWS, LENGTH).max(1)
    peaks = [e.values.max() for e in found.top]
    assert peaks == pytest.approx(np.sort(best)[::-1][:15])
    assert values[windows(found.top)] == pytest.approx(np.array([e.values for e in found.top]))
    assert [e.active.tolist() for e in found.top] == (values[windows(found.top)] > limit).tolist()
    active = {e.start for e, t in zip(found.test, found.truth, strict=True) if t}
    assert active == {e.start for e, t in zip(found.hard, found.hard_truth, strict=True) if t}
    assert (found.silent == (values[world.tiles[:, None] + np.arange(WIDTH)] == 0).all(1)).all()
    assert not (np.diff(found.truth.astype(int)) == 0).all() and found.truth[:50].sum() not in (0, 50)


def test_ranks_are_equally_spaced_and_squares_favour_the_strong():
    world = text()
    values = fired(len(world.ids), 0.02)
    rest = np.sort(np.where(world.reserved, 0, values).reshape(ROWS, LENGTH).max(1))[::-1][15:]
    rest = rest[rest > 0.01 * values.max()]
    strengths = {}
    for spread in autointerp.SPREADS:
        found = trial(world, codes(values[:, None]), 0, seed=0, spread=spread)
        assert found is not None
        strengths[spread] = np.sort([e.values.max() for e, t in zip(found.test, found.truth, strict=True) if t])[::-1]
    steps = np.linspace(0, len(rest) - 1, 50).round().astype(int)
    assert strengths["ranks"] == pytest.approx(rest[steps])
    assert strengths["squared"].mean() > 1.3 * strengths["ranks"].mean()
    assert len(np.unique(strengths["squared"])) == 50


@pytest.mark.parametrize(("sequences", "top", "active"), [(12, 2, 10), (26, 6, 20), (65, 15, 50), (80, 15, 50)])
def test_few_sequences_are_split_in_the_same_proportion(sequences, top, active):
    world = text()
    values = np.zeros(len(world.ids))
    rows = np.flatnonzero(np.arange(ROWS) % 10 != 9)[:sequences]
    values[rows * LENGTH + 25] = 1 + np.arange(sequences)
    found = trial(world, codes(values[:, None]), 0, seed=0)
    assert found is not None
    assert (len(found.top), found.truth.sum(), (~found.truth).sum()) == (top, active, active)


def test_latents_that_cannot_be_tested_are_left_out_and_counted():
    world = text()
    size = len(world.ids)
    rare, always, dead, fine = np.zeros(size), np.ones(size), np.zeros(size), fired(size, 0.02)
    rare[np.arange(11) * LENGTH + 25] = 1.0
    dense = codes(np.stack([rare, always, dead, fine], 1))
    found = choose(world, dense, seed=0)
    assert [t.latent for t in found.trials] == [3]
    assert (found.live, found.left_out) == (3, 2)
    assert all(trial(world, dense, latent, seed=0) is None for latent in (0, 1, 2))
    nothing = choose(world, codes(np.zeros((size, 3))), seed=0)
    assert nothing == autointerp.Chosen((), 0, 0)


def test_a_latent_has_the_same_trial_whichever_others_are_chosen():
    world = text()
    dense = codes(np.stack([fired(len(world.ids), 0.02, seed) for seed in range(8)], 1))
    few, many = choose(world, dense, seed=5, latents=2), choose(world, dense, seed=5, latents=8)
    assert len(few.trials) == 2 and len(many.trials) == 8
    for one in few.trials:
        other = next(t for t in many.trials if t.latent == one.latent)
        assert [e.start for e in one.test + one.hard] == [e.start for e in other.test + other.hard]
    others = choose(world, dense, seed=6, latents=8)
    assert [t.latent for t in others.trials] != [t.latent for t in many.trials]


def test_repeated_text_is_never_in_the_description_and_the_test():
    ids = np.tile(np.random.default_rng(0).integers(VOCABULARY, size=50 * LENGTH), 8)  # 50 rows, each eight times
    world = Text(ids, np.repeat(np.arange(400), LENGTH), {i: str(i) for i in range(VOCABULARY)})
    values = np.where(np.isin(ids, np.arange(6)), 1.0, 0.0)
    found = trial(world, codes(values[:, None]), 0, seed=0)
    assert found is not None
    for tests in (found.test, found.hard):
        contents = [tuple(ids[w]) for w in windows([*found.top, *tests])]
        assert len(set(contents)) == len(contents)


def test_hard_ones_stand_around_the_token_in_the_context_of_the_top():
    world = text()
    ids = world.ids.copy()
    centre = np.arange(ROWS) * LENGTH + 25
    ids[np.isin(ids, [0, 1, 2])] = 3
    ids[centre] = 0
    ids[centre[::2] - 1] = 1  # where it fires, and in every fourth row where it does not
    ids[centre[3::4] - 1] = 2
    ids[centre[1::4] - 1] = 1
    world = Text(ids, world.row, world.pieces)
    values = np.zeros(len(ids))
    values[centre[::2]] = 1.0
    found = trial(world, codes(values[:, None]), 0, seed=0)
    assert found is not None and found.same_token == 1.0
    hard = windows([e for e, t in zip(found.hard, found.hard_truth, strict=True) if not t])
    assert (ids[hard[:, HALF]] == 0).all()
    assert (ids[hard[:, HALF - 1]] == 1).mean() > 0.9  # half of the free ones have it; other neighbours count as well
    easy = windows([e for e, t in zip(found.test, found.truth, strict=True) if not t])
    assert (ids[easy[:, HALF]] == 0).mean() < 0.2


def test_a_latent_of_every_such_token_has_hard_ones_of_other_tokens():
    world = text()
    values = np.where(world.ids == 7, 1.0, 0.0)
    found = trial(world, codes(values[:, None]), 0, seed=0)
    assert found is not None and found.same_token == 0.0 and len(found.hard) == len(found.test)


def test_marks_stand_around_the_active_tokens_alone():
    world = Text(np.arange(WIDTH * 10) % 30, np.repeat(np.arange(10), WIDTH), {i: f" {i}\n" for i in range(30)})
    active = np.arange(WIDTH) == 2
    excerpt = autointerp.Excerpt(world, 0, active.astype(np.float32), active)
    assert excerpt.marked.startswith(" 0↵ 1↵<< 2↵>> 3↵")
    assert excerpt.plain.startswith(" 0↵ 1↵ 2↵ 3↵") and len(excerpt.tokens) == WIDTH


def test_an_unknown_spread_is_refused():
    world = text()
    with pytest.raises(SpecError, match="spread='even' is unknown"):
        trial(world, codes(np.ones((len(world.ids), 1))), 0, seed=0, spread="even")


def test_least_is_what_the_rule_of_proportion_leaves():
    assert 12 - 12 * 15 // 65 == LEAST and 11 - 11 * 15 // 65 < LEAST
