"""Sparse probing: can a logistic regression on the best k latents tell a class? (paper, Sec. 4.2; SAEBench)

accuracy = (right answers on test texts) / (test texts), by a probe on the k latents whose means over the train texts of
the two classes differ most. A text's latents are means over its tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.spec import require

KS = (1, 2, 5, 10, 20)
"""SAEBench's 1, 2 and 5, and more."""
ITERATIONS = 1000
"""SAEBench's; sklearn's default of 100 does not always suffice."""
FULL = 4000
"""SAEBench's train texts, for which its C is 1. With n of them C is ``FULL / n``, the same penalty for each text: with
C = 1 and few texts, latents of small activations would be held back.
"""

Pooled = sparse.csr_array | Float[np.ndarray, "texts n_latents"]
"""What a probe sees: for each text the means of its latents."""


@dataclass(frozen=True)
class Binary:
    """A task on the rows of a matrix of texts: which to learn from, which to be tested on, 1 where the class holds."""

    train: Int[np.ndarray, "train"]
    train_labels: Int[np.ndarray, "train"]
    test: Int[np.ndarray, "test"]
    test_labels: Int[np.ndarray, "test"]


def unseen(task: Binary, content: Int[np.ndarray, "texts"]) -> Binary:
    """Without the test texts whose content, a number for each text, a training text has too."""
    kept = ~np.isin(content[task.test], content[task.train])
    return replace(task, test=task.test[kept], test_labels=task.test_labels[kept])


def averaging(ends: Int[np.ndarray, "texts_plus_one"]) -> sparse.csr_array:
    """(texts, tokens): times rows of tokens it is their mean over each text.

    Text i holds tokens ``ends[i]`` to ``ends[i + 1]``; one without tokens has a row of zeros.
    """
    lengths = np.diff(ends)
    weights = (1 / np.repeat(lengths, lengths)).astype(np.float32)
    return sparse.csr_array((weights, np.arange(ends[-1]), ends), shape=(len(lengths), int(ends[-1])))


def pool(codes: SparseCodes, ends: Int[np.ndarray, "texts_plus_one"], n_latents: int) -> sparse.csr_array:
    """Mean of each latent over the tokens of each text, (texts, n_latents)."""
    shape = (len(codes.indptr) - 1, n_latents)
    return sparse.csr_array(
        averaging(ends) @ sparse.csr_array((codes.values, codes.indices, codes.indptr), shape=shape)
    )


def best_latents(x: Pooled, task: Binary, k: int) -> Int[np.ndarray, "k"]:
    """The k latents with the largest |mean where the class holds - mean where not| on train texts, largest first.

    Raises SpecError where there are fewer latents.
    """
    holds = task.train_labels == 1
    means = (np.asarray(x[task.train[rows]].mean(0)).ravel() for rows in (holds, ~holds))
    difference = np.abs(np.subtract(*means))
    require(1 <= k <= len(difference), f"k={k} must lie between 1 and the {len(difference)} latents that there are")
    return np.argsort(-difference, kind="stable")[:k]


def sparse_accuracies(x: Pooled, task: Binary, ks: Sequence[int] = KS) -> list[float]:
    """Test accuracy with the best k latents, for each k."""
    chosen = best_latents(x, task, max(ks))
    train, test = (_columns(x, rows, chosen) for rows in (task.train, task.test))
    return [_accuracy(train[:, :k], test[:, :k], task) for k in ks]


def dense_accuracy(x: Float[np.ndarray, "texts d_model"], task: Binary) -> float:
    """What all columns tell together. With few texts a good choice of a few latents may do better.

    SAEBench stops its training at the epoch with the best test accuracy, which flatters it; this one never sees a test.
    """
    return _accuracy(x[task.train], x[task.test], task)


def majority_accuracy(task: Binary) -> float:
    """The floor: always the answer that is commoner in training; 0.5 where classes are balanced."""
    return float(np.mean(task.test_labels == (2 * task.train_labels.sum() > len(task.train_labels))))


def summary(tasks: pd.DataFrame, name: str = "probing") -> dict[str, float]:
    """From one row a task and k (``family``, ``set``, ``task``, ``k``, ``accuracy``) to metrics by name.

    ``<name>_top<k>``: mean over a set's tasks, then over sets, as SAEBench averages. ``<name>_top<k>_<family>``: the
    same over the sets of one family.
    """
    sets: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for row in tasks.to_dict("records"):
        sets[row["k"], row["family"], row["set"]].append(row["accuracy"])
    values: dict[str, list[float]] = defaultdict(list)
    for (k, family, _), accuracies in sets.items():
        for metric in (f"{name}_top{k}", f"{name}_top{k}_{family}"):
            values[metric].append(float(np.mean(accuracies)))
    return {metric: float(np.mean(means)) for metric, means in values.items()}


def _accuracy(train: Float[np.ndarray, "train k"], test: Float[np.ndarray, "test k"], task: Binary) -> float:
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=FULL / len(train), max_iter=ITERATIONS).fit(train, task.train_labels)
    told = test @ probe.coef_[0] + probe.intercept_ > 0
    return float(np.mean(told == task.test_labels))


def _columns(x: Pooled, rows: Int[np.ndarray, "rows"], chosen: Int[np.ndarray, "k"]) -> Float[np.ndarray, "rows k"]:
    part = x[rows][:, chosen]
    return part.toarray() if isinstance(part, sparse.csr_array) else np.asarray(part)
