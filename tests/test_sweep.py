"""Sweeps: what a file says is what runs, once, and an interrupted one goes on."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from saecore import cli, paths, sweep
from saecore.report import ledger
from saecore.spec import SpecError

SMALL = """
experiment: tiny
defaults: {training.steps: 60, source.n_features: 24, source.d_model: 8, source.expected_l0: 2, sae.l0: 2,
           training.batch_size: 64}
blocks:
  - {probability: constant, seed: [0, 1], architecture: [topk, batch_topk]}
  - {probability: constant, seed: 0, architecture: topk, constraint: [frozen_decoder, untrained]}
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "results"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "tiny.yml"
    path.write_text(text)
    return path


def test_a_file_gives_the_product_of_its_lists_in_groups_that_share_samples(tmp_path: Path) -> None:
    experiment, groups = sweep.load(written(tmp_path, SMALL))
    found = [
        [(r.sae.architecture, r.constraint.name, r.source.as_dict()["seed"], r.training.seed) for r in g]
        for g in groups
    ]
    assert experiment == "tiny"
    assert found == [
        [("topk", "free", 0, 0), ("batch_topk", "free", 0, 0)],
        [("topk", "free", 1, 1), ("batch_topk", "free", 1, 1)],
        [("topk", "frozen_decoder", 0, 0), ("topk", "untrained", 0, 0)],
    ]
    assert groups[0][0].sae.n_latents == 24 and groups[0][0].sae.d_model == 8


