"""Which of the concepts that made a text an SAE finds: the best latent's F1, on documents not used to choose it.

The floors are SAEs themselves (constraints ``untrained`` and ``neurons``) and :func:`always`; the ceiling is
:func:`probe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from saecore.kernels.sparse_codes.codes import SparseCodes

LEAST = 10
"""A value is asked for where it holds for so many rows of either half of the documents."""


@dataclass(frozen=True)
class Concepts:
    """What holds for each row: for each value of each concept a column, and half of the documents to choose on.

    ``names`` are (concept, value); ``half`` tells each row's half, by document.
    """

    names: tuple[tuple[str, str], ...]
    holds: sparse.csc_array  # (rows, n_values), 0 or 1
    half: Bool[np.ndarray, "rows"]

    @staticmethod
    def of(labels: Mapping[str, Sequence[str | None]], document: Sequence[int], least: int = LEAST) -> Concepts:
        """From one label a row and concept (None where it has none), and the document of each row.

        Documents with an even number are the first half. Raises ValueError where no value holds for ``least`` rows of
        each half.
        """
        half = np.asarray(document) % 2 == 0
        names, columns = [], []
        for concept, values in labels.items():
            wanted = np.asarray(["" if v is None else v for v in values])
            found, place = np.unique(wanted, return_inverse=True)
            counts = [np.bincount(place[part], minlength=len(found)) for part in (half, ~half)]
            for i in np.flatnonzero((np.minimum(*counts) >= least) & (found != "")):
                names.append((concept, str(found[i])))
                columns.append(np.flatnonzero(place == i))
        if not names:
            raise ValueError(
                f"no label holds for {least} rows in each half of the {len(half)} rows; pass more documents"
            )
        ends = np.cumsum([0, *map(len, columns)])
        ones = np.ones(ends[-1], dtype=np.float32)
        holds = sparse.csc_array((ones, np.concatenate(columns), ends), shape=(len(half), len(names)))
        return Concepts(tuple(names), holds, half)


@dataclass(frozen=True)
class Found:
    """How well one detector tells each value: F1 on the half that did not choose it, mean of both ways round."""

    names: tuple[tuple[str, str], ...]
    f1: Float[np.ndarray, "n_values"]

    def values(self) -> dict[str, float]:
        """``concept_f1``, the mean over all values, and ``concept_f1_<concept>``, over the values of one concept."""
        concept = np.array([name for name, _ in self.names])
        single = {f"concept_f1_{c}": float(self.f1[concept == c].mean()) for c in dict.fromkeys(concept.tolist())}
        return {"concept_f1": float(self.f1.mean()), **single}


def firing(codes: Iterable[SparseCodes], n_latents: int) -> sparse.csr_array:
    """1 where a latent fires, (rows, n_latents), from batches of rows in their order."""
    parts = [(np.ones(len(c.indices), dtype=np.float32), c.indices, c.indptr) for c in codes]
    return sparse.csr_array(sparse.vstack([sparse.csr_array(p, shape=(len(p[2]) - 1, n_latents)) for p in parts]))


def best_latents(concepts: Concepts, fires: sparse.csr_array) -> Found:
    """F1 = 2 hits / (rows where the latent fires + rows where the value holds) of the latent with the best F1.

    A latent tells a value where it fires; which latent is chosen on one half of the documents and scored on the other.
    """
    first, second = (_f1(concepts.holds[rows], fires[rows]) for rows in _halves(concepts))
    every = np.arange(len(concepts.names))
    scores = second[every, first.argmax(1)] + first[every, second.argmax(1)]
    return Found(concepts.names, scores / 2)


def always(concepts: Concepts) -> Found:
    """The floor of a latent that always fires: 2 p / (1 + p)."""
    shares = [np.asarray(concepts.holds[rows].mean(0)).ravel() for rows in _halves(concepts)]
    return Found(concepts.names, np.mean([2 * p / (1 + p) for p in shares], axis=0))


def probe(concepts: Concepts, x: Float[Tensor, "rows d_model"]) -> Found:
    """The ceiling: a logistic regression of each value on the whole residual stream.

    It tells a value where its score exceeds the threshold with the best F1 on the half on which it was fitted.
    """
    holds = torch.from_numpy(concepts.holds.toarray()).to(x)
    first, second = (torch.from_numpy(rows).to(x.device) for rows in _halves(concepts))
    total = torch.zeros(holds.shape[1])
    for learnt, asked in ((first, second), (second, first)):
        scores = _logistic(x[learnt], holds[learnt], x)
        told = scores > _best_threshold(scores[learnt], holds[learnt])
        hits = (told[asked] * holds[asked]).sum(0)
        total += (hits / (told[asked].sum(0) + holds[asked].sum(0)).clamp_min(1)).cpu()
    return Found(concepts.names, total.double().numpy())


def _logistic(
    x: Float[Tensor, "rows d_model"],
    holds: Float[Tensor, "rows n_values"],
    others: Float[Tensor, "others d_model"],
    iterations: int = 100,
    penalty: float = 1.0,
) -> Float[Tensor, "others n_values"]:
    """Scores on ``others`` of a regression of every column at once, with sklearn's default L2 penalty."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, others = (x - mean) / deviation, (others - mean) / deviation
    weight, bias = x.new_zeros(x.shape[1], holds.shape[1]), torch.logit(holds.mean(0).clamp(1e-6, 1 - 1e-6))
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(leaves, max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        missed = F.binary_cross_entropy_with_logits(x @ weight + bias, holds, reduction="sum")
        total = (missed + penalty * weight.square().sum() / 2) / len(x)
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return (others @ weight + bias).detach()


def _best_threshold(
    scores: Float[Tensor, "rows n_values"], holds: Float[Tensor, "rows n_values"]
) -> Float[Tensor, "n_values"]:
    """Per column the score above which F1 is best."""
    ranked, order = scores.sort(0, descending=True)
    told = torch.arange(1, len(scores) + 1, device=scores.device)[:, None]
    f1 = 2 * holds.gather(0, order).cumsum(0) / (told + holds.sum(0))
    best = f1.argmax(0)
    below = torch.cat([ranked, ranked[-1:] - 1])
    place = torch.arange(scores.shape[1], device=scores.device)
    return (below[best, place] + below[best + 1, place]) / 2


def _f1(holds: sparse.csc_array, fires: sparse.csr_array) -> Float[np.ndarray, "n_values n_latents"]:
    hits = (holds.T @ fires).toarray()
    return 2 * hits / np.maximum(holds.sum(0)[:, None] + fires.sum(0)[None], 1)


def _halves(concepts: Concepts) -> tuple[Int[np.ndarray, "first"], Int[np.ndarray, "second"]]:
    return np.flatnonzero(concepts.half), np.flatnonzero(~concepts.half)
