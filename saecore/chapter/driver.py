"""Executes chapters through papermill, which alone would only warn about a parameter it does not know."""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from saecore import paths
from saecore.chapter.live import PROFILES, environment
from saecore.spec import EMBEDDED

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
PER_RUN = ("papermill", "execution", "ExecuteTime")


class ChapterError(Exception):
    """A chapter that does not exist, or a cell that failed."""


class ParameterError(ChapterError):
    """A parameter the chapter does not have, or a value of another type than its default."""


def find(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Notebooks of the chapters named (`03` and `03_feature_recovery` both work), or of all of them.

    Raises ChapterError where there is none of that name, or none at all.
    """
    folder = folder or paths.chapters()
    known = sorted(folder.glob("*.ipynb"))
    if not known:
        raise ChapterError(f"no chapter in {folder}: it holds no .ipynb")
    if not names:
        return known
    chosen = []
    for name in names:
        stem = Path(name).stem
        matches = [p for p in known if p.stem == stem or p.stem.startswith(f"{stem}_")]
        if len(matches) != 1:
            raise ChapterError(f"chapter {name!r} is unknown; choose from {', '.join(p.stem for p in known)}")
        chosen += matches
    return chosen


def parameters_cells(notebook: Any) -> list[Any]:
    """The cells tagged `parameters`; a chapter has one."""
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def parameters(notebook: Any) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`. Raises ParameterError for what is no literal."""
    found: dict[str, Any] = {}
    for cell in parameters_cells(notebook):
        for statement in ast.parse(cell.source).body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            target = statement.target if isinstance(statement, ast.AnnAssign) else target
            value = getattr(statement, "value", None)
            if not isinstance(target, ast.Name) or value is None:
                raise ParameterError(f"the parameters cell holds {ast.unparse(statement)!r}; write name = literal")
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                raise ParameterError(
                    f"the parameters cell sets {target.id} = {ast.unparse(value)}; only a literal will do"
                ) from None
    return found


def literal(text: str) -> Any:
    """A value as typed on the command line: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def located(value: Any) -> Any:
    """A text that names a file (with or without ``#column``) or a folder here, by its whole path; else the value.

    Chapters run in a folder of their own. Names of the package stay what they are, whatever lies here.
    """
    if not isinstance(value, str) or value in (*PROFILES, *EMBEDDED, *EMBEDDED.values()):
        return value
    place, mark, column = value.partition("#")
    return f"{Path(place).resolve()}{mark}{column}" if place and Path(place).exists() else value


def checked(known: Mapping[str, Any], given: Mapping[str, Any], chapter: str) -> dict[str, Any]:
    """`given`, refused where a name or the profile is unknown, or a type not the default's (an int passes for a float).

    Raises ParameterError.
    """
    accepted = {}
    for name, value in given.items():
        if name not in known:
            listing = ", ".join(f"{key} = {default!r}" for key, default in known.items()) or "none"
            raise ParameterError(f"{chapter} has no parameter {name!r}; it has: {listing}")
        default = known[name]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise ParameterError(
                f"{chapter}: {name} = {value!r} is a {type(value).__name__}; "
                f"give a {type(default).__name__}, as in {name} = {default!r}"
            )
        if name == "profile" and value not in PROFILES:
            raise ParameterError(f"{chapter}: profile = {value!r} is unknown; choose one of {', '.join(PROFILES)}")
        accepted[name] = value
    return accepted


def stable(notebook: Any) -> Any:
    """The notebook without what changes from run to run (times, paths, versions); outputs and counts stay."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    for cell in notebook.cells:
        for key in PER_RUN:
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring pieces of one stream as one: how a kernel cuts its stream depends on the moment."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def execute(source: Path, target: Path, given: Mapping[str, Any] | None = None) -> Path:
    """Run `source` from top to bottom in its own folder and write it to `target`, whole or not at all.

    Raises ParameterError before anything runs, ChapterError when a cell fails.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = parameters(nbformat.read(source, as_version=4))
    accepted = checked(known, given or {}, source.stem)
    profile = accepted.get("profile", known.get("profile", "smoke"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside, _environment(environment(profile)):
        executed = Path(aside) / source.name
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                parameters=accepted,
                kernel_name=KERNEL["name"],
                language=KERNEL["language"],
                cwd=str(source.parent.resolve()),
                progress_bar=False,
                request_save_on_cell_execute=False,
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            raise ChapterError(f"{source.stem}: a cell failed\n{error}") from None
        text = nbformat.writes(stable(nbformat.read(executed, as_version=4)))
    with paths.whole(target) as partial:
        partial.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return target
