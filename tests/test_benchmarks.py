"""The benchmark's bookkeeping, on made rounds: no library is run."""

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

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
