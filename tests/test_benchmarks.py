"""The benchmark's bookkeeping on made rounds, and one small benchmark from end to end."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from saecore.report import speed

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
scoreboard = importlib.import_module("scoreboard")
Round, Row = scoreboard.Round, scoreboard.Row

NAN = float("nan")
PLAIN = Round("plain batch_topk", "1", steps_per_s=10.0, start_loss=2.0, loss=1.0, peak_mb=500.0)
OURS = Round("saecore batch_topk", "2", steps_per_s=60.0, start_loss=2.0, loss=1.005, peak_mb=400.0)
PEER = Round("peer batch_topk", "3", steps_per_s=20.0, start_loss=2.0, loss=0.995, peak_mb=600.0)
WRONG = Round("wrong batch_topk", "4", steps_per_s=777.0, start_loss=2.0, loss=1.2, peak_mb=100.0)
LIMIT = Round("limit float32", "5", steps_per_s=80.0, start_loss=NAN, loss=NAN, peak_mb=90.0)


def summary(*rounds):
    return scoreboard.summarise(rounds, "2026-01-01T00:00", "machine-2t", "small")


def show(*rounds, notes=()):
    return scoreboard.table(summary(*rounds), rounds, notes)


def checked(*rounds):
    return {row.engine: row.checked for row in summary(*rounds)}


def test_a_wrong_loss_hides_the_speed_and_takes_no_part_in_the_ratios():
    text = show(PLAIN, OURS, PEER, WRONG)
    assert checked(PLAIN, OURS, PEER, WRONG)["wrong batch_topk"] == "no"
    assert "777" not in text
    assert "+20.00%" in text
    assert "saecore batch_topk / fastest other batch_topk (peer) = 3.00" in text


def test_no_ratio_for_ours_when_our_own_loss_is_wrong():
    text = show(PLAIN, PEER, replace(OURS, loss=1.02), LIMIT)
    assert "60.00" not in text
    assert text.splitlines()[-1] == "saecore batch_topk: no ratio, its loss did not pass the check"


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(1.0099, "yes"), (1.0101, "no"), (0.9901, "yes"), (0.98, "no"), (NAN, "no"), (math.inf, "no")],
)
def test_the_tolerance_is_one_percent_on_both_sides(loss, verdict):
    assert checked(PLAIN, replace(PEER, loss=loss))["peer batch_topk"] == verdict


def test_one_bad_round_fails_the_engine():
    rounds = [PLAIN, PEER, PEER, replace(PEER, loss=1.5)]
    assert checked(*rounds)["peer batch_topk"] == "no"


def test_nothing_is_checked_without_a_reference():
    assert checked(OURS, PEER) == {"saecore batch_topk": "no", "peer batch_topk": "no"}


def test_nothing_is_checked_where_the_reference_has_not_learned():
    flat = replace(PLAIN, loss=1.9)
    same = replace(PEER, loss=1.9)
    assert checked(flat, same) == {"plain batch_topk": "no", "peer batch_topk": "no"}
    assert "20.00" not in show(flat, same)
    assert "no batch_topk speed is shown" in show(flat, same)


def test_each_architecture_has_its_own_reference():
    other = replace(PLAIN, engine="plain topk", loss=0.5)
    peer = replace(PEER, engine="peer topk", loss=0.5)
    assert checked(PLAIN, other, peer)["peer topk"] == "yes"
    assert checked(PLAIN, other, replace(peer, loss=1.0))["peer topk"] == "no"


def test_the_last_lines_are_the_ratios():
    fast = replace(PEER, engine="peer topk", steps_per_s=30.0, loss=0.5)
    plain = replace(PLAIN, engine="plain topk", steps_per_s=5.0, loss=0.5)
    assert show(PLAIN, OURS, PEER, plain, fast, LIMIT, notes=["a note"]).splitlines()[-4:] == [
        "a note",
        "saecore batch_topk / fastest other batch_topk (peer) = 3.00",
        "saecore batch_topk / fastest other of any architecture (peer) = 2.00",
        "saecore batch_topk / limit float32 = 0.75",
    ]


def test_the_plain_loop_counts_where_it_beats_the_peers():
    assert "(plain) = 2.00" in show(replace(PLAIN, steps_per_s=30.0), OURS, PEER)


def test_a_row_is_the_median_of_its_rounds():
    rounds = [PLAIN, *(replace(PEER, steps_per_s=s, peak_mb=m) for s, m in ((1, 30), (9, 10), (4, 20)))]
    row = summary(*rounds)[1]
    assert (row.steps_per_s, row.peak_mb, row.version, row.device, row.shape) == (
        4,
        20,
        "3",
        "machine-2t",
        "small",
    )


def test_a_limit_is_shown_without_a_loss():
    line = next(line for line in show(PLAIN, LIMIT).splitlines() if line.startswith("limit"))
    assert line.split() == ["limit", "float32", "5", "80.00", "80.00-80.00", "-", "-", "90", "limit"]


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "machine.csv"
    scoreboard.append(path, summary(PLAIN, WRONG))
    scoreboard.append(path, summary(LIMIT))
    assert path.read_text().splitlines() == [
        "date,device,shape,engine,version,steps_per_s,loss,peak_mb,checked",
        "2026-01-01T00:00,machine-2t,small,plain batch_topk,1,10,1,500,yes",
        "2026-01-01T00:00,machine-2t,small,wrong batch_topk,4,777,1.2,100,no",
        "2026-01-01T00:00,machine-2t,small,limit float32,5,80,,90,limit",
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "machine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="move it away"):
        scoreboard.append(path, summary(PLAIN))
    assert path.read_text() == "a,b\n1,2\n"


def answered(engine, shape="small", **changed):
    made = {"engine": engine, "version": "1", "steps_per_s": 9.0, "start_loss": 2.0, "loss": 1.0, "peak_mb": 5.0}
    return {"shape": shape, "engine": engine, "round": made | changed}


def settle(answers, path, **options):
    return scoreboard.settle("small", answers, "2026-01-01T00:00", "machine-2t", path, **options)


def test_an_engine_without_an_answer_is_named_and_has_no_row(tmp_path):
    answers = [answered("plain topk"), answered("a topk"), {"shape": "small", "engine": "b topk", "failure": "why not"}]
    twice = [*answers, answered("b topk"), answered("plain topk", "big", steps_per_s=3.0)]
    text = settle(twice, tmp_path / "rows.csv")
    assert "b topk: why not" in text.splitlines()
    kept = (tmp_path / "rows.csv").read_text()
    assert "a topk" in kept and "b topk" not in kept and "big" not in kept


def test_rows_are_not_kept_where_others_used_the_processor(tmp_path):
    path = tmp_path / "rows.csv"
    text = settle([answered("plain topk"), answered("a topk", others=scoreboard.QUIET + 0.01)], path)
    assert "rows not kept: other programs used 16%" in text and not path.exists()
    settle([answered("plain topk"), answered("a topk", others=scoreboard.QUIET)], path)
    assert path.exists()


def test_growth_takes_a_line_in_which_a_wrong_loss_has_no_speed(tmp_path):
    text = settle([answered("plain topk"), answered("a topk", loss=1.2)], tmp_path / "rows.csv", brief=True)
    assert text == "small, plain topk 111 ms"


def test_a_device_is_a_plain_slug():
    name = scoreboard.device(2)
    assert name.endswith("-2t")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_problem_is_one_start_one_stream_and_the_scale_that_no_clip_touches():
    torch = pytest.importorskip("torch")
    problem = importlib.import_module("problem")
    shape = problem.Shape(d_model=16, n_features=64, n_latents=64, k=4, batch_size=256, learning_rate=1e-3, steps=5)
    made = [problem.make(shape, 5, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(made[0].stream, made[1].stream)
    assert made[0].stream.shape == (5, 256, 16)
    assert made[0].held_out.shape == (problem.HELD_OUT_BATCHES, 256, 16)
    torch.testing.assert_close(made[0].start.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(made[0].stream.square().sum(-1).mean(), torch.tensor(0.5))
    assert torch.equal(made[0].batch(7), made[0].batch(2))


@pytest.mark.parametrize("architecture", ["batch_topk", "topk"])
def test_ours_trains_like_the_plain_loop(architecture):
    torch = pytest.importorskip("torch")
    problem, engines = importlib.import_module("problem"), importlib.import_module("engines")
    shape = problem.Shape(d_model=24, n_features=96, n_latents=96, k=4, batch_size=128, learning_rate=1e-3, steps=30)
    data = problem.make(shape, 30, torch.Generator().manual_seed(2))
    losses = []
    for build in (engines.plain, engines.saecore):
        engine = build(shape, data, architecture, 30)
        for step in range(30):
            engine.step(data.batch(step))
        with torch.no_grad():
            losses.append(
                float(torch.stack([(engine.reconstruct(x) - x).square().mean() for x in data.held_out]).mean())
            )
    assert scoreboard.agrees(losses[1], losses[0])


def test_a_shape_can_be_written_out():
    problem = importlib.import_module("problem")
    shape = problem.Shape.named("256x4096-k16-b1024")
    assert (shape.d_model, shape.n_latents, shape.k, shape.batch_size) == (256, 4096, 16, 1024)
    assert str(shape) == "256x4096-k16-b1024" and problem.Shape.named("big") is problem.SHAPES["big"]
    with pytest.raises(ValueError, match="shape 'huge' is none of synthetic,"):
        problem.Shape.named("huge")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_growth_moves_one_axis_at_a_time_around_the_centre(kind):
    problem = importlib.import_module("problem")
    centre, factors = problem.GROWTH[kind]
    names = problem.growth(kind)
    assert len(names) == len(set(names)) == 1 + 3 * (len(factors) - 1) and str(centre) in names
    sizes = [(s.n_latents, s.k, s.batch_size) for s in map(problem.Shape.named, names)]
    same = [sum(a == b for a, b in zip(s, (centre.n_latents, centre.k, centre.batch_size), strict=True)) for s in sizes]
    assert sorted(set(same)) == [2, 3]


def test_every_engine_has_a_library_and_ours_comes_last():
    engines = importlib.import_module("engines")
    assert {engines.package(e) for e in engines.ENGINES} == set(engines.LIBRARIES)
    assert engines.package("sae-lens-bf16 topk") == "sae-lens" and list(engines.LIBRARIES)[-1] == scoreboard.OURS


@pytest.fixture
def bench():
    pytest.importorskip("psutil")
    return importlib.import_module("run")


def test_a_library_that_is_not_there_is_told_from_a_broken_one(bench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lame_library.py").write_text("import no_such_part")
    (tmp_path / "broken_library.py").write_text("1 / 0")
    assert bench.importable("json") == ""
    assert bench.importable("no_such_library.part") == "not installed"
    assert bench.importable("lame_library") == "cannot be imported without no_such_part"
    assert bench.importable("broken_library") == "cannot be imported (ZeroDivisionError: division by zero)"


@pytest.fixture
def plan(bench):
    jobs = [("small", "a topk"), ("small", "b topk"), ("small", "c topk")]
    return bench.Plan("a", jobs, "cpu", threads=1, steps=1, least_seconds=0.0, seconds=30.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the patched body reaches a forked process only")
def test_a_measurement_that_dies_or_hangs_is_named(bench, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "work", lambda *_: os._exit(3))
    assert "ended with code 3" in bench.alone(plan, "small", "a topk", tmp_path, 30)["failure"]
    monkeypatch.setattr(bench, "work", lambda *_: time.sleep(60))
    assert bench.alone(plan, "small", "a topk", tmp_path, 0.2) == {"failure": bench.OUT_OF_TIME}
    assert bench.alone(plan, "small", "a topk", tmp_path, 0.0) == {"failure": bench.OUT_OF_TIME}


def test_a_failure_is_the_first_line_of_its_error(bench, plan, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no room\nand more")

    monkeypatch.setattr(bench, "train", fail)
    assert bench.work(plan, "small", "a topk", tmp_path) == {"failure": "MemoryError: no room"}
    assert json.loads((tmp_path / bench.ANSWER).read_text()) == {"failure": "MemoryError: no room"}


def test_on_a_gpu_a_process_ends_where_one_fails(bench, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "work", lambda _, shape, engine, folder: {"failure": "x"} if engine[0] == "b" else {})
    monkeypatch.setattr(bench, "importable", lambda _: "")
    bench.serve(bench.replace(plan, package="plain", device="cuda"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / bench.ANSWERS).read_text().splitlines()]
    assert [(line["engine"], line.get("failure")) for line in lines] == [("a topk", None), ("b topk", "x")]


def test_a_library_that_is_not_there_answers_for_all_its_engines(bench, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "importable", lambda _: "not installed")
    for device in ("cpu", "cuda"):
        bench.serve(bench.replace(plan, package="plain", device=device), tmp_path)
    lines = (tmp_path / bench.ANSWERS).read_text().splitlines()
    assert len(lines) == 6 and {json.loads(line)["failure"] for line in lines} == {"not installed"}


def test_after_a_crash_the_next_process_goes_on(bench, plan, tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append([job[1] for job in json.loads(command[command.index("--worker") + 1])["jobs"]])
        if asked[-1][0] == "b topk":
            return subprocess.CompletedProcess(command, -11)
        (tmp_path / bench.ANSWERS).write_text(json.dumps(answered(asked[-1][0])) + "\n")
        return subprocess.CompletedProcess(command, 0 if len(asked[-1]) == 1 else -11)

    monkeypatch.setattr(bench.subprocess, "run", run)
    found = {a["engine"]: a.get("failure") for a in bench.measure(plan, tmp_path)}
    assert asked == [["a topk", "b topk", "c topk"], ["c topk"]]
    assert found["a topk"] is None and found["c topk"] is None and "code -11" in found["b topk"]


def test_what_there_was_no_time_for_is_named(bench, plan, tmp_path, monkeypatch):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(bench.subprocess, "run", run)
    ticks = iter([0.0, 0.0, 0.0, 31.0])
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(ticks))
    assert {a["failure"] for a in bench.measure(plan, tmp_path)} == {bench.OUT_OF_TIME}


@pytest.mark.parametrize("name", ["run", "crossover"])
def test_without_a_gpu_nothing_starts(name, monkeypatch, capsys):
    monkeypatch.setattr(scoreboard, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--device", "cuda"])
    assert "PyTorch sees no GPU here" in capsys.readouterr().err


def test_a_benchmark_from_end_to_end(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.LEAST_SECONDS, "cpu", 0.01)
    monkeypatch.setattr(scoreboard, "QUIET", 1.0)
    words = "--shape 24x96-k4-b128 --steps 30 --rounds 1 --threads 1 --results".split()
    assert bench.main([*words, str(tmp_path), "--engines", "plain topk", "limit float32", "saecore topk"]) == 0
    text = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert {row[3]: row[8] for row in rows} == {"limit float32": "limit", "plain topk": "yes", "saecore topk": "yes"}
    assert {row[2] for row in rows} == {"24x96-k4-b128"} and all(float(row[5]) > 0 for row in rows)
    assert text.splitlines()[-1].startswith("saecore topk / limit float32 = ")


@pytest.fixture
def gpu():
    return importlib.import_module("gpu")


def stage(gpu, name, code, **options):
    return gpu.Stage(name, [sys.executable, "-c", code], minutes=1, **options)


def test_a_stage_that_fails_or_hangs_is_named(gpu, tmp_path):
    log = tmp_path / "log"
    good = gpu.run(stage(gpu, "good", "print('here')"), 30, log)
    bad = gpu.run(stage(gpu, "bad", "import sys; print('x'); sys.exit('no luck')"), 30, log)
    slow = gpu.run(stage(gpu, "slow", "import time; print('began', flush=True); time.sleep(60)"), 1, log)
    assert (good.words, good.output) == ("done", "here\n")
    assert bad.words == "failed (code 1); last words: no luck"
    assert slow.words.startswith("stopped, its time was up") and slow.output == "began\n"
    assert "== bad: failed" in log.read_text() and "no luck" in log.read_text()


def test_the_speeds_are_printed_last(gpu):
    made = [
        gpu.Outcome(stage(gpu, name, "", shown=name != "tests"), 1.0, "done", f"words of {name}\n")
        for name in ("tests", "speed", "growth")
    ]
    text = gpu.report(made)
    assert "words of tests" not in text and text.index("words of growth") < text.index("words of speed")
    assert text.splitlines()[0].split() == ["tests", "1", "s", "done"]


def test_the_stages_of_a_gpu_leave_time_for_the_runs(gpu, tmp_path):
    named = {s.name: s for s in gpu.stages(tmp_path, tmp_path)}
    assert sum(s.minutes for s in named.values()) <= 8.2 and named["recovery"].minutes == 0
    shapes = named["speed"].command
    assert all(s in importlib.import_module("problem").SHAPES for s in gpu.SHAPES) and set(gpu.SHAPES) <= set(shapes)
    assert [name for name, s in named.items() if s.site == tmp_path] == ["speed"]


def test_every_test_that_needs_a_gpu_is_run_there(gpu):
    files = (p for p in (gpu.ROOT / "tests").rglob("test_*.py") if p != Path(__file__))
    assert sorted(gpu.TESTS) == sorted(
        str(p.relative_to(gpu.ROOT)) for p in files if "pytest.mark.gpu" in p.read_text(encoding="utf-8")
    )


def test_a_stage_finds_the_package_and_the_peers_where_neither_is_installed(gpu, tmp_path, monkeypatch):
    """``-S`` hides what is installed."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, "-S", "benchmarks/crossover.py", "--help"]
    done = gpu.run(gpu.Stage("crossover", command, 1), 30, tmp_path / "log")
    assert done.words == "done" and "--shares" in done.output
    (tmp_path / "peer.py").write_text("print('a peer')")
    peer = gpu.Stage("speed", [sys.executable, "-S", "-c", "import peer, saecore"], 1, site=tmp_path)
    assert gpu.run(peer, 30, tmp_path / "log").output == "a peer\n"


