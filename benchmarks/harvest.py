"""Speed and memory of harvesting activations, beside a plain `transformers` loop over the same texts.

Each measurement is a process of its own. The plain loop pads the texts of a call to the longest, runs the network and
keeps nothing; it is timed once through all blocks and once through those that the harvest needs. The harvest
tokenises, runs, shuffles, writes and checks its shards, into an empty cache. Kept positions a second are compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

import scoreboard

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("date", "device", "model", "layer", "dataset", "what", "rows", "rows_per_s", "peak_mb")
PLAIN, SHORT, HARVEST = "plain loop, all blocks", "plain loop, blocks needed", "harvest"


def work(what: str, model: str, layer: int, dataset: str, rows: int) -> dict[str, float]:
    """Rows a second and peak memory of one of the three, in this process."""
    from saecore.activations import models
    from saecore.spec import ActivationSpec

    opened = models.load(model)
    spec = ActivationSpec(model, layer, dataset, opened.d_model, rows=rows)
    run = harvested if what == HARVEST else plain
    if what == SHORT:
        del opened.blocks[layer + 1 :]
    began = time.perf_counter()
    done = run(spec, opened)
    seconds = time.perf_counter() - began
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"rows_per_s": done / seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def plain(spec, model) -> int:
    """What one would write without this package; returns how many positions were kept."""
    import torch

    from saecore.sources import text

    texts, kept, size = text.documents(spec.dataset, "train"), 0, 32
    while kept < spec.rows:
        given = [words for _, words in zip(range(size), texts, strict=False)]
        if not given:
            break
        tokens = model.tokenizer(
            given, return_tensors="pt", padding=True, truncation=True, max_length=spec.context
        )  # fmt: skip
        with torch.no_grad():
            model.network.base_model(**{k: tokens[k] for k in ("input_ids", "attention_mask")})
        kept += int(tokens["attention_mask"].sum())
    return kept


def harvested(spec, model) -> int:
    """The package's way; returns how many positions are in its store."""
    from saecore.activations import harvest, total_rows

    harvest(spec, model=model)
    return total_rows(spec)


def compare(model: str, layer: int, dataset: str, rows: int, rounds: int, threads: int) -> str:
    """Run all, keep the rows, return the table."""
    asked = [(PLAIN, rows), (SHORT, rows), (HARVEST, rows), (HARVEST, 10 * rows)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {a: [] for a in asked}
    for turn in range(rounds):
        for what, count in asked:
            if turn and count > rows:
                continue
            print(f"round {turn + 1}/{rounds} {what}, {count:,} rows", file=sys.stderr)
            found[what, count].append(measure(what, model, layer, dataset, count, threads))
    date, device = datetime.now().strftime("%Y-%m-%dT%H:%M"), scoreboard.device(threads)
    table = []
    for (what, count), rounds_of in found.items():
        speed, peak = (median(r[name] for r in rounds_of) for name in ("rows_per_s", "peak_mb"))
        table.append((date, device, model, layer, dataset, what, count, f"{speed:.0f}", f"{peak:.0f}"))
    keep(RESULTS / "harvest.csv", table)
    speed = {row[5:7]: float(row[7]) for row in table}
    lines = [f"{what:27} {count:>11,} rows {row[7]:>8} rows/s  peak {row[8]} MB" for (what, count), row in
             zip(found, table, strict=True)]  # fmt: skip
    lines += [f"harvest / {what} = {speed[HARVEST, rows] / speed[what, rows]:.2f}" for what in (PLAIN, SHORT)]
    return "\n".join(lines)


def measure(what: str, model: str, layer: int, dataset: str, rows: int, threads: int) -> dict[str, float]:
    """:func:`work` in a fresh process with an empty cache. Raises RuntimeError with its last line where it fails."""
    with tempfile.TemporaryDirectory() as cache:
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "SAECORE_CACHE": cache}
        command = [sys.executable, __file__, "--worker", what, "--model", model, "--layer", str(layer)]
        command += ["--dataset", dataset, "--rows", str(rows)]
        done = subprocess.run(command, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def keep(path: Path, table: Sequence[Sequence[object]]) -> None:
    """Append to the results, which are never half there."""
    from saecore import paths

    old = path.read_text(encoding="utf-8") if path.exists() else ",".join(COLUMNS) + "\n"
    with paths.whole(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        file.write(old)
        csv.writer(file, lineterminator="\n").writerows(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--dataset", default="atlas")
    parser.add_argument(
        "--rows", type=int, default=200_000, help="kept positions; the last harvest has ten times as many"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=(PLAIN, SHORT, HARVEST), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        print(json.dumps(work(given.worker, given.model, given.layer, given.dataset, given.rows)))
    else:
        print(compare(given.model, given.layer, given.dataset, given.rows, given.rounds, given.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
