"""The downstream checks on the SAEs of a sweep, recorded under the keys of their runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from saecore.activations import open_source
from saecore.report import ledger
from saecore.saes import checkpoint
from saecore.saes.base import SAE
from saecore.sources.base import Source
from saecore.spec import RunSpec, one_of
from saecore.studies import editing, interpretability, probing
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
}
"""By experiment: what each makes of a source."""


def run_all(name: str, groups: Sequence[Sequence[RunSpec]], device: str = "cpu") -> dict[str, str]:
    """Check every trained SAE of a sweep that has no row yet; by key, why one was left out.

    Floors and ceilings are recorded once for each source. A source that the check cannot be made on (a model that
    predicts no tokens cannot be edited) is left out, the others go on. Raises SpecError for an unknown check.
    """
    one_of("check", name, tuple(CHECKS))
    ledger.commit()  # asked now: the code that runs is the code of this moment
    done, left_out = recorded(name), {}
    todo = [run for group in groups for run in group if run.key() not in done]
    for runs in _by_source(todo):
        left_out |= {run.key(): UNTRAINED for run in runs if not sae_path(run).exists()}
        here = [run for run in runs if sae_path(run).exists()]
        if not here:
            continue
        try:
            source = open_source(here[0].source, device)
            check = CHECKS[name](source)
        except (*UNOPENED, ValueError, OSError) as error:
            log.error("%s: nothing to be had on %s: %s", name, here[0].source.name, error)
            left_out |= {run.key(): str(error) for run in here}
            continue
        if source.spec.key() not in done:
            ledger.record(name, ledger.references(source.spec, check.references(), device))
        for run in here:
            began = time.monotonic()
            values = check.measure(checkpoint.load(sae_path(run))[0].to(device))
            seconds = time.monotonic() - began
            ledger.record(name, ledger.rows(run, run.training.steps, values, seconds, device))
            log.info("%s %s %s %s: %.1f s", name, run.key(), run.sae.architecture, run.constraint.name, seconds)
    return left_out


def plan(name: str, groups: Sequence[Sequence[RunSpec]]) -> list[tuple[RunSpec, str]]:
    """What :func:`run_all` would do with each run: it is recorded, to measure, or not trained. Raises SpecError."""
    one_of("check", name, tuple(CHECKS))
    done = recorded(name)
    every = [run for group in groups for run in group]
    states = ("recorded" if r.key() in done else "to measure" if sae_path(r).exists() else "not trained" for r in every)
    return list(zip(every, states, strict=True))


def recorded(name: str) -> set[str]:
    """Keys that have rows, of runs and of sources."""
    return set(ledger.read(name)["key"]) if ledger.path(name).exists() else set()


def _by_source(runs: Sequence[RunSpec]) -> Iterator[list[RunSpec]]:
    for spec in dict.fromkeys(run.source for run in runs):
        yield [run for run in runs if run.source == spec]
