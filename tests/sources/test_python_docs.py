"""Python's own documentation as a data set."""

import inspect
import itertools
import json

from saecore.sources import python_docs, text


def test_a_docstring_of_the_library_is_a_document():
    assert inspect.getdoc(json.dumps) in set(python_docs.documents())


def test_it_is_the_same_every_time_and_long_enough_for_a_study():
    first, second = list(python_docs.documents()), list(python_docs.documents())
    assert first == second
    assert sum(map(len, first)) > 1_000_000


def test_short_docstrings_and_broken_files_are_left_out(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(f'"""Short."""\ndef f():\n    """{"long " * 20}"""\n')
    bad.write_text("def (")
    assert list(python_docs._docstrings(good)) == ["long " * 20]
    assert list(python_docs._docstrings(bad)) == []


def test_by_name_every_tenth_document_is_held_out():
    whole = list(itertools.islice(python_docs.documents(), 40))
    assert list(itertools.islice(text.documents("python-docs", "test"), 4)) == whole[9::10]
    assert list(itertools.islice(text.documents("python-docs"), 36)) == [t for i, t in enumerate(whole) if i % 10 != 9]
