from pathlib import Path

import pytest

from saecore import paths


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (paths.HOME, paths.RESULTS, paths.CACHE):
        monkeypatch.delenv(name, raising=False)


def _repository(folder: Path) -> Path:
    (folder / "data" / "paper").mkdir(parents=True)
    (folder / "saecore").mkdir()
    (folder / "pyproject.toml").write_text("")
    return folder


def test_the_root_is_found_from_the_package():
    assert (paths.root() / "saecore" / "paths.py").samefile(paths.__file__)


def test_every_folder_lies_in_the_root():
    folders = [
        paths.data(),
        paths.results(),
        paths.expected(),
        paths.paper(),
        paths.cache(),
        paths.chapters(),
    ]
    assert all(folder.is_relative_to(paths.root()) for folder in folders)


def test_home_moves_everything(monkeypatch, tmp_path):
    monkeypatch.setenv(paths.HOME, str(_repository(tmp_path)))
    assert paths.results() == tmp_path / "data" / "results"
    assert paths.chapters() == tmp_path / "book" / "chapters"


def test_results_and_cache_move_alone(monkeypatch, tmp_path):
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "r"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "c"))
    assert (paths.results(), paths.cache()) == (tmp_path / "r", tmp_path / "c")
    assert paths.paper() == paths.root() / "data" / "paper"


def test_a_home_that_is_no_repository_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(paths.HOME, str(tmp_path))
    with pytest.raises(paths.PathError, match="SAECORE_HOME.*pyproject.toml"):
        paths.root()


def test_an_installed_package_finds_the_clone_it_stands_in(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "saecore" / "paths.py"))
    inside = _repository(tmp_path / "clone") / "book" / "chapters"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert paths.root() == tmp_path / "clone"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(paths.PathError, match="clone it and set SAECORE_HOME"):
        paths.root()


def test_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = paths.writable(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


def test_a_cache_that_cannot_be_written_is_refused_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(paths.PathError, match="set SAECORE_CACHE to a folder you may write to"):
        paths.writable(tmp_path / "file" / "cache")

    def read_only(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    # Root may write anywhere, so a folder's mode alone shows nothing when the tests run as root.
    monkeypatch.setattr(paths.tempfile, "TemporaryFile", read_only)
    with pytest.raises(paths.PathError, match="cannot write in .*Permission denied.*SAECORE_RESULTS"):
        paths.writable(tmp_path / "results", paths.RESULTS)
