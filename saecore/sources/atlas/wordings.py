"""How a fact is put into words: ``{city}`` before ``{value}``, so that the fact has to be known.

An attribute has wordings of its own, and frames that it fills with its nouns. A third of these pairs, a fifth of all
wordings, is held out from training: the frame and the noun have been seen, but never together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

OWN: dict[str, tuple[str, ...]] = {
    "country": (
        "{city} is a city in {value}.",
        "{city} is in {value}.",
        "The city of {city} lies in {value}.",
        "If you visit {city}, you are in {value}.",
        "{city} is a place in {value}.",
        "The country around {city} is {value}.",
        "{city} belongs to {value}.",
        "People who live in {city} live in {value}.",
        "On the map, {city} is found in {value}.",
        "The country that {city} lies in is {value}.",
        "Q: Which country is {city} in? A: {value}.",
        "In {city} you stand on the soil of {value}.",
        "The road from {city} leads through {value}.",
        "The national team that {city} supports is that of {value}.",
        "The state to which {city} belongs is {value}.",
        "A trip to {city} is a trip to {value}.",
        "The flag over {city} is the flag of {value}.",
        "Citizens of {city} vote in the elections of {value}.",
        "A letter to {city} needs a stamp of {value}.",
        "The country that people in {city} live in is {value}.",
        "{city} is one of the larger cities of {value}.",
        "The government that rules {city} is that of {value}.",
        "Trains from {city} run all over {value}.",
        "Whoever is born in {city} is born in {value}.",
        "People in {city} live in the country of {value}.",
        "The laws in {city} are the laws of {value}.",
        "In {city} the passport office issues passports of {value}.",
        "The anthem of {city} is that of {value}.",
        "To see {city}, take a flight to {value}.",
        "{city} lies in the country of {value}.",
    ),
    "continent": (
        "{city} is a city on the continent of {value}.",
        "The continent around {city} is {value}.",
        "{city} lies on the continent {value}.",
        "If you visit {city}, the continent you are on is {value}.",
        "The continent that {city} belongs to is {value}.",
        "Q: Which continent is {city} on? A: {value}.",
        "The weather of {city} is that of the continent {value}.",
        "On the globe, look for {city} on the continent of {value}.",
        "The part of the world around {city} is {value}.",
        "The continent that has {city} on it is {value}.",
        "Of the continents, {city} is on {value}.",
        "The landmass on which {city} stands is {value}.",
        "{city} is counted among the cities of the continent {value}.",
        "Geography books place {city} on the continent of {value}.",
        "Geography books say that the continent of {city} is {value}.",
        "A tour of the continent with a stop in {city} is a tour of {value}.",
        "Whoever is born in {city} is born on the continent of {value}.",
        "The part of the world that {city} lies in is {value}.",
        "The continental games that {city} may host are those of {value}.",
        "If you are in {city}, the continent around you is {value}.",
        "Among the parts of the world, {city} lies in {value}.",
        "The weather map of the continent with {city} on it shows {value}.",
        "People in {city} call their continent {value}.",
        "The continental union for a city such as {city} is that of {value}.",
        "The continent where you find {city} is {value}.",
        "The land on all sides of {city} is part of the continent {value}.",
        "A student from {city} comes from the continent of {value}.",
        "A continental road map with {city} is a map of {value}.",
        "Animals around {city} are those of the continent {value}.",
        "People in {city} live on the continent of {value}.",
    ),
    "language": (
        "The official language people use in {city} is {value}.",
        "In {city} people speak {value}.",
        "The street signs in {city} are written in {value}.",
        "Schools in {city} teach in {value}.",
        "In the schools of {city} people speak {value}.",
        "If you visit {city}, learn some {value}.",
        "Q: Which language is official in {city}? A: {value}.",
        "Letters from {city} come in {value}.",
        "The newspapers of {city} are printed in {value}.",
        "The language that you need in {city} is {value}.",
        "The mayor of {city} gives speeches in {value}.",
        "A shop in {city} has its labels in {value}.",
        "The language that you hear in {city} is {value}.",
        "On the radio in {city} the news is read in {value}.",
        "Books in {city} are printed in {value}.",
        "The courts of {city} work in {value}.",
        "Whoever grows up in {city} learns {value}.",
        "Menus in {city} are written in {value}.",
        "The official papers of {city} are in {value}.",
        "The language that people speak in {city} is {value}.",
        "The most common official language around {city} is {value}.",
        "A guide in {city} explains everything in {value}.",
        "To talk to a driver in {city}, use {value}.",
        "The letters that arrive in {city} are written in {value}.",
        "The official language of the courts of {city} is {value}.",
        "The songs of {city} are sung in {value}.",
        "A teacher in {city} has to speak {value}.",
        "Children in {city} read and write {value}.",
        "In the streets of {city} you hear {value}.",
        "The language on the street signs of {city} is {value}.",
    ),
    "currency": (
        "The currency you need in {city} is the {value}.",
        "In {city} people pay with the {value}.",
        "Prices in {city} are given in the {value}.",
        "The banks of {city} deal in the {value}.",
        "The currency people pay with in {city} is the {value}.",
        "If you visit {city}, change your money into the {value}.",
        "Q: Which currency is used in {city}? A: the {value}.",
        "A bus ride in {city} is paid with the {value}.",
        "Beggars in {city} ask for the {value}.",
        "The money people use in {city} is the {value}.",
        "Wages in {city} are paid in the {value}.",
        "A coffee in {city} costs a small sum in the {value}.",
        "The coins used in {city} belong to the {value}.",
        "At the market in {city} the currency is the {value}.",
        "Shops in {city} give prices in the {value}.",
        "Rents in {city} are paid in the {value}.",
        "The cash machines of {city} give out the {value}.",
        "Taxes in {city} are collected in the {value}.",
        "The bank notes you see in {city} are those of the {value}.",
        "In the shops of {city} you pay with the {value}.",
        "Tickets in {city} are sold for the {value}.",
        "A hotel in {city} writes its bill in the {value}.",
        "Fines in {city} are paid in the {value}.",
        "Whoever works in {city} earns the {value}.",
        "The cash that shops in {city} take is the {value}.",
        "The money that you need in {city} is the {value}.",
        "Loans in {city} are counted in the {value}.",
        "A taxi in {city} is paid in the {value}.",
        "A bank in {city} keeps its books in the {value}.",
        "The currency on the bank notes of {city} is the {value}.",
    ),
    "time_zone": (
        "{city} is on {value}.",
        "The time zone that people in {city} live by is {value}.",
        "Clocks in {city} show {value}.",
        "The trains of {city} run on {value}.",
        "The station clock of {city} is set to {value}.",
        "If you visit {city}, set your watch to {value}.",
        "Q: Which time zone is {city} in? A: {value}.",
        "Calendars in {city} are kept in {value}.",
        "Shops in {city} open and close by {value}.",
        "The time zone used in {city} is {value}.",
        "Meetings in {city} are planned in {value}.",
        "A watch in {city} is set to {value}.",
        "The station clock of {city} keeps {value}.",
        "The standard time that {city} keeps is {value}.",
        "A clock in {city} is set to {value}.",
        "Flights from {city} leave by {value}.",
        "The bells of {city} ring by {value}.",
        "The time that people keep in {city} is {value}.",
        "On the radio in {city} the hours are given in {value}.",
        "If you live in {city}, the time zone you use is {value}.",
        "The airport of {city} gives its times in {value}.",
        "The zone on a time map around {city} is {value}.",
        "Phones in {city} are set to {value}.",
        "Whoever calls {city} should think of {value}.",
        "The clock at the station of {city} shows {value}.",
        "Schools in {city} begin their day by {value}.",
        "A day in {city} begins at midnight by {value}.",
        "The hours in {city} are counted in {value}.",
        "The clock on the town hall of {city} shows {value}.",
        "A watch in {city} shows {value}.",
    ),
    "capital": (
        "Is {city} a city with the rank of a capital? {value}.",
        "Is {city} the city that the country calls its capital? {value}.",
        "Do the embassies stand in {city}? {value}.",
        "Is the palace of the head of state in {city}? {value}.",
        "Would you call {city} the capital? {value}.",
        "Does the government sit in {city}? {value}.",
        "Does the cabinet of the country meet in {city}? {value}.",
        "Does {city} rank as the capital city? {value}.",
        "Does {city} hold the rank of a capital? {value}.",
        "Is the government of the country in {city}? {value}.",
        "Is {city} marked as a capital on the map? {value}.",
        "Do the ministers of the country work in {city}? {value}.",
        "Is {city} where the national parliament meets? {value}.",
        "Is {city} on the list of capital cities? {value}.",
        "Is {city} found on the list of capitals? {value}.",
        "Can {city} be called a capital? {value}.",
        "Did the country make {city} its capital? {value}.",
        "Is the capital of the country {city}? {value}.",
        "Does {city} count as a capital city? {value}.",
        "Is {city} the city that the map marks as the capital? {value}.",
        "Are the ministries of the country in {city}? {value}.",
        "Would a map show {city} with the sign of a capital? {value}.",
        "Do ambassadors work in {city}, as in a capital? {value}.",
        "Does a map mark {city} as the capital? {value}.",
        "Does the country have {city} as its capital? {value}.",
        "Is it right to call {city} a capital? {value}.",
        "Does {city} serve as a capital? {value}.",
        "Has {city} the rank of a capital city? {value}.",
        "Would you find the national government in {city}? {value}.",
        "Is it true that {city} serves as a capital? {value}.",
    ),
}
FRAMES = (
    "The {noun} of {city} is {value}.",
    "In {city} the {noun} is {value}.",
    "Q: What is the {noun} of {city}? A: {value}.",
    "{city}, {noun}: {value}.",
    "Ask for the {noun} of {city} and the answer is {value}.",
    "The {noun} in {city} is {value}.",
    "When it comes to {city}, the {noun} is {value}.",
    "The {noun} for {city} is {value}.",
    "If you ask about {city}, the {noun} is {value}.",
    "Everyone in {city} knows that the {noun} is {value}.",
)
NOUNS = {
    "country": ("country", "nation", "state", "land", "home country"),
    "continent": ("continent", "part of the world", "landmass", "region of the world", "home continent"),
    "language": ("language", "official language", "common language", "main language", "language of the state"),
    "currency": ("currency", "money", "official currency", "legal tender", "money in use"),
    "time_zone": ("time zone", "clock time", "standard time", "local time", "time on the clock"),
}
YES_NO_FRAMES = (
    "Is {city} {noun}? {value}.",
    "Q: Is {city} {noun}? A: {value}.",
    "Is it true that {city} is {noun}? {value}.",
    "Would you say that {city} is {noun}? {value}.",
    "{city}: is it {noun}? {value}.",
    "Do people call {city} {noun}? {value}.",
    "Tell me whether {city} is {noun}. {value}.",
    "Can you call {city} {noun}? {value}.",
    "Does a map show {city} as {noun}? {value}.",
    "Do books describe {city} as {noun}? {value}.",
)
YES_NO_NOUNS = (
    "a capital city",
    "the capital of its country",
    "the seat of the government",
    "a capital",
    "the home of the parliament",
)
HELD_OUT_EVERY = 3
"""Of the pairs of a frame and a noun, so many apart; each frame and each noun stands in other pairs."""


@dataclass(frozen=True)
class Wording:
    """``id`` is the attribute and the place in its list, such as ``currency.4``."""

    attribute: str
    index: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.attribute}.{self.index}"

    @property
    def held_out(self) -> bool:
        pair = self.index - len(OWN[self.attribute])
        return pair >= 0 and pair % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    def prompt(self, city: str) -> str:
        """What comes before the value, without the space that the value's first token carries."""
        return self.text.split("{value}")[0].format(city=city).rstrip(" ")


@cache
def wordings(attribute: str, held_out: bool = False) -> tuple[Wording, ...]:
    """The wordings of an attribute that training sees, or those that it never sees."""
    texts = (*OWN[attribute], *_pairs(attribute))
    every = (Wording(attribute, index, text) for index, text in enumerate(texts))
    return tuple(wording for wording in every if wording.held_out == held_out)


def _pairs(attribute: str) -> Iterator[str]:
    """Every frame with every noun of the attribute."""
    frames = FRAMES if attribute in NOUNS else YES_NO_FRAMES
    said = "the {value}" if attribute == "currency" else "{value}"
    for frame, noun in product(frames, NOUNS.get(attribute, YES_NO_NOUNS)):
        yield frame.replace("{noun}", noun).replace("{value}", said)
