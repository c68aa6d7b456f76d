"""What chapters call, the driver that runs them, and the values they are held to."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from saecore import chapter, cli, paths

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

from saecore.chapter import driver, expected, live  # noqa: E402


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A small repository of its own, with one chapter."""
    for folder in ("data/paper", "data/expected", "saecore", "book/chapters"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setenv(paths.HOME, str(tmp_path))
    _write(
        paths.chapters() / "01_sample.ipynb",
        "import os\nfrom saecore.chapter import glue\nglue('x', scale * 2.0, '.2f')",
    )
    return tmp_path


def _write(path, *sources):
    parameters = nbformat.v4.new_code_cell(
        'profile = "smoke"\nscale = 1.5\nsteps = 3', metadata={"tags": ["parameters"]}
    )
    cells = [parameters, *(nbformat.v4.new_code_cell(source) for source in sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def _read(path):
    return nbformat.read(path, as_version=4)


# what chapters call


def test_a_profile_picks():
    assert chapter.Profile("smoke").pick(smoke=1, full=2) == 1
    assert chapter.Profile("full").pick(smoke=1, full=2) == 2


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile='fast' is unknown; choose one of smoke, full"):
        chapter.setup("fast")


def test_a_smoke_run_has_one_thread_no_network_and_no_gpu():
    smoke, full = chapter.environment("smoke"), chapter.environment("full")
    assert smoke["OMP_NUM_THREADS"] == smoke["NUMBA_NUM_THREADS"] == smoke["HF_HUB_OFFLINE"] == "1"
    assert smoke["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"} & set(full)


def test_setup_puts_a_smoke_run_on_one_thread(monkeypatch):
    for name in live.THREADS:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert not chapter.setup("smoke").full
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        chapter.setup("full")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


LATE = """
import torch
torch.set_num_threads(2)
torch.get_num_threads()  # torch settles its number here; what changes it later shows
import numba
from saecore.chapter import setup
setup("smoke")
print(torch.get_num_threads(), numba.get_num_threads())
numba.njit(lambda x: x + 1)(1)
"""


def test_setup_stops_the_threads_of_a_numba_that_was_there_before():
    """In a process of its own: numba's pool starts once, and it is the start that reaches for torch's number."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    run = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "1 1\n"), run.stderr


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    calls = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata: calls.append((data, metadata)))
    return calls


@pytest.mark.parametrize(
    ("value", "format", "raw", "text"),
    [
        (0.5, ".3f", 0.5, "0.500"),
        (np.float64(0.0914), ".1%", 0.0914, "9.1%"),
        (torch.tensor(3200), ",", 3200, "3,200"),
        (7, "", 7, "7"),
        ("refuted", "", "refuted", "refuted"),
        (0.25, "{:.2f} of it", 0.25, "0.25 of it"),
    ],
)
def test_glue_stores_the_value_and_the_text(shown, value, format, raw, text):
    chapter.glue("name", value, format)
    ((data, metadata),) = shown
    assert data == {"application/papermill.record/text/plain": repr(text)}
    assert metadata["scrapbook"]["name"] == "name"
    assert metadata["scrapbook"]["value"] == raw and type(metadata["scrapbook"]["value"]) is type(raw)


def test_glue_has_the_layout_that_the_page_reads(shown):
    pytest.importorskip("myst_nb")
    from myst_nb.core.variables import format_plain_text
    from myst_nb.ext.glue import extract_glue_data_cell

    chapter.glue("name", 0.5, ".3f")
    ((data, metadata),) = shown
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    ((key, pasted),) = extract_glue_data_cell(nbformat.v4.new_code_cell("", outputs=[output]))
    assert (key, format_plain_text(pasted.data["text/plain"], "")) == ("name", "0.500")


def test_glue_all_takes_names_and_one_format(shown):
    chapter.glue_all({"a": 0.1, "b": 0.2}, ".1f")
    assert [metadata["scrapbook"]["name"] for _, metadata in shown] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.123, ValueError, "a float needs a format"),
        (float("nan"), ValueError, "not a finite number"),
        ([1], TypeError, "list is not a number or a text"),
        (None, TypeError, "NoneType is not"),
    ],
)
def test_glue_refuses(value, error, message):
    with pytest.raises(error, match=message):
        chapter.glue("name", value)


# the driver


def test_parameters_are_read_with_their_defaults(home):
    (path,) = driver.find()
    assert driver.parameters(_read(path)) == {"profile": "smoke", "scale": 1.5, "steps": 3}


def test_a_chapter_runs_in_its_folder_with_the_values_given(home):
    (path,) = driver.find(["01"])
    _write(path, "import os\nprint(os.getcwd(), scale, os.environ['OMP_NUM_THREADS'])")
    target = driver.execute(path, home / "out" / "x.ipynb", {"scale": 2})
    text = _read(target).cells[-1].outputs[0].text
    assert text.split() == [str(paths.chapters()), "2.0", "1"]
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] == "1"


def test_a_run_is_stored_the_same_each_time(home):
    (path,) = driver.find()
    driver.execute(path, path)
    first = path.read_bytes()
    driver.execute(path, path)
    assert path.read_bytes() == first
    stored = json.loads(first)
    assert [cell["execution_count"] for cell in stored["cells"]] == [1, 2]
    assert b"papermill" not in first.replace(b"application/papermill.record/", b"")
    assert [list(cell["metadata"]) for cell in stored["cells"]] == [["tags"], []]


def test_a_failing_cell_leaves_the_target_as_it_was(home, capsys):
    (path,) = driver.find()
    _write(path, "1 / 0")
    before = path.read_bytes()
    assert cli.main(["chapters", "execute", "--in-place"]) == cli.FAILED
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [p.name for p in paths.chapters().iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "setps", "9"], "has no parameter 'setps'; it has: profile = 'smoke', scale = 1.5, steps = 3"),
        (["-p", "steps", "many"], "steps = 'many' is a str; give a int, as in steps = 3"),
        (["-p", "steps", "2.5"], "steps = 2.5 is a float"),
        (["-p", "steps", "True"], "steps = True is a bool"),
        (["-p", "profile", "ful"], "01_sample: profile = 'ful' is unknown; choose one of smoke, full"),
        (["7"], "chapter '7' is unknown; choose from 01_sample"),
        (["--in-place", "-p", "steps", "4"], "committed chapters hold their default parameters"),
    ],
)
def test_the_command_refuses_before_anything_runs(home, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(driver, "execute", lambda *_: pytest.fail("a chapter ran"))
    assert cli.main(["chapters", "execute", *arguments]) == cli.REFUSED
    assert message in capsys.readouterr().err


def test_the_command_runs_a_chapter_with_parameters(home, capsys):
    assert cli.main(["chapters", "execute", "01", "-p", "scale", "4", "--out", str(home / "out")]) == 0
    assert expected.glued(_read(home / "out" / "01_sample.ipynb")) == {"x": 8.0}


def test_a_path_is_meant_from_where_the_command_was_given(home, tmp_path, monkeypatch):
    _write(
        paths.chapters() / "01_sample.ipynb",
        "from pathlib import Path\nfrom saecore.chapter import glue\n"
        "glue('there', Path(where).is_absolute() and Path(where).read_text() == 'text')",
    )
    notebook = _read(paths.chapters() / "01_sample.ipynb")
    notebook.cells[0].source += '\nwhere = ""'
    nbformat.write(notebook, paths.chapters() / "01_sample.ipynb")
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "my-text.jsonl").write_text("text")
    monkeypatch.chdir(here)
    assert cli.main(["chapters", "execute", "-p", "where", "my-text.jsonl", "--out", str(home / "out")]) == 0
    assert expected.glued(_read(home / "out" / "01_sample.ipynb")) == {"there": True}


def test_only_what_lies_here_becomes_a_whole_path(tmp_path, monkeypatch):
    for name in ("my-model", "atlas", "smoke"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    whole = {"my-model": f"{tmp_path}/my-model", "./my-model/": f"{tmp_path}/my-model"}
    whole |= {"text.csv#body": f"{tmp_path}/text.csv#body"}
    assert {value: driver.located(value) for value in whole} == whole
    for value in ("atlas", "smoke", "python-docs", "owner/model", "none.csv#body", "", "#x", 3, 0.5, None, True):
        assert driver.located(value) == value


def test_no_chapter_at_all_is_an_error(home, capsys):
    (paths.chapters() / "01_sample.ipynb").unlink()
    assert cli.main(["chapters", "check"]) == cli.REFUSED
    assert "holds no .ipynb" in capsys.readouterr().err


# expected values


def test_expect_and_check_from_the_command_line(home, capsys):
    (path,) = driver.find()
    _write(path, "from saecore.chapter import glue\nglue('x', scale * steps, '.2f')\nprofile")
    driver.execute(path, path)
    assert cli.main(["chapters", "check"]) == cli.FAILED
    assert "x = 4.5 is glued but not in data/expected/01_sample.json" in capsys.readouterr().err
    assert cli.main(["chapters", "expect"]) == 0
    assert json.loads((paths.expected() / "01_sample.json").read_text()) == {"x": {"value": 4.5}}
    assert cli.main(["chapters", "check"]) == 0
    assert cli.main(["chapters", "execute", "-p", "scale", "2.0", "--out", str(home / "out")]) == 0
    assert cli.main(["chapters", "check", "--folder", str(home / "out")]) == cli.FAILED
    assert "x = 6.0, but data/expected/01_sample.json has 4.5 within 0" in capsys.readouterr().err


def test_update_keeps_reasons_and_drops_stale_names(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"x": {"value": 1.0, "atol": 0.1, "why": "noise"}, "old": {"value": 1}, "t": {"exempt": "time"}})
    )
    assert expected.update(path, {"x": 2.0, "t": 9.0, "new": "yes"}) == (["new"], ["old"])
    assert expected.update(path, {"x": 2.0, "t": 9.0, "new": "yes"}, replace=True) == (["x"], [])
    assert json.loads(path.read_text()) == {
        "x": {"value": 2.0, "atol": 0.1, "why": "noise"},
        "t": {"exempt": "time"},
        "new": {"value": "yes"},
    }


@pytest.mark.parametrize(
    ("entry", "found", "accepted"),
    [
        (dict(value=0.682, atol=0.01), 0.690, True),
        (dict(value=0.682, atol=0.01), 0.693, False),
        (dict(value=0.682, rtol=0.1), 0.74, True),
        (dict(value=0.682, rtol=0.1), 0.76, False),
        (dict(value=0.123457), 0.12345678, True),
        (dict(value=0.123457), 0.12346, False),
        (dict(value=3200), 3200, True),
        (dict(value=3200), 3201, False),
        (dict(value="refuted"), "refuted", True),
        (dict(value="refuted"), "confirmed", False),
        (dict(value=True), 1, False),
        (dict(value=1.0), "1.0", False),
        (dict(exempt="the machine's speed"), 12.3, True),
    ],
)
def test_a_value_is_accepted_within_its_tolerance_alone(entry, found, accepted):
    assert expected.Expected(**entry).accepts(found) is accepted


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (dict(value=0.5, atol=0.1), ""),
        (dict(value=0.5, atol=0.11), "more than 20%"),
        (dict(value=0.5, rtol=0.3), "more than 20%"),
        (dict(value=0.0, atol=0.01), "narrow it or say why"),
        (dict(value=0.0, atol=0.01, why="noise of three seeds"), ""),
        (dict(value=0.5, atol=0.11, why="noise of three seeds"), ""),
        (dict(value=0.5, atol=0.05, apart_from=0.45), "a value that means something else would pass"),
        (
            dict(value=0.5, atol=0.05, apart_from=0.45, why="x"),
            "a value that means something else would pass",
        ),
        (dict(value=0.5, atol=0.04, apart_from=0.45), ""),
        (dict(value=0.5, atol=float("inf"), why="x"), "not a finite number"),
        (dict(value=0.5, atol=-0.1), "not a finite number"),
        (dict(value="refuted", atol=1.0), "takes no tolerance"),
        (dict(), "neither a value nor a reason"),
        (dict(exempt="the machine's speed"), ""),
    ],
)
def test_a_tolerance_must_be_able_to_fail(entry, problem):
    found = expected.Expected(**entry).problem()
    assert problem in found if problem else not found


def test_compare_names_what_is_missing_stale_wrong_and_wide():
    wanted = {
        "wrong": expected.Expected(value=1.0, atol=0.1),
        "stale": expected.Expected(value=1.0),
        "wide": expected.Expected(value=1.0, atol=0.9),
    }
    found = expected.compare({"wrong": 1.2, "new": 3, "wide": 1.0}, wanted, "file")
    assert [line.split()[0] for line in found] == ["wrong", "new", "stale", "wide"]


def test_entries_with_unknown_fields_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"x": {"value": 1, "tol": 0.1}}')
    with pytest.raises(expected.ExpectedError, match="x has \\['tol'\\]; the fields are value, atol"):
        expected.read(path)
    path.write_text("{")
    with pytest.raises(expected.ExpectedError, match="a.json"):
        expected.read(path)


def test_values_glued_by_others_or_twice_are_refused():
    def cell(record):
        return nbformat.v4.new_code_cell(
            "", outputs=[nbformat.v4.new_output("display_data", metadata={"scrapbook": record})]
        )

    notebook = nbformat.v4.new_notebook(cells=[cell({"name": "x"})])
    with pytest.raises(expected.ExpectedError, match="'x' was not glued by saecore.chapter.glue"):
        expected.glued(notebook)
    notebook = nbformat.v4.new_notebook(cells=[cell({"name": "x", "value": 1}) for _ in range(2)])
    with pytest.raises(expected.ExpectedError, match="'x' is glued twice"):
        expected.glued(notebook)
