"""Runs a list of SAEs to the end, resumably, and records what they reached. A sweep is a YAML file of run specs."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from saecore import paths
from saecore.metrics.evaluate import evaluate, glimpse
from saecore.report import ledger
from saecore.saes import checkpoint
from saecore.sources.synthetic import Superposition
from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, SpecError, TrainingSpec, require
from saecore.training import Trainer, start, train_many

log = logging.getLogger(__name__)

MARKS = (500, 1000, 2000, 3000, 4000, 5000, 6000, 8000, 10_000, 12_000, 15_000, 20_000, 25_000, 30_000, 40_000, 60_000)
"""Steps at which a learning curve is read, where a run has them."""
SAVE_SECONDS = 300
SHORT = {"architecture": "sae", "probability": "source", "constraint": "constraint", "seed": "training"}


def load(path: Path) -> tuple[str, list[RunSpec]]:
    """Experiment name and runs of a sweep file.

    ``defaults`` are fields of every run; each entry of ``blocks`` is a product over its lists and may hold single
    values. Fields are named ``part.field`` (``training.learning_rate``), with ``architecture``, ``probability``,
    ``constraint`` and ``seed`` for short. A seed is the seed of the world and of the start. Raises SpecError.
    """
    data = yaml.safe_load(path.read_text())
    unknown = sorted(set(data) - {"experiment", "defaults", "blocks"})
    require(not unknown, f"{path.name}: unknown entry {unknown}; a sweep has experiment, defaults and blocks")
    runs: dict[str, RunSpec] = {}
    for block in data["blocks"]:
        fields = {**data.get("defaults", {}), **block}
        values = [v if isinstance(v, list) else [v] for v in fields.values()]
        for combination in itertools.product(*values):
            run = make(dict(zip(fields, combination, strict=True)))
            runs.setdefault(run.key(), run)
    return data["experiment"], list(runs.values())


def make(fields: dict[str, Any]) -> RunSpec:
    """A run from flat fields, as a sweep file names them."""
    parts: dict[str, dict[str, Any]] = {"sae": {}, "source": {}, "constraint": {}, "training": {}}
    for name, value in fields.items():
        part, _, item = name.partition(".")
        if name == "constraint":
            part, item = "constraint", "name"
        elif name in SHORT:
            part, item = SHORT[name], name
        if part not in parts or not item:
            raise SpecError(f"field {name!r} is unknown; write part.field with part in {sorted(parts)}, or {sorted(SHORT)}")
        parts[part][item] = tuple(value) if isinstance(value, list) else value
        if name == "seed":
            parts["source"]["seed"] = value
    specs = {"sae": SAESpec, "source": SourceSpec, "constraint": ConstraintSpec, "training": TrainingSpec}
    for part, cls in specs.items():
        known = {f.name for f in dataclasses.fields(cls)}
        wrong = sorted(set(parts[part]) - known)
        require(not wrong, f"{part} has no field {wrong}; it has {sorted(known)}")
    source = SourceSpec(**parts["source"])
    parts["sae"].setdefault("d_model", source.d_model)
    parts["sae"].setdefault("n_latents", source.n_features)
    return RunSpec(
        SAESpec(**parts["sae"]), source, ConstraintSpec(**parts["constraint"]), TrainingSpec(**parts["training"])
    )


def shared_streams(runs: Iterable[RunSpec]) -> Iterator[list[RunSpec]]:
    """Groups of runs that see the same samples and the same number of them, in the order of their first run."""
    groups: dict[tuple, list[RunSpec]] = {}
    for run in runs:
        key = (run.source, run.training.batch_size, run.training.seed, run.training.steps)
        groups.setdefault(key, []).append(run)
    yield from groups.values()


def run_all(experiment: str, runs: Sequence[RunSpec], device: str = "cpu", at_once: int = 8) -> None:
    """Bring every run to its end and record it under ``experiment``; what is recorded is not run again.

    Runs that share a stream train together, ``at_once`` at a time. Interrupted, it continues from the last checkpoint
    in the cache.
    """
    done = ledger.finished(experiment)
    todo = [r for r in runs if r.key() not in done]
    log.info("%s: %d runs, %d already recorded", experiment, len(runs), len(runs) - len(todo))
    for group in shared_streams(todo):
        source = Superposition(group[0].source, device)
        for first in range(0, len(group), at_once):
            _run_group(experiment, group[first : first + at_once], source)


def _run_group(experiment: str, group: list[RunSpec], source: Superposition) -> None:
    trainers = [start(run, source) for run in group]
    for trainer in trainers:
        if trainer.resume(_state_path(trainer.run)):
            log.info("%s resumes at step %d", trainer.run.key(), trainer.steps_done)
    steps, saved = group[0].training.steps, time.monotonic()
    stops = sorted({m for m in MARKS if m < steps} | set(range(500, steps, 500)) | {steps})
    for stop in stops:
        before = [t.steps_done for t in trainers]
        train_many(trainers, source, stop)
        for trainer, old in zip(trainers, before, strict=True):
            if old < stop < steps and stop in MARKS:
                rows = glimpse(trainer.sae, source)
                ledger.record(experiment, [_row(experiment, trainer, source, stop, n, v) for n, v in rows.items()])
        if time.monotonic() - saved > SAVE_SECONDS:
            for trainer in trainers:
                trainer.save(_state_path(trainer.run))
            saved = time.monotonic()
            log.info("%s: %s at step %d of %d", experiment, [t.run.sae.architecture for t in trainers], stop, steps)
    for trainer in trainers:
        fresh = start(trainer.run, source).sae.W_dec.detach()
        values = evaluate(trainer.sae, source, start=fresh)
        checkpoint.save(sae_path(trainer.run), trainer.sae, trainer.run)
        ledger.record(experiment, [_row(experiment, trainer, source, steps, n, v) for n, v in values.items()])
        _state_path(trainer.run).unlink(missing_ok=True)
        log.info("%s %s %s EV %.3f recovered %.0f (%.0f s)", trainer.run.key(), trainer.run.sae.architecture,
                 trainer.run.constraint.name, values["explained_variance"], values["features_recovered"],
                 trainer.seconds)  # fmt: skip


def sae_path(run: RunSpec) -> Path:
    """Where a finished SAE lies in the cache."""
    return paths.cache() / "saes" / f"{run.key()}.safetensors"


def _state_path(run: RunSpec) -> Path:
    return paths.cache() / "training" / f"{run.key()}.safetensors"


def _row(experiment: str, trainer: Trainer, source: Superposition, step: int, metric: str, value: float) -> dict:
    run = trainer.run
    return {
        "experiment": experiment,
        "key": run.key(),
        "source": run.source.probability,
        "architecture": run.sae.architecture,
        "constraint": run.constraint.name,
        "init": run.constraint.init,
        "l0": run.sae.l0,
        "seed": run.training.seed,
        "step": step,
        "metric": metric,
        "value": value,
        "device": ledger.device(source.device),
        "commit": ledger.commit(),
        "seconds": trainer.seconds,
        "settings": run.settings(),
    }
