"""Sparse probing: pooling, choice and accuracy by hand; SAEBench's formulas give the same; floors are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics.probing import (
    FULL,
    KS,
    Binary,
    averaging,
    best_latents,
    dense_accuracy,
    majority_accuracy,
    pool,
    sparse_accuracies,
    summary,
    unseen,
)


def task(train, test=None) -> Binary:
    """Labels of the first rows to learn from and of those after them to be tested on."""
    train = np.asarray(train)
    test = train if test is None else np.asarray(test)
    return Binary(np.arange(len(train)), train, len(train) + np.arange(len(test)), test)


def test_a_text_has_the_mean_of_each_latent_over_its_tokens():
    tokens = torch.tensor([[1.0, 0, 0], [3, 0, 2], [0, 5, 0], [0, 0, 0], [6, 0, 0]])
    pooled = pool(SparseCodes.from_dense(tokens), np.array([0, 2, 2, 3, 5]), 3)
    assert pooled.toarray().tolist() == [[2, 0, 1], [0, 0, 0], [0, 5, 0], [3, 0, 0]]
    assert (averaging(np.array([0, 2, 5])) @ tokens.numpy()).tolist() == [[2, 0, 1], [2, pytest.approx(5 / 3), 0]]


def test_pooling_in_parts_is_pooling_at_once(generator):
    dense = torch.rand(30, 8, generator=generator) * (torch.rand(30, 8, generator=generator) < 0.3)
    ends = np.array([0, 4, 11, 12, 30])
    whole = pool(SparseCodes.from_dense(dense), ends, 8).toarray()
    first = pool(SparseCodes.from_dense(dense[:11]), ends[:3], 8)
    second = pool(SparseCodes.from_dense(dense[11:]), ends[2:] - 11, 8)
    np.testing.assert_allclose(sparse.vstack([first, second]).toarray(), whole, rtol=1e-6)


def test_the_latents_whose_class_means_differ_most_in_either_direction():
    """Means where the class holds: 1, 0, 0, 0.2; where not: 0.5, 0, 2, 0.1. The test rows say otherwise."""
    x = np.array([[2, 0, 0, 0.2], [0, 0, 0, 0.2], [1, 0, 1, 0.1], [0, 0, 3, 0.1], [0, 90, 0, 0], [0, 0, 0, 90]])
    asked = task([1, 1, 0, 0], [1, 0])
    for given in (x, sparse.csr_array(x)):
        assert best_latents(given, asked, 4).tolist() == [2, 0, 3, 1]
        assert best_latents(given, asked, 1).tolist() == [2]
    with pytest.raises(ValueError, match="k=5 must lie between 1 and the 4 latents"):
        best_latents(x, asked, 5)


def test_accuracy_by_hand():
    """Half of the class fires latent 0, the other half latent 1: one of them tells 3 of 4 texts, both tell all.

    In the test, one text of the class fires neither, and one of the others fires latent 0.
    """
    yes, no = [[2, 0, 0.1], [2, 0, 0], [0, 1, 0.1], [0, 1, 0]], [[0, 0, 0.1], [0, 0, 0]] * 2
    test = [[2, 0, 0], [0, 1, 0], [0, 0, 0.1], [2, 0, 0], [0, 0, 0.1]]
    x = np.array(yes + no + test)
    asked = task([1] * 4 + [0] * 4, [1, 1, 1, 0, 0])
    wanted = [2 / 5, 3 / 5, 3 / 5]
    assert sparse_accuracies(x, asked, (1, 2, 3)) == pytest.approx(wanted)
    assert sparse_accuracies(sparse.csr_array(x), asked, (1, 2, 3)) == pytest.approx(wanted)
    assert dense_accuracy(x, asked) == pytest.approx(3 / 5)
    again = Binary(asked.train, asked.train_labels, asked.train, asked.train_labels)
    assert sparse_accuracies(x, again, (1, 2)) == pytest.approx([3 / 4, 1])


def saebench(x: torch.Tensor, asked: Binary, k: int, C: float = 1.0) -> float:
    """get_top_k_mean_diff_mask, apply_topk_mask_reduce_dim and train_sklearn_probe of sae-bench 0.6.0, written plainly.

    sae_bench/evals/sparse_probing/probe_training.py
    """
    train, labels = x[asked.train], torch.from_numpy(asked.train_labels)
    difference = (train[labels == 1].mean(0) - train[labels == 0].mean(0)).abs()
    keep = torch.zeros(x.shape[1], dtype=torch.bool)
    keep[torch.argsort(difference, descending=True)[:k]] = True
    probe = LogisticRegression(C=C, max_iter=1000).fit(train[:, keep].numpy(), asked.train_labels)
    return float(np.mean(probe.predict(x[asked.test][:, keep].numpy()) == asked.test_labels))


@pytest.mark.parametrize("n", [80, 4000])
def test_saebench_gives_the_same_on_the_same_activations(n, generator):
    """At its own size with its C = 1; with fewer texts with the C that keeps its penalty for each text."""
    labels = (torch.arange(2 * n) % 2).numpy()
    signal = torch.rand(300, generator=generator).pow(4)
    x = torch.randn(2 * n, 300, generator=generator) + torch.outer(torch.from_numpy(labels).float(), signal)
    x = torch.relu(x - 1) * 0.3
    asked = task(labels[:n], labels[n:])
    found = sparse_accuracies(sparse.csr_array(x.numpy()), asked)
    assert found == pytest.approx([saebench(x, asked, k, 4000 / n) for k in KS], abs=0.01)
    assert min(found) > 0.5 and max(found) > min(found) + 0.05


def test_few_texts_of_small_activations_are_told_as_many_would_be():
    """With C = 1 these six texts leave the weight so small that the mean, 0.2, divides them."""
    x = np.array([0, 0, 0, 0.1, 0.1, 1.0] * 2)[:, None]
    asked = task([0, 0, 0, 1, 1, 1])
    assert sparse_accuracies(x, asked, (1,)) == [1.0]
    assert saebench(torch.from_numpy(x), asked, 1) == pytest.approx(4 / 6)
    assert FULL == 4000


def test_latents_without_meaning_are_at_chance(generator):
    labels = (torch.arange(4000) % 2).numpy()
    x = torch.rand(4000, 50, generator=generator).numpy()
    assert sparse_accuracies(x, task(labels[:2000], labels[2000:]), (1, 20)) == pytest.approx([0.5, 0.5], abs=0.05)


def test_majority():
    assert majority_accuracy(task([1, 1, 0], [1, 0, 0, 0])) == 1 / 4
    assert majority_accuracy(task([1, 0, 0], [1, 0, 0, 0])) == 3 / 4
    assert majority_accuracy(task([1, 0])) == 1 / 2


def test_a_summary_averages_tasks_then_sets():
    rows = [("job", "one", "a", 0.5), ("job", "one", "b", 0.7), ("job", "two", "c", 1.0), ("news", "three", "d", 0.9)]
    table = pd.DataFrame(
        [(*row[:3], k, row[3] if k == 1 else 1.0) for row in rows for k in (1, 5)],
        columns=["family", "set", "task", "k", "accuracy"],
    )
    assert summary(table) == pytest.approx(
        {
            "probing_top1": (0.6 + 1.0 + 0.9) / 3,
            "probing_top5": 1.0,
            "probing_top1_job": 0.8,
            "probing_top1_news": 0.9,
            "probing_top5_job": 1.0,
            "probing_top5_news": 1.0,
        }
    )
    assert set(summary(table, "short")) == {name.replace("probing", "short") for name in summary(table)}


def test_what_was_seen_in_training_is_left_out_of_the_test():
    content = np.array([4, 5, 6, 5, 7, 4, 8])
    asked = Binary(np.array([0, 1, 2]), np.array([1, 0, 1]), np.array([3, 4, 5, 6]), np.array([0, 1, 1, 0]))
    left = unseen(asked, content)
    assert left.test.tolist() == [4, 6] and left.test_labels.tolist() == [1, 0]
    assert left.train.tolist() == [0, 1, 2] and left.train_labels.tolist() == [1, 0, 1]
