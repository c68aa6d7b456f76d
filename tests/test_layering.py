"""Modules import only from those above them. The walk reads the sources, so a lazy import counts as well."""

import ast
from collections.abc import Iterator
from pathlib import Path

import saecore

ORDER = (
    "spec",
    "paths",
    "sources",
    "activations",
    "kernels",
    "saes",
    "training",
    "metrics",
    "judges",
    "report",
    "studies",
    "sweep",
    "checks",
    "chapter",
    "cli",
    "__main__",
)


def modules(package: Path) -> Iterator[tuple[Path, str]]:
    """Every source file with its dotted name."""
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        yield path, ".".join(part for part in parts if part != "__init__")


def imported(path: Path, name: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of the package's own modules."""
    base = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{stem}.{alias.name}" for alias in node.names] if stem == package else [stem]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == package and target != package:
                yield node.lineno, target


def wrong_imports(package: Path, order: tuple[str, ...] = ORDER) -> list[str]:
    """One line for each import that goes up, and for each module that has no place in the order."""
    wrong = []
    for path, name in modules(package):
        layer = (name.split(".") + [""])[1]
        if layer and layer not in order:
            wrong.append(f"{name} has no place in the order: {', '.join(order)}")
            continue
        for line, target in imported(path, name, package.name):
            other = target.split(".")[1]
            if other not in order:
                continue  # a name of the package itself, such as __version__
            if not layer or order.index(other) > order.index(layer):
                place = f"{path.relative_to(package.parent)}:{line}"
                wrong.append(f"{place}: {name} imports {target}, which comes after it")
    return wrong


def test_saecore_imports_only_what_comes_before():
    wrong = wrong_imports(Path(saecore.__file__).parent)
    assert not wrong, "\n".join(wrong)


def _package(folder: Path, **sources: str) -> Path:
    package = folder / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, source in sources.items():
        path = package / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return package


def test_an_import_from_below_is_named_with_its_line(tmp_path):
    package = _package(tmp_path, spec="import os\nfrom thing.cli import main\n", cli="from thing import spec\n")
    (wrong,) = wrong_imports(package, ("spec", "cli"))
    assert wrong == "thing/spec.py:2: thing.spec imports thing.cli, which comes after it"


def test_lazy_relative_and_plain_imports_count(tmp_path):
    lazy = "def f():\n    from ..metrics import recovery\n"
    package = _package(
        tmp_path, sources__synthetic=lazy, metrics__recovery="import thing.report.ledger\n", report__ledger=""
    )
    wrong = wrong_imports(package, ("sources", "metrics", "report"))
    assert len(wrong) == 2
    assert "thing.metrics, which" in wrong[1] and "thing.report.ledger, which" in wrong[0]


def test_from_package_import_module_counts(tmp_path):
    package = _package(tmp_path, spec="from . import cli\n", cli="from thing import __version__, spec\n")
    assert len(wrong_imports(package, ("spec", "cli"))) == 1


def test_a_module_without_a_place_is_named(tmp_path):
    (wrong,) = wrong_imports(_package(tmp_path, helpers=""), ("spec",))
    assert wrong.startswith("thing.helpers has no place in the order")


def test_imports_within_a_layer_are_free(tmp_path):
    package = _package(tmp_path, saes__base="from thing.saes.build import build\n", saes__build="")
    assert not wrong_imports(package, ("saes",))
