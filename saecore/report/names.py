"""What a page calls architectures, constraints, metrics and settings, in the order in which it shows them."""

from __future__ import annotations

from collections.abc import Iterable

from saecore.spec import DICTIONARIES

ARCHITECTURES = {
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "jump_relu": "JumpReLU",
    "matryoshka": "Matryoshka",
    "ortho": "OrtSAE",
    "relu": "ReLU",
}
VARIANTS = {
    "free": "trained",
    "soft_frozen_decoder": "soft-frozen decoder",
    "frozen_decoder": "frozen decoder",
    "frozen_encoder": "frozen encoder",
    "both_frozen": "both frozen",
    "untrained": "untrained",
    "oracle": "oracle decoder",
    "pca": "PCA",
    "neurons": "neurons",
}
REFERENCES = {
    "model": "the model itself",
    "mean_ablation": "mean ablation",
    "zero_ablation": "zero ablation",
    "probe": "linear probe",
    "always": "always fires",
    "commonest": "commonest answer",
    "generator": "the generator",
    "majority": "the larger class",
    "dense_probe": "dense probe",
    "labels": "the labels themselves",
    "random_tokens": "random tokens",
    "no_edit": "no edit",
    "swap_all": "everything swapped",
    "mdas": "MDAS",
}
"""Floors and ceilings without an SAE, recorded in the place of a constraint."""
SOURCES = {"constant": "constant probability", "variable": "variable probability"}
METRICS = {
    "explained_variance": "explained variance",
    "explained_variance_per_row": "explained variance, mean over rows",
    "cross_entropy": "cross-entropy (nats per token)",
    "ce_recovered": "cross-entropy recovered",
    "kl": "KL from the model (nats per token)",
    "concept_f1": "F1 of the best latent per concept",
    "fraction_recovered": "features recovered",
    "features_recovered": "features recovered",
    "one_to_one_recovered": "recovered one to one",
    "mean_best_cosine": "mean best cosine",
    "mean_one_to_one_cosine": "mean one-to-one cosine",
    "cosine_to_start": "cosine to the start",
    "cosine_to_start_live": "cosine to the start, live latents",
    "cosine_to_start_dead": "cosine to the start, dead latents",
    "code_f1_micro": "F1 of the codes",
    "code_f1_macro": "F1 of the codes, mean over features",
    "code_precision": "precision of the codes",
    "code_recall": "recall of the codes",
    "dead_share": "dead latents",
    "l0": "active latents per sample (L0)",
    "recovered_bin": "features recovered",
    "autointerp": "interpretability",
    "autointerp_accuracy": "interpretability (accuracy)",
    "autointerp_accuracy_hard": "interpretability, hard negatives",
    "autointerp_ranks_accuracy": "interpretability, strengths by rank",
    "autointerp_ranks_accuracy_hard": "interpretability, by rank, hard negatives",
    "autointerp_live": "live latents",
    "autointerp_left_out": "left out",
    "autointerp_share_90": "latents told with 90 % or more",
    "sparse_probing_top1": "sparse probing, one latent",
    "probing_top1": "sparse probing, one latent",
    "probing_top5": "sparse probing, five latents",
    "probing_short_top1": "sparse probing of 16 tokens, one latent",
    "probing_short_top5": "sparse probing of 16 tokens, five latents",
    "ravel_disentanglement": "causal editing (RAVEL)",
    "editing_cause": "causal editing, Cause",
    "editing_isolation": "causal editing, Isolation",
    "editing_disentanglement": "causal editing, disentanglement",
    "editing_disentanglement_capital": "disentanglement, capital",
    "editing_disentanglement_continent": "disentanglement, continent",
    "editing_disentanglement_with_error": "disentanglement, error kept",
    "editing_disentanglement_random": "disentanglement, random mask",
    "editing_mask_size": "latents in the mask",
    "editing_share": "share of floor to MDAS",
}
SHARES = ("fraction_recovered", "recovered_bin", "dead_share")
"""Metrics that print as percentages."""
SETTINGS = {
    "source.sigma": "sigma of log c",
    "source.correlation": "correlation of pairs",
    "source.n_features": "features m",
    "source.d_model": "dimensions n",
    "source.expected_l0": "active features per sample",
    "sae.n_latents": "latents",
    "sae.group_size": "rows per selection",
    "sae.rescale": "rank by share of the row's norm",
    "sae.aux_coefficient": "auxiliary loss",
    "sae.bandwidth": "JumpReLU bandwidth",
    "constraint.tied": "tied start",
    "constraint.tau": "tau",
    "training.learning_rate": "learning rate",
    "training.batch_size": "batch size",
    "training.decay": "learning-rate decay",
    "training.steps": "steps",
    "l0": "target L0",
    "init": "initialisation",
}
TABLES = (ARCHITECTURES, VARIANTS, REFERENCES, SOURCES, METRICS)


def label(name: str) -> str:
    """The name on a page of an architecture, constraint, source or metric; an unknown one in plain words."""
    for table in TABLES:
        if name in table:
            return table[name]
    return name.replace("_", " ")


def variant(constraint: str, init: str) -> str:
    """A constraint with where its random rows start, such as "frozen decoder, cov"."""
    return label(constraint) if constraint in DICTIONARIES or not init else f"{label(constraint)}, {init}"


def setting(text: str) -> str:
    """``training.learning_rate=0.001`` as "learning rate = 0.001"; several are joined by commas."""
    parts = [item.split("=", 1) for item in text.split(";") if item]
    return ", ".join(f"{SETTINGS.get(n, label(n.split('.')[-1]))} = {v}" for n, v in parts) or "headline"


def ordered(values: Iterable[str]) -> list[str]:
    """The distinct values in the order in which pages show them, unknown ones last."""
    known = [name for table in TABLES for name in table]
    return sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), str(v)))
