"""Activations on the disk: what is written, in which order it is read, and what is refused."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saecore import cli, paths
from saecore.activations import ActivationStore, ActivationStream, StoreError, harvest, models, open_source, plan
from saecore.activations.manifest import folder
from saecore.activations.rows import START, RowReader, by_length
from saecore.activations.scale import InputScale
from saecore.sources import text
from saecore.sources.base import EVALUATION
from saecore.sources.text import TextError
from saecore.spec import ActivationSpec, SpecError

pytest.importorskip("transformers")

ROWS, SHARD = 3000, 700


@pytest.fixture(scope="module")
def spec(tiny, words) -> ActivationSpec:
    return ActivationSpec(str(tiny("llama")), 1, str(words), d_model=32, rows=ROWS, context=24)


@pytest.fixture(scope="module")
def model(spec):
    return models.load(spec.model)


@pytest.fixture(scope="module")
def harvested(spec, model, tmp_path_factory) -> Path:
    """A cache with the whole store, which no test may change."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.CACHE, str(cache))
        harvest(spec, model=model, shard_rows=SHARD)
    return cache


@pytest.fixture
def store(spec, harvested, monkeypatch) -> ActivationStore:
    monkeypatch.setenv(paths.CACHE, str(harvested))
    return ActivationStore(spec)


@pytest.fixture
def copied(spec, harvested, tmp_path, monkeypatch) -> Path:
    """The folder of a store of one's own."""
    shutil.copytree(harvested, tmp_path / "cache")
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    return folder(spec)


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(store: ActivationStore, part: str) -> torch.Tensor:
    """A part's rows as they lie in the files."""
    shards = getattr(store.manifest, part).shards
    return torch.cat([load_file(folder(store.spec) / shard.name)["x"] for shard in shards]).float()


