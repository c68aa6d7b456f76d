"""Concept recovery: F1 by hand, no credit for luck, the floors and the ceiling where they are known."""

import numpy as np
import pytest
import torch
from scipy import sparse

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics.concepts import Concepts, _best_threshold, _logistic, always, best_latents, firing, probe


def coded(dense) -> sparse.csr_array:
    """In two batches."""
    rows = torch.as_tensor(np.asarray(dense), dtype=torch.float32)
    return firing([SparseCodes.from_dense(part) for part in rows.split(max(len(rows) - 3, 1))], rows.shape[1])


def test_f1_by_hand_on_the_half_that_did_not_choose():
    """Rows 0-3 are document 0, rows 4-7 document 1. The value holds for rows 0, 1, 4 and 5.

    Latent 0 fires for 0, 1 and 4; latent 1 for 0, 4, 5 and 6. In document 0 latent 0 is perfect and latent 1 has F1
    2/3; in document 1 latent 0 has 2/3 and latent 1 has 4/5. So 0 is chosen there and scores 2/3 here, and 1 is chosen
    here and scores 2/3 there.
    """
    labels = {"colour": ["red", "red", None, None, "red", "red", None, None]}
    concepts = Concepts.of(labels, [0, 0, 0, 0, 1, 1, 1, 1], least=1)
    fires = np.zeros((8, 3))
    fires[[0, 1, 4], 0] = [0.1, 5, 2]
    fires[[0, 4, 5, 6], 1] = 1
    found = best_latents(concepts, coded(fires))
    assert found.names == (("colour", "red"),)
    assert found.f1.tolist() == pytest.approx([2 / 3])
    assert always(concepts).f1.tolist() == pytest.approx([2 * 2 / (2 + 4)])


def test_values_average_over_all_values_and_over_each_concepts():
    labels = {"a": ["x", "x", "y", "y"] * 2, "b": ["z", None, None, None] * 2}
    concepts = Concepts.of(labels, [0] * 4 + [1] * 4, least=1)
    assert concepts.names == (("a", "x"), ("a", "y"), ("b", "z"))
    fires = np.zeros((8, 2))
    fires[[0, 1, 4, 5], 0] = 1  # tells x; z is one of the two rows: F1 2/3; y never
    found = best_latents(concepts, coded(fires)).values()
    assert found == pytest.approx({"concept_f1": (1 + 0 + 2 / 3) / 3, "concept_f1_a": 0.5, "concept_f1_b": 2 / 3})


def test_rare_values_are_left_out_and_no_value_at_all_is_an_error():
    labels = {"a": ["x", "x", "x", "y"], "b": ["w", None, None, "w"]}
    assert Concepts.of(labels, [0, 1, 2, 3], least=1).names == (("a", "x"), ("b", "w"))
    with pytest.raises(ValueError, match="no label holds for 2 rows in each half of the 4 rows; pass more documents"):
        Concepts.of(labels, [0, 1, 2, 3], least=2)


def test_many_random_latents_get_no_credit_for_luck(generator):
    """4096 random latents, labels without meaning: chosen and scored on the same rows they would reach far more."""
    rows = 2000
    labels = {"a": ["x" if v < 0.05 else None for v in torch.rand(rows, generator=generator)]}
    concepts = Concepts.of(labels, [row // 20 for row in range(rows)])
    fires = (torch.rand(rows, 4096, generator=generator) < 0.05).numpy()
    honest = best_latents(concepts, coded(fires)).f1[0]
    holds = concepts.holds.toarray()[:, 0] > 0
    flattered = max(2 * (fires[:, j] & holds).sum() / (fires[:, j].sum() + holds.sum()) for j in range(4096))
    assert honest < 0.12 < flattered


def test_the_probe_reads_what_is_linear_and_nothing_else(generator):
    x = torch.randn(4000, 5, generator=generator)
    labels = {
        "linear": ["yes" if v > 0.5 else None for v in x[:, 0]],
        "parity": ["yes" if v > 0 else None for v in x[:, 1] * x[:, 2]],
    }
    concepts = Concepts.of(labels, [row // 10 for row in range(len(x))])
    found = probe(concepts, x).values()
    assert found["concept_f1_linear"] > 0.97
    assert found["concept_f1_parity"] < 0.7


def test_it_is_fast_at_full_size(generator):
    """20,000 rows, 4096 latents, 200 values, one pass of sparse products."""
    import time

    rows = torch.arange(20_000)
    labels = {f"c{i}": [str(v) for v in torch.randint(20, (20_000,), generator=generator).tolist()] for i in range(10)}
    concepts = Concepts.of(labels, (rows // 30).tolist())
    indices = torch.randint(4096, (20_000, 9), generator=generator).sort(1).values.numpy().astype(np.int32).ravel()
    codes = SparseCodes(np.arange(20_001) * 9, indices, np.ones(180_000, dtype=np.float32))
    began = time.process_time()
    assert len(best_latents(concepts, firing([codes], 4096)).f1) == 200
    assert time.process_time() - began < 10


def test_the_probe_is_sklearns(generator):
    """Its scores, and the threshold with the best F1 among all that there are."""
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(300, 4, generator=generator)
    holds = (x @ torch.randn(4, 3, generator=generator) + torch.randn(300, 3, generator=generator) > 1).float()
    scores = _logistic(x, holds, x)
    scaled = ((x - x.mean(0)) / x.std(0)).numpy()
    for i in range(3):
        known = LogisticRegression(max_iter=1000).fit(scaled, holds[:, i]).decision_function(scaled)
        np.testing.assert_allclose(scores[:, i], known, atol=0.02)
    f1 = [
        max(
            2 * float(holds[scores[:, i] >= cut, i].sum()) / float((scores[:, i] >= cut).sum() + holds[:, i].sum())
            for cut in scores[:, i]
        )
        for i in range(3)
    ]
    told = scores > _best_threshold(scores, holds)
    assert (2 * (told * holds).sum(0) / (told.sum(0) + holds.sum(0))).tolist() == pytest.approx(f1)
