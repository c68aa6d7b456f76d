"""Everything there is to report of the embedded world's model, as rows of the ledger."""

from __future__ import annotations

import time
from typing import Any

from saecore.activations import models
from saecore.report import ledger
from saecore.spec import ActivationSpec
from saecore.studies.atlas import knowledge, probes
from saecore.studies.atlas.train import Recipe

EXPERIMENT = "atlas"
MODEL, PROBE, COMMONEST, GENERATOR = "model", "probe", "commonest", "generator"
"""Under ``constraint``: who scored. ``commonest`` always says the commonest answer and is the floor of the shares;
``generator`` knows how the text was drawn and is the floor of the cross-entropy.
"""


def examine(recipe: Recipe) -> list[dict[str, Any]]:
    """Facts known by attribute, loss against entropy, and probes at each layer, recorded in data/results/atlas.csv.

    Raises ModelError where the model or `transformers` is missing.
    """
    start = time.monotonic()
    model = models.load("atlas")
    values: list[tuple[str, str, str, float]] = []
    for attribute, share in knowledge.knowledge(model).items():
        values.append(("atlas", f"known_{attribute}", MODEL, share))
        values.append(("atlas", f"known_{attribute}", COMMONEST, knowledge.commonest(attribute)))
    found = knowledge.surprise(model)
    values += [("atlas", "cross_entropy", MODEL, found.model), ("atlas", "cross_entropy", GENERATOR, found.generator)]
    for layer, told in enumerate(probes.probes(model)):
        source = ActivationSpec("atlas", layer, "atlas", recipe.d_model).name
        for concept, probe in told.items():
            values.append((source, f"probe_{concept}", PROBE, probe.accuracy))
            values.append((source, f"probe_{concept}", COMMONEST, probe.floor))
    rows = [_row(recipe, *value, seconds=time.monotonic() - start) for value in values]
    ledger.record(EXPERIMENT, rows)
    return rows


def _row(recipe: Recipe, source: str, metric: str, constraint: str, value: float, seconds: float) -> dict[str, Any]:
    layer = source.partition(".")[2]
    key = ActivationSpec("atlas", int(layer), "atlas", recipe.d_model).key() if layer else recipe.key()
    return {
        "key": key,
        "source": source,
        "architecture": "",
        "constraint": constraint,
        "init": "",
        "l0": "",
        "seed": recipe.seed,
        "step": recipe.steps,
        "metric": metric,
        "value": value,
        "device": ledger.device(),
        "commit": ledger.commit(),
        "seconds": seconds,
        "settings": "",
    }
