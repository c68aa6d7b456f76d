"""Runs a list of SAEs to the end, resumably, and records what they reached. A sweep is a YAML file of run specs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from saecore import paths
from saecore.activations import StoreError, open_source, total_rows
from saecore.activations.pretrained import ModelError
from saecore.metrics.evaluate import glimpse
from saecore.report import ledger
from saecore.saes import checkpoint
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.sources.images import ImageError
from saecore.sources.text import TextError
from saecore.spec import (
    DICTIONARIES,
    ActivationSpec,
    ConstraintSpec,
    RunSpec,
    SAESpec,
    SourceSpec,
    SpecError,
    TrainingSpec,
    require,
)
from saecore.studies.examine import Examiner, examiner
from saecore.studies.lazy import SHARES
from saecore.training import DivergedError, Trainer, distributed, shared_streams, start, train_many

log = logging.getLogger(__name__)

MARKS = (
    500,
    1000,
    2000,
    3000,
    4000,
    5000,
    6000,
    8000,
    10_000,
    12_000,
    15_000,
    20_000,
    25_000,
    30_000,
    40_000,
    60_000,
)
"""Steps at which a learning curve is read on a synthetic source, where a run has them; on activations, ``SHARES``."""
SAVE_SECONDS = 300
BAR_DELAY = 1
"""Seconds before a harvest's bar shows: a store that stands is opened sooner."""
SILENT_STEPS = 100
"""``silent_share`` counts the latents that fired for no training sample of so many steps."""
WIDTH = 32
"""Latents per dimension where a sweep does not say (paper, Sec. 4.1)."""
HEADLINES = ("explained_variance", "ce_recovered", "concept_f1", "fraction_recovered")
UNOPENED = (ModelError, TextError, ImageError, StoreError, SpecError)
"""What opening a source raises where the source is at fault, not this machine's disk."""
SHORT = {"architecture": "sae", "probability": "source", "constraint": "constraint", "seed": "training"}


def find(name: str) -> Path:
    """The sweep file of this name in the book, or the file itself. Raises SpecError where there is none."""
    path = Path(name) if name.endswith((".yml", ".yaml")) else paths.book() / "sweeps" / f"{name}.yml"
    known = ", ".join(sorted(p.stem for p in (paths.book() / "sweeps").glob("*.yml")))
    require(path.is_file(), f"no sweep {name!r}; give a .yml file or one of: {known}")
    return path


def part(groups: Sequence[list[RunSpec]], share: str) -> list[list[RunSpec]]:
    """The i-th of n shares of the groups, written ``i/n``. Raises SpecError."""
    index, _, count = share.partition("/")
    ok = index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)
    require(ok, f"part {share!r} is not of the form I/N with 1 <= I <= N, such as 1/2")
    return list(groups)[int(index) - 1 :: int(count)]


