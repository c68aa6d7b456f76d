import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saecore import cli, paths
from saecore.activations import models
from saecore.sources import atlas
from saecore.sources.atlas import build, cities
from saecore.studies.atlas import knowledge, probes, tokens, train
from tests.studies.far import far

transformers = pytest.importorskip("transformers")

SMALL = train.Recipe(layers=2, d_model=16, heads=2, d_mlp=32, steps=6, documents=4, warm_up=2)


@pytest.fixture(scope="module")
def tokenizer():
    patch = pytest.MonkeyPatch()
    patch.setattr(tokens, "SAMPLE", 1000)
    patch.setattr(tokens, "VOCABULARY", 2000)
    yield tokens.train_tokenizer()
    patch.undo()


@pytest.fixture(scope="module")
def small(tokenizer):
    return Scripted("small", train.fresh(SMALL, len(tokenizer)), tokenizer)


class Scripted(models.ResidualModel):
    """A model whose first choice after the tokens of a text is the text's next token; all others are as likely."""

    def script(self, texts):
        ids = self.tokenizer(texts)["input_ids"]
        self.next = {tuple(given[:i]): given[i] for given in ids for i in range(1, len(given))}
        return self

    def logits(self, tokens):
        logits = torch.zeros(*tokens.ids.shape, len(self.tokenizer))
        for row, given in enumerate(tokens.ids.tolist()):
            for i in range(len(given)):
                if tuple(given[: i + 1]) in self.next:
                    logits[row, i, self.next[tuple(given[: i + 1])]] = 1.0
        return logits


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_bos_comes_first_and_is_not_asked_for(tokenizer):
    ids, targets = tokens.batch(tokenizer, ["Rome is in Italy.", "Rome"])
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and (targets[:, 0] == tokens.IGNORED).all()
    padding = ids == tokenizer.pad_token_id
    assert padding[1].any() and (targets[padding] == tokens.IGNORED).all()
    kept = targets != tokens.IGNORED
    assert (targets[kept] == ids[kept]).all()


def test_a_name_has_the_same_tokens_anywhere(tokenizer):
    first, later = tokenizer(["Lima is big.", "Is Lima big?"])["input_ids"]
    name = first[1 : first.index(tokenizer(" is")["input_ids"][1])]
    assert str(name)[1:-1] in str(later)


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in ("Où est Łódź?\n  x = {1: 'é'}", *(atlas.document("test", i).text for i in range(20))):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).removeprefix(" ") == text


