"""Intervals, equivalence, power and best of five against known answers and simulated worlds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from saecore.report import compare, inference, paper
from saecore.report.compare import UNDECIDED
from saecore.report.inference import DIFFERENT, EQUIVALENT, UNABLE, Effect, InferenceError, Margin, Noise

MARGIN = Margin("it", "it", 0.02, "a test")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def world(rng, noise: Noise, gap: float = 0.0):
    """Two sides whose true difference is ``gap``, with this noise in it."""
    shape = (noise.seeds, noise.units)
    if not noise.paired:
        by_seed = rng.normal(gap, math.sqrt(noise.of_seeds), (noise.seeds, 1))
        a, b = (rng.normal(0.7, math.sqrt(noise.of_cells / 2), shape) for _ in range(2))
        return a + by_seed, b
    common = rng.normal(0.7, 0.3, shape[1]) + rng.normal(0, 0.3, (shape[0], 1))  # falls out of paired differences
    by_seed, by_unit = (math.sqrt(v) for v in (noise.of_seeds, noise.of_units))
    moved = rng.normal(0, by_seed, (shape[0], 1)) + rng.normal(0, by_unit, shape[1])
    return common + gap + moved + rng.normal(0, math.sqrt(noise.of_cells), shape), common


WORLDS = [
    Noise(1.0, 0.0, 0.01, 3, 8, True),
    Noise(0.0, 1.0, 0.01, 3, 8, True),
    Noise(0.0, 0.0, 1.0, 3, 8, True),
    Noise(0.1, 0.5, 1.0, 5, 12, True),
    Noise(1.0, 0.0, 0.5, 3, 20, False),
    Noise(0.0, 0.0, 1.0, 3, 20, False),
]


@pytest.mark.parametrize("noise", WORLDS)
def test_intervals_cover_the_truth_whatever_varies(rng, noise):
    kept = []
    for _ in range(250):
        found = inference.estimate(
            lambda x, y: x - y, *world(rng, noise, 0.3), paired=noise.paired, rng=rng, resamples=400
        )
        kept.append(found.low <= 0.3 <= found.high)
    assert 0.91 <= np.mean(kept) <= 1.0  # 0.95, less three standard errors of 250 worlds


def test_intervals_are_not_needlessly_wide(rng):
    """Where seeds, or units, carry all the noise, the coverage is the level."""
    for noise in WORLDS[:2]:
        found = [inference.difference(*world(rng, noise), paired=True, rng=rng) for _ in range(250)]
        assert np.mean([one.low <= 0 <= one.high for one in found]) < 0.985


def test_over_seeds_alone_it_is_students_interval(rng):
    data = np.array([0.31, 0.35, 0.29, 0.40])
    found = inference.estimate(lambda x: x, data[:, None], paired=True, rng=rng, resamples=200_000)
    known = compare.interval(data)
    assert (found.value, found.df) == (pytest.approx(known.mean), pytest.approx(3))
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-3)


def test_over_units_alone_it_is_scipys_bootstrap(rng):
    data = rng.lognormal(size=40)
    found = inference.estimate(lambda x: x, data, paired=True, rng=rng, resamples=50_000)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=50_000, rng=rng, method="percentile").standard_error
    assert found.error == pytest.approx(theirs * math.sqrt(40 / 39), rel=0.02)


def test_the_levels_add_up(rng):
    scores = rng.normal(size=(4, 9))
    found = inference.estimate(lambda x: x, scores, paired=True, rng=rng, resamples=100_000)
    single = [scores.mean(1).var(ddof=1) / 4, scores.mean(0).var(ddof=1) / 9]
    assert found.error == pytest.approx(math.sqrt(sum(single)), rel=0.02)
    assert found.df == pytest.approx(sum(single) ** 2 / (single[0] ** 2 / 3 + single[1] ** 2 / 8), rel=0.05)


def test_pairing_takes_out_what_tasks_share(rng):
    tasks = np.linspace(0.5, 1, 8)
    a, b = tasks + rng.normal(0, 0.01, (3, 8)), tasks + rng.normal(0, 0.01, (3, 8))
    paired, unpaired = (inference.difference(a, b, paired=p, rng=rng) for p in (True, False))
    assert paired.value == pytest.approx(unpaired.value) and paired.error < unpaired.error / 3


@pytest.mark.parametrize("paired", [True, False])
def test_shifts_fall_out_scales_scale_and_sides_swap(paired):
    a, b = world(np.random.default_rng(1), WORLDS[3])

    def answer(x, y):
        return inference.difference(x, y, paired=paired, rng=np.random.default_rng(2))

    base = answer(a, b)
    for other, factor in ((answer(a + 7, b + 7), 1), (answer(3 * a, 3 * b), 3)):
        assert (other.value, other.error, other.df) == pytest.approx(
            (factor * base.value, factor * base.error, base.df)
        )
    if paired:
        assert answer(b, a).interval() == pytest.approx((-base.high, -base.low))


def test_latents_of_different_numbers(rng):
    a = [rng.normal(0.8, 0.1, n) for n in (200, 150, 90)]
    b = [rng.normal(0.7, 0.1, n) for n in (40, 200, 200)]
    found = inference.difference(a, b, paired=False, rng=rng)
    assert found.value == pytest.approx(np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)]))
    assert (found.seeds, found.units) == (3, 40) and found.low > 0.05


def test_one_seed_gives_no_interval_over_seeds_and_says_so(rng):
    found = inference.difference(rng.normal(0.8, 0.1, (1, 50)), rng.normal(0.5, 0.1, (1, 50)), paired=True, rng=rng)
    assert found.df == pytest.approx(49) and found.low > 0
    assert found.text().endswith("(1 seed, no interval over seeds; 50 units)")
    assert inference.verdict(found, MARGIN, found) == UNDECIDED


def test_one_number_has_no_interval(rng):
    found = inference.difference([[0.7]], [[0.6]], paired=True, rng=rng)
    assert math.isnan(found.low)
    assert found.text() == "+0.100 (1 seed, no interval over seeds; 1 unit, no interval over units)"


def test_an_effect_in_words():
    assert Effect(-0.031, 0.01, math.inf, 3, 200).text() == "−0.031 [−0.051, −0.011] (3 seeds; 200 units)"


def test_the_noise_of_every_side_reaches_a_statistic(rng):
    """The delta method by hand: with a - b known, var(share) = share^2 var(range) / range^2."""
    ceiling, floor = rng.normal(0.9, 0.02, (400, 1)), rng.normal(0.5, 0.02, (400, 1))
    a, b = np.full((400, 1), 0.8), np.full((400, 1), 0.7)
    found = inference.estimate(lambda x, y, w, z: (x - y) / (z - w), a, b, floor, ceiling, paired=True, rng=rng)
    span = ceiling - floor
    by_hand = found.value * span.std(ddof=1) / math.sqrt(400) / span.mean()
    assert found.error == pytest.approx(by_hand, rel=0.06)
    assert found.value == pytest.approx(0.1 / span.mean())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((3, 4)), np.zeros((2, 4)), r"\[2, 3\] seeds"),
        (np.zeros((3, 4)), np.zeros((3, 5)), r"\[4, 5\] units.*paired=False"),
        (np.zeros((3, 4)), np.zeros(5), r"\[4, 5\] units"),
        (np.zeros((3, 4)), np.zeros((3, 1)), r"\[1, 4\] units"),
        ([[0.1, math.nan]], [[0.1, 0.2]], "not finite"),
        ([], [[0.1]], "no scores"),
        ([[], [0.1]], [[0.1], [0.2]], "no scores"),
    ],
)
def test_sides_must_match(rng, a, b, message):
    with pytest.raises(InferenceError, match=message):
        inference.difference(a, b, paired=True, rng=rng)


def test_references_have_no_seed(rng):
    """The dense probe is one number per task, chance one number; neither varies with the seed."""
    tasks, probe = rng.normal(0.7, 0.1, (3, 8)), rng.normal(0.9, 0.1, 8)
    beside = inference.difference(np.tile(probe, (3, 1)), tasks, paired=True, rng=np.random.default_rng(2))
    assert inference.difference(probe, tasks, paired=True, rng=np.random.default_rng(2)) == beside
    chance = inference.difference(tasks, 0.5, paired=True, rng=rng)
    assert chance.value == pytest.approx(tasks.mean() - 0.5) and (chance.seeds, chance.units) == (3, 8)


def effect(low: float, high: float, seeds: int = 3) -> Effect:
    """With this interval at 95 %, and a normal distribution."""
    return Effect((low + high) / 2, (high - low) / 2 / float(stats.norm.ppf(0.975)), math.inf, seeds, 8)


ABLE = effect(0.1, 0.2)


@pytest.mark.parametrize(
    ("found", "ability", "expected"),
    [
        (effect(-0.01, 0.01), ABLE, EQUIVALENT),
        (effect(0.005, 0.015), ABLE, EQUIVALENT),  # a difference, but one that does not matter
        (effect(-0.022, 0.022), ABLE, EQUIVALENT),  # ends at 0.018 at 90 %
        (effect(-0.025, 0.025), ABLE, UNDECIDED),  # ends at 0.021
        (effect(0.001, 0.03), ABLE, DIFFERENT),
        (effect(-0.3, -0.1), ABLE, DIFFERENT),
        (effect(-0.3, 0.1), ABLE, UNDECIDED),
        (effect(0.0, 0.0), ABLE, EQUIVALENT),  # the same in every unit and seed
        (effect(-0.01, 0.01), effect(-0.001, 0.2), UNABLE),
        (effect(0.1, 0.3), effect(-0.2, -0.1), UNABLE),  # untrained is better: it measures something else
        (effect(-0.01, 0.01), effect(0.01, 0.2), UNDECIDED),  # it tells trained from untrained, but not by a margin
        (effect(0.1, 0.3), effect(0.01, 0.2), DIFFERENT),
        (effect(0.1, 0.3, seeds=1), ABLE, UNDECIDED),
        (effect(0.1, 0.3), effect(0.1, 0.2, seeds=1), UNDECIDED),
        (Effect(0.0, math.nan, math.nan, 2, 1), ABLE, UNDECIDED),
    ],
)
def test_the_verdict_at_its_edges(found, ability, expected):
    assert inference.verdict(found, MARGIN, ability) == expected


def test_a_difference_at_the_margin_is_rarely_called_equivalent(rng):
    """The error that two one-sided tests bound: at most 5 % where the truth lies on the margin, here over seeds."""
    noise = Noise(0.01**2, 0.0, 1e-6, 8, 4, True)
    margin = replace(MARGIN, value=0.02)

    def rate(gap):
        told = [
            inference.estimate(lambda x, y: x - y, *world(rng, noise, gap), paired=True, rng=rng, resamples=400)
            for _ in range(300)
        ]
        return np.mean([inference.verdict(found, margin, ABLE) == EQUIVALENT for found in told])

    assert 0.01 <= rate(0.02) <= 0.09
    assert rate(0.0) > 0.9


def test_margins_are_a_tenth_of_what_training_adds_in_the_paper():
    where = {"setting": "gemma-2-2b/12", "architecture": "batch_topk", "variant": "free", "l0": 160}
    for known in inference.MARGINS:
        trained = paper.number(metric=known.paper, **where)
        assert known.value == pytest.approx((trained - 0.5) / 10, abs=5e-4)
        assert inference.margin(known.metric) == inference.margin(known.paper) == known
    with pytest.raises(InferenceError, match="no margin was given for 'l0'"):
        inference.margin("l0")


def test_noise_is_found_again(rng):
    known = Noise(0.5, 0.2, 1.0, 400, 300, True)
    found = inference.noise(*world(rng, known), paired=True)
    assert (found.of_seeds, found.of_units, found.of_cells) == pytest.approx((0.5, 0.2, 1.0), rel=0.25)
    known = Noise(0.5, 0.0, 1.0, 400, 30, False)
    found = inference.noise(*world(rng, known), paired=False)
    assert (found.of_seeds, found.of_units, found.of_cells) == pytest.approx((0.5, 0.0, 1.0), rel=0.25)


def test_noise_needs_two_of_each(rng):
    with pytest.raises(InferenceError, match="seeds=1, units=8"):
        inference.noise(np.zeros((1, 8)), np.ones((1, 8)), paired=True)


def test_power_of_students_test():
    """One-sample t, n = 10, 80 %, two-sided 5 %: d = 0.996, as in the tables of Cohen and of G*Power."""
    assert inference.detectable(Noise(1.0, 0.0, 0.0, 10, 1, True)) == pytest.approx(0.996, abs=2e-3)


def test_power_of_many():
    """The normal limit: (1.960 + 0.842) standard errors."""
    assert inference.detectable(Noise(4.0, 0.0, 0.0, 10_000, 1, True)) == pytest.approx(2.8016 * 0.02, rel=1e-3)
    assert inference.detectable(Noise(0.0, 0.0, 0.0, 3, 8, True)) == 0


def test_more_seeds_or_units_find_less():
    known = Noise(0.1, 0.2, 1.0, 3, 8, True)
    least = inference.detectable(known)
    assert inference.detectable(replace(known, seeds=5)) < least
    assert inference.detectable(replace(known, units=20)) < least
    assert inference.detectable(known, power=0.5) < least
    with pytest.raises(InferenceError, match="one seed decides nothing"):
        inference.detectable(replace(known, seeds=1))


@pytest.mark.parametrize(
    "noise",
    [WORLDS[0], WORLDS[1], WORLDS[3], Noise(0.0, 0.0, 1.0, 5, 20, True), WORLDS[4], WORLDS[5]],
)
def test_what_is_detectable_is_detected_in_four_worlds_of_five(rng, noise):
    gap = inference.detectable(noise)
    told = []
    for _ in range(250):
        found = inference.estimate(
            lambda x, y: x - y, *world(rng, noise, gap), paired=noise.paired, rng=rng, resamples=400
        )
        told.append(found.low > 0 or found.high < 0)
    assert 0.7 <= np.mean(told) <= 0.9


def test_the_best_of_equals_is_lifted_by_luck(rng):
    sides = rng.normal(0.7, 0.1, (6, 20, 20))
    found = inference.best_of(*sides, paired=False, rng=rng)
    # each mean has a variance of 0.01 / 400 from seeds, and as much from units
    assert found.lift == pytest.approx(compare.best_of(5) * math.sqrt(5e-5), rel=0.15)
    assert found.beats == pytest.approx(5 / 6, abs=0.04)
    assert found.best == pytest.approx(max(side.mean() for side in sides[1:]))


def test_one_baseline_is_not_lifted(rng):
    found = inference.best_of(*rng.normal(0.7, 0.1, (2, 10, 10)), paired=False, rng=rng)
    assert found.lift == pytest.approx(0, abs=2e-3) and found.beats == pytest.approx(0.5, abs=0.03)


def test_noise_that_all_share_lifts_nobody(rng):
    tasks = rng.normal(0.7, 0.1, (3, 8))
    found = inference.best_of(*(tasks + gap for gap in (0.0, 0.1, 0.2)), paired=True, rng=rng)
    assert found.lift == pytest.approx(0, abs=1e-3) and found.best == pytest.approx(tasks.mean() + 0.2)


def test_the_headline_one_by_one(rng):
    table = inference.headline(rng).set_index(["metric", "variant", "init"])
    assert len(table) == 11
    probing = table.loc["sparse_probing_top1", "frozen_decoder", "cov"]
    assert probing["difference"] == pytest.approx(0.721 - 0.692) and probing["best"]
    half = 1.95996 * math.hypot(0.026, 0.014)
    assert 0.5 < probing["beats"] < 1 and 0 < probing["lift"] < 0.035
    assert (probing["low"], probing["high"]) == pytest.approx((0.029 - half, 0.029 + half), abs=1e-6)
    assert probing["detectable"] == pytest.approx(half * 2.8016 / 1.95996, rel=1e-4)
    assert table.loc["ravel_disentanglement", "frozen_encoder", "cov"]["verdict"] == DIFFERENT
    best = table.loc[table["best"]].index.droplevel("init").tolist()
    assert best == [
        ("autointerp", "soft_frozen_decoder"),
        ("sparse_probing_top1", "frozen_decoder"),
        ("ravel_disentanglement", "soft_frozen_decoder"),
    ]
    assert (
        table.loc["autointerp"][["low", "lift", "beats"]].isna().all(axis=None)
        and (table.loc["autointerp"]["verdict"] == UNDECIDED).all()
    )


def test_the_papers_other_models_and_what_it_does_not_have(rng):
    llama = inference.headline(rng, "llama-3.1-8b/16", "jump_relu")
    assert set(llama["metric"]) == {"sparse_probing_top1", "ravel_disentanglement"} and len(llama) == 10
    with pytest.raises(InferenceError, match="compares nothing for 'gpt-2'"):
        inference.headline(rng, "gpt-2")


def test_scores_of_the_seeds_that_all_have(frame, row):
    def rows(seeds, shift):
        return [{"seed": s, "metric": m, "value": v + s + shift} for s in seeds for m, v in (("a", 0.1), ("b", 0.2))]

    first, second = inference.scores([frame(*rows((0, 1, 2), 0)), frame(*rows((2, 1), 10))], ["b", "a"])
    assert first.tolist() == [[1.2, 1.1], [2.2, 2.1]] and second.tolist() == [[11.2, 11.1], [12.2, 12.1]]
    with pytest.raises(InferenceError, match=r"\[\[0\], \[1\]\], none in all"):
        inference.scores([frame(*rows((0,), 0)), frame(*rows((1,), 0))], ["a"])
    with pytest.raises(InferenceError, match="has no c; record it"):
        inference.scores([frame(*rows((0,), 0))], ["a", "c"])
    with pytest.raises(InferenceError, match="seed 0 has a more than once"):
        inference.scores([frame(*rows((0, 0), 0))], ["a"])