def test_without_wheels_only_what_is_installed_takes_part(gpu):
    assert "only peers that are installed" in gpu.unpack(gpu.ROOT / "build" / "none", gpu.ROOT / "build" / "site")


@pytest.fixture
def crossover():
    return importlib.import_module("crossover")


def points(dense, agree=True):
    lines = zip((0.1, 0.2, 0.4), (2.0, 4.0, 8.0), dense, strict=True)
    names = ["share", "kernels_ms", "definition_ms", "agree"]
    return pandas.DataFrame([(*line, agree) for line in lines], columns=pandas.Index(names))


@pytest.mark.parametrize(
    ("dense", "words"),
    [
        ((4.0, 4.0, 4.0), "the definition is faster from a share of 0.2 on"),
        ((1.0, 4.0, 4.0), "the definition is faster from a share of 0.1 on"),
        ((4.0, 5.0, 6.4), "the definition is faster from a share of 0.283 on"),
        ((9.0, 9.0, 9.0), "the kernels are faster up to 0.4 at least"),
    ],
)
def test_a_crossover_lies_where_the_lines_meet(crossover, dense, words):
    assert crossover.table(points(dense)).splitlines()[-1] == words


def test_no_time_is_shown_without_a_check(crossover):
    text = crossover.table(points((777.0, 1.0, 1.0), agree=False))
    assert "777" not in text and "no crossover" in text


