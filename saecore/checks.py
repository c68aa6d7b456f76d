"""The downstream checks on the SAEs of a sweep, recorded under the keys of their runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from saecore.activations import open_source
from saecore.report import ledger
from saecore.saes import checkpoint
from saecore.saes.base import SAE, UnreadableError
from saecore.sources.base import Source
from saecore.sources.probing import LabelledSetError
from saecore.spec import RunSpec, SpecError, one_of, require
from saecore.studies import editing, interpretability, probing
from saecore.studies.facts import EditingError
from saecore.studies.probing import Texts
from saecore.sweep import UNOPENED, sae_path

log = logging.getLogger(__name__)

Place = tuple[str, str]
"""The key of a run, and where the texts are that it was to be measured on: "" for the check's own."""
CANNOT = (SpecError, LabelledSetError, EditingError, UnreadableError)
"""What a check raises where the source, the texts or the SAE is at fault."""
UNTRAINED = "its SAE is not in the cache; `saecore run SWEEP --saes` trains it, recorded or not"


class Check(Protocol):
    """What reads a source's model once and then measures any SAE on it."""

    def measure(self, sae: SAE) -> dict[str, float]: ...

    def references(self) -> dict[str, dict[str, float]]: ...


CHECKS: dict[str, Callable[[Source], Check]] = {
    interpretability.EXPERIMENT: interpretability.prepare_both,
    probing.EXPERIMENT: probing.prepare_both,
    editing.EXPERIMENT: editing.prepare,
    editing.SMALL: editing.prepare_small,
}
"""By experiment: what each makes of a source."""


def run_all(
    name: str,
    groups: Sequence[Sequence[RunSpec]],
    device: str = "cpu",
    texts: Sequence[Texts] = (),
    stream: bool = False,
) -> dict[Place, str]:
    """Check every trained SAE of a sweep that has no row yet; why one was left out, by key and texts.

    Floors and ceilings are recorded once for each source. A source that the check cannot be made on (a model that
    predicts no tokens cannot be edited) is left out, and so is an SAE with too few latents; the others go on.
    ``texts``: what sparse probing reads in the place of its own, each recorded under its name in ``ON_TEXTS``.
    ``stream``: a source's activations are not harvested first. Raises SpecError for an unknown check, and where texts
    are given that it does not read.
    """
    _known(name, texts)
    ledger.commit()  # asked now: the code that runs is the code of this moment
    left_out: dict[Place, str] = {}
    for runs in _by_source(groups):
        for named in texts or [None]:
            left_out |= _run(name, _experiment(name, runs[0], texts), named, runs, device, stream)
    return left_out


def plan(name: str, groups: Sequence[Sequence[RunSpec]], texts: Sequence[Texts] = ()) -> list[tuple[RunSpec, str]]:
    """What :func:`run_all` would do with each run, source by source: it is recorded, to measure, or not trained.

    Raises SpecError.
    """
    _known(name, texts)
    states = []
    for runs in _by_source(groups):
        experiment = _experiment(name, runs[0], texts)
        done = set.intersection(*(_done(experiment, named) for named in texts or [None]))
        rest = ("to measure" if sae_path(run).exists() else "not trained" for run in runs)
        states += [(run, "recorded" if run.key() in done else state) for run, state in zip(runs, rest, strict=True)]
    return states


def recorded(experiment: str) -> set[str]:
    """Keys that have rows, of runs and of sources."""
    return set(ledger.read(experiment)["key"]) if ledger.path(experiment).exists() else set()


def _run(
    name: str, experiment: str, named: Texts | None, runs: Sequence[RunSpec], device: str, stream: bool
) -> dict[Place, str]:
    """The runs of one source that have no row yet."""
    done, where, source = _done(experiment, named), named.place if named else "", runs[0].source
    todo = [run for run in runs if run.key() not in done]
    here = [run for run in todo if sae_path(run).exists()]
    left_out = {(run.key(), where): UNTRAINED for run in todo if run not in here}
    if not here:
        return left_out
    try:
        # texts and judge first: a source may take an hour to open
        make = partial(probing.OnTexts.prepare, held=named.open()) if named else CHECKS[name]
        if name == interpretability.EXPERIMENT:
            interpretability.judge_of(source)
        check = make(open_source(source, device, stream))
        if source.key() not in done:
            ledger.record(experiment, ledger.references(source, check.references(), device))
    except (*CANNOT, *UNOPENED, OSError) as error:
        log.error("%s: nothing to be had on %s: %s", experiment, source.name, error)
        return left_out | {(run.key(), where): str(error) for run in here}
    for run in here:
        began = time.monotonic()
        sae = checkpoint.load(sae_path(run))[0].to(device)
        try:
            values = check.measure(sae)
        except CANNOT as error:
            log.error("%s: nothing to be had of %s: %s", experiment, run.key(), error)
            left_out[run.key(), where] = str(error)
            continue
        seconds = time.monotonic() - began
        ledger.record(experiment, ledger.rows(run, run.training.steps, values, seconds, device))
        log.info("%s %s %s %s: %.1f s", experiment, run.key(), run.sae.architecture, run.constraint.name, seconds)
    return left_out


def _done(experiment: str, named: Texts | None) -> set[str]:
    return ledger.finished(experiment, named.mark) if named else recorded(experiment)


def _known(name: str, texts: Sequence[Texts]) -> None:
    one_of("check", name, tuple(CHECKS))
    require(
        not texts or name == probing.EXPERIMENT,
        f"check={name!r} reads no texts of your choice; leave them out, or take {probing.EXPERIMENT}",
    )


def _experiment(name: str, run: RunSpec, texts: Sequence[Texts]) -> str:
    """Where a check of a run's SAE is recorded."""
    if name == interpretability.EXPERIMENT:
        return interpretability.recorded_as(run.source)
    return probing.ON_TEXTS if texts else name


def _by_source(groups: Sequence[Sequence[RunSpec]]) -> Iterator[list[RunSpec]]:
    every = [run for group in groups for run in group]
    for spec in dict.fromkeys(run.source for run in every):
        yield [run for run in every if run.source == spec]
