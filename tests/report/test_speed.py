"""Rows of the benchmark: which are shown, and what stands beside what."""

import pytest

from saecore import paths
from saecore.report import speed

HEAD = ",".join(speed.COLUMNS)
LINES = """
2026-01-01T00:00,cpu-2t,small,saecore topk,1,50,0.1,9,yes
2026-01-01T00:00,cpu-2t,small,plain topk,1,10,0.1,9,yes
2026-01-02T00:00,cpu-2t,small,saecore topk,2,100,0.1,9,yes
2026-01-02T00:00,cpu-2t,small,plain topk,2,20,0.1,9,yes
2026-01-02T00:00,cpu-2t,small,peer topk,2,25,0.1,9,yes
2026-01-02T00:00,cpu-2t,small,wrong topk,2,777,0.9,9,no
2026-01-02T00:00,cpu-2t,small,peer batch_topk,2,90,0.1,9,yes
2026-01-02T00:00,cpu-2t,small,limit float32,2,200,,9,limit
2026-01-03T00:00,cpu-2t,small,plain topk,3,40,0.1,9,yes
2026-01-02T00:00,nvidia-x,big,saecore topk,2,100,0.1,9,yes
"""


@pytest.fixture
def folder(tmp_path):
    def write(lines: str, name: str = "cpu-2t.csv"):
        (tmp_path / name).write_text(HEAD + "\n" + lines.lstrip())
        return tmp_path

    return write


def test_the_last_run_that_timed_ours_is_shown_without_what_failed(folder):
    table = speed.rows(folder=folder(LINES))
    small = table[table["shape"] == "small"]
    assert set(small["date"]) == {"2026-01-02T00:00"} and "wrong" not in set(small["library"])
    assert len(small) == 5 and small.iloc[0]["milliseconds"] == 10
    assert dict(table.iloc[0][list(speed.SIZES)]) == {"d_model": 128, "n_latents": 512, "k": 8, "batch_size": 2048}


def test_ratios_are_to_the_fastest_of_the_same_architecture_and_to_the_limit(folder):
    small, big = speed.ratios(speed.rows(folder=folder(LINES))).to_dict("records")
    assert small["fastest other"] == "peer" and small["times faster"] == pytest.approx(4)
    assert small["times the float32 limit"] == pytest.approx(2) and small["device"] == "cpu-2t"
    assert big["device"] == "nvidia-x" and big["fastest other"] != big["fastest other"]


def test_a_gpu_is_told_from_a_processor(folder):
    table = speed.rows(folder=folder(LINES))
    assert (speed.devices(table, gpu=True), speed.devices(table, gpu=False)) == ("nvidia-x", "cpu-2t")
    assert speed.devices(table.loc[table["shape"] == "small"], gpu=True) == "none"


def grown(*points: tuple[str, float]) -> str:
    row = "2026-01-02T00:00,cpu-2t,{},{},2,{},0.1,9,yes\n"
    return "".join(row.format(shape, "saecore batch_topk", 1e3 / ms) for shape, ms in points)


POINTS = (("8x100-k4-b10", 4.0), ("8x200-k4-b10", 5.0), ("8x400-k4-b10", 10.0), ("8x100-k8-b10", 6.0))
POINTS += (("8x50-k4-b10", 3.0), ("8x100-k4-b20", 8.0))


def test_growth_follows_one_axis_through_the_centre(folder):
    table = speed.growth(speed.rows(growth=True, folder=folder(grown(*POINTS), "cpu-2t-growth.csv")))
    lines = {axis: list(part["size"]) for axis, part in table.groupby("axis")}
    assert lines == {"n_latents": [50, 100, 200, 400], "k": [4, 8], "batch_size": [10, 20]}
    doubled = speed.per_doubling(table).set_index("axis")["times"]
    assert dict(doubled) == pytest.approx({"n_latents": 2.5**0.5, "k": 1.5, "batch_size": 2.0})
    assert speed.rows(folder=folder("", "other.csv")).empty, "growth lies in files of its own"


def test_without_rows_nothing_is_said(folder):
    empty = speed.rows(folder=folder(""))
    assert empty.empty and speed.ratios(empty).empty and speed.devices(empty, gpu=False) == "none"
    assert speed.growth(empty).empty and speed.per_doubling(speed.growth(empty)).empty


def test_a_shape_without_sizes_is_refused_and_another_benchmark_passed_over(folder, tmp_path):
    (tmp_path / "harvest.csv").write_text("a,b\n1,2\n")
    assert len(speed.rows(folder=folder(LINES))) == 6
    with pytest.raises(speed.SpeedError, match="the shape 'huge' is neither"):
        speed.rows(folder=folder(LINES.replace("small", "huge")))


def test_the_rows_of_the_repository_can_be_read():
    assert not speed.rows().empty and (paths.benchmarks() / "shapes.csv").exists()
    speed.growth(speed.rows(growth=True))


def test_a_harvest_is_compared_with_the_loops_of_its_own_run(tmp_path):
    head = "date,device,model,layer,dataset,what,rows,rows_per_s,peak_mb\n"
    row = "2026-01-0{},cpu-2t,atlas,1,atlas,{},{},{},500\n".format
    rows = [row(1, "harvest", 10, 7), row(2, "plain", 10, 50), row(2, "harvest", 10, 100), row(2, "harvest", 100, 120)]
    (tmp_path / "harvest.csv").write_text(head + "".join(rows))
    found = speed.harvests(tmp_path)
    assert list(found["times"]) == [2.0, 1.0, 100 / 120] and list(found["rows"]) == [10, 10, 100]
