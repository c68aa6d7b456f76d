"""Cities and what the world says of them, read from data/atlas/facts.csv (``saecore atlas build`` writes it)."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from saecore import paths

ATTRIBUTES = ("country", "continent", "language", "currency", "time_zone", "capital")
"""What can be asked of a city. ``capital`` is "Yes" or "No"."""
COLUMNS = ("name", *ATTRIBUTES, "geonameid")
ENTITY_SPLITS = ("train", "test")
TEST_SHARE = 0.2


class AtlasError(RuntimeError):
    """Something of the embedded world is missing or wrong; the message says what makes it."""


@dataclass(frozen=True)
class City:
    """A city with its facts, as a sentence can hold them: ("Nice", "France", "Europe", "French", "euro", ...).

    ``language`` is the official language that most people of the country speak; ``geonameid`` is GeoNames' number.
    """

    name: str
    country: str
    continent: str
    language: str
    currency: str
    time_zone: str
    capital: str
    geonameid: int

    @property
    def split(self) -> str:
        """``test`` for about a fifth of the cities, by a hash of the name; the model is trained on all of them.

        It is for methods that learn on some cities and are tried on others, such as editing.
        """
        draw = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") / 2**32
        return ENTITY_SPLITS[draw < TEST_SHARE]


def path() -> Path:
    return paths.data() / "atlas" / "facts.csv"


@cache
def facts() -> tuple[City, ...]:
    """Every city, by name. Raises AtlasError where the file is missing or has other columns."""
    if not path().exists():
        raise AtlasError(f"no facts in {path()}; write them with `saecore atlas build`")
    with path().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise AtlasError(
                f"{path()} has the columns {reader.fieldnames}, not {list(COLUMNS)}; `saecore atlas build`"
            )
        return tuple(City(**{**row, "geonameid": int(row["geonameid"])}) for row in reader)


@cache
def values(attribute: str) -> tuple[str, ...]:
    """Every value that an attribute takes, sorted."""
    return tuple(sorted({getattr(city, attribute) for city in facts()}))


@cache
def city(name: str) -> City:
    """The city of that name. Raises AtlasError where there is none."""
    for found in facts():
        if found.name == name:
            return found
    raise AtlasError(f"no city is called {name!r}; saecore.sources.atlas.facts() lists the {len(facts())} there are")