def load(path: Path) -> tuple[str, list[list[RunSpec]]]:
    """Experiment name and runs of a sweep file, in groups that train on one stream of samples.

    ``defaults`` are fields of every run; each entry of ``blocks`` is a product over its lists and may hold single
    values. Fields are named ``part.field`` (``training.learning_rate``), with ``architecture``, ``probability``,
    ``constraint`` and ``seed`` for short. A seed is the seed of the world and of the start. Raises SpecError.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path.name} is not YAML in UTF-8: {error}") from error
    whole = isinstance(data, dict) and {"experiment", "blocks"} <= set(data)
    require(whole, f"{path.name} needs the entries experiment and blocks")
    unknown = sorted(map(str, set(data) - {"experiment", "defaults", "blocks"}))
    require(not unknown, f"{path.name}: unknown entry {unknown}; a sweep has experiment, defaults and blocks")
    experiment, defaults, blocks = str(data["experiment"]), data.get("defaults"), data["blocks"]
    defaults = {} if defaults is None else defaults
    listed = isinstance(blocks, list) and len(blocks) > 0 and all(isinstance(b, dict) for b in [defaults, *blocks])
    require(listed, f"{path.name}: defaults must be fields with values, and blocks a list of such: - {{seed: [0, 1]}}")
    try:
        ledger.path(experiment)
    except ledger.LedgerError as error:
        raise SpecError(f"{path.name}: {error}") from None
    seen: set[str] = set()
    groups: list[list[RunSpec]] = []
    for block in blocks:
        runs = []
        fields = {**defaults, **block}
        values = [v if isinstance(v, list) else [v] for v in fields.values()]
        for combination in itertools.product(*values):
            run = make(dict(zip(fields, combination, strict=True)))
            if run.key() not in seen:
                seen.add(run.key())
                runs.append(run)
        groups += shared_streams(runs)
    require(len(groups) > 0, f"{path.name} holds no run; give every list a value")
    return experiment, groups


def make(fields: dict[str, Any]) -> RunSpec:
    """A run from flat fields, as a sweep file names them.

    Where they do not say, an SAE has a latent for each known feature, or ``WIDTH`` times ``d_model``; the dictionaries
    ``pca`` and ``neurons`` have twice ``d_model``, and ``pca`` its own init. Raises SpecError.
    """
    parts: dict[str, dict[str, Any]] = {"sae": {}, "source": {}, "constraint": {}, "training": {}}
    for name, value in fields.items():
        part, _, item = str(name).partition(".")
        if name == "constraint":
            part, item = "constraint", "name"
        elif name in SHORT:
            part, item = SHORT[name], name
        if part not in parts or not item:
            raise SpecError(
                f"field {name!r} is unknown; write part.field with part in {sorted(parts)}, or {sorted(SHORT)}"
            )
        parts[part][item] = tuple(value) if isinstance(value, list) else value
    kind = ActivationSpec if "model" in parts["source"] else SourceSpec
    if "seed" in fields and kind is SourceSpec:
        parts["source"].setdefault("seed", fields["seed"])
    source = _made("source", kind, parts["source"])
    parts["sae"].setdefault("d_model", source.d_model)
    if parts["constraint"].get("name") in DICTIONARIES:
        parts["sae"].setdefault("n_latents", 2 * source.d_model)
    parts["sae"].setdefault("n_latents", getattr(source, "n_features", WIDTH * source.d_model))
    if parts["constraint"].get("name") == "pca":
        parts["constraint"].setdefault("init", "cov")
    return RunSpec(
        _made("sae", SAESpec, parts["sae"]),
        source,
        _made("constraint", ConstraintSpec, parts["constraint"]),
        _made("training", TrainingSpec, parts["training"]),
    )


def _made(part: str, cls: type, values: dict[str, Any]) -> Any:
    """A part of a run. Raises SpecError for a field that it does not have or lacks, and as the part does."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    wrong = sorted(set(values) - set(defaults))
    require(not wrong, f"{part} has no field {wrong}; it has {sorted(defaults)}")
    missing = [f"{part}.{name}" for name in defaults if {**defaults, **values}[name] is dataclasses.MISSING]
    require(not missing, f"a run lacks {', '.join(missing)}; give a value")
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"{part} with {values}: {error}; a list that is one value is written [[0.5, 0.5]]") from error


def run(name: str, device: str = "cpu", stream: bool = False) -> dict[str, str]:
    """Every run of a sweep in the book, to the end; else as :func:`run_all`."""
    return run_all(*load(find(name)), device, stream=stream)