def test_crossovers_are_kept_and_read(crossover, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoreboard, "QUIET", 1.0)
    words = "--shape 24x96-k1-b64 --shares 0.1 0.4 --steps 2 --threads 1 --results".split()
    for _ in range(2):
        assert crossover.main([*words, str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    assert file.stem.endswith("-crossover") and len(pandas.read_csv(file)) == 8
    found = speed.crossovers(tmp_path)
    assert list(found["architecture"]) == ["relu", "topk"] and set(found["shape"]) == {"24x96-b64"}
    monkeypatch.setattr(scoreboard, "QUIET", -1.0)
    assert crossover.main([*words, str(tmp_path)]) == 0 and len(pandas.read_csv(file)) == 8
    assert "rows not kept" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_both_paths_learn_and_are_timed_where_they_stand(crossover, architecture, monkeypatch):
    made, starts, make = [], [], crossover.trainer

    def keep(*args):
        made.append(make(*args))
        starts.append(made[-1].sae.W_enc.detach().clone())
        return made[-1]

    monkeypatch.setattr(crossover, "trainer", keep)
    point = crossover.measure("24x96-k1-b512", architecture, "cpu", share=0.125, steps=5)
    assert point["share"] == pytest.approx(0.125, abs=0.04) and point["agree"]
    assert point["kernels_ms"] > 0 and point["definition_ms"] > 0
    moved = [float((t.sae.W_enc - start).detach().abs().max()) > 1e-5 for t, start in zip(made, starts, strict=True)]
    assert [t.path for t in made] == ["cpu", "dense"] * 2 and moved == [True, True, False, False]


def test_a_step_that_falls_back_to_the_definition_is_no_measurement(crossover, monkeypatch):
    monkeypatch.setattr(crossover, "ROOM", 0.5)
    assert not crossover.measure("24x96-k1-b64", "relu", "cpu", share=0.125, steps=2)["agree"]


@pytest.mark.parametrize(("architecture", "name"), [("relu", "DENSE_SHARE"), ("topk", "DENSE_SHARE_RANKED")])
def test_the_trainer_changes_over_about_where_the_definition_was_measured_to_be_faster(architecture, name):
    found = speed.crossovers().query("device == 'amd-epyc-2t' and architecture == @architecture")
    share = getattr(importlib.import_module("saecore.training.loop"), name)
    assert 0.6 <= share / found["crossover"].min() <= 1.4


@pytest.mark.parametrize("kind", ["named", "cpu", "cuda"])
def test_the_spec_of_every_shape_is_allowed(kind):
    """Built without memory: the largest would take gigabytes."""
    torch = pytest.importorskip("torch")
    problem, engines = importlib.import_module("problem"), importlib.import_module("engines")
    for name in problem.SHAPES if kind == "named" else problem.growth(kind):
        shape = problem.Shape.named(name)
        start = torch.empty(shape.n_latents, shape.d_model, device="meta")
        data = problem.Problem(start, torch.empty(0), torch.empty(0))
        for architecture in ("topk", "batch_topk"):
            assert engines.saecore(shape, data, architecture, shape.steps).reconstruct is not None
