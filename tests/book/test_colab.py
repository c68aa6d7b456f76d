"""A chapter's first cell fetches the book in Colab, once, and does nothing elsewhere."""

import importlib.util
import re
import sys
import types

import nbformat
import pytest

from saecore import paths
from saecore.chapter import rules

CHAPTERS = sorted(paths.chapters().glob("*.ipynb"))
README = (paths.root() / "README.md").read_text(encoding="utf-8")
CELL = next(code for code in re.findall(r"```python\n(.*?)\n```", README, re.DOTALL) if "google.colab" in code)
CLONE = "/content/sanity-checks"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_begins_with_the_cell_in_the_readme(path):
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.source == CELL, f"copy the cell of README.md, 'Writing a chapter', into {path.name}"
    assert first.metadata["tags"] == ["remove-cell"]


def test_the_clone_is_not_named_as_the_package():
    """With `pip install --editable` a folder of the package's name in the current folder is imported before it."""
    assert CLONE in CELL and CLONE.rpartition("/")[2] != "saecore"


@pytest.fixture
def run(monkeypatch):
    """Runs the cell as IPython would, and says what it would have asked the shell and pip to do."""

    def make(colab: bool, installed: bool):
        asked: list[str] = []
        shell = types.SimpleNamespace(system=asked.append, run_line_magic=lambda *given: asked.append(" ".join(given)))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != CLONE])
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        exec(rules.source(nbformat.v4.new_code_cell(CELL)), {"get_ipython": lambda: shell})
        return asked

    return make


@pytest.mark.parametrize(("colab", "installed"), [(False, False), (False, True), (True, True)])
def test_nothing_is_fetched_outside_colab_or_twice(run, colab, installed):
    assert run(colab, installed) == [] and CLONE not in sys.path


def test_in_colab_the_book_is_cloned_where_it_is_not_and_installed_in_place(run):
    asked = run(colab=True, installed=False)
    assert [line.split()[0] for line in asked] == ["test", "pip"]
    assert asked[0].startswith("test -d {clone} || git clone ") and asked[1].endswith(
        "install --quiet --editable {clone}[models]"
    )
    assert sys.path[-1] == CLONE
