"""Matches, recovery and code scores, by hand."""

import numpy as np
import pytest
import torch

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics import recovery
from saecore.metrics.recovery import CodeScores, best_match, by_frequency, chance_level, one_to_one, recovered
from saecore.saes.constraints import iso

FEATURES = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
LATENTS = torch.tensor([[2.0, 0, 0], [0, 5.0, 0], [0, 0, -3.0], [3.0, 0, 4.0]])
"""Cosines: f0 (1, 0, 0, 0.6), f1 (0.8, 0.6, 0, 0.48), f2 (0, 0, -1, 0.8)."""


def test_two_features_may_share_a_latent_but_not_one_to_one():
    best, single = best_match(FEATURES, LATENTS), one_to_one(FEATURES, LATENTS)
    assert best.latent.tolist() == [0, 0, 3]
    assert best.cosine.tolist() == pytest.approx([1, 0.8, 0.8])
    assert single.latent.tolist() == [0, 1, 3]
    assert single.cosine.tolist() == pytest.approx([1, 0.6, 0.8])


def test_the_assignment_maximises_the_sum_not_each_in_turn():
    """Greedily f0 takes l0 (0.96) and f1 is left with 0.28 (sum 1.24); swapped, 0.8 + 1 = 1.8."""
    features = torch.tensor([[0.96, 0.28], [1.0, 0.0]])
    latents = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    single = one_to_one(features, latents)
    assert single.latent.tolist() == [1, 0]
    assert single.cosine.tolist() == pytest.approx([0.96 * 0.6 + 0.28 * 0.8, 1.0])


def test_features_without_a_latent_have_none():
    single = one_to_one(FEATURES, LATENTS[:2])
    assert single.latent.tolist() == [0, 1, -1]
    assert single.cosine.tolist() == pytest.approx([1, 0.6, 0])


def test_matches_do_not_depend_on_the_chunk(monkeypatch, generator):
    features, latents = iso(50, 8, generator), iso(70, 8, generator)
    whole, single = best_match(features, latents), one_to_one(features, latents)
    monkeypatch.setattr(recovery, "CHUNK", 7)
    parts = best_match(features, latents)
    assert torch.equal(parts.latent, whole.latent)
    torch.testing.assert_close(parts.cosine, whole.cosine)
    assert torch.equal(one_to_one(features, latents).latent, single.latent)
    assert single.cosine.mean() < whole.cosine.mean()
    assert len(single.latent.unique()) == 50


def test_a_zero_row_matches_nothing_and_nan_is_an_error():
    best = best_match(FEATURES, torch.zeros(2, 3))
    assert best.cosine.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="1 of 2 rows of directions hold NaN or infinity; train the SAE again"):
        best_match(FEATURES, torch.tensor([[1.0, 0, 0], [float("nan"), 0, 0]]))


def test_recovered_means_above_the_threshold():
    cosine = torch.tensor([0.8, 0.81, 0.79, 1.0])
    assert recovered(cosine) == 2
    assert recovered(cosine, 0.5) == 4


def test_chance_is_what_the_paper_s_sizes_give(generator):
    """Two random sets of 3200 in 100 dimensions: 0.35 on average, 0.50 at most (inferred in the protocol)."""
    cosine = chance_level(3200, 3200, 100, generator)
    assert cosine.shape == (3200,)
    assert float(cosine.mean()) == pytest.approx(0.35, abs=0.01)
    assert 0.46 < float(cosine.max()) < 0.56
    assert recovered(cosine) == 0


class TestByFrequency:
    P = torch.tensor([1e-4, 2e-4, 1e-3, 1e-2, 5e-3, 1e-2], dtype=torch.float64)
    COSINE = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.7, 1.0])

    def test_bins_of_equal_width_in_log_p(self):
        rows = by_frequency(self.COSINE, self.P, bins=2)
        assert [row.n_features for row in rows] == [2, 4]
        assert [(row.low, row.high) for row in rows] == [pytest.approx((-4, -3)), pytest.approx((-3, -2))]
        assert [row.recovered for row in rows] == [0.5, 0.5]
        assert [row.mean_cosine for row in rows] == pytest.approx([0.5, 3.1 / 4])

    def test_given_bounds_and_an_empty_bin(self):
        rows = by_frequency(self.COSINE, self.P, bins=4, bounds=(1e-6, 1e-2))
        assert [row.n_features for row in rows] == [0, 0, 2, 4]
        assert np.isnan(rows[0].recovered) and np.isnan(rows[0].mean_cosine)
        narrow = by_frequency(self.COSINE, self.P, bins=2, bounds=(1e-3, 1e-2))
        assert [row.n_features for row in narrow] == [3, 3]

    def test_another_threshold(self):
        assert [row.recovered for row in by_frequency(self.COSINE, self.P, bins=2, threshold=0.6)] == [0.5, 0.75]

    def test_one_frequency_is_one_bin(self):
        (row,) = by_frequency(self.COSINE, torch.full((6,), 0.01, dtype=torch.float64))
        assert row.n_features == 6 and row.recovered == 0.5 and row.low == pytest.approx(-2)


