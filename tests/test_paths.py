import errno
import os
import stat
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


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with paths.whole(path) as aside:
        aside.write_text("new")
        assert aside.parent == path.parent and not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), paths.whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, done = tmp_path / "a.txt", []
    fsync, replace = paths.os.fsync, paths.os.replace

    def synced(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}")
        fsync(handle)

    monkeypatch.setattr(paths.os, "fsync", synced)
    monkeypatch.setattr(paths.os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with paths.whole(path) as aside:
        aside.write_bytes(b"12345")
    assert done == ["file of 5", "rename", "folder"]


def test_two_writers_of_one_file_do_not_meet_though_their_numbers_are_equal(tmp_path, monkeypatch):
    """As in two containers that share a cache."""
    monkeypatch.setattr(paths.os, "getpid", lambda: 7)
    path = tmp_path / "a.txt"
    with paths.whole(path) as one:
        with paths.whole(path) as other:
            one.write_text("one")
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(paths.fcntl is None, reason="needs fcntl")
def test_a_folder_has_one_writer_at_a_time(tmp_path, monkeypatch):
    handle = os.open(tmp_path, os.O_RDONLY)
    with paths.alone(tmp_path), pytest.raises(BlockingIOError):
        paths.fcntl.flock(handle, paths.fcntl.LOCK_EX | paths.fcntl.LOCK_NB)
    paths.fcntl.flock(handle, paths.fcntl.LOCK_EX | paths.fcntl.LOCK_NB)
    os.close(handle)
    assert not list(tmp_path.iterdir())

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(paths.fcntl, "flock", refuse)
    with pytest.raises(paths.PathError, match=r"cannot lock .*No locks available.; set SAECORE_RESULTS to a folder"):
        with paths.alone(tmp_path, paths.RESULTS):
            pass


def test_leftovers_are_those_of_one_file_alone(tmp_path):
    path = tmp_path / "a.csv"
    left, other = tmp_path / ".a.csv.123.partial", tmp_path / ".b.csv.123.partial"
    for file in (path, left, other):
        file.write_text("")
    assert paths.leftovers(path) == [left]
    with paths.whole(path) as aside:
        aside.write_text("new")
        assert paths.leftovers(path) == sorted([left, aside])
