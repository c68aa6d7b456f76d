"""Glued values of a notebook against data/expected/<chapter>.json.

    {"ev_topk": {"value": 0.682, "atol": 0.01, "why": "...", "apart_from": 0.66},
     "verdict": {"value": "refuted"},
     "seconds": {"exempt": "depends on the machine"}}

`atol` and `rtol` default to 0: exact. A tolerance must be able to fail. It may not reach `apart_from`, a
value that would mean something else, and without a `why` it may not exceed a fifth of the value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from saecore import paths

FIELDS = ("value", "atol", "rtol", "apart_from", "why", "exempt")
WIDEST = 0.2
DIGITS = 6


class ExpectedError(ValueError):
    """An expected value that cannot be read, or a tolerance that cannot fail."""


@dataclass(frozen=True)
class Expected:
    value: bool | int | float | str | None = None
    atol: float = 0.0
    rtol: float = 0.0
    apart_from: float | None = None
    why: str = ""
    exempt: str = ""

    @property
    def tolerance(self) -> float:
        """The larger of the two, in the units of the value; 0 for what is no number."""
        return max(self.atol, self.rtol * abs(self.value)) if _is_number(self.value) else 0.0

    def problem(self) -> str:
        """Why this entry cannot do its work, or nothing."""
        if self.exempt:
            return ""
        if self.value is None:
            return "has neither a value nor a reason to be exempt"
        if not _is_number(self.value):
            return "is no number, so it takes no tolerance" if self.atol or self.rtol else ""
        if not (math.isfinite(self.tolerance) and self.atol >= 0 and self.rtol >= 0):
            return f"has a tolerance of {self.tolerance}, which is not a finite number from 0 up"
        if self.apart_from is not None and self.tolerance >= abs(self.value - self.apart_from):
            return (
                f"has a tolerance of {self.tolerance:g}, which takes {self.value:g} to {self.apart_from:g}: "
                "a value that means something else would pass"
            )
        if self.tolerance > WIDEST * abs(self.value) and not self.why:
            return (
                f"has a tolerance of {self.tolerance:g}, more than {WIDEST:.0%} of {self.value:g}; narrow it or say why"
            )
        return ""

    def accepts(self, found: Any) -> bool:
        """Whether `found` is the value within its tolerance; what is no number must be equal, and of one type."""
        if self.exempt:
            return True
        if _is_number(self.value) and _is_number(found):
            # A stored value is rounded to DIGITS; that much is no difference.
            slack = abs(self.value) * 10.0 ** (1 - DIGITS) if isinstance(self.value, float) else 0.0
            return abs(found - self.value) <= max(self.tolerance, slack)
        return type(found) is type(self.value) and found == self.value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def glued(notebook: Any) -> dict[str, Any]:
    """Name and raw value of everything the notebook glued.

    Raises ExpectedError for a name glued twice, or by another function than ours.
    """
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get("scrapbook")
            if record is None:
                continue
            if "value" not in record:
                raise ExpectedError(f"{record.get('name')!r} was not glued by saecore.chapter.glue: it holds no value")
            if record["name"] in found:
                raise ExpectedError(f"{record['name']!r} is glued twice")
            found[record["name"]] = record["value"]
    return found


def read(path: Path) -> dict[str, Expected]:
    """Expected values by name; none where there is no file. Raises ExpectedError, naming the entry."""
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ExpectedError(f"{path}: {error}") from None
    found = {}
    for name, entry in entries.items():
        unknown = set(entry) - set(FIELDS)
        if unknown:
            raise ExpectedError(f"{path}: {name} has {sorted(unknown)}; the fields are {', '.join(FIELDS)}")
        found[name] = Expected(**entry)
    return found


def compare(found: Mapping[str, Any], wanted: Mapping[str, Expected], where: str) -> list[str]:
    """Everything that keeps the glued values from being the expected ones, one line each."""
    problems = []
    for name, value in found.items():
        if name not in wanted:
            problems.append(f"{name} = {value!r} is glued but not in {where}; `saecore chapters expect` adds it")
        elif not wanted[name].accepts(value):
            entry = wanted[name]
            problems.append(f"{name} = {value!r}, but {where} has {entry.value!r} within {entry.tolerance:g}")
    for name, entry in wanted.items():
        if name not in found:
            problems.append(f"{name} is in {where} but nothing glues it; `saecore chapters expect` removes it")
        if entry.problem():
            problems.append(f"{name} in {where} {entry.problem()}")
    return problems


def update(path: Path, found: Mapping[str, Any], replace: bool = False) -> tuple[list[str], list[str]]:
    """Add what is new to the file (exact, until someone states a tolerance) and drop what is stale.

    Values that stand are kept, and with `replace` take the value found; their tolerances and reasons stay.
    Returns the names added or changed, and the names dropped.
    """
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    dropped = [name for name in entries if name not in found]
    changed = []
    kept: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        entry = entries.get(name, {})
        rounded = float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        if not entry.get("exempt") and (not entry or replace) and entry.get("value") != rounded:
            entry = {**entry, "value": rounded}
            changed.append(name)
        kept[name] = entry
    with paths.whole(path) as aside:
        aside.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return changed, dropped