class TestCodeScores:
    """Three features, matched to latents 2, 0 and none; latents 1 and 3 belong to nobody.

    Row   features   latents        told (feature)     hits
    0     0, 1       2 (f0), 1      f0, nobody         f0
    1     1          2 (f0), 0 (f1) f0, f1             f1
    2     0, 2       3              nobody             -
    3     -          0 (f1)         f1                 -
    """

    INDPTR, INDICES = torch.tensor([0, 2, 3, 5, 5]), torch.tensor([0, 1, 1, 0, 2])
    CODES = torch.tensor([[0, 1.0, 9, 0], [5, 0, 0.1, 0], [0, 0, 0, 2], [1, 0, 0, 0]])

    def scores(self, *rows: slice) -> CodeScores:
        scores = CodeScores(torch.tensor([2, 0, -1]), n_latents=4)
        for part in rows:
            counts = self.INDPTR.diff()[part]
            indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            first = int(self.INDPTR[part.start])
            indices = self.INDICES[first : first + int(counts.sum())]
            scores.update(indptr, indices, SparseCodes.from_dense(self.CODES[part]))
        return scores

    @pytest.mark.parametrize("rows", [[slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]])
    def test_by_hand_and_however_batched(self, rows):
        """6 codes, 5 firings, 2 hits. Per feature: f0 1 of (2 told, 2 fired), f1 1 of (2, 2), f2 0 of (0, 1)."""
        scores = self.scores(*rows)
        assert scores.hits.tolist() == [1, 1, 0]
        assert scores.told.tolist() == [2, 2, 0]
        assert scores.fired.tolist() == [2, 2, 1]
        assert scores.precision() == pytest.approx(2 / 6)
        assert scores.recall() == pytest.approx(2 / 5)
        assert scores.micro_f1() == pytest.approx(4 / 11)
        assert scores.macro_f1() == pytest.approx((0.5 + 0.5 + 0) / 3)
        precision, recall = scores.precision(), scores.recall()
        assert scores.micro_f1() == pytest.approx(2 * precision * recall / (precision + recall))

    def test_features_that_never_fired_are_left_out_of_the_macro_score(self):
        scores = self.scores(slice(0, 2))  # f2 did not fire
        assert scores.macro_f1() == pytest.approx((2 / 3 + 2 / 3) / 2)

    def test_perfect_codes(self):
        truth = SparseCodes.from_dense(torch.eye(3)[[2, 0, 1, 1]])
        scores = CodeScores(torch.tensor([0, 1, 2]), 3)
        scores.update(torch.from_numpy(truth.indptr), torch.from_numpy(truth.indices).long(), truth)
        assert scores.micro_f1() == scores.macro_f1() == scores.precision() == scores.recall() == 1

    def test_no_codes_score_zero(self):
        scores = CodeScores(torch.tensor([0, 1, 2]), 3)
        scores.update(self.INDPTR, self.INDICES, SparseCodes.from_dense(torch.zeros(4, 3)))
        assert scores.micro_f1() == scores.macro_f1() == scores.precision() == scores.recall() == 0

    def test_a_shared_latent_is_refused(self):
        with pytest.raises(ValueError, match="one latent to several features; use the matches of one_to_one"):
            CodeScores(best_match(FEATURES, LATENTS).latent, 4)

    def test_rows_that_do_not_belong_together_are_refused(self):
        with pytest.raises(ValueError, match="4 true rows, 3 rows of codes"):
            self.scores().update(self.INDPTR, self.INDICES, SparseCodes.from_dense(self.CODES[:3]))
