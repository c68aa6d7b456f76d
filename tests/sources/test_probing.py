"""Labelled sets: balanced tasks, no text in both parts, SAEBench's choices, and what is wrong is said."""

import json
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from saecore import paths
from saecore.sources.probing import (
    SAEBENCH,
    Examples,
    LabelledSetError,
    Task,
    atlas_sets,
    csv_set,
    divided,
    hub,
    hub_set,
    one_vs_rest,
)
from saecore.sources.text import TextError

REAL = paths.root().parent / "shared" / "real" / "probing"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def texts(classes: str, n: int, part: str = "") -> dict[str, list[str]]:
    return {c: [f"{part}{c}{i}" for i in range(n)] for c in classes}


def test_a_task_holds_all_of_its_class_and_as_many_others_evenly():
    held = one_vs_rest("letters", "text", texts("abcd", 6), texts("abcd", 3, "test "), rng())
    assert [task.name for task in held.tasks] == ["a", "b", "c", "d"]
    for task in held.tasks:
        own = [t for t, y in zip(task.train.texts, task.train.labels, strict=True) if y]
        others = [t for t, y in zip(task.train.texts, task.train.labels, strict=True) if not y]
        assert own == [f"{task.name}{i}" for i in range(6)]
        assert Counter(t[0] for t in others) == dict.fromkeys(set("abcd") - {task.name}, 2)
        assert len(set(others)) == 6
        assert task.test.labels.sum() == 3 and len(task.test.labels) == 6
        assert all(t.startswith("test ") for t in task.test.texts)


def test_the_rest_is_cut_to_the_size_of_the_class_where_it_does_not_divide():
    (first, *_) = one_vs_rest("letters", "text", texts("abcd", 4), texts("abcd", 1), rng()).tasks
    assert first.train.labels.tolist() == [1] * 4 + [0] * 4 and first.test.labels.tolist() == [1, 0]
    assert max(Counter(t[0] for t in first.train.texts[4:]).values()) <= 2  # of the two drawn from each


def test_two_classes_make_one_task():
    (only,) = one_vs_rest("letters", "text", texts("ab", 2), texts("ab", 1), rng()).tasks
    assert only.name == "b" and set(only.train.texts) == {"a0", "a1", "b0", "b1"}


def test_the_seed_chooses_the_others():
    drawn = [one_vs_rest("letters", "text", texts("abc", 20), texts("abc", 5), rng(s)).tasks[0] for s in (0, 0, 1)]
    assert drawn[0].train.texts == drawn[1].train.texts != drawn[2].train.texts


def test_too_little_is_said():
    for held, message in (({}, "has no texts"), (texts("a", 4), "one class only, 'a'")):
        with pytest.raises(LabelledSetError, match=f"'set' .*{message}.*two classes"):
            one_vs_rest("set", "text", held, held, rng())
        with pytest.raises(LabelledSetError, match=message):
            divided("set", held, 2, 2, rng())
    with pytest.raises(LabelledSetError, match="set, class 'a' has 4 texts, fewer than the 5 asked for"):
        divided("set", texts("ab", 4), 6, 4, rng())
    with pytest.raises(LabelledSetError, match="set: train=3 must be a positive multiple of 2"):
        divided("set", texts("ab", 4), 3, 4, rng())
    with pytest.raises(LabelledSetError, match="class 'a' has 1 texts, fewer than the 4"):
        one_vs_rest("set", "text", {"a": ["x"], "b": ["y"] * 4}, texts("ab", 4), rng())
    some = Examples(("x", "y"), np.array([1, 0]))
    with pytest.raises(LabelledSetError, match="task 'a': 2 of 2 test texts are of the class"):
        Task("a", some, Examples(("x", "y"), np.array([1, 1])))


def test_divided_shares_no_text():
    train, test = divided("set", texts("ab", 9), 12, 6, rng())
    assert {c: (len(train[c]), len(test[c])) for c in "ab"} == {"a": (6, 3), "b": (6, 3)}
    assert not {t for held in train.values() for t in held} & {t for held in test.values() for t in held}


