"""The committed chapters keep the rules, and what they glued is what we expect."""

import json

import nbformat
import pytest
import yaml

from saecore import paths
from saecore.chapter import expected, rules

CHAPTERS = sorted(paths.chapters().glob("*.ipynb"))
EXPECTED = sorted(paths.expected().glob("*.json"))
each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def test_there_are_chapters():
    assert CHAPTERS, f"{paths.chapters()} holds no notebook"


def test_the_table_of_contents_names_every_chapter():
    contents = yaml.safe_load((paths.book() / "_toc.yml").read_text(encoding="utf-8"))
    named = {entry["file"] for entry in contents["chapters"]}
    assert {name for name in named if name.startswith("chapters/")} == {f"chapters/{p.stem}" for p in CHAPTERS}


@each
@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_chapter_keeps(path, rule):
    problems = rule(nbformat.read(path, as_version=4))
    assert not problems, "\n".join(problems)


@each
def test_glued_values_are_the_expected_ones(path):
    wanted = paths.expected() / f"{path.stem}.json"
    glued = expected.glued(nbformat.read(path, as_version=4))
    problems = expected.compare(glued, expected.read(wanted), f"data/expected/{wanted.name}")
    assert not problems, "\n".join(problems)


@each
def test_chapter_is_stored_without_what_changes_per_run(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}, "store it with `make chapters`"
    assert not any({"papermill", "execution"} & set(cell["metadata"]) for cell in stored["cells"])


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_expected_values_belong_to_a_chapter(path):
    assert path.stem in {chapter.stem for chapter in CHAPTERS}, f"{path} belongs to no chapter"
