"""What is said in two places is the same in both."""

import importlib.util
import re
import tomllib

import nbformat
import pytest
import yaml

from saecore import __version__, paths, sweep

CONFIG = yaml.safe_load((paths.book() / "_config.yml").read_text(encoding="utf-8"))
URL = CONFIG["repository"]["url"]
SWEEPS = ("gpu", "feature_recovery")
spec = importlib.util.spec_from_file_location("checksums", paths.root() / "tools" / "checksums.py")
assert spec is not None and spec.loader is not None
checksums = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checksums)


def _text(name: str) -> str:
    return (paths.root() / name).read_text(encoding="utf-8")


def test_the_repository_has_one_address():
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    assert project["urls"]["Repository"] == yaml.safe_load(_text("CITATION.cff"))["repository-code"] == URL
    own = re.compile(r"https://github\.com/[\w-]+/saecore\b")
    assert set(own.findall(_text("README.md"))) <= {URL}
    for path in paths.chapters().glob("*.ipynb"):
        sources = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        assert set(own.findall(sources)) <= {URL}, path.name


def test_the_version_is_said_once_more_in_the_citation():
    assert yaml.safe_load(_text("CITATION.cff"))["version"] == __version__


def test_conda_takes_the_torch_that_is_pinned():
    pinned = re.search(r"^torch==(\S+)$", _text("constraints.txt"), re.MULTILINE)
    assert pinned is not None
    lines = yaml.safe_load(_text("environment.yml"))["dependencies"][-1]["pip"]
    versions = {line.split("==")[1].split(";")[0].split("+")[0] for line in lines if line.startswith("torch")}
    assert versions == {pinned[1]}


def test_conda_installs_what_make_installs():
    lines = yaml.safe_load(_text("environment.yml"))["dependencies"][-1]["pip"]
    (conda,) = [line.removeprefix("--editable ") for line in lines if line.startswith("--editable")]
    (make,) = re.findall(r'install\.py \.venv --editable "(.+)"', _text("Makefile"))
    assert conda == make and "--constraint constraints.txt" in lines


def test_everything_that_is_asked_for_is_pinned():
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {_name(re.split(r"[^\w.-]", line)[0]) for line in asked}
    pinned = {_name(line.split("==")[0]) for line in _text("constraints.txt").splitlines() if "==" in line}
    assert names <= pinned, f"constraints.txt has no line for {sorted(names - pinned)}"


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_what_a_gpu_runs_first_is_part_of_the_study():
    """Under the same keys: rows of both lie side by side in one file, and count once."""
    first, study = ({run.key() for group in sweep.load(sweep.find(name))[1] for run in group} for name in SWEEPS)
    assert len(first) == 8 and first < study


def test_pages_take_mathjax_from_the_site_itself():
    given = CONFIG["sphinx"]["config"]["mathjax_path"]
    assert given.startswith("../") and CONFIG["sphinx"]["config"]["html_extra_path"] == ["vendor"]
    assert (paths.book() / "vendor" / given.removeprefix("../")).is_file()


def test_the_readme_names_every_make_target_it_should():
    for target in re.findall(r"^([a-z]+):.*## ", _text("Makefile"), re.MULTILINE):
        assert f"make {target}" in _text("README.md"), f"README.md does not say what `make {target}` does"


def test_every_data_file_has_a_row_and_its_checksum():
    wrong = checksums.problems(paths.data())
    assert not wrong, "\n".join([*wrong, "`make checksums` puts checksums in; a missing row is yours to write"])


@pytest.fixture
def data(tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.csv").write_text("1\n")
    row = f"| `paper/a.csv` | x | y | `{checksums.checksum(tmp_path / 'paper' / 'a.csv')}` |\n"
    (tmp_path / "README.md").write_text(row + "| `expected/*.json` | x | y | – |\n")
    return tmp_path


def test_checksums_can_fail(data):
    assert checksums.problems(data) == []
    (data / "paper" / "a.csv").write_text("2\n")
    assert "data/README.md says" in checksums.problems(data)[0]
    checksums.write(data)
    assert checksums.problems(data) == []
    (data / "expected").mkdir()
    (data / "expected" / "b.json").write_text("{}")
    assert checksums.problems(data) == []
    (data / "b.csv").write_text("")
    assert checksums.problems(data) == ["data/b.csv has no row in data/README.md"]
    (data / "b.csv").unlink()
    (data / "paper" / "a.csv").unlink()
    assert "which is not there" in checksums.problems(data)[0]
