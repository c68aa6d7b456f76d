"""One SAE against one source, in its inference form, on samples it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saecore import kernels
from saecore.activations.source import ActivationBatch, ActivationSource
from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics.geometry import cosine_to_start
from saecore.metrics.reconstruction import Reconstruction
from saecore.metrics.recovery import CodeScores, best_match, by_frequency, one_to_one, recovered
from saecore.saes.base import SAE
from saecore.sources.base import EVALUATION, Source
from saecore.sources.synthetic import Superposition

ROWS, GLIMPSE_ROWS, BATCH = 131_072, 8192, 4096
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@torch.no_grad()
def evaluate(
    sae: SAE,
    source: Source,
    rows: int = ROWS,
    batch: int = BATCH,
    start: Float[Tensor, "n_latents d_model"] | None = None,
) -> dict[str, float]:
    """Every metric of a finished SAE by its name in the ledger.

    ``start`` (where the decoder began) adds ``cosine_to_start``; on activations also its mean and its quantiles for the
    latents that fire on the first ``GLIMPSE_ROWS`` rows, on which a learning curve is read too, and for those that do
    not (``cosine_to_start_live_q05`` and its like). On a synthetic source a variable frequency adds
    ``recovered_bin_<i>``, the share recovered in each of 8 bins of p, rarest first, and code scores use the one-to-one
    match.
    """
    if isinstance(source, Superposition):
        return _against_truth(sae, source, rows, batch, start)
    sums = reconstruct(sae, source, rows, batch)
    values = {
        "explained_variance": sums.explained_variance(),
        "explained_variance_per_row": sums.explained_variance_per_row(),
        "l0": sums.l0(),
        "dead_share": sums.dead_share(sae.spec.n_latents),
    }
    few = sums if start is None or rows <= GLIMPSE_ROWS else reconstruct(sae, source, GLIMPSE_ROWS, batch)
    return values | _moved(sae, few, start, QUANTILES)


@torch.no_grad()
def glimpse(
    sae: SAE,
    source: Source,
    rows: int = GLIMPSE_ROWS,
    start: Float[Tensor, "n_latents d_model"] | None = None,
) -> dict[str, float]:
    """The few metrics of a learning curve, from few rows; ``start`` adds the cosine to it on activations."""
    sums = reconstruct(sae, source, rows)
    values = {"explained_variance": sums.explained_variance(), "l0": sums.l0()}
    if not isinstance(source, Superposition):
        return values | _moved(sae, sums, start)
    best = best_match(source.features, sae.W_dec.detach())
    return values | {
        "features_recovered": float(recovered(best.cosine)),
        "mean_best_cosine": float(best.cosine.mean()),
    }


def reconstruct(
    sae: SAE, source: Source, rows: int, batch: int = BATCH, shift: Float[Tensor, "d_model"] | None = None
) -> Reconstruction:
    """Sums over the first ``rows`` held-out rows. What varies is counted from where ``b_dec`` starts, the mean.

    ``shift`` is added to every reconstruction.
    """
    sums = Reconstruction(centre=source.start_bias().double())
    for sample in samples(source, rows, batch):
        x_hat, codes = rebuild(sae, sample.x)
        sums.update(sample.x, x_hat if shift is None else x_hat + shift, codes)
    return sums


def _moved(
    sae: SAE,
    sums: Reconstruction,
    start: Float[Tensor, "n_latents d_model"] | None,
    quantiles: tuple[float, ...] = (),
) -> dict[str, float]:
    """Cosine of the decoder's rows to their start: of all, of those that fired, of those that did not, if any."""
    if start is None:
        return {}
    cosine = cosine_to_start(sae.W_dec.detach(), start.to(sae.W_dec)).cpu()
    fired = torch.from_numpy(sums.firings(len(cosine)) > 0)
    values = {"cosine_to_start": float(cosine.mean())}
    for name, part in (("live", cosine[fired]), ("dead", cosine[~fired])):
        if len(part):
            values[f"cosine_to_start_{name}"] = float(part.mean())
            values |= {f"cosine_to_start_{name}_q{round(100 * q):02d}": float(part.quantile(q)) for q in quantiles}
    return values


def _against_truth(
    sae: SAE, source: Superposition, rows: int, batch: int, start: Float[Tensor, "n_latents d_model"] | None
) -> dict[str, float]:
    W_dec = sae.W_dec.detach()
    best, single = best_match(source.features, W_dec), one_to_one(source.features, W_dec)
    sums, scores = Reconstruction(), CodeScores(single.latent, sae.spec.n_latents)
    for sample in samples(source, rows, batch):
        x_hat, codes = rebuild(sae, sample.x)
        sums.update(sample.x, x_hat, codes)
        scores.update(sample.indptr, sample.indices, codes)
    n_features = len(source.features)
    values = {
        "explained_variance": sums.explained_variance(),
        "l0": sums.l0(),
        "dead_share": sums.dead_share(sae.spec.n_latents),
        "features_recovered": float(recovered(best.cosine)),
        "fraction_recovered": recovered(best.cosine) / n_features,
        "one_to_one_recovered": float(recovered(single.cosine)),
        "mean_best_cosine": float(best.cosine.mean()),
        "mean_one_to_one_cosine": float(single.cosine.mean()),
        "code_f1_micro": scores.micro_f1(),
        "code_f1_macro": scores.macro_f1(),
        "code_precision": scores.precision(),
        "code_recall": scores.recall(),
    }
    if start is not None:
        values["cosine_to_start"] = float(cosine_to_start(W_dec, start.to(W_dec)).mean())
    if source.spec.probability == "variable":
        bounds = (source.spec.p_min, source.spec.p_max)
        for i, item in enumerate(by_frequency(best.cosine, source.probabilities, bounds=bounds)):
            if item.n_features:
                values[f"recovered_bin_{i}"] = item.recovered
    return values


def samples(source: Source, rows: int, batch: int) -> Iterator[Any]:
    """The evaluation stream: the first ``rows`` rows in batches of ``batch``, the last one what is left.

    No more than there are: a store's held-out rows would start over.
    """
    if not isinstance(source, ActivationSource):
        for step, first in enumerate(range(0, rows, batch)):
            yield source.batch(min(batch, rows - first), step, EVALUATION)
        return
    rows = min(rows, source.held_out_rows)
    for step, first in enumerate(range(0, rows, batch)):  # the place of a batch depends on its size: cut whole ones
        yield ActivationBatch(source.batch(batch, step, EVALUATION).x[: rows - first])


def rebuild(sae: SAE, x: Float[Tensor, "batch d_model"]) -> tuple[Float[Tensor, "batch d_model"], SparseCodes]:
    """Reconstruction and codes, by the compiled path where there is one."""
    if not kernels.fast_path(x):
        dense = sae.encode(x)
        return sae.decode(dense), SparseCodes.from_dense(dense)
    from saecore.kernels.sparse_codes import cpu

    codes = sae.encode_sparse(x)
    return torch.from_numpy(cpu.decode(sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy(), codes)), codes