def same_rows(one: torch.Tensor, other: torch.Tensor, atol: float = 0) -> bool:
    """Whether both hold the same rows in any order, as seen along four directions."""
    directions = torch.randn(one.shape[1], 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = ((rows.double() @ directions).sort(0).values for rows in (one, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol or 1e-12)


def alone(model, spec: ActivationSpec, split: str) -> torch.Tensor:
    """Raw kept rows of every document, each run through the model by itself."""
    rows = []
    for document in text.documents(spec.dataset, split):
        tokens = model.tokenize([document], spec.context)
        rows.append(model.residual(tokens, spec.layer)[tokens.keep])
    return torch.cat(rows)


def test_a_store_holds_the_models_rows(spec, model, empty):
    train, test = alone(model, spec, "train"), alone(model, spec, "test")
    whole = ActivationSpec(**{**spec.as_dict(), "rows": len(train)})
    harvest(whole, model=model, shard_rows=SHARD)
    store = ActivationStore(whole)
    scale, limit = store.scale, store.manifest.scale.norm_limit
    assert float(train.norm(dim=1).max()) < limit
    assert scale == pytest.approx((32 / (train - train.mean(0)).square().sum(1).mean().item()) ** 0.5, rel=0.02)
    assert same_rows(stored(store, "train"), train * scale, atol=0.05)
    assert not same_rows(stored(store, "train"), train * (1.01 * scale), atol=0.05)
    assert len(stored(store, "test")) == len(train) // 10 < len(test)
    assert [shard.rows for shard in store.manifest.train.shards[:-1]] == [SHARD] * (len(train) // SHARD)


def test_rows_of_one_document_do_not_lie_together(spec, model, store):
    """A row's nearest in the text is seldom its neighbour in the shard."""
    reader = RowReader(model, spec, "train", store.manifest.scale, store.manifest.call_positions)
    text_order = reader.take(SHARD).float()
    shard = load_file(folder(spec) / store.manifest.train.shards[0].name)["x"].float()
    assert same_rows(text_order, shard)
    assert float((text_order == shard).all(1).float().mean()) < 0.05


def test_massive_rows_are_dropped_and_counted(spec, model, empty, monkeypatch):
    monkeypatch.setattr("saecore.activations.scale.MASSIVE", 1.0)
    harvest(spec, model=model, shard_rows=SHARD)
    store = ActivationStore(spec)
    assert store.rows == ROWS
    dropped = sum(shard.dropped for shard in store.manifest.train.shards)
    assert 0.3 < dropped / (ROWS + dropped) < 0.7
    assert float(stored(store, "train").norm(dim=1).max()) <= 1.001 * store.scale * store.manifest.scale.norm_limit


def test_an_epoch_has_every_row_once(store):
    for stream, epoch in [(0, 0), (0, 1), (6, 0)]:
        rows = torch.cat([store.batch(250, epoch * 12 + step, stream).x for step in range(12)])
        assert same_rows(rows, stored(store, "train"))


def test_batches_are_the_same_again_and_differ_between_steps_seeds_and_epochs(spec, store):
    again = ActivationStore(spec)
    first = again.batch(100, 7, 2).x
    assert first.dtype == torch.float32 and first.shape == (100, 32)
    assert torch.equal(first, store.batch(100, 7, 2).x)
    for other in (store.batch(100, 8, 2), store.batch(100, 7, 4), store.batch(100, 37, 2)):
        assert not torch.equal(first, other.x)


@pytest.mark.parametrize("n", [1, 63, 64, 999, 7001])
def test_batches_of_any_size_are_cut_from_one_stream(n, store):
    whole = store.batch(21_003, 0).x
    parts = torch.cat([store.batch(n, step).x for step in range(21_003 // n if n > 1 else 300)])
    assert torch.equal(parts, whole[: len(parts)])


def test_a_store_may_have_more_shards_than_a_process_may_open(spec, model, empty):
    resource = pytest.importorskip("resource")
    small = ActivationSpec(**{**spec.as_dict(), "rows": 600})
    harvest(small, model=model, shard_rows=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 100, hard))
    try:
        many = ActivationStore(small)
        rows = torch.cat([many.batch(100, step).x for step in range(6)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(many.manifest.train.shards) == 150
    assert same_rows(rows, stored(many, "train"))


def test_a_batch_mixes_shards(store):
    shards = [load_file(folder(store.spec) / shard.name)["x"].float() for shard in store.manifest.train.shards]
    batch = store.batch(512, 0).x
    found = [int((torch.cdist(batch, shard).min(1).values == 0).sum()) for shard in shards]
    assert all(found), found


def test_evaluation_reads_the_held_out_rows_in_order_and_starts_over(store):
    held_out = stored(store, "test")
    assert len(held_out) == store.held_out_rows == ROWS // 10
    assert torch.equal(store.batch(100, 1, EVALUATION).x, held_out[100:200])
    assert torch.equal(store.batch(200, 1, EVALUATION).x, torch.cat([held_out[200:], held_out[:100]]))


@pytest.mark.parametrize("stream", [3, -2])
def test_other_streams_are_refused(stream, store):
    with pytest.raises(ValueError, match=f"stream={stream}: even streams train, 1 is held out"):
        store.batch(10, 0, stream)


def test_moments_are_those_of_the_scaled_rows(store):
    rows = stored(store, "train").double()
    assert torch.allclose(store.mean().double(), rows.mean(0), atol=1e-5)
    assert torch.equal(store.start_bias(), store.mean())
    assert torch.allclose(store.covariance().double(), rows.T.cov(correction=0), atol=1e-4)
    assert float(store.covariance().trace()) == pytest.approx(32, rel=0.05)
    assert store.truth is None


def test_a_shard_that_is_gone_is_named(spec, model, empty):
    """A cache may be deleted at any time."""
    small = ActivationSpec(**{**spec.as_dict(), "rows": 200})
    where = harvest(small, model=model)
    there = ActivationStore(small)
    for shard in there.manifest.train.shards:
        (where / shard.name).unlink()
    with pytest.raises(StoreError, match="is gone; harvest it again"):
        there.batch(64, 0)


def test_open_source_harvests_what_is_missing_and_reads_what_is_there(spec, empty, monkeypatch):
    small = ActivationSpec(**{**spec.as_dict(), "rows": 200})
    first = open_source(small)
    assert isinstance(first, ActivationStore)
    monkeypatch.setattr(models, "load", None)  # the model is not needed any more
    assert torch.equal(open_source(small).batch(64, 1).x, first.batch(64, 1).x)


def test_by_length_takes_every_kept_position_once(spec, model):
    batch = model.tokenize(["", *itertools.islice(text.documents(spec.dataset), 50), "cat"], 24)
    parts = list(by_length(batch, positions=100))
    assert sum(int(part.keep.sum()) for part in parts) == int(batch.keep.sum())
    assert max(part.ids.numel() for part in parts) <= 100
    longest_alone = list(by_length(batch, positions=1))
    assert len(longest_alone) == int(batch.keep.any(1).sum())


@pytest.mark.parametrize("first", [1, 17, 640, 2999])
def test_a_reader_goes_on_from_any_row(first, spec, model):
    scale = InputScale(2.0, 8.0, 1)  # drops some
    whole = RowReader(model, spec, "train", scale, 512)
    rows, dropped = whole.take(ROWS), whole.dropped
    begun = RowReader(model, spec, "train", scale, 512)
    begun.take(first)
    resumed = RowReader(model, spec, "train", scale, 512, begun.place)
    assert torch.equal(resumed.take(ROWS - first), rows[first:])
    assert resumed.place == whole.place != START
    assert dropped == begun.dropped + resumed.dropped > 0


KILLED = """
import sys, time, torch
torch.set_num_threads(1)
from saecore.activations import harvest
from saecore.spec import ActivationSpec
model, dataset, rows, shard = sys.argv[1:]
spec = ActivationSpec(model, 1, dataset, d_model=32, rows=int(rows), context=24)
harvest(spec, progress=lambda rows: time.sleep(0.02), shard_rows=int(shard))
"""


def test_a_killed_harvest_ends_with_the_bytes_of_an_uninterrupted_one(spec, harvested, empty):
    wanted = harvested / "activations" / spec.key()
    where = empty / "activations" / spec.key()
    command = [sys.executable, "-c", KILLED, spec.model, spec.dataset, str(ROWS), str(SHARD)]
    for shards in (1, 3):
        process = subprocess.Popen(command, env={**os.environ, paths.CACHE: str(empty)}, stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        while len(list(where.glob("train-*"))) < shards and time.monotonic() < until and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()[1]
        assert process.stderr is not None
        process.stderr.close()
    with pytest.raises(StoreError, match=r"of 3,000 rows; run `saecore harvest .* to go on"):
        ActivationStore(spec)
    (where / ".train-00009.safetensors.1.partial").write_bytes(b"half a shard")
    harvest(spec)
    assert {f.name for f in where.iterdir()} == {f.name for f in wanted.iterdir()}
    for file in wanted.iterdir():
        assert (where / file.name).read_bytes() == file.read_bytes(), file.name


def test_shards_between_kill_and_manifest_are_written_again(spec, model, copied):
    """A kill after a shard's rename and before the manifest's leaves a file that no manifest names."""
    manifest = json.loads((copied / "manifest.json").read_text())
    wanted = (copied / "manifest.json").read_text()
    manifest["train"]["shards"], manifest["test"]["shards"] = manifest["train"]["shards"][:2], []
    (copied / "manifest.json").write_text(json.dumps(manifest))
    harvest(spec, model=model)
    assert (copied / "manifest.json").read_text() == wanted
    assert ActivationStore(spec).rows == ROWS


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "is missing": Path.unlink,
    "has .* bytes, not": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "has SHA-256": flip,
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_shard_is_named_and_written_again(message, part, spec, model, copied):
    ActivationStore(spec)
    shard = copied / f"{part}-00000.safetensors"
    whole, stamp = shard.read_bytes(), (copied / "train-00001.safetensors").stat().st_mtime_ns
    DAMAGE[message](shard)
    with pytest.raises(StoreError, match=rf"{part}-00000.safetensors {message}.*; run `saecore harvest .*`"):
        open_source(spec)
    harvest(spec, model=model)
    assert shard.read_bytes() == whole
    assert (copied / "train-00001.safetensors").stat().st_mtime_ns == stamp
    ActivationStore(spec)


@pytest.mark.parametrize("content", ["", "{}", '{"train": 3}', "[1, 2]"])
def test_a_damaged_manifest_is_named(content, spec, copied):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=rf"manifest.json is damaged.*delete {copied} and run `saecore harvest"):
        ActivationStore(spec)


def test_a_missing_store_says_how_to_make_it(spec, empty):
    said = r"no activations of model.1.words.jsonl in .*; run `saecore harvest .* --rows=3000"
    with pytest.raises(StoreError, match=said):
        ActivationStore(spec)


def test_activations_of_other_weights_are_refused(spec, copied, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(spec.model, other)
    flip(other / "model.safetensors")
    monkeypatch.setattr("saecore.activations.manifest.locate", lambda name: str(other))
    with pytest.raises(StoreError, match=rf"{copied} holds activations of another .*; delete the folder and run"):
        ActivationStore(spec)


def test_a_harvest_does_not_go_on_with_another_text(spec, model, copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["mark"] = [-value for value in manifest["mark"]]
    manifest["test"]["shards"] = []
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"was begun with another .*; delete the folder"):
        harvest(spec, model=model)


def test_a_text_that_ends_says_how_many_rows_it_has(spec, model, empty):
    known = len(alone(model, spec, "train"))
    more = ActivationSpec(**{**spec.as_dict(), "rows": known + 1})
    with pytest.raises(SpecError, match=rf"has only {known:,} rows of training text .*; set rows to at most {known},"):
        harvest(more, model=model, shard_rows=SHARD)


def test_fewer_held_out_rows_are_taken_as_they_are(spec, model, empty, tmp_path):
    """Eleven documents: the long first ones train, the tenth is held out and has three words."""
    path = tmp_path / "few.txt"
    path.write_text("\n\n".join(["the cat sees the big dog " * 10] * 9 + ["a red house"] + ["who"]))
    few = ActivationSpec(spec.model, 1, str(path), d_model=32, rows=400, context=24)
    harvest(few, model=model)
    store = open_source(few)
    assert isinstance(store, ActivationStore) and store.held_out_rows == 3
    assert len(store.batch(10, 0, EVALUATION).x) == 10


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("the cat\n" * 50, TextError, "has no test document: it holds 1 .*blank lines separate documents"),
        ("the cat\n\n" * 9 + "</s>", SpecError, "has no held-out text; give more"),
    ],
    ids=["one document", "no token to keep"],
)
def test_a_text_that_holds_nothing_out_is_refused_at_once(content, error, message, spec, model, empty, monkeypatch):
    """Before the model runs. A document of special tokens alone has nothing to keep."""
    path = empty.with_name("few.txt")
    path.write_text(content)
    few = ActivationSpec(spec.model, 1, str(path), d_model=32, rows=16, context=24)
    monkeypatch.setattr(model, "residual", None)
    for opened in (plan, harvest, ActivationStream):
        with pytest.raises(error, match=message):
            opened(few, model=model)
    assert not list(folder(few).iterdir())


@pytest.mark.parametrize(("field", "value", "message"), [("layer", 3, "choose 0 to 2"), ("d_model", 31, "=32")])
def test_a_spec_that_is_not_the_models_is_refused(field, value, message, spec, model, empty):
    with pytest.raises(SpecError, match=message):
        harvest(ActivationSpec(**{**spec.as_dict(), field: value}), model=model)


def test_a_cache_that_cannot_be_written_is_named(spec, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "file" / "cache"))
    with pytest.raises(paths.PathError, match="cannot write in .*; set SAECORE_CACHE"):
        harvest(spec, model=model)


def test_a_disk_without_room_is_refused_before_anything_is_written(spec, model, empty, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 200_000))
    with pytest.raises(paths.PathError, match=r"has 0.2 MiB free, 0.2 MiB are needed; .*SAECORE_CACHE"):
        harvest(spec, model=model)
    assert not list(folder(spec).iterdir())


def test_a_disk_that_fills_up_leaves_what_stands(spec, model, harvested, empty, monkeypatch):
    write, room = Path.write_bytes, [2]

    def limited(path: Path, content: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", limited)
    with pytest.raises(paths.PathError, match=r"train-00002.* .No space left on device.; free the disk, or .*_CACHE"):
        harvest(spec, model=model, shard_rows=SHARD)
    assert sorted(f.name for f in folder(spec).glob("*")) == [
        "manifest.json", "train-00000.safetensors", "train-00001.safetensors"
    ]  # fmt: skip
    monkeypatch.setattr(Path, "write_bytes", write)
    harvest(spec, model=model)
    wanted = (harvested / "activations" / spec.key() / "manifest.json").read_text()
    assert (folder(spec) / "manifest.json").read_text() == wanted


def test_the_plan_counts_what_is_left(spec, model, copied):
    assert plan(spec, model=model).rows == 0
    (copied / "train-00001.safetensors").unlink()
    found = plan(spec, model=model)
    assert (found.rows, found.bytes) == (SHARD, SHARD * 64) and found.seconds > 0


def test_the_command_line_harvests(spec, empty, capsys):
    command = ["harvest", spec.model, "1", spec.dataset, "--context=24", "--rows=100"]
    assert cli.main([*command, "--plan"]) == 0
    assert capsys.readouterr().out.startswith(f"{spec.name} on {spec.dataset}: 110 rows, 0.0 MiB, about ")
    assert not empty.exists()
    assert cli.main(command) == 0
    small = ActivationSpec(**{**spec.as_dict(), "rows": 100})
    assert capsys.readouterr().out == f"{spec.name} on {spec.dataset}: {folder(small)}\n"
    assert ActivationStore(small).rows == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: "/no/such/model"}, "is no folder"),
        ({2: "7"}, "layer=7: .* has 3 blocks"),
        ({3: "/no/such/text.txt"}, "is no file"),
        ({4: "--rows=999999"}, "has only"),
    ],
)
def test_the_command_line_says_in_one_line_what_is_wrong(change, message, spec, empty, capsys):
    command = ["harvest", spec.model, "1", spec.dataset, "--rows=100", "--context=24"]
    for place, value in change.items():
        command[place] = value
    assert cli.main(command) == cli.REFUSED
    assert re.match(f"saecore: .*{message}", capsys.readouterr().err.strip().splitlines()[-1])