def test_a_run_that_two_blocks_name_is_there_once(tmp_path: Path) -> None:
    twice = SMALL + "  - {probability: constant, seed: 0, architecture: topk}\n"
    assert sum(len(g) for g in sweep.load(written(tmp_path, twice))[1]) == 6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("experiment: tiny", "experiment: tiny\nblock: []", r"unknown entry \['block'\]"),
        ("training.steps", "training.step", r"training has no field \['step'\].*'steps'"),
        ("training.steps", "speed", "field 'speed' is unknown; write part.field"),
        ("[topk, batch_topk]", "[top_k]", "architecture='top_k' is unknown; choose one of"),
        ("sae.l0: 2", "sae.l0: 25", "l0=25 must lie between 1 and n_latents=24"),
    ],
)
def test_a_wrong_file_is_refused_with_the_way_out(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        sweep.load(written(tmp_path, SMALL.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiment: tiny\nblocks:", "blocks a list of such"),
        ("experiment: tiny\nblocks: []", "blocks a list of such"),
        ("experiment: tiny\nblocks: [topk]", "blocks a list of such"),
        ("experiment: tiny\nblocks: {architecture: topk}", "blocks a list of such"),
        ("experiment: tiny\ndefaults: [topk]\nblocks: [{seed: 0}]", "defaults must be fields with values"),
        ("experiment: My-Sweep\nblocks: [{architecture: topk}]", "experiment='My-Sweep' must be lower-case letters"),
        ("experiment: tiny\nblocks: [{seed: 0}]", "a run lacks sae.architecture"),
        ("experiment: tiny\nblocks: [{source.model: atlas, source.layer: 1}]", "lacks source.dataset, source.d_model"),
        (
            "experiment: tiny\nblocks: [{architecture: matryoshka, sae.fractions: [1.0]}]",
            r"written \[\[0.5, 0.5\]\]",
        ),
        ("experiment: tiny\nblocks: [{5: topk}]", "field 5 is unknown; write part.field"),
        ("experiment: tiny\n5: 6\nblocks: [{seed: 0}]\nblock: 1", r"unknown entry \['5', 'block'\]"),
        (
            "experiment: tiny\nblocks: [{architecture: topk, training.learning_rate: 3e-3}]",
            "learning_rate='3e-3' is a str; write it as float; YAML takes 3e-3 for text and 3.0e-3 for a number",
        ),
        ("experiment: caf\xe9", "tiny.yml is not YAML in UTF-8"),
    ],
)
def test_a_plausible_mistake_is_refused_with_the_way_out(places: Path, capsys, text: str, said: str) -> None:
    path = places / "tiny.yml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=said):
        sweep.load(path)
    assert cli.main(["run", str(path), "--plan"]) == cli.REFUSED
    assert "saecore: " in capsys.readouterr().err


def test_what_may_be_left_empty_or_be_a_number_is_taken(tmp_path: Path) -> None:
    text = "experiment: 5\ndefaults:\nblocks: [{architecture: matryoshka, sae.fractions: [[0.5, 0.5], [0.25, 0.75]]}]"
    experiment, groups = sweep.load(written(tmp_path, text))
    assert experiment == "5"
    assert [run.sae.fractions for group in groups for run in group] == [(0.5, 0.5), (0.25, 0.75)]


def test_parts_share_the_groups_out(tmp_path: Path) -> None:
    groups = sweep.load(written(tmp_path, SMALL))[1]
    assert sweep.part(groups, "1/2") == [groups[0], groups[2]]
    assert sweep.part(groups, "2/2") == [groups[1]]


@pytest.mark.parametrize("share", ["0/2", "3/2", "half", "1/", "/2"])
def test_a_part_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(SpecError, match="is not of the form I/N"):
        sweep.part([], share)


def test_an_unknown_sweep_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(SpecError, match="no sweep 'nothing'.*feature_recovery"):
        sweep.find("nothing")


def test_the_books_sweeps_are_valid() -> None:
    for path in (paths.book() / "sweeps").glob("*.yml"):
        assert sum(len(group) for group in sweep.load(path)[1]) > 1


def test_every_run_is_recorded_and_none_twice(places: Path) -> None:
    experiment, groups = sweep.load(written(places, SMALL))
    sweep.run_all(experiment, groups)
    frame = ledger.read("tiny")
    runs = {run.key() for group in groups for run in group}
    assert set(frame["key"]) == runs == ledger.finished("tiny")
    assert {p.stem for p in (places / "cache" / "saes").iterdir()} == runs
    assert not list((places / "cache" / "training").glob("*"))
    before = ledger.path("tiny").read_bytes()
    sweep.run_all(experiment, groups)
    assert ledger.path("tiny").read_bytes() == before


def test_saes_that_are_not_in_the_cache_are_trained_again_and_no_row_changes(places: Path, capsys) -> None:
    """Rows of another device would stand beside the new ones; they stay alone."""
    path = written(places, SMALL)
    groups = sweep.load(path)[1][:1]
    sweep.run_all("tiny", groups)
    first, second = (sweep.sae_path(run) for run in groups[0])
    whole = first.read_bytes()
    recorded = ledger.path("tiny")
    recorded.write_text(recorded.read_text().replace(ledger.device(), "a shipped machine"))
    before, stood = recorded.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    states = []
    for options in ([], ["--saes"]):
        assert cli.main(["run", str(path), "--part", "1/3", "--plan", *options]) == 0
        states.append([line.split()[1] for line in capsys.readouterr().out.splitlines()])
    assert states == [["recorded", "recorded"], ["to", "recorded"]]
    assert cli.main(["run", str(path), "--part", "1/3"]) == 0 and not first.exists()
    assert cli.main(["run", str(path), "--part", "1/3", "--saes"]) == 0
    assert first.read_bytes() == whole and second.stat().st_mtime_ns == stood
    assert recorded.read_bytes() == before and not list((places / "cache" / "training").glob("*"))


def test_an_interrupted_sweep_ends_where_an_uninterrupted_one_does(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, groups = sweep.load(written(places, SMALL.replace("training.steps: 60", "training.steps: 1100")))
    group = groups[:1]
    sweep.run_all(experiment, group)
    whole = sweep.sae_path(group[0][0]).read_bytes()
    monkeypatch.setenv(paths.CACHE, str(places / "second"))
    monkeypatch.setenv(paths.RESULTS, str(places / "second"))
    monkeypatch.setattr(sweep, "SAVE_SECONDS", 0)
    train, calls = sweep.train_many, []

    def stops(trainers, source, steps, watch):
        calls.append(steps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(trainers, source, steps, watch)

    monkeypatch.setattr(sweep, "train_many", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_all(experiment, group)
    sweep.run_all(experiment, group)
    assert sweep.sae_path(group[0][0]).read_bytes() == whole


def test_a_sweep_told_to_end_goes_on_from_that_step(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle, where the learning curve is read, and while an SAE is measured; no value is missing at the end."""
    path = written(places, SMALL.replace("training.steps: 60", "training.steps: 520"))
    experiment, groups = sweep.load(path)
    group = groups[:1]
    sweep.run_all(experiment, group)
    whole, rows = [sweep.sae_path(run).read_bytes() for run in group[0]], values()
    monkeypatch.setenv(paths.CACHE, str(places / "second"))
    monkeypatch.setenv(paths.RESULTS, str(places / "second"))
    ends, train, conclude = [300, 500], sweep.train_many, sweep._conclude
    steps: list[int] = []

    def train_until(trainers, source, stop, watch):
        def told(trainer, loss):
            if trainer is trainers[0] and trainer.steps_done in ends:
                ends.remove(trainer.steps_done)
                signal.raise_signal(signal.SIGTERM)
            watch(trainer, loss)

        steps.extend(t.steps_done for t in trainers)
        train(trainers, source, stop, told)

    def concluded(experiment, trainer, *more):
        if trainer.run == group[0][1] and len(steps) == 8:
            signal.raise_signal(signal.SIGTERM)
        conclude(experiment, trainer, *more)

    monkeypatch.setattr(sweep, "train_many", train_until)
    monkeypatch.setattr(sweep, "_conclude", concluded)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command has it
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                sweep.run_all(experiment, group)
    finally:
        signal.signal(signal.SIGTERM, before)
    sweep.run_all(experiment, group)
    assert steps == [0, 0, 300, 299, 500, 500, 500, 500, 520, 520] and not list((places / "second/training").iterdir())
    assert [sweep.sae_path(run).read_bytes() for run in group[0]] == whole
    pd.testing.assert_frame_equal(values(), rows)


def values() -> pd.DataFrame:
    """What is recorded, but when and for how long."""
    found = ledger.read("tiny").sort_values(["key", "step", "metric"], ignore_index=True)
    return found.loc[:, ["key", "step", "metric", "value"]]


def test_the_command_says_that_it_goes_on(places: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sweep, "run_all", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    try:
        assert cli.main(["run", str(written(places, SMALL))]) == cli.FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped; the same command goes on from there" in capsys.readouterr().err


def test_the_command_plans_runs_and_refuses(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(places, SMALL))
    assert cli.main(["run", path, "--plan"]) == 0
    assert capsys.readouterr().out.count("to run") == 6
    assert cli.main(["run", path, "--part", "3/3"]) == 0
    assert cli.main(["run", path, "--plan"]) == 0
    assert capsys.readouterr().out.count(" recorded ") == 2
    assert cli.main(["run", "nothing"]) == cli.REFUSED
    assert "no sweep 'nothing'" in capsys.readouterr().err


def test_a_run_that_diverges_is_named_with_its_reason_and_the_others_are_recorded(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(places, SMALL.split("blocks")[0] + "blocks:\n  - {seed: 0, architecture: topk, "
                   "training.learning_rate: [0.003, 1.0e+30]}\n")  # fmt: skip
    assert cli.main(["run", str(path)]) == cli.FAILED
    sound, wild = [run.key() for group in sweep.load(path)[1] for run in group]
    assert ledger.finished("tiny") == {sound}
    last = capsys.readouterr().err.split("saecore: ")[-1]
    assert "1 of 2 runs are not recorded" in last and f"  {wild}: loss=" in last and "learning rate is too high" in last


def test_a_sweep_of_nothing_is_refused(places: Path, capsys) -> None:
    path = written(places, SMALL.split("blocks")[0] + "blocks:\n  - {architecture: topk, seed: []}\n")
    assert cli.main(["run", str(path), "--plan"]) == cli.REFUSED
    assert "tiny.yml holds no run; give every list a value" in capsys.readouterr().err


def test_a_plan_may_be_cut_off_by_its_reader(places: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "saecore", "run", str(written(places, SMALL)), "--plan"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_that_nobody_foresaw_is_not_hidden(places: Path, monkeypatch) -> None:
    def lost(*_, **__) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(sweep, "run_all", lost)
    with pytest.raises(FileNotFoundError):
        cli.main(["run", str(written(places, SMALL))])


@pytest.mark.parametrize(
    ("writer", "code", "said"),
    [
        ("saecore.saes.checkpoint.save_file", cli.FAILED, f"No space left on device; .* {paths.CACHE}"),
        ("saecore.report.ledger._write", cli.FAILED, rf"cannot write .*tiny.csv \(No space left.* {paths.RESULTS}"),
    ],
)
def test_a_full_disk_ends_in_a_message(places: Path, monkeypatch, capsys, writer: str, code: int, said: str) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, full)
    assert cli.main(["run", str(written(places, SMALL)), "--part", "3/3"]) == code
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("threads", ["-1", "0"])
@pytest.mark.parametrize("command", ["run tiny", "measure sparse_probing tiny", "atlas train"])
def test_threads_are_at_least_one(command: str, threads: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--threads", threads])
    assert ended.value.code == cli.REFUSED and f"{threads} must be at least 1" in capsys.readouterr().err


def test_a_damaged_ledger_is_named_by_the_plan(places: Path, capsys) -> None:
    ledger.path("tiny").parent.mkdir()
    ledger.path("tiny").write_text("key,value\n")
    assert cli.main(["run", str(written(places, SMALL)), "--plan"]) == cli.REFUSED
    assert "tiny.csv does not have the ledger's columns" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(places: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (places / "file").write_text("")
    monkeypatch.setenv(paths.CACHE, str(places / "file" / "cache"))
    assert cli.main(["run", str(written(places, SMALL))]) == cli.REFUSED
    assert "cannot write" in capsys.readouterr().err
