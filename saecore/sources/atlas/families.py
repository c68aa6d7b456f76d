"""Grammars of the five kinds of text that stand beside the facts: SAEBench's concept families.

A rule maps a symbol to its productions, drawn with equal probability; ``{symbol}`` in a production is expanded in turn,
``{city}`` names a city. ``{{`` is a brace. A document draws one label for each concept of its family, and that label's
rules join the shared ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Rules = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Family:
    """``opening`` comes first, then ``sentence`` again and again; ``once`` are symbols drawn once a document.

    Prose starts its sentences with a capital and sets a space between them; code stands on lines.
    """

    shared: Rules
    concepts: Mapping[str, Mapping[str, Rules]]
    once: tuple[str, ...] = ()
    prose: bool = True

    @property
    def separator(self) -> str:
        return " " if self.prose else "\n"


def words(text: str) -> tuple[str, ...]:
    """Productions separated by ``|``."""
    return tuple(part.strip() for part in text.split("|"))


def _profession(title: str, study: str, place: str, task: str) -> Rules:
    return {"title": words(title), "study": words(study), "place": words(place), "task": words(task)}


BIO = Family(
    shared={
        "last": words(
            "Miller|Garcia|Rossi|Novak|Silva|Kim|Tanaka|Singh|Cohen|Jansen|Weber|Larsen|Okafor|Haddad|Popov|Moreau"
        ),
        "opening": (
            "{first} {last} is {title} from {city}.",
            "{first} {last} works as {title} in {city}.",
            "{first} {last} was born in {city} and {task}.",
            "{first} {last} {task} at {place} in {city}.",
            "After a degree in {study}, {first} {last} moved to {city}.",
            "{first} {last} of {city} {task}.",
        ),
        "sentence": (
            "{she} {task}.",
            "{she} {task} and {task}.",
            "Every week {last} {task}.",
            "At {place}, {last} {task}.",
            "{she} studied {study} for {years} years.",
            "{she} spent {years} years at {place} in {city}.",
            "Friends say that {last} {task} with great care.",
            "{last} learned {study} in {city}.",
            "On most days {last} is found at {place}.",
            "For {years} years {last} has been {title}.",
        ),
        "years": words("two|three|four|five|six|seven|eight|nine|ten|twelve|twenty"),
    },
    concepts={
        "profession": {
            "nurse": _profession(
                "a nurse|a ward nurse|a night nurse",
                "nursing|patient care|first aid",
                "the hospital|the clinic|the children's ward|the emergency room",
                "cares for patients|checks blood pressure|changes bandages|gives injections|helps new mothers"
                "|watches over the sick at night|prepares patients for surgery|fills in the charts of the ward",
            ),
            "lawyer": _profession(
                "a lawyer|an attorney|a defence lawyer",
                "law|criminal law|contract law",
                "the court|the law firm|the bar association|the high court",
                "defends clients in court|writes contracts|pleads before the judge|questions witnesses"
                "|settles disputes|advises companies on legal risk|files lawsuits|reads the small print of wills",
            ),
            "teacher": _profession(
                "a teacher|a school teacher|a primary teacher",
                "education|pedagogy|child psychology",
                "the primary school|the classroom|the village school|the staff room",
                "teaches children to read|marks homework|explains fractions to pupils|plans lessons"
                "|talks with parents about grades|leads the school choir|prepares exams|takes classes to the museum",
            ),
            "journalist": _profession(
                "a journalist|a reporter|a news editor",
                "journalism|media studies|reporting",
                "the newspaper|the news desk|the radio station|the press room",
                "reports on local news|interviews politicians|writes columns|checks sources"
                "|covers wars and elections|edits the front page|breaks stories|files reports before the deadline",
            ),
            "architect": _profession(
                "an architect|a building designer|a city architect",
                "architecture|building design|town planning",
                "the design studio|the building site|the planning office|the drawing board",
                "designs houses|draws floor plans|plans bridges and towers|builds scale models"
                "|restores old facades|meets builders on site|chooses stone and glass|wins contests for new museums",
            ),
            "dentist": _profession(
                "a dentist|a dental surgeon|a family dentist",
                "dentistry|oral surgery|dental medicine",
                "the dental practice|the dental clinic|the dentist's chair|the x-ray room",
                "pulls teeth|fills cavities|fits crowns and braces|cleans teeth"
                "|treats gum disease|takes x-rays of jaws|tells patients to floss|makes dentures",
            ),
            "photographer": _profession(
                "a photographer|a wedding photographer|a press photographer",
                "photography|visual arts|film and lighting",
                "the photo studio|the dark room|the gallery|the picture agency",
                "takes portraits|photographs weddings|develops film|shoots landscapes at dawn"
                "|sets up lights and lenses|prints black and white pictures|sells photos to magazines|retouches images",
            ),
            "accountant": _profession(
                "an accountant|a tax accountant|an auditor",
                "accounting|finance|tax law and bookkeeping",
                "the audit firm|the tax office|the finance department|the accounting office",
                "audits the books|prepares tax returns|checks invoices|balances accounts"
                "|plans budgets|reviews payrolls|counts assets and debts|closes the ledger at the end of the year",
            ),
            "painter": _profession(
                "a painter|an artist|a portrait painter",
                "fine art|painting|art history",
                "the art studio|the gallery|the art academy|the exhibition",
                "paints landscapes in oil|mixes colours|sketches faces|shows canvases in galleries"
                "|paints large murals|works with brush and palette|sells watercolours|stretches canvas on frames",
            ),
            "professor": _profession(
                "a professor|a university professor|a senior lecturer",
                "physics|mathematics|philosophy",
                "the university|the lecture hall|the research institute|the faculty",
                "gives lectures|supervises doctoral students|publishes papers|leads a research group"
                "|reviews grant proposals|chairs the department|teaches graduate seminars|speaks at conferences",
            ),
        },
        "gender": {
            "female": {"she": ("she",), "first": words("Anna|Maria|Elena|Sofia|Laura|Julia|Clara|Nina|Eva|Ida")},
            "male": {"she": ("he",), "first": words("David|Paul|Peter|Martin|Daniel|Thomas|Adam|Simon|Ben|Victor")},
        },
    },
    once=("first", "last"),
)


def _product(noun: str, part: str, use: str) -> Rules:
    return {"noun": words(noun), "part": words(part), "use": words(use)}


REVIEW = Family(
    shared={
        "opening": (
            "I bought this {noun} {when} and {verdict}.",
            "My {who} gave me this {noun} {when}.",
            "This {noun} is {adjective}.",
            "{stars} for this {noun}.",
            "I ordered the {noun} from a shop in {city}.",
            "The {noun} came {when}.",
        ),
        "sentence": (
            "The {part} is {adjective}.",
            "The {part} and the {part} are {adjective}.",
            "I use it for {use} and {verdict}.",
            "After {time} the {part} {fate}.",
            "For {use} it is {adjective}.",
            "My {who} says the {part} is {adjective}.",
            "{closing}",
            "Honestly, the {part} {fate}.",
            "For the price, the {noun} is {adjective}.",
            "The shop in {city} was {adjective} too.",
        ),
        "when": words("last week|last month|in spring|two days ago|in May|a year ago|on Monday|before the holidays"),
        "who": words("brother|sister|wife|husband|mother|father|friend|neighbour|boss|daughter"),
        "time": words("a week|two weeks|a month|three months|a year|ten days|one evening|half a year"),
    },
    concepts={
        "product": {
            "phone": _product(
                "phone|mobile phone|smartphone",
                "touch screen|battery|signal|ring tone|charger|SIM card slot",
                "long calls|text messages|video calls|mobile apps",
            ),
            "camera": _product(
                "camera|digital camera|compact camera",
                "lens|zoom|flash|shutter|viewfinder|autofocus",
                "portraits|night shots|wildlife pictures|holiday photos",
            ),
            "book": _product(
                "book|novel|paperback",
                "plot|main character|ending|first chapter|dialogue|prose",
                "reading in bed|long train rides|my book club|quiet evenings",
            ),
            "shoes": _product(
                "pair of shoes|pair of boots|pair of trainers",
                "sole|heel|leather|lining|stitching|size",
                "running|long walks|hiking|the gym",
            ),
            "kettle": _product(
                "kettle|coffee maker|tea kettle",
                "spout|lid|handle|water tank|heating element|filter",
                "making tea|morning coffee|boiling water|the office kitchen",
            ),
            "game": _product(
                "video game|board game|computer game",
                "story mode|level design|soundtrack|controls|multiplayer|tutorial",
                "playing with friends|rainy weekends|family nights|online matches",
            ),
            "headphones": _product(
                "pair of headphones|headset|pair of earphones",
                "bass|noise cancelling|ear pad|headband|sound|cable",
                "listening to music|podcasts|mixing tracks|noisy flights",
            ),
            "tent": _product(
                "tent|camping tent|family tent",
                "zip|pole|groundsheet|rain cover|peg|mesh window",
                "camping|music festivals|mountain trips|nights in the wild",
            ),
        },
        "sentiment": {
            "positive": {
                "adjective": words(
                    "great|excellent|wonderful|superb|lovely|perfect|very good|brilliant|fantastic|a real joy"
                ),
                "verdict": words(
                    "I love it|I am very happy|it works like a charm|I would buy it again|it made my day|I am delighted"
                ),
                "fate": words(
                    "still works perfectly|is as good as new|keeps getting better|impresses me every day"
                    "|exceeds all my hopes|has never let me down"
                ),
                "stars": words("Five stars|Four and a half stars|All five stars|Ten points"),
                "closing": (
                    "I recommend it to everyone.",
                    "Worth every cent.",
                    "Best purchase of the year.",
                    "Thank you, great service.",
                    "I will order another one soon.",
                    "Five stars, well done.",
                ),
            },
            "negative": {
                "adjective": words(
                    "awful|terrible|useless|poor|a disaster|disappointing|very bad|horrible|faulty|a real pain"
                ),
                "verdict": words(
                    "I hate it|I am very angry|it failed at once|I want my money back|it ruined my day"
                    "|I am disappointed"
                ),
                "fate": words(
                    "broke completely|fell apart|stopped working|gets worse every day|turned out to be junk"
                    "|has let me down again"
                ),
                "stars": words("One star|Zero stars|Half a star|No points"),
                "closing": (
                    "Do not buy it.",
                    "A waste of money.",
                    "Worst purchase of the year.",
                    "I sent it back and still wait for a refund.",
                    "Never again.",
                    "One star is too much.",
                ),
            },
        },
    },
)


def _topic(actor: str, act: str, detail: str, thing: str) -> Rules:
    return {"actor": words(actor), "act": words(act), "detail": words(detail), "thing": words(thing)}


NEWS = Family(
    shared={
        "opening": (
            "{city} - {actor} {act} on {day}.",
            "{day}, {city}: {actor} {act}.",
            "{actor} in {city} {act}, {source} said on {day}.",
            "News from {city}: {thing} draws attention as {actor} {act}.",
            "{thing} was the talk of {city} on {day}.",
        ),
        "sentence": (
            "{detail}.",
            "{actor} {act} {when}.",
            "{source} said that {actor} {act}.",
            "{thing} is expected to change matters in {city}.",
            "Much depends on {thing} and on {thing}, {source} said.",
            "A year ago in {city}, {actor} {act} as well.",
            "It is the {ordinal} time that {actor} {act}.",
            "In the words of {source}, {thing} came as a surprise.",
            "Nobody in {city} had expected {thing}.",
        ),
        "day": words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
        "source": words("a spokesman|a witness|an expert|a local paper|an observer|a close source"),
        "when": words("this week|last night|after long talks|for the first time|once again|earlier this month"),
        "ordinal": words("first|second|third|fourth|fifth"),
    },
    concepts={
        "topic": {
            "sport": _topic(
                "the home team|the champion|the young striker|the coach|the goalkeeper",
                "won the final|lost by two goals|scored in extra time|broke the record|missed the penalty"
                "|reached the semi-final",
                "Fans filled the stadium|The referee showed a red card|The match ended three to one"
                "|The league table has a new leader|The captain lifted the trophy",
                "the cup match|the transfer of the striker|the marathon|the tennis open|the injury of the captain",
            ),
            "business": _topic(
                "the bank|the car maker|the oil company|the start-up|the chief executive",
                "raised its profit forecast|cut hundreds of jobs|bought a rival|sold its shares|reported record sales"
                "|went bankrupt",
                "Shares fell by four percent|Investors were pleased|The stock market closed higher"
                "|Analysts had predicted lower earnings|The merger needs approval",
                "the takeover bid|the quarterly report|the price of oil|the fall in exports|the rise in interest rates",
            ),
            "science": _topic(
                "the research team|the space agency|the laboratory|the biologist|the telescope",
                "discovered a new species|measured a distant galaxy|tested a vaccine|published a study on genes"
                "|launched a satellite|found water on a moon",
                "The results appeared in a journal|The experiment ran for ten years|The data show a clear effect"
                "|The probe sent back images|Other scientists repeated the experiment",
                "the fossil|the new particle|the climate model|the gene study|the mission to Mars",
            ),
            "politics": _topic(
                "the prime minister|the parliament|the opposition|the foreign minister|the ruling party",
                "called an election|passed the new law|rejected the treaty|signed the peace deal|lost the vote"
                "|resigned over a scandal",
                "Voters go to the polls in June|The coalition has a narrow majority|The senate will debate the bill"
                "|Protesters marched to the ministry|The president gave a speech",
                "the reform of pensions|the border dispute|the election campaign|the budget vote|the summit of leaders",
            ),
            "weather": _topic(
                "the storm|heavy rain|the heat wave|the weather service|thick fog",
                "flooded the streets|closed the airport|reached forty degrees|brought snow and ice|caused power cuts"
                "|gave a warning of strong winds",
                "Temperatures will drop below zero|Sunshine is forecast for the weekend|The river rose by two metres"
                "|Clouds will clear in the evening|Winds reached a hundred kilometres per hour",
                "the hurricane|the drought|the first frost|the thunderstorm|the record rainfall",
            ),
            "culture": _topic(
                "the film director|the orchestra|the singer|the theatre|the museum",
                "opened a new exhibition|won the prize for best film|released an album|cancelled the concert"
                "|performed an opera|sold out the festival",
                "Critics praised the performance|The audience stood and clapped|Tickets sold out within an hour"
                "|The actress thanked her fans|The sequel opens in cinemas",
                "the premiere|the jazz festival|the portrait show|the debut novel|the award ceremony",
            ),
        }
    },
)


def _tongue(sentence: Sequence[str], **lists: str) -> Rules:
    return {"opening": tuple(sentence), "sentence": tuple(sentence), **{k: words(v) for k, v in lists.items()}}


TALK = Family(
    shared={},
    concepts={
        "text_language": {
            "English": _tongue(
                (
                    "{day} we drive to {city} with {who}.",
                    "{who} is eating {food} in the {place}.",
                    "Where is the {place}, please?",
                    "I would like to buy {food} and {food}.",
                    "The weather is {how} today, but tomorrow it will be {how}.",
                    "{day} {who} reads a book in the {place}.",
                    "The {place} in {city} is very {how}.",
                    "We have not seen {who} for a long time.",
                ),
                day="Today|Tomorrow|In the morning|In the evening|On Sunday",
                who="my sister|the old man|our neighbour|the child|my aunt",
                food="bread|cheese|an apple|fish|soup",
                place="station|church|market|garden|library",
                how="nice|cold|warm|grey|quiet",
            ),
            "French": _tongue(
                (
                    "{day} nous allons à {city} avec {who}.",
                    "{who} mange {food} dans {place}.",
                    "Où se trouve {place}, s'il vous plaît ?",
                    "Je voudrais acheter {food} et {food}.",
                    "Il fait {how} aujourd'hui, mais demain il fera {how}.",
                    "{day} {who} lit un livre dans {place}.",
                    "C'est très {how} dans {place} de {city}.",
                    "Nous n'avons pas vu {who} depuis longtemps.",
                ),
                day="Aujourd'hui|Demain|Le matin|Le soir|Dimanche",
                who="ma sœur|le vieil homme|notre voisin|l'enfant|ma tante",
                food="du pain|du fromage|une pomme|du poisson|de la soupe",
                place="la gare|l'église|le marché|le jardin|la bibliothèque",
                how="beau|froid|chaud|gris|calme",
            ),
            "German": _tongue(
                (
                    "{day} fahren wir mit {who} nach {city}.",
                    "{day} isst man {food} in {place}.",
                    "Wie kommt man bitte zu {place}?",
                    "Ich möchte {food} und {food} kaufen.",
                    "Das Wetter ist heute {how}, aber morgen wird es {how}.",
                    "{day} lesen wir ein Buch in {place}.",
                    "In {place} von {city} ist es sehr {how}.",
                    "Wir haben lange nichts von {who} gehört.",
                ),
                day="Heute|Morgen|Am Vormittag|Am Abend|Am Sonntag",
                who="meiner Schwester|dem alten Mann|unserem Nachbarn|dem Kind|meiner Tante",
                food="Brot|Käse|einen Apfel|Fisch|Suppe",
                place="der Kirche|der Bücherei|der Stadt|der Küche|der Schule",
                how="schön|kalt|warm|grau|ruhig",
            ),
            "Spanish": _tongue(
                (
                    "{day} vamos a {city} con {who}.",
                    "{who} come {food} en {place}.",
                    "¿Dónde está {place}, por favor?",
                    "Quisiera comprar {food} y {food}.",
                    "Hoy el tiempo está {how}, pero mañana estará {how}.",
                    "{day} {who} lee un libro en {place}.",
                    "Todo está muy {how} en {place} de {city}.",
                    "Hace mucho que no vemos a {who}.",
                ),
                day="Hoy|Mañana|Por la mañana|Por la noche|El domingo",
                who="mi hermana|mi abuelo|nuestro vecino|su hijo|mi tía",
                food="pan|queso|una manzana|pescado|sopa",
                place="la estación|la iglesia|el mercado|el jardín|la biblioteca",
                how="bueno|frío|cálido|gris|tranquilo",
            ),
            "Dutch": _tongue(
                (
                    "{day} rijden wij met {who} naar {city}.",
                    "{day} eet {who} {food} in {place}.",
                    "Waar is {place}, alstublieft?",
                    "Ik wil graag {food} en {food} kopen.",
                    "Het weer is vandaag {how}, maar morgen wordt het {how}.",
                    "{day} leest {who} een boek in {place}.",
                    "In {place} van {city} is het erg {how}.",
                    "Wij hebben {who} al lang niet gezien.",
                ),
                day="Vandaag|Morgen|In de ochtend|In de avond|Op zondag",
                who="mijn zus|de oude man|onze buurman|het kind|mijn tante",
                food="brood|kaas|een appel|vis|soep",
                place="het station|de kerk|de markt|de tuin|de bibliotheek",
                how="mooi|koud|warm|grijs|rustig",
            ),
            "Italian": _tongue(
                (
                    "{day} andiamo a {city} con {who}.",
                    "{who} mangia {food} vicino a casa.",
                    "Dove si trova {place}, per favore?",
                    "Vorrei comprare {food} e {food}.",
                    "Oggi il tempo è {how}, ma domani sarà {how}.",
                    "{day} {who} legge un libro e guarda {place}.",
                    "A {city} è tutto molto {how}.",
                    "Non vediamo {who} da molto tempo.",
                ),
                day="Oggi|Domani|La mattina|La sera|Domenica",
                who="mia sorella|il vecchio|il nostro vicino|il bambino|mia zia",
                food="pane|formaggio|una mela|pesce|zuppa",
                place="la stazione|la chiesa|il mercato|il giardino|la biblioteca",
                how="bello|freddo|caldo|grigio|tranquillo",
            ),
        }
    },
)


def _code(*sentence: str) -> Rules:
    return {"opening": sentence, "sentence": sentence}


CODE = Family(
    shared={
        "verb": words("get|set|load|save|count|find|parse|merge|print|update"),
        "noun": words("user|item|file|price|name|list|node|value|order|city"),
        "var": words("x|y|n|i|total|result|size|index|left|right"),
        "number": words("0|1|2|3|5|8|10|16|64|100"),
        "op": words("+|-|*"),
    },
    concepts={
        "programming_language": {
            "Python": _code(
                "def {verb}_{noun}({var}):\n    return {var} {op} {number}",
                "for {var} in range({number}):\n    print({var})",
                "import {noun}_tools as {noun}",
                "if not {noun}:\n    raise ValueError('{noun} is empty')",
                "{noun}s = [{verb}_{noun}({var}) for {var} in {noun}s]",
                'with open("{noun}.txt") as f:\n    {var} = len(f.read())',
                "class {noun}_store:\n    def __init__(self):\n        self.{var} = None",
                "{var} = sorted({noun}s, key=lambda {noun}: {noun}.{noun})",
            ),
            "JavaScript": _code(
                "function {verb}_{noun}({var}) {{ return {var} {op} {number}; }}",
                "const {noun} = require('./{noun}');",
                "let {var} = {noun}s.map({noun} => {noun}.{noun});",
                "console.log({var} === {number});",
                "export default {verb}_{noun};",
                "document.getElementById('{noun}').addEventListener('click', {verb}_{noun});",
                "const {var} = await fetch('/{noun}');",
                "if ({noun} === undefined) {{ let {var} = JSON.parse({noun}); }}",
            ),
            "Java": _code(
                "public int {verb}_{noun}(int {var}) {{ return {var} {op} {number}; }}",
                "import java.util.ArrayList;",
                "private final String {noun};",
                "System.out.println({var});",
                "List<String> {noun}s = new ArrayList<>();",
                "public static void main(String[] args) {{ int {var} = {number}; }}",
                'throw new IllegalArgumentException("{noun}");',
                "@Override public boolean equals(Object {noun}) {{ return this.{var} == {noun}.{var}; }}",
            ),
            "C": _code(
                "int {verb}_{noun}(int *{var}) {{ return *{var} {op} {number}; }}",
                "#include <stdio.h>",
                "struct {noun} {{ int {var}; char *{noun}; }};",
                'printf("%d\\n", {var});',
                "{noun} = malloc({number} * sizeof(int));",
                "#define {var} {number}",
                "free({noun}->{noun});",
                "static void {verb}_{noun}(struct {noun} *{noun}) {{ {noun}->{var} = NULL; }}",
            ),
            "HTML": _code(
                '<div class="{noun}"><p>{number}</p></div>',
                '<a href="/{noun}/{number}">{verb} {noun}</a>',
                '<li id="{noun}">{noun}</li>',
                '<img src="{noun}.png" alt="{noun}">',
                "<h1>{noun} {number}</h1>",
                '<input type="text" name="{noun}">',
                "<table><tr><td>{noun}</td><td>{number}</td></tr></table>",
                '<link rel="stylesheet" href="{noun}.css">',
            ),
            "SQL": _code(
                "SELECT {noun}, COUNT(*) FROM {noun}s GROUP BY {noun};",
                "INSERT INTO {noun}s VALUES ({number}, {number});",
                "DELETE FROM {noun}s WHERE {noun} = {number};",
                "CREATE TABLE {noun}s ({noun} INTEGER PRIMARY KEY);",
                "UPDATE {noun}s SET {noun} = {number} WHERE {noun} > {number};",
                "SELECT * FROM {noun}s JOIN {noun}s ON {noun} = {noun} LIMIT {number};",
                "ALTER TABLE {noun}s ADD COLUMN {noun} VARCHAR({number});",
                "DROP INDEX {noun}_{noun};",
            ),
        }
    },
    prose=False,
)

FAMILIES: Mapping[str, Family] = {"bio": BIO, "review": REVIEW, "news": NEWS, "talk": TALK, "code": CODE}
