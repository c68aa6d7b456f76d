"""The downstream checks on the SAEs of a sweep, recorded under the keys of their runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Protocol

from saecore.activations import open_source
from saecore.report import ledger
from saecore.report.ledger import LedgerError
from saecore.saes import checkpoint
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.spec import RunSpec, one_of, require
from saecore.studies import editing, interpretability, probing
from saecore.studies.probing import Texts
from saecore.sweep import UNOPENED, sae_path

log = logging.getLogger(__name__)

UNTRAINED = "its SAE is not in the cache; `saecore run` of its sweep trains it"


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
    name: str, groups: Sequence[Sequence[RunSpec]], device: str = "cpu", texts: Sequence[Texts] = ()
) -> dict[str, str]:
    """Check every trained SAE of a sweep that has no row yet; by key, why one was left out.

    Floors and ceilings are recorded once for each source. A source that the check cannot be made on (a model that
    predicts no tokens cannot be edited) is left out, and so is an SAE with too few latents; the others go on.
    ``texts``: what sparse probing reads in the place of its own, each recorded under its name in ``ON_TEXTS``. Raises
    SpecError for an unknown check, and where texts are given that it does not read or cannot tell apart.
    """
    _known(name, texts)
    ledger.commit()  # asked now: the code that runs is the code of this moment
    left_out: dict[str, str] = {}
    every = [run for group in groups for run in group]
    for runs in _by_source(every):
        experiment = _experiment(name, runs[0], texts)
        if not texts:
            left_out |= _run(experiment, runs, recorded(experiment), lambda: CHECKS[name], device)
        for named in texts:
            done = ledger.finished(experiment, named.mark)
            left_out |= _run(experiment, runs, done, partial(_on, named), device)
    return left_out


def plan(name: str, groups: Sequence[Sequence[RunSpec]], texts: Sequence[Texts] = ()) -> list[tuple[RunSpec, str]]:
    """What :func:`run_all` would do with each run, source by source: it is recorded, to measure, or not trained.

    Raises SpecError.
    """
    _known(name, texts)
    states = []
    for runs in _by_source([run for group in groups for run in group]):
        experiment = _experiment(name, runs[0], texts)
        marked = [ledger.finished(experiment, named.mark) for named in texts] or [recorded(experiment)]
        done = set.intersection(*marked)
        rest = ("to measure" if sae_path(run).exists() else "not trained" for run in runs)
        states += [(run, "recorded" if run.key() in done else state) for run, state in zip(runs, rest, strict=True)]
    return states


def recorded(experiment: str) -> set[str]:
    """Keys that have rows, of runs and of sources."""
    return set(ledger.read(experiment)["key"]) if ledger.path(experiment).exists() else set()


def _run(
    experiment: str,
    runs: Sequence[RunSpec],
    done: Collection[str],
    prepare: Callable[[], Callable[[Source], Check]],
    device: str,
) -> dict[str, str]:
    """The runs of one source that are not ``done``; ``prepare`` gives the check, before the source is opened."""
    todo = [run for run in runs if run.key() not in done]
    left_out = {run.key(): UNTRAINED for run in todo if not sae_path(run).exists()}
    here = [run for run in todo if run.key() not in left_out]
    if not here:
        return left_out
    try:
        make = prepare()
        source = open_source(here[0].source, device)
        check = make(source)
        if source.spec.key() not in done:
            ledger.record(experiment, ledger.references(source.spec, check.references(), device))
    except LedgerError:
        raise
    except (*UNOPENED, ValueError, OSError) as error:
        log.error("%s: nothing to be had on %s: %s", experiment, here[0].source.name, error)
        return left_out | {run.key(): str(error) for run in here}
    for run in here:
        began = time.monotonic()
        sae = checkpoint.load(sae_path(run))[0].to(device)
        try:
            values = check.measure(sae)
        except ValueError as error:
            log.error("%s: nothing to be had of %s: %s", experiment, run.key(), error)
            left_out[run.key()] = str(error)
            continue
        seconds = time.monotonic() - began
        ledger.record(experiment, ledger.rows(run, run.training.steps, values, seconds, device))
        log.info("%s %s %s %s: %.1f s", experiment, run.key(), run.sae.architecture, run.constraint.name, seconds)
    return left_out


def _on(named: Texts) -> Callable[[Source], Check]:
    return partial(probing.OnTexts.prepare, held=named.open())


def _known(name: str, texts: Sequence[Texts]) -> None:
    one_of("check", name, tuple(CHECKS))
    require(
        not texts or name == probing.EXPERIMENT,
        f"check={name!r} reads no texts of your choice; leave them out, or take {probing.EXPERIMENT}",
    )
    names = [named.name for named in texts]
    twice = sorted({one for one in names if names.count(one) > 1})
    require(not twice, f"several texts are called {', '.join(twice)}, and rows are recorded by name; rename a file")


def _experiment(name: str, run: RunSpec, texts: Sequence[Texts]) -> str:
    """Where a check of a run's SAE is recorded."""
    if name == interpretability.EXPERIMENT:
        return interpretability.recorded_as(run.source)
    return probing.ON_TEXTS if texts else name


def _by_source(runs: Sequence[RunSpec]) -> Iterator[list[RunSpec]]:
    for spec in dict.fromkeys(run.source for run in runs):
        yield [run for run in runs if run.source == spec]
