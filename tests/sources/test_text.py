"""Texts by name: every form of file gives the same documents, and what is wrong is said."""

import csv
import itertools
import json

import pytest

from saecore import paths
from saecore.sources import atlas
from saecore.sources.text import TextError, documents

TEXTS = [f'Document {i}, with a comma, a "quote" and\na second line; München, 東京.' for i in range(25)]
REAL = paths.root().parent / "shared" / "real"


def _write(path, texts, column="text"):
    """The texts in the form that the suffix names, a blank one among them."""
    texts = [*texts[:3], "  ", *texts[3:]]
    rows = [{"n": i, column: text} for i, text in enumerate(texts)]
    if path.suffix == ".txt":
        path.write_text("\n\n\n".join(texts) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(texts), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["n", column])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        pq.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".parquet"])
def test_every_form_gives_the_documents_with_every_tenth_held_out(tmp_path, suffix):
    path = _write(tmp_path / f"texts{suffix}", TEXTS)
    assert list(documents(str(path), "test")) == [TEXTS[9], TEXTS[19]]
    assert list(documents(str(path))) == [text for i, text in enumerate(TEXTS) if i not in (9, 19)]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv"])
def test_a_mark_at_the_beginning_and_capitals_in_the_ending_are_no_matter(tmp_path, suffix):
    """Excel's "CSV UTF-8" begins with U+FEFF."""
    path = _write(tmp_path / f"texts{suffix}", TEXTS, "text").rename(tmp_path / f"TEXTS{suffix.upper()}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert next(documents(str(path))) == TEXTS[0]
    if suffix == ".csv":
        path.write_bytes(path.read_bytes().replace(b"n,text", b"text,n"))
        assert next(documents(str(path))) == "0"  # the first column has its name whole
    with pytest.raises(TextError, match="is no file; give atlas"):
        documents(str(path.with_name(f"NOWHERE{suffix.upper()}")))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_another_column_is_named_after_the_file(tmp_path, suffix):
    path = _write(tmp_path / f"texts{suffix}", TEXTS, "prompt")
    assert next(documents(f"{path}#prompt")) == TEXTS[0]
    with pytest.raises(TextError, match=r"has the columns n, prompt, not 'text'; name the column"):
        next(documents(str(path)))
    if suffix != ".csv":
        with pytest.raises(TextError, match="column 'n' holds 0, which is no text"):
            next(documents(f"{path}#n"))


def test_a_json_list_of_objects_and_anything_else(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([{"text": "one"}, {"text": None}, {"text": "two"}]))
    assert list(documents(str(path))) == ["one", "two"]
    for content, message in (('{"a": 1}', "holds a dict; it must be a list"), ("[1]", "holds 1, not 'text'")):
        path.write_text(content)
        with pytest.raises(TextError, match=message):
            list(documents(str(path)))


def test_a_document_may_be_long(tmp_path):
    path = _write(tmp_path / "texts.csv", ["x" * 300_000])
    assert len(next(documents(str(path)))) == 300_000


def test_files_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nnot json\n')
    texts = documents(str(path))
    assert list(itertools.islice(texts, 2)) == ["one", "two"]
    with pytest.raises(TextError, match=r"texts\.jsonl cannot be read as \.jsonl"):
        next(texts)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, suffix):
    path = tmp_path / f"texts{suffix}"
    path.write_text("")
    with pytest.raises(TextError, match="has no train document: it holds 0 that are not blank"):
        next(documents(str(path)))


def test_too_few_documents_to_hold_one_out(tmp_path):
    path = _write(tmp_path / "texts.json", TEXTS[:9])
    assert len(list(documents(str(path)))) == 9
    with pytest.raises(TextError, match="has no test document: it holds 9 .* every 10th is held out"):
        next(documents(str(path), "test"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"good\n\n\xff\xfe\xff")
    with pytest.raises(TextError, match=r"texts\.txt cannot be read as \.txt"):
        list(documents(str(path)))
    (tmp_path / "texts.parquet").write_bytes(b"PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(TextError, match=r"texts\.parquet cannot be read as \.parquet"):
        next(documents(str(tmp_path / "texts.parquet")))


@pytest.mark.parametrize("name", ["nowhere.csv", "/nowhere/texts.txt", "a/b/c", "owner/name:a:b", ""])
def test_what_is_neither_a_file_nor_a_hub_id_is_refused_at_once(name):
    with pytest.raises(TextError, match="is no file; give atlas, python-docs, a file or a hub id"):
        documents(name)


def test_an_unknown_form_or_split_is_refused_at_once(tmp_path):
    (tmp_path / "texts.pdf").write_text("x")
    with pytest.raises(TextError, match=r"is of no known form; give one of \.txt, \.json, \.jsonl, \.csv, \.parquet"):
        documents(str(tmp_path / "texts.pdf"))
    with pytest.raises(TextError, match="split='validation' is unknown; choose one of train, test"):
        documents("atlas", "validation")


def test_atlas_gives_the_text_of_its_documents():
    for split in ("train", "test"):
        wanted = [document.text for document in itertools.islice(atlas.documents(split), 5)]
        assert list(itertools.islice(documents("atlas", split), 5)) == wanted
    assert next(documents("atlas")) != next(documents("atlas", "test"))


def test_a_data_set_of_datasets_is_streamed_by_split_config_and_column(tmp_path, monkeypatch):
    """A folder stands for the hub here: `datasets` reads owner/name from the current folder where it exists."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name, splits in (("own", ("train", "test")), ("none", ("train",))):
        folder = tmp_path / "owner" / name
        folder.mkdir(parents=True)
        for split in splits:
            _write(folder / f"{split}.jsonl", [f"{split} {text}" for text in TEXTS], "prompt")
    assert len(list(documents("owner/own#prompt"))) == len(list(documents("owner/own:default#prompt"))) == 25
    assert list(documents("owner/own#prompt", "test")) == [f"test {text}" for text in TEXTS]
    assert list(documents("owner/none#prompt", "test")) == [f"train {TEXTS[i]}" for i in (9, 19)]
    assert len(list(documents("owner/none#prompt"))) == 23
    with pytest.raises(TextError, match="owner/own has the columns n, prompt, not 'text'"):
        next(documents("owner/own"))
    with pytest.raises(TextError, match="cannot be read from the hub .*french"):
        next(documents("owner/own:french#prompt"))


def test_a_hub_that_cannot_be_reached_gives_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TextError, match="from the hub .* Offline, give atlas or a local file") as raised:
        next(documents("nobody/no-such-data"))
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not (REAL / "text").is_dir(), reason="the real texts are not here")
def test_real_texts():
    for name in ("tinystories_1000", "wikitext_1000"):
        path = REAL / "text" / f"{name}.json"
        train, test = (list(documents(str(path), split)) for split in ("train", "test"))
        assert len(train) == 900 and len(test) == 100 and not set(train) & set(test)