def test_atlas_has_five_families_balanced_and_apart():
    sets = atlas_sets(train=8, test=4)
    assert {s.name: (s.family, len(s.tasks)) for s in sets} == {
        "profession": ("profession", 10),
        "product": ("product_sentiment", 8),
        "sentiment": ("product_sentiment", 1),
        "language": ("language", 6),
        "programming_language": ("programming_language", 6),
        "news_topic": ("news_topic", 6),
    }
    parts = {p: {t for s in sets for task in s.tasks for t in getattr(task, p).texts} for p in ("train", "test")}
    assert not parts["train"] & parts["test"]
    for held in sets:
        for task in held.tasks:
            assert task.train.labels.tolist() == [1] * 4 + [0] * 4 and task.test.labels.tolist() == [1] * 2 + [0] * 2
    profession = next(task for task in sets[0].tasks if task.name == "dentist")
    own = profession.train.texts[:4]
    female = ("Anna", "Maria", "Elena", "Sofia", "Laura", "Julia", "Clara", "Nina", "Eva", "Ida")
    assert sum(any(name in t for name in female) for t in own) == 2  # balanced by gender
    words = ("dent", "teeth", "cavities", "crowns", "jaws", "gum", "floss")
    assert all(any(word in t for word in words) for t in own)


def test_atlas_is_the_same_for_a_seed_and_refuses_a_size_it_cannot_balance():
    first, again, other = (atlas_sets(4, 4, seed)[3].tasks[0].train.texts for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(LabelledSetError, match="atlas: train=6 must be a positive multiple of 4"):
        atlas_sets(train=6)


def _csv(path, rows, header="prompt,target"):
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


def test_a_csv_counts_every_text_once_and_holds_out_a_fifth(tmp_path, caplog):
    rows = [f'"text {i}, with a comma",{i % 2 == 0}' for i in range(40)]
    rows += rows[:10] + ['" ",True', "both,True", "both,False", "NA,True", "null,False"]
    held = csv_set(_csv(tmp_path / "some.csv", rows))
    (task,) = held.tasks
    assert (held.name, held.family, task.name) == ("some", "some", "True")
    every = [*task.train.texts, *task.test.texts]
    assert len(set(every)) == len(every) == 42 and {"NA", "null"} <= set(every) and "both" not in every
    assert len(task.test.texts) == 8 and task.test.labels.sum() == 4  # a fifth of 21 for each class
    truth = {f"text {i}, with a comma": int(i % 2 == 0) for i in range(40)} | {"NA": 1, "null": 0}
    for part in (task.train, task.test):
        assert [truth[t] for t in part.texts] == part.labels.tolist()
    assert "1 texts have two labels" in caplog.text


def test_a_csv_may_have_more_classes_other_columns_and_sizes(tmp_path):
    path = _csv(tmp_path / "c.csv", [f"text {i},{'xyz'[i % 3]}" for i in range(30)], "words,kind")
    held = csv_set(path, 8, 4, family="mine", text="words", label="kind")
    assert [task.name for task in held.tasks] == ["x", "y", "z"] and held.family == "mine"
    assert {(len(t.train.texts), len(t.test.texts)) for t in held.tasks} == {(8, 4)}
    with pytest.raises(LabelledSetError, match=r"c.csv has the columns words, kind, not 'prompt'; name yours"):
        csv_set(path)
    with pytest.raises(LabelledSetError, match="has 10 texts, fewer than the 12 asked for"):
        csv_set(path, 20, 4, text="words", label="kind")


def test_a_csv_may_be_cut_to_a_number_of_texts_in_all(tmp_path):
    path = _csv(tmp_path / "c.v2.csv", [f"text {i},{i % 2}" for i in range(60)])
    for most, sizes in ((20, (16, 4)), (1000, (48, 12)), (None, (48, 12))):
        held = csv_set(path, most=most)
        (task,) = held.tasks
        assert (len(task.train.texts), len(task.test.texts)) == sizes and held.name == "c"


def test_a_csv_of_labels_with_blanks_and_without(tmp_path, caplog):
    rows = [f"text {i},{'xy'[i % 2]}{' ' * (i % 3)}" for i in range(20)] + [f"unlabelled {i}, " for i in range(3)]
    (task,) = csv_set(_csv(tmp_path / "c.csv", [*rows, "text 0,", "short"])).tasks
    assert task.name == "y" and len(task.train.texts) + len(task.test.texts) == 20
    assert "5 texts have no label" in caplog.text and "two labels" not in caplog.text


def test_a_csv_as_excel_writes_it(tmp_path):
    path = _csv(tmp_path / "c.csv", [f'"text {i}",{i % 2}' for i in range(10)], '\ufeff"prompt",target')
    assert csv_set(path).tasks[0].name == "1"


def test_a_csv_that_cannot_be_used(tmp_path):
    with pytest.raises(LabelledSetError, match="missing.csv cannot be read as CSV"):
        csv_set(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(LabelledSetError, match="empty.csv cannot be read as CSV .*No columns"):
        csv_set(tmp_path / "empty.csv")
    (tmp_path / "bytes.csv").write_bytes(b"prompt,target\n\xff\xfe\x00,1\n")
    with pytest.raises(LabelledSetError, match="bytes.csv cannot be read as CSV"):
        csv_set(tmp_path / "bytes.csv")
    with pytest.raises(LabelledSetError, match="cannot be read as CSV .*Expected 2 fields"):
        csv_set(_csv(tmp_path / "ragged.csv", ["a,1", "b,c,d,0"]))
    with pytest.raises(LabelledSetError, match=r"wide.csv has rows of more fields than its header"):
        csv_set(_csv(tmp_path / "wide.csv", ["a,1,", "b,0,"]))
    with pytest.raises(LabelledSetError, match="text='prompt' and label='prompt' are one column of .*; name two"):
        csv_set(_csv(tmp_path / "one.csv", ["a,1", "b,0"]), label="prompt")
    with pytest.raises(LabelledSetError, match="'header' has no texts"):
        csv_set(_csv(tmp_path / "header.csv", []))
    with pytest.raises(LabelledSetError, match="'one' has one class only, '1'"):
        csv_set(_csv(tmp_path / "one.csv", ["a,1", "b,1"]))
    with pytest.raises(LabelledSetError, match="has 1 texts, fewer than the 2 asked for"):
        csv_set(_csv(tmp_path / "few.csv", ["a,1", "b,0"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real sets are not here")
@pytest.mark.parametrize(
    ("name", "task", "least"), [("105_click_bait", "factual", 700), ("21_headline_istrump", "True", 1500)]
)
def test_real_csv(name, task, least):
    held = csv_set(REAL / f"{name}.csv")
    (found,) = held.tasks
    assert found.name == task and not set(found.train.texts) & set(found.test.texts)
    each = (len(found.train.texts) + len(found.test.texts)) // 2
    assert each > least and len(found.test.texts) == 2 * round(each / 5)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A folder stands for the hub: `datasets` reads owner/name from the current folder where it exists."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _bios(n):
    return [
        {"hard_text": f"{p} {g} {i}", "profession": p, "gender": g} for p in range(11) for g in (0, 1) for i in range(n)
    ]


def test_biographies_are_balanced_by_gender_and_sampled_as_saebench_does(fake_hub):
    for part, n in (("train", 9), ("test", 5)):
        _jsonl(fake_hub / "LabHC" / "bias_in_bios" / f"{part}.jsonl", _bios(n))
    held = hub_set("LabHC/bias_in_bios_class_set1", train=12, test=4)
    assert held.family == "profession"
    assert [t.name for t in held.tasks] == ["accountant", "architect", "attorney", "dentist", "filmmaker"]
    frame, wanted = pd.DataFrame(_bios(9)), []
    for _, group in frame[frame.profession == 6].groupby("gender"):  # get_balanced_dataset, sae_bench dataset_utils.py
        wanted += group.sample(n=12 // 4, random_state=42)["hard_text"].tolist()
    assert list(held.tasks[3].train.texts[:6]) == wanted
    with pytest.raises(LabelledSetError, match="has 9 texts of the class accountant of each gender, fewer than the 10"):
        hub_set("LabHC/bias_in_bios_class_set1", train=40, test=4)


def test_reviews_by_category_and_by_rating(fake_hub):
    rows = [
        {"text": f"{c} {r} {i}", "category": c, "rating": r} for c in range(1, 7) for r in (1.0, 5.0) for i in range(6)
    ]
    for part in ("train", "test"):
        _jsonl(fake_hub / "canrager" / "amazon_reviews_mcauley_1and5" / f"{part}.jsonl", rows)
    category = hub_set("canrager/amazon_reviews_mcauley_1and5", train=8, test=4)
    assert len(category.tasks) == 5 and category.tasks[0].name == "Toys_and_Games"
    assert [t.split()[:2] for t in category.tasks[1].train.texts[:4]] == [["2", "1.0"]] * 2 + [["2", "5.0"]] * 2
    (rating,) = hub_set("canrager/amazon_reviews_mcauley_1and5_sentiment", train=8, test=4).tasks
    assert rating.name == "five_stars"
    for t, y in zip(rating.train.texts, rating.train.labels, strict=True):
        assert (t.split()[1] == "5.0") == y


def test_news(fake_hub):
    for part in ("train", "test"):
        rows = [{"text": f"{part} {i % 4} {i}", "label": i % 4} for i in range(40)]
        _jsonl(fake_hub / "fancyzhx" / "ag_news" / f"{part}.jsonl", rows)
    held = hub_set("fancyzhx/ag_news", train=12, test=6)
    assert [t.name for t in held.tasks] == ["World", "Sports", "Business", "Sci/Tech"]
    assert {t.split()[1] for t in held.tasks[2].train.texts[:6]} == {"2"}
    _jsonl(fake_hub / "fancyzhx" / "ag_news" / "train.jsonl", [{"text": "x", "topic": 0}])
    _jsonl(fake_hub / "fancyzhx" / "ag_news" / "test.jsonl", [{"text": "x", "topic": 0}])
    with pytest.raises(LabelledSetError, match="ag_news has the columns text, topic, not 'label'"):
        hub_set("fancyzhx/ag_news", train=12, test=6)


def test_europarl_takes_each_language_from_its_pair(fake_hub):
    folder = fake_hub / "Helsinki-NLP" / "europarl"
    for pair in hub.PAIRS.values():
        a, b = pair.split("-")
        _jsonl(
            folder / pair / "train.jsonl",
            [{"translation": {a: f"{pair} {a} {i}", b: f"{pair} {b} {i}"}} for i in range(30)],
        )
    configs = "".join(
        f"- config_name: {p}\n  data_files:\n  - split: train\n    path: {p}/*.jsonl\n" for p in hub.PAIRS.values()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    held = hub_set("Helsinki-NLP/europarl", train=16, test=4)
    assert [t.name for t in held.tasks] == ["en", "fr", "de", "es", "nl"] and held.family == "language"
    own = [*held.tasks[1].train.texts[:8], *held.tasks[1].test.texts[:2]]
    assert all(t.startswith("fr-it fr ") for t in own) and max(int(t.split()[2]) for t in own) <= 10
    with pytest.raises(LabelledSetError, match="has 30 texts, fewer than the 50 asked for"):
        hub_set("Helsinki-NLP/europarl", train=80, test=20)


def test_code_loses_its_licence_and_is_told_by_its_ending(fake_hub, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    endings = ["c", "h", "py", "html", "java", "php", "phpt", "js", "cpp"]
    rows = [
        {"path": f"src/{i}.{e}", "content": "L" * 150 + f"{e} {i} " + "x" * (400 if i else 300)}
        for i in range(12)
        for e in endings
    ]
    random.Random(0).shuffle(rows)
    pq.write_table(pyarrow.Table.from_pylist(rows), fake_hub / "train.parquet")
    monkeypatch.setattr(hub, "GITHUB_FILES", str(fake_hub / "train.parquet"))
    held = hub_set("codeparrot/github-code", train=12, test=4)
    assert [t.name for t in held.tasks] == ["C", "Python", "HTML", "Java", "PHP"]
    wanted = {"C": {"c", "h"}, "Python": {"py"}, "HTML": {"html"}, "Java": {"java"}, "PHP": {"php", "phpt"}}
    for task in held.tasks:
        own = task.train.texts[:6]
        assert {t.split()[0] for t in own} <= wanted[task.name]
        assert not any(t.startswith("L") or t.split()[1] == "0" for t in own)  # file 0 is too short


def test_an_unknown_set_and_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    with pytest.raises(LabelledSetError, match="'imdb' is unknown; choose one of LabHC/bias_in_bios_class_set1, "):
        hub_set("imdb")
    assert len(SAEBENCH) == 8
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("fancyzhx/ag_news", "Helsinki-NLP/europarl"):
        with pytest.raises(TextError, match=f"'{name}' cannot be read from the hub .* Offline, give a CSV") as raised:
            hub_set(name, 8, 4)
        assert "\n" not in str(raised.value)