def run_all(
    experiment: str,
    groups: Sequence[Sequence[RunSpec]],
    device: str = "cpu",
    at_once: int = 8,
    stream: bool = False,
    spread: str | None = None,
    saes: bool = False,
) -> dict[str, str]:
    """Bring every run to its end and record it under ``experiment``; what is recorded is not run again.

    A group shares its stream of samples and trains together, ``at_once`` runs at a time. Interrupted by SIGINT or
    SIGTERM, it continues from there; killed, or spread, from the last checkpoint in the cache. Floors and ceilings that
    need no SAE are recorded once for each source.
    ``stream``: activations are read from the model as training goes, and none are kept on the disk.
    ``spread``: what each of several processes (:func:`distributed.join`) has a share of; all call this, one records.
    ``saes``: what is recorded is trained again where its SAE is not in the cache; its rows stay as they are.

    Returns, by key, why a run is not recorded: its source cannot be opened, or it diverged. The others go on.
    """
    left_out: dict[str, str] = {}
    closed: dict[SourceSpec | ActivationSpec, str] = {}
    writable()
    ledger.commit()  # asked now: the code that runs is the code of this moment
    at_hand: Examiner | None = None
    for group in groups:
        done = ledger.finished(experiment)
        open_runs = distributed.agreed([not stands(run, done, saes) for run in group])
        todo = [run for run, is_open in zip(group, open_runs, strict=True) if is_open]
        if not todo:
            continue
        wanted = todo[0].source
        if wanted not in closed and (at_hand is None or at_hand.source.spec != wanted):
            at_hand = None  # before the next one is in memory
            try:
                at_hand = _examined(wanted, device, stream)
            except UNOPENED as error:
                log.error("%s cannot be opened, its runs are left out: %s", wanted.name, error)
                closed[wanted] = str(error)
            else:
                if distributed.is_first():
                    _record_references(experiment, at_hand)
        if at_hand is None or wanted in closed:
            left_out |= {run.key(): closed[wanted] for run in todo}
            continue
        for first in range(0, len(todo), at_once):
            left_out |= _run_group(experiment, todo[first : first + at_once], at_hand, spread, done)
    return left_out


def writable() -> None:
    """Raises PathError where SAEs or rows could not be written."""
    paths.writable(paths.cache())
    paths.writable(paths.results(), paths.RESULTS)


def stands(run: RunSpec, done: Collection[str], saes: bool = False) -> bool:
    """Whether nothing is to be done: the key is ``done`` and, where ``saes`` asks for it, the SAE is in the cache."""
    return run.key() in done and not (saes and not sae_path(run).exists())


def _examined(spec: SourceSpec | ActivationSpec, device: str, stream: bool) -> Examiner:
    """A source with what measures SAEs on it. Of several processes the first harvests, and it alone measures."""
    at_hand = failure = None
    for turn in (True, False):
        try:
            if distributed.is_first() == turn:
                source = _opened(spec, device, stream)
                at_hand = examiner(source) if turn else Examiner(source)
        except UNOPENED as error:
            failure = error
        if not distributed.everywhere(failure is None):
            raise failure or SpecError("another process of this run cannot open it, and says why")
    assert at_hand is not None
    return at_hand


def _opened(spec: SourceSpec | ActivationSpec, device: str, stream: bool) -> Source:
    """The source; where it is harvested first, a terminal shows how far that is."""
    if isinstance(spec, SourceSpec) or stream:
        return open_source(spec, device, stream)
    from tqdm import tqdm

    with tqdm(
        desc=spec.name, total=total_rows(spec), unit=" rows", unit_scale=True, delay=BAR_DELAY, disable=None
    ) as bar:
        return open_source(spec, device, progress=bar.update)


def _run_group(
    experiment: str, group: list[RunSpec], at_hand: Examiner, spread: str | None, done: Collection[str]
) -> dict[str, str]:
    """By key, why a run diverged. Keys that are ``done`` have their rows, and are trained for their SAEs."""
    source, diverged = at_hand.source, {}
    begin = functools.partial(distributed.start, spread=spread) if spread else start
    trainers = [begin(run, source) for run in group]
    starts = {trainer.run.key(): copy.deepcopy(trainer.whole()) for trainer in trainers}
    for trainer in trainers:
        if trainer.resume(_state_path(trainer.run)):
            log.info("%s resumes at step %d", trainer.run.key(), trainer.steps_done)
    steps, saved = group[0].training.steps, time.monotonic()
    marks = curve(group[0])
    with _held(trainers, alone=spread is None) as check:
        for stop in sorted({*marks, *range(500, steps, 500), steps}):
            behind = [t for t in trainers if t.steps_done < stop]
            trainers[:] = _advance(trainers, source, stop, diverged, check)
            for trainer in behind:
                if trainer.steps_done == stop and stop in marks:
                    sae, silent = trainer.whole(), _silent(trainer)
                    if distributed.is_first() and trainer.run.key() not in done:
                        fresh = starts[trainer.run.key()].W_dec.detach()
                        _record(experiment, trainer, source, stop, glimpse(sae, source, start=fresh) | silent)
            check()
            if distributed.agreed([time.monotonic() - saved > SAVE_SECONDS])[0]:
                _save(trainers)
                saved = time.monotonic()
                log.info("%s: %s at step %d of %d", experiment, [t.run.sae.architecture for t in trainers], stop, steps)
    try:
        while trainers:
            _conclude(experiment, trainers[0], at_hand, starts[trainers[0].run.key()], done)
            del trainers[0]
    except KeyboardInterrupt:
        if spread is None:
            _save(trainers)
        raise
    return diverged


