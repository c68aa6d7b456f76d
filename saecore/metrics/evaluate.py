"""One SAE against one synthetic source, in its inference form, on samples it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from saecore import kernels
from saecore.kernels.sparse_codes.codes import SparseCodes
from saecore.metrics.geometry import cosine_to_start
from saecore.metrics.reconstruction import Reconstruction
from saecore.metrics.recovery import CodeScores, best_match, by_frequency, one_to_one, recovered
from saecore.saes.base import SAE
from saecore.sources.synthetic import EVALUATION, Superposition, SyntheticBatch


@torch.no_grad()
def evaluate(
    sae: SAE,
    source: Superposition,
    rows: int = 131_072,
    batch: int = 4096,
    start: Float[Tensor, "n_latents d_model"] | None = None,
) -> dict[str, float]:
    """Every metric of the synthetic study by its name in the ledger.

    ``start`` (where the decoder began) adds ``cosine_to_start``; a source with variable frequencies adds
    ``recovered_bin_<i>``, the share recovered in each of 8 bins of p, rarest first. Code scores use the
    one-to-one match.
    """
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


@torch.no_grad()
def glimpse(sae: SAE, source: Superposition, rows: int = 8192) -> dict[str, float]:
    """The few metrics of a learning curve, from few rows."""
    best, sums = best_match(source.features, sae.W_dec.detach()), Reconstruction()
    for sample in samples(source, rows, 4096):
        sums.update(sample.x, *rebuild(sae, sample.x))
    return {
        "explained_variance": sums.explained_variance(),
        "l0": sums.l0(),
        "features_recovered": float(recovered(best.cosine)),
        "mean_best_cosine": float(best.cosine.mean()),
    }


def samples(source: Superposition, rows: int, batch: int) -> Iterator[SyntheticBatch]:
    """The evaluation stream: the first ``rows`` rows in batches of ``batch``, the last one what is left."""
    for step, first in enumerate(range(0, rows, batch)):
        yield source.batch(min(batch, rows - first), step, EVALUATION)


def rebuild(sae: SAE, x: Float[Tensor, "batch d_model"]) -> tuple[Float[Tensor, "batch d_model"], SparseCodes]:
    """Reconstruction and codes, by the compiled path where there is one."""
    if not kernels.fast_path(x):
        dense = sae.encode(x)
        return sae.decode(dense), SparseCodes.from_dense(dense)
    from saecore.kernels.sparse_codes import cpu

    codes = sae.encode_sparse(x)
    return torch.from_numpy(cpu.decode(sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy(), codes)), codes