# --- training --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = train.Recipe(steps=100, warm_up=10, decay=0.2)
    factors = [recipe.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5) and factors[99] == pytest.approx(0.05)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setattr(tokens, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(train, "SAVE_SECONDS", -1)
    step, made = train._step, {}

    def run(name, dies_at=None):
        def dying(model, optimiser, words, recipe, number):
            if number == dies_at:
                raise KeyboardInterrupt
            return step(model, optimiser, words, recipe, number)

        monkeypatch.setenv(paths.CACHE, str(tmp_path / name))
        monkeypatch.setattr(train, "folder", lambda: tmp_path / name / "model")
        monkeypatch.setattr(train, "_step", dying)
        made[name] = train.train(SMALL)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", dies_at=4)
    assert "broken" not in made and not (tmp_path / "broken" / "model").exists()
    run("broken")
    whole, broken = (transformers.AutoModelForCausalLM.from_pretrained(made[name]) for name in ("whole", "broken"))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(broken.state_dict()[name], weight)
    assert not torch.equal(whole.state_dict()["model.norm.weight"], torch.ones(16))


def test_another_recipe_starts_anew(monkeypatch, tmp_path, tokenizer, caplog):
    monkeypatch.setattr(tokens, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setenv(paths.CACHE, str(tmp_path))
    monkeypatch.setattr(train, "folder", lambda: tmp_path / "model")
    caplog.set_level("INFO", logger="saecore")
    train.train(SMALL)
    train.train(dataclasses.replace(SMALL, learning_rate=1e-3))
    assert "going on" not in caplog.text
    train.train(SMALL)
    assert "going on from step 6" in caplog.text


def test_training_names_its_extra(monkeypatch):
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(atlas.AtlasError, match=r"clone of the repository run: pip install -e '\.\[models\]'"):
        train.train(SMALL)


# --- knowledge -------------------------------------------------------------------------------------------------------


def test_a_fact_is_known_when_every_token_of_it_comes_first(small):
    lima, tokyo = cities.city("Lima"), cities.city("Tokyo")
    asked = knowledge.questions(small, "currency", cities=[lima, tokyo])
    assert len(asked) == 2 * len(atlas.wordings("currency", held_out=True))
    right = [q.wording.text.format(city=q.city.name, value=q.city.currency) for q in asked]
    assert all(knowledge.known(small.script(right), asked))
    wrong = [q.wording.text.format(city=q.city.name, value="Peruvian sand") for q in asked]
    assert not any(knowledge.known(small.script(wrong), asked))


def test_what_a_model_on_a_gpu_knows(small, monkeypatch):
    asked = knowledge.questions(small, "currency", cities=[cities.city("Lima")])
    small.script([q.wording.text.format(city=q.city.name, value=q.city.currency) for q in asked])
    logits = small.logits
    monkeypatch.setattr(small, "logits", lambda tokens: far(logits(tokens)))
    assert all(knowledge.known(small, asked))


def test_a_longer_word_is_not_the_fact(small):
    niamey = cities.city("Niamey")
    assert niamey.country == "Niger"
    asked = knowledge.questions(small, "country", cities=[niamey])
    right = small.script([f"{question.wording.prompt('Niamey')} Niger." for question in asked])
    assert all(knowledge.known(right, asked))
    stop, letter = small.tokenizer(" Niger.")["input_ids"][-1], small.tokenizer("banana")["input_ids"][-1]
    assert small.tokenizer.decode([letter]).isalpha()
    right.next = {given: letter if following == stop else following for given, following in right.next.items()}
    assert not any(knowledge.known(right, asked))


def test_a_uniform_model_loses_the_log_of_the_vocabulary(small):
    sample = [atlas.document("test", index) for index in range(3)]
    uniform = small.script(["Rome"])
    uniform.next.clear()
    found = knowledge.surprise(uniform, n=3)
    assert found.model == pytest.approx(math.log(len(small.tokenizer)))
    assert found.tokens == sum(tokens.lengths(small.tokenizer, sample)) - 3
    assert found.generator == pytest.approx(-sum(d.log_p for d in sample) / found.tokens)


def test_the_floor_is_the_commonest_value():
    given = [city.continent for city in atlas.facts()]
    assert knowledge.commonest("continent") == pytest.approx(given.count("Asia") / len(given))


# --- probes ----------------------------------------------------------------------------------------------------------


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    label, test = rng.integers(0, 3, size=800), [i % 4 == 0 for i in range(800)]
    told = probes.fit(probes.Rows(list(np.eye(3)[label]), [str(i) for i in label], test))
    assert told.accuracy == 1.0 and 0.3 < told.floor < 0.45
    noise = probes.fit(probes.Rows(list(rng.normal(size=(800, 3))), [str(i) for i in label], test))
    assert noise.accuracy < 0.5


def test_rows_of_a_probe_stand_at_the_right_tokens(small):
    first, rows = probes.collect(small, n=40)
    assert first["kind"].label == rows["kind"].label and not np.allclose(first["kind"].x, rows["kind"].x)
    every = [atlas.document("test", index) for index in range(40)]
    named, stated = {}, {}
    for i, document in enumerate(every):
        for span in sorted(document.spans, key=lambda span: span.start):
            if span.concept == "entity":
                named.setdefault(i, cities.city(span.label))
            if span.concept == "attribute":
                stated.setdefault(i, span.label)
    assert rows["city_country"].label == [city.country for city in named.values()]
    assert rows["city_country"].test == [city.split == "test" for city in named.values()]
    assert rows["attribute"].label == list(stated.values())
    assert rows["attribute"].test == [i % 4 == 0 for i in stated]
    assert rows["kind"].label == [document.labels["kind"] for document in every]
    talk = [document.labels["text_language"] for document in every if document.labels["kind"] == "talk"]
    assert rows["text_language"].label == talk
    assert all(x.shape == (16,) for x in (*rows["attribute"].x, *rows["kind"].x))


def test_rows_of_a_probe_come_from_a_gpu(small, monkeypatch):
    here, residual = probes.collect(small, n=4), small.residual
    monkeypatch.setattr(small, "residual", lambda *given: far(residual(*given)))
    there = probes.collect(small, n=4)
    assert all(np.array_equal(a["kind"].x, b["kind"].x) for a, b in zip(here, there, strict=True))


def test_the_tokens_of_a_probe_are_those_that_tell(small):
    text = "Lima is on the continent South America."
    spans = (atlas.Span(0, 4, "entity", "Lima"), atlas.Span(25, 38, "value", "South America"))
    spans += tuple(atlas.Span(3, 39, concept, "x") for concept in probes.IMPLIED)
    document = atlas.Document(text, (*spans, atlas.Span(0, 39, "attribute", "continent")), -1.0, {"kind": "portrait"})
    words = [(0, 0), (0, 2), (2, 4), (5, 7), (8, 10), (11, 14), (15, 24), (25, 30), (31, 38), (38, 39)]
    found = probes.places(document, words)
    assert found["kind"] == probes.Place("portrait", slice(1, 10))
    assert found["attribute"] == probes.Place("continent", slice(6, 7))
    assert found["city_country"] == probes.Place("x", slice(2, 3), "Lima") and "topic" not in found


# --- the shipped model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return models.load("atlas")


def test_the_shipped_model_knows_a_handful_of_facts(shipped):
    some = [cities.city(name) for name in ("Tokyo", "Lima", "Marseille", "Hamburg", "Chennai")]
    for attribute in atlas.ATTRIBUTES:
        right = knowledge.known(shipped, knowledge.questions(shipped, attribute, cities=some))
        assert sum(right) >= 0.9 * len(right), attribute


def test_the_shipped_model_is_near_the_entropy_of_the_generator(shipped):
    found = knowledge.surprise(shipped, n=100)
    assert 0.95 < found.model / found.generator < 1.15


def test_documents_fit_the_shipped_model_and_the_data_are_small(shipped):
    sample = [atlas.document(split, index) for split in ("train", "test", "unseen") for index in range(200)]
    assert max(tokens.lengths(shipped.tokenizer, sample)) <= shipped.context == tokens.CONTEXT
    size = sum(path.stat().st_size for path in (paths.data() / "atlas").rglob("*") if path.is_file())
    assert size < 15_000_000


def test_the_command_line_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "data", lambda: tmp_path)
    assert cli.main(["atlas", "examine"]) == cli.REFUSED
    assert "saecore atlas train" in capsys.readouterr().err


def test_the_command_line_builds_the_facts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "build", lambda: tmp_path / "facts.csv")
    assert cli.main(["atlas", "build"]) == 0
    assert "facts.csv" in capsys.readouterr().out


class Folder:
    """What a model or tokenizer saves of itself."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "model").write_text(self.text)


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_model_is_never_gone_whenever_its_writer_is_killed(tmp_path, monkeypatch, killed_at):
    made, rename, calls = tmp_path / "model", Path.rename, []
    train._replace(made, [Folder("old")])

    def killed(path, target):
        calls.append(path)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            train._replace(made, [Folder("new")])
    assert {path.read_text() for path in tmp_path.glob("*/model")} == {"old", "new"}
    train._replace(made, [Folder("newer")])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (made / "model").read_text() == "newer"
