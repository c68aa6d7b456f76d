"""Recording loses nothing, refuses what is not a row, and leaves the old file whole when it dies."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from saecore import paths
from saecore.report import compare, ledger
from saecore.report.ledger import LedgerError
from saecore.spec import ConstraintSpec, RunSpec, SAESpec, SourceSpec, TrainingSpec


def values(experiment="sample"):
    frame = ledger.read(experiment)
    names = ["key", "step", "metric", "seed", "constraint", "value"]
    return {tuple(line[:-1]): line[-1] for line in frame[names].itertuples(index=False)}


def test_a_row_comes_back_as_it_was(results, row):
    ledger.record("sample", [row(value=1 / 3, seconds=123456.789, settings="source.sigma=0.5")])
    (found,) = ledger.read("sample").to_dict("records")
    expected = row(value=0.333333, seconds=123457.0, settings="source.sigma=0.5")
    assert found == expected
    assert list(found) == list(ledger.COLUMNS)
    text = (results / "sample.csv").read_text()
    assert text.splitlines()[0] == ",".join(ledger.COLUMNS)
    assert ",0.333333," in text and text.endswith("\n")


def test_equal_identity_replaces_and_the_rest_stays(results, row):
    ledger.record("sample", [row(seed=s, value=s / 10) for s in range(3)])
    ledger.record("sample", [row(seed=1, value=0.9), row(seed=1, constraint="oracle", value=0.95)])
    free = {seed: values()[("abc", 100, "explained_variance", seed, "free")] for seed in range(3)}
    assert free == {0: 0.0, 1: 0.9, 2: 0.2}
    assert values()[("abc", 100, "explained_variance", 1, "oracle")] == 0.95
    assert len(values()) == 4


@pytest.mark.parametrize(
    "other",
    [{"key": "b"}, {"step": 2}, {"metric": "l0"}, {"seed": 2}, {"constraint": "untrained"}, {"device": "a GPU"}],
)
def test_each_part_of_the_identity_counts(results, row, other):
    ledger.record("sample", [row()])
    ledger.record("sample", [row(**other)])
    assert len(ledger.read("sample", every_device=True)) == 2


def recorded_on(row, device, curve):
    """Rows of one run, its values by step."""
    return [row(device=device, step=step, value=value) for step, value in curve.items()]


@pytest.mark.parametrize(
    ("one", "two", "read"),
    [
        ({1: 0.1, 2: 0.2}, {1: 0.3, 2: 0.4}, {1: 0.1, 2: 0.2}),
        ({1: 0.1}, {1: 0.3, 2: 0.4}, {1: 0.3, 2: 0.4}),
        ({1: 0.1}, {2: 0.4}, {1: 0.1, 2: 0.4}),
    ],
    ids=["equals: the first by name", "the one that went further", "ended elsewhere: no step is lost"],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_a_run_on_two_devices_is_kept_twice_and_read_once(results, row, one, two, read, turn):
    for device, curve in [("a CPU", one), ("b GPU", two)][::turn]:
        ledger.record("sample", recorded_on(row, device, curve))
    assert len(ledger.read("sample", every_device=True)) == len(one) + len(two)
    frame = ledger.read("sample")
    assert dict(zip(frame["step"], frame["value"], strict=True)) == read
    assert ledger.last(frame)["value"].tolist() == [read[max(read)]]


def test_two_devices_of_one_seed_are_no_two_seeds(results, row):
    rows = [row(device=device, seed=s, value=s) for device in ("a CPU", "b GPU") for s in (0, 1)]
    ledger.record("sample", rows)
    (found,) = compare.summary(ledger.read("sample"), ["architecture"], "explained_variance").to_dict("records")
    assert found["n"] == 2 and found["mean"] == 0.5
    with pytest.raises(compare.CompareError, match="holds seed 0 more than once: its rows differ in device"):
        compare.summary(ledger.read("sample", every_device=True), ["architecture"], "explained_variance")


def test_a_run_is_finished_whatever_device_it_was_on(results, row):
    ledger.record("sample", [row(key="a", device="b GPU", metric=ledger.FINAL)])
    assert ledger.finished("sample") == {"a"}


def test_the_second_device_changes_no_line_of_the_first(results, row):
    ledger.record("sample", recorded_on(row, "a CPU", {1: 0.1, 2: 0.2}))
    lines = (results / "sample.csv").read_text().splitlines()
    ledger.record("sample", recorded_on(row, "b GPU", {1: 0.3, 2: 0.4}))
    assert [line for line in (results / "sample.csv").read_text().splitlines() if "GPU" not in line] == lines


def test_the_file_does_not_depend_on_the_order_of_recording(results, row):
    rows = [row(seed=s, step=n, metric=m) for s in (10, 2) for n in (1000, 200) for m in ("l0", "dead_share")]
    ledger.record("sample", rows)
    together = (results / "sample.csv").read_bytes()
    for item in reversed(rows):
        ledger.record("again", [{**item, "experiment": "again"}])
    assert (results / "again.csv").read_bytes() == together.replace(b"sample", b"again")
    seeds = ledger.read("sample")["seed"].tolist()
    assert seeds == sorted(seeds), "2 comes before 10"


def test_no_rows_write_nothing(results):
    ledger.record("sample", [])
    assert not results.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valeu": 1}, r"unknown \['valeu'\]; the columns are experiment, key"),
        ({"value": float("nan")}, "value=nan is not finite; leave the row out"),
        ({"value": float("inf")}, "value=inf is not finite"),
        ({"seconds": float("nan")}, "seconds=nan is not finite"),
        ({"value": "high"}, "value='high' is not a number"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number"),
        ({"key": ""}, "key is empty in the row of metric='explained_variance'"),
        ({"metric": ""}, "metric is empty"),
        ({"device": ""}, "device is empty"),
        ({"device": "a\nb"}, r"device='a\\nb' must be one line of text"),
        ({"commit": None}, "commit=None must be one line of text"),
        ({"settings": "sigma 0.5"}, "settings='sigma 0.5' is not name=value;name=value"),
        ({"experiment": "other"}, "experiment='other' in a row of 'sample'"),
    ],
)
def test_a_row_that_is_none_is_refused_and_nothing_is_written(results, row, change, message):
    ledger.record("sample", [row(seed=7)])
    before = (results / "sample.csv").read_bytes()
    with pytest.raises(LedgerError, match=message):
        ledger.record("sample", [row(seed=8), row(**change)])
    assert (results / "sample.csv").read_bytes() == before


def test_a_missing_column_is_named(results, row):
    short = row()
    del short["commit"]
    with pytest.raises(LedgerError, match=r"no \['commit'\]"):
        ledger.record("sample", [short])


def test_the_experiment_may_be_left_out(results, row):
    short = row()
    del short["experiment"]
    ledger.record("sample", [short])
    assert ledger.read("sample")["experiment"].tolist() == ["sample"]


def test_two_rows_of_one_identity_in_one_call_are_refused(results, row):
    with pytest.raises(LedgerError, match="two rows have the same key, step, metric, seed, constraint, device"):
        ledger.record("sample", [row(value=0.1), row(value=0.2)])


@pytest.mark.parametrize("name", ["../up", "a b", "", "UPPER", "_a"])
def test_an_experiment_names_a_file(name):
    with pytest.raises(LedgerError, match="it names a file"):
        ledger.path(name)


def test_a_floor_needs_no_sae(results, row):
    ledger.record("sample", [row(architecture="", init="", l0="", constraint="pca")])
    found = ledger.read("sample").iloc[0]
    assert found["architecture"] == "" and np.isnan(found["l0"])


def test_absent_runs_say_how_to_make_them(results, row):
    ledger.record("sample", [row()])
    with pytest.raises(LedgerError, match=r"saecore run nothing_yet.*recorded in results/: sample"):
        ledger.read("nothing_yet")


def test_a_file_with_other_columns_or_a_broken_line_is_refused(results, row):
    ledger.record("sample", [row()])
    file = results / "sample.csv"
    good = file.read_text()
    file.write_text(good.replace(",commit,", ",", 1))
    with pytest.raises(LedgerError, match=r"sample.csv does not have the ledger's columns \(commit\)"):
        ledger.read("sample")
    file.write_text(good.rstrip()[:-20] + "\n")
    with pytest.raises(LedgerError, match="sample.csv, line 2 has"):
        ledger.read("sample")
    for number, name in (("100", "step"), ("0.5", "value")):
        file.write_text(good.replace(f",{number},", ",half,", 1))
        with pytest.raises(LedgerError, match=rf"sample.csv: {name} holds what is no number \(.*'half'\)"):
            ledger.read("sample")


def test_a_folder_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch, row):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "file" / "results"))
    with pytest.raises(paths.PathError, match=paths.RESULTS):
        ledger.record("sample", [row()])


def test_a_full_disk_names_the_variable_and_keeps_what_was_recorded(results, row, monkeypatch):
    ledger.record("sample", [row()])
    before = (results / "sample.csv").read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(paths.PathError, match=rf"sample.csv \(No space left on device\); .* set {paths.RESULTS}"):
        ledger.record("sample", [row(seed=1)])
    assert [p.name for p in results.iterdir()] == ["sample.csv"] and (results / "sample.csv").read_bytes() == before


DIES = """
import json, os, signal, sys
from saecore.report import ledger
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
ledger.record("sample", [json.loads(sys.argv[1])])
"""


def _python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ), **options)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_death_in_the_middle_leaves_the_old_file_whole(results, row, moment):
    ledger.record("sample", [row(seed=0)])
    before = (results / "sample.csv").read_bytes()
    killed = _python(DIES, json.dumps(row(seed=1)), moment)
    assert killed.wait(120) == -signal.SIGKILL, killed.stderr.read() if killed.stderr else ""
    assert (results / "sample.csv").read_bytes() == before
    assert len(list(results.iterdir())) == 2, "what it was writing is still there"
    ledger.record("sample", [row(seed=2)])
    assert sorted(ledger.read("sample")["seed"]) == [0, 2]
    assert [p.name for p in results.iterdir()] == ["sample.csv"], "nothing is left lying about"


WRITES = """
import json, sys
from saecore.report import ledger
row, me = json.loads(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for step in range(40):
    ledger.record("sample", [{**row, "seed": me, "step": step, "value": me + step / 100}])
"""


@pytest.mark.skipif(paths.fcntl is None, reason="needs fcntl")
def test_processes_that_record_at_once_lose_nothing(results, row):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [_python(WRITES, json.dumps(row()), str(me), **pipes) for me in range(3)]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    found = ledger.read("sample")
    assert len(found) == 3 * 40
    assert np.allclose(found["value"], found["seed"] + found["step"] / 100)


def test_finished_names_runs_that_came_to_their_end(results, row):
    assert ledger.finished("sample") == set()
    ledger.record("sample", [row(key="a"), row(key="b"), row(key="b", metric=ledger.FINAL, step=200)])
    assert ledger.finished("sample") == {"b"}


def test_select_takes_values_and_lists(frame):
    made = frame({"seed": 0}, {"seed": 1}, {"seed": 2, "architecture": "relu"})
    assert ledger.select(made, architecture="topk", seed=[1, 2])["seed"].tolist() == [1]


def test_select_says_what_there_is(frame):
    made = frame({"seed": 0}, {"seed": 1, "architecture": "relu"})
    with pytest.raises(LedgerError, match="no row has constraint='froze'; there is: 'free'"):
        ledger.select(made, constraint="froze")
    with pytest.raises(LedgerError, match="no row has seed=0 among architecture='relu'; there is: 1"):
        ledger.select(made, architecture="relu", seed=0)
    with pytest.raises(LedgerError, match="no column 'arch'; the columns are experiment"):
        ledger.select(made, arch="topk")


def test_last_is_the_last_step_of_each_run_and_metric(frame):
    made = frame({"step": 1}, {"step": 2}, {"step": 9, "seed": 1}, {"step": 1, "metric": "l0"})
    found = ledger.last(made)
    assert sorted(zip(found["metric"], found["seed"], found["step"], strict=True)) == [
        ("explained_variance", 0, 2),
        ("explained_variance", 1, 9),
        ("l0", 0, 1),
    ]


def test_fractions_divide_by_the_features_there_are(frame):
    made = frame(
        {"metric": "features_recovered", "value": 320},
        {"metric": "features_recovered", "value": 320, "settings": "source.n_features=640"},
        {"metric": "l0"},
    )
    found = ledger.fractions(made)
    assert found["value"].tolist() == [0.1, 0.5]
    assert set(found["metric"]) == {"fraction_recovered"}
    assert list(found.columns) == list(ledger.COLUMNS)


def test_binned_takes_the_number_out_of_the_name(frame):
    made = frame(*({"metric": f"recovered_bin_{i}", "value": i / 10} for i in (0, 3)), {"metric": "l0"})
    found = ledger.binned(made, "recovered_bin")
    assert found["bin"].tolist() == [0, 3] and set(found["metric"]) == {"recovered_bin"}
    with pytest.raises(LedgerError, match="no metric cosine_bin_<i> is recorded; there is: l0, recovered_bin_0"):
        ledger.binned(made, "cosine_bin")


def test_expand_reads_settings_and_fills_defaults(frame):
    changed = "constraint.tied=False;source.sigma=0.5;training.learning_rate=0.001"
    made = ledger.expand(frame({}, {"settings": changed}), "source.sigma", "training.learning_rate", "constraint.tied")
    assert made["source.sigma"].tolist() == [SourceSpec().sigma, 0.5]
    assert made["training.learning_rate"].tolist() == [TrainingSpec().learning_rate, 0.001]
    assert made["constraint.tied"].tolist() == [True, False]
    with pytest.raises(LedgerError, match="setting 'sigma' is no field with a default"):
        ledger.expand(made, "sigma")


def test_expand_reads_what_a_spec_writes(frame):
    spec = RunSpec(
        SAESpec("topk", group_size=64),
        SourceSpec(sigma=0.5),
        ConstraintSpec(tied=False),
        TrainingSpec(learning_rate=1e-4),
    )
    made = ledger.expand(frame({"settings": spec.settings()}), "sae.group_size", "training.learning_rate")
    assert made["sae.group_size"].tolist() == [64] and made["training.learning_rate"].tolist() == [1e-4]


def test_provenance_counts_runs_once(frame):
    made = frame(
        {"seed": 0, "seconds": 1800.0, "step": 1},
        {"seed": 0, "seconds": 3600.0, "step": 2},
        {"seed": 1, "seconds": 3600.0},
        {"seed": 2, "seconds": 1800.0, "device": "NVIDIA H200", "commit": "fed"},
    )
    said = ledger.provenance(made)
    assert said == "3 runs, seeds 0-2, on NVIDIA H200, a CPU, commit 0123abc, fed, 2.5 h"
    assert ledger.provenance(made.loc[made["seed"] == 0]).startswith("1 run, seed 0, on a CPU")
    assert ledger.provenance(made.loc[made["seed"] != 1]).startswith("2 runs, seeds 0, 2, on")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone of its own, as commit() sees it."""
    for folder in ("data/paper", "data/results", "saecore"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "saecore" / "a.py").write_text("1")
    monkeypatch.setenv(paths.HOME, str(tmp_path))
    monkeypatch.delenv(ledger.COMMIT, raising=False)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    ledger.commit.cache_clear()
    yield tmp_path
    ledger.commit.cache_clear()


def _git(folder, *arguments):
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_says_when_the_code_differs(repository):
    _git(repository, "-c", "init.defaultBranch=main", "init", "-q")
    _git(repository, "add", ".")
    _git(repository, "commit", "-qm", "first")
    head = _git(repository, "rev-parse", "--short", "HEAD")
    (repository / "data/results/a.csv").write_text("recorded rows are no change of the code")
    assert ledger.commit() == head
    (repository / "saecore" / "a.py").write_text("2")
    assert ledger.commit() == head, "asked once: the process runs what it loaded"
    ledger.commit.cache_clear()
    assert ledger.commit() == f"{head}-dirty"


def test_commit_without_git(repository, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    assert ledger.commit() == "unknown"
    ledger.commit.cache_clear()
    monkeypatch.setenv(ledger.COMMIT, "abc1234")
    assert ledger.commit() == "abc1234"


def test_device_is_a_plain_name():
    name = ledger.device("cpu")
    assert name and name == name.strip() and "  " not in name and "(R)" not in name