def _conclude(experiment: str, trainer: Trainer, at_hand: Examiner, fresh: SAE, done: Collection[str]) -> None:
    """Measure, keep and record an SAE at the end of its training; ``fresh``: as it began. What is done is only kept."""
    sae, silent, run = trainer.whole(), _silent(trainer), trainer.run
    if not distributed.is_first():
        return
    values = {} if run.key() in done else at_hand.measure(sae, fresh, run)
    checkpoint.save(sae_path(run), sae, run)
    if values:
        _record(experiment, trainer, at_hand.source, trainer.steps_done, values | silent)
    _state_path(run).unlink(missing_ok=True)
    found = [f"{name} {values[name]:.3f}" for name in HEADLINES if name in values]
    log.info("%s %s %s %s %s", run.key(), run.sae.architecture, run.constraint.name, run.settings(), " ".join(found))


@contextmanager
def _held(trainers: Sequence[Trainer], alone: bool) -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM wait for a call of what this gives, which saves the trainers and raises KeyboardInterrupt.

    A step is never cut in two. Not so where the processes are several (not ``alone``), which would have to agree, nor
    outside the main thread, which alone gets signals.
    """
    came: list[int] = []

    def check() -> None:
        if came:
            _save(trainers)
            raise KeyboardInterrupt

    held = (signal.SIGINT, signal.SIGTERM) if alone and threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in held}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _save(trainers: Sequence[Trainer]) -> None:
    """For :meth:`Trainer.resume`. What trains nothing is as soon made again, and is whole in each of many processes."""
    for trainer in trainers:
        if trainer.run.constraint.trains_anything:
            trainer.save(_state_path(trainer.run))


def curve(run: RunSpec) -> set[int]:
    """The steps before the last at which a run's learning curve is read."""
    steps = run.training.steps
    synthetic = isinstance(run.source, SourceSpec)
    return {m for m in (MARKS if synthetic else (round(share * steps) for share in SHARES)) if 0 < m < steps}


def _advance(
    trainers: list[Trainer], source: Source, stop: int, diverged: dict[str, str], check: Callable[[], None]
) -> list[Trainer]:
    """Train to ``stop``; a run that diverges is left out and noted in ``diverged``, the others go on.

    ``check`` is called after every step but the last, at which a place on the learning curve is recorded first.
    """

    def watch(trainer: Trainer, _: object) -> None:
        if trainer.steps_done < stop:
            check()

    while True:
        try:
            train_many(trainers, source, stop, watch)
            return trainers
        except DivergedError as error:
            log.error("%s; it is left out", error)
            diverged[error.key] = str(error)
            trainers = [t for t in trainers if t.run.key() != error.key]


def _record_references(experiment: str, at_hand: Examiner) -> None:
    """Floors and ceilings, under the key of their source, unless they are recorded."""
    spec = at_hand.source.spec
    if spec.key() in ledger.finished(experiment, "cross_entropy"):
        return
    ledger.record(experiment, ledger.references(spec, at_hand.references(), at_hand.source.device))


def _silent(trainer: Trainer) -> dict[str, float]:
    """The share of latents that have been silent for long, once there has been so long a time."""
    if trainer.steps_done < SILENT_STEPS:
        return {}
    return {"silent_share": trainer.ranks.count(trainer.silent >= SILENT_STEPS) / trainer.run.sae.n_latents}


def _record(experiment: str, trainer: Trainer, source: Source, step: int, values: dict[str, float]) -> None:
    ledger.record(experiment, ledger.rows(trainer.run, step, values, trainer.seconds, source.device))


def sae_path(run: RunSpec) -> Path:
    """Where a finished SAE lies in the cache."""
    return paths.cache() / "saes" / f"{run.key()}.safetensors"


def _state_path(run: RunSpec) -> Path:
    return paths.cache() / "training" / f"{run.key()}.safetensors"
