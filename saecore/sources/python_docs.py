"""Python's own documentation, as text that every machine has: the topics of `help()` and the library's docstrings.

Licence: PSF-2.0. The text is that of the Python that runs, so it differs a little from one minor version to the next.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 80
"""A docstring with fewer characters says too little to be a document."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def documents() -> Iterator[str]:
    """The topics of `help()`, by name; then the docstrings of modules, classes and functions, by file and place."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(library).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    """None of a file that is no Python of this version: the library keeps some as templates."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text
