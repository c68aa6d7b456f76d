"""The `saecore` command. Only this module prints."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saecore import __version__, paths
from saecore.spec import SPREADS, ActivationSpec, RunSpec, SpecError

Subparsers = Any

FAILED = 1
REFUSED = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk, of which the package knows no more than the system says; others are bugs."""
NAMED = 5
"""Runs that a message names before it counts the rest."""


def add_chapters(subparsers: Subparsers) -> None:
    """`saecore chapters execute|check|expect [names]`"""
    chapters = subparsers.add_parser("chapters", help="execute and check the book's chapters")
    actions = chapters.add_subparsers(dest="action", required=True)

    execute = actions.add_parser("execute", help="run chapters through papermill")
    execute.add_argument("names", nargs="*", help="such as 03 or 03_feature_recovery (default: all)")
    execute.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    where = execute.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="folder for executed notebooks (default: build/executed)")
    where.add_argument("--in-place", action="store_true", help="store the outputs in the chapters themselves")
    execute.set_defaults(run=run_execute)

    check = actions.add_parser("check", help="hold chapters against the rules and data/expected")
    check.add_argument("names", nargs="*")
    check.add_argument("--folder", type=Path, help="where the notebooks are (default: book/chapters)")
    check.set_defaults(run=run_check)

    expect = actions.add_parser("expect", help="write new glued values to data/expected, drop stale ones")
    expect.add_argument("names", nargs="*")
    expect.add_argument("--replace", action="store_true", help="also replace values that differ")
    expect.set_defaults(run=run_expect)


def run_execute(arguments: argparse.Namespace) -> int:
    from saecore.chapter import driver

    try:
        given = {name: driver.located(driver.literal(value)) for name, value in arguments.parameters}
        if given and arguments.in_place:
            raise driver.ParameterError("committed chapters hold their default parameters; use --out with -p")
        sources = driver.find(arguments.names)
        refuse_unknown(sources, given)
    except driver.ChapterError as error:
        return complain(error, REFUSED)
    for source in sources:
        out = paths.chapters() if arguments.in_place else arguments.out or paths.build() / "executed"
        try:
            print(f"{source.stem} -> {driver.execute(source, out / source.name, given)}", flush=True)
        except driver.ChapterError as error:
            return complain(error, FAILED)
    return 0


def refuse_unknown(sources: Sequence[Path], given: dict[str, Any]) -> None:
    """Raise ParameterError before the first chapter runs, not after an hour of them."""
    import nbformat

    from saecore.chapter import driver

    for source in sources:
        driver.checked(driver.parameters(nbformat.read(source, as_version=4)), given, source.stem)


def run_check(arguments: argparse.Namespace) -> int:
    import nbformat

    from saecore.chapter import driver, expected, rules

    try:
        sources = driver.find(arguments.names, arguments.folder)
    except driver.ChapterError as error:
        return complain(error, REFUSED)
    count = 0
    for source in sources:
        notebook = nbformat.read(source, as_version=4)
        wanted = paths.expected() / f"{source.stem}.json"
        try:
            values = expected.compare(expected.glued(notebook), expected.read(wanted), f"data/expected/{wanted.name}")
        except expected.ExpectedError as error:
            values = [str(error)]
        for problem in rules.problems(notebook) + values:
            count += 1
            print(f"{source.stem}: {problem}", file=sys.stderr)
    if count:
        return complain(f"{count} problems in {len(sources)} chapters", FAILED)
    print(f"{len(sources)} chapters keep the rules and give the expected values")
    return 0


def run_expect(arguments: argparse.Namespace) -> int:
    import nbformat

    from saecore.chapter import driver, expected

    try:
        for source in driver.find(arguments.names):
            found = expected.glued(nbformat.read(source, as_version=4))
            path = paths.expected() / f"{source.stem}.json"
            changed, dropped = expected.update(path, found, replace=arguments.replace)
            wrote, lost = ", ".join(changed) or "nothing", ", ".join(dropped) or "nothing"
            print(f"{source.stem}: wrote {wrote}; dropped {lost}")
    except (driver.ChapterError, expected.ExpectedError) as error:
        return complain(error, REFUSED)
    return 0


def count(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """What every command on a sweep takes."""
    parser.add_argument("sweep", help="a name in book/sweeps, such as reconstruction, or a .yml file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--source", metavar="NAME", help="only SAEs of this source, such as minilm.3")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N shares, to run beside the others")
    parser.add_argument("--threads", type=count, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read activations from the model as they are needed, keep none on the disk",
    )
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop")


def sweep_of(arguments: argparse.Namespace) -> tuple[str, list[list[RunSpec]]]:
    """Experiment and groups of :func:`add_sweep`; its threads are set. Raises SpecError."""
    import torch

    from saecore import sweep

    require_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    experiment, groups = sweep.load(sweep.find(arguments.sweep))
    return experiment, sweep.part(of_source(groups, arguments.source), arguments.part)


def of_source(groups: Sequence[list[RunSpec]], name: str | None) -> list[list[RunSpec]]:
    """The groups whose runs are of a source, by its name in the ledger; all without a name. Raises SpecError."""
    there = sorted({group[0].source.name for group in groups})
    if name is not None and name not in there:
        raise SpecError(f"--source {name}: the sweep has no such source; it has {', '.join(there)}")
    return [group for group in groups if name in (None, group[0].source.name)]


def require_device(name: str) -> None:
    """Raises SpecError for an unknown name, and for a GPU that torch does not see."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise SpecError(f"--device {name} is unknown; choose cpu, cuda, or cuda:1 for the second GPU")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(name.partition(":")[2] or 0) >= gpus:
        raise SpecError(f"--device {name}: torch sees {gpus or 'no'} GPU here; leave it out for the CPU")


def add_run(subparsers: Subparsers) -> None:
    """`saecore run SWEEP`"""
    run = subparsers.add_parser("run", help="train, measure and record the runs of a sweep; resumes where it stopped")
    add_sweep(run)
    run.add_argument(
        "--saes",
        action="store_true",
        help="also train again what is recorded and whose SAE is not in the cache; its rows stay as they are",
    )
    run.add_argument(
        "--spread",
        choices=SPREADS,
        help="each process that torchrun started has a share of every batch, or of every SAE's latents",
    )
    run.set_defaults(run=run_sweep)


def run_sweep(arguments: argparse.Namespace) -> int:
    from saecore.training import distributed

    if not arguments.spread:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is trained is saved
    try:
        return _run_sweep(arguments)
    except KeyboardInterrupt:
        return complain("stopped; the same command goes on from there", FAILED)
    finally:
        distributed.leave()


def _run_sweep(arguments: argparse.Namespace) -> int:
    from saecore import sweep
    from saecore.report.ledger import LedgerError, finished
    from saecore.saes import CheckpointError
    from saecore.training import distributed

    device, spread = arguments.device, arguments.spread
    try:
        experiment, groups = sweep_of(arguments)
        runs = [run for group in groups for run in group]
        if arguments.plan:
            done, saes = finished(experiment), arguments.saes
            return show_plan((run, "recorded" if sweep.stands(run, done, saes) else "to run") for run in runs)
        sweep.writable()
        if spread:
            device = distributed.join(device, spread, runs)
    except (SpecError, LedgerError, OSError) as error:
        return complain(error, REFUSED) if distributed.is_first() else REFUSED
    if not distributed.is_first():
        logging.getLogger("saecore").setLevel(logging.CRITICAL)  # rank 0 says the same
    try:
        reasons = sweep.run_all(experiment, groups, device, stream=arguments.stream, spread=spread, saes=arguments.saes)
    except (CheckpointError, LedgerError, paths.PathError, *sweep.UNOPENED) as error:
        return complain(error, FAILED) if distributed.is_first() else FAILED
    if not distributed.is_first():
        return FAILED if reasons else 0
    return report(experiment, reasons, len(runs), "trained" if arguments.saes else "recorded")


def add_measure(subparsers: Subparsers) -> None:
    """`saecore measure CHECK SWEEP`"""
    measure = subparsers.add_parser("measure", help="a downstream check of the SAEs that a sweep has trained")
    measure.add_argument("check", help="interpretability, sparse_probing, causal_editing or causal_editing_small")
    add_sweep(measure)
    measure.add_argument(
        "--texts",
        nargs="+",
        default=[],
        metavar="TEXTS",
        help="sparse_probing on these: CSV files, or SAEBench's sets by name, such as fancyzhx/ag_news",
    )
    measure.add_argument(
        "--columns",
        nargs=2,
        metavar=("TEXT", "LABEL"),
        help="what holds the texts and the classes in these files (default: prompt target)",
    )
    measure.set_defaults(run=run_measure)


def run_measure(arguments: argparse.Namespace) -> int:
    from saecore import checks
    from saecore.report.ledger import LedgerError
    from saecore.saes import CheckpointError

    columns = arguments.columns or ()
    try:
        if columns and not arguments.texts:
            raise SpecError(
                f"--columns {' '.join(columns)} are of no texts; name a CSV with --texts, or leave them out"
            )
        texts = [checks.Texts(place, *columns) for place in arguments.texts]
        _, groups = sweep_of(arguments)
        if arguments.plan:
            return show_plan(checks.plan(arguments.check, groups, texts))
    except (SpecError, LedgerError, OSError) as error:
        return complain(error, REFUSED)
    try:
        reasons = checks.run_all(arguments.check, groups, arguments.device, texts, arguments.stream)
    except SpecError as error:
        return complain(error, REFUSED)
    except (CheckpointError, LedgerError, OSError) as error:
        return complain(error, FAILED)
    told = {" on ".join(filter(None, place)): reason for place, reason in reasons.items()}
    return report(arguments.check, told, sum(map(len, groups)) * max(1, len(texts)))


def show_plan(states: Iterable[tuple[RunSpec, str]]) -> int:
    """A line for each run: its key, its state, what it is."""
    lines = (
        f"{run.key()} {state:11} {run.source.name} {run.sae.architecture} {run.constraint.name} "
        f"{run.constraint.init} L0 {run.sae.l0} seed {run.training.seed} steps {run.training.steps} {run.settings()}"
        for run, state in states
    )
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:  # `--plan | head`; nothing more may be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def add_atlas(subparsers: Subparsers) -> None:
    """`saecore atlas build|train|examine`"""
    atlas = subparsers.add_parser("atlas", help="make and examine the embedded world: its facts, text and model")
    actions = atlas.add_subparsers(dest="action", required=True)
    actions.add_parser("build", help="write data/atlas/facts.csv from GeoNames and CLDR").set_defaults(run=run_atlas)
    train = actions.add_parser("train", help="train the model (22 minutes on one core); goes on where it stopped")
    train.add_argument("--threads", type=count, default=1, help="CPU threads (default: 1)")
    train.set_defaults(run=run_atlas)
    examine = actions.add_parser("examine", help="what the model knows and holds; rows go to data/results/atlas.csv")
    examine.set_defaults(run=run_atlas)


def run_atlas(arguments: argparse.Namespace) -> int:
    from saecore.activations.models import ModelError
    from saecore.saes import CheckpointError
    from saecore.sources.atlas import AtlasError

    try:
        if arguments.action == "build":
            from saecore.sources.atlas import build

            print(f"wrote {build.build()}")
        elif arguments.action == "train":
            from saecore.studies.atlas import train

            print(f"wrote {train.train(train.Recipe(), arguments.threads)}")
        else:
            from saecore.studies.atlas import examine, train

            for row in examine.examine(train.Recipe()):
                print(f"{row['source']:8} {row['metric']:28} {row['constraint']:8} {row['value']:.4f}")
    except (AtlasError, CheckpointError, ModelError) as error:
        return complain(error, REFUSED)
    return 0


def add_harvest(subparsers: Subparsers) -> None:
    """`saecore harvest MODEL LAYER DATASET`"""
    harvest = subparsers.add_parser("harvest", help="keep a model's activations on the disk; goes on where it stopped")
    harvest.add_argument("model", help="atlas, minilm, a local folder or a hub id")
    harvest.add_argument("layer", type=int, help="the block, from 0; what leaves it is kept")
    harvest.add_argument(
        "dataset", help="atlas, python-docs, a local file or a hub id (#column: of a table); a folder of images"
    )
    harvest.add_argument("--rows", type=int, default=ActivationSpec.rows, help="for training (default: %(default)s)")
    harvest.add_argument("--context", type=int, default=ActivationSpec.context, help="tokens (default: %(default)s)")
    harvest.add_argument("--weights", default=ActivationSpec.weights, help="trained or random (default: %(default)s)")
    harvest.add_argument("--device", default="cpu", help="cpu or cuda")
    harvest.add_argument("--plan", action="store_true", help="say how much and how long, and stop")
    harvest.set_defaults(run=run_harvest)


def run_harvest(arguments: argparse.Namespace) -> int:
    from saecore import activations
    from saecore.activations.models import ModelError, load
    from saecore.sources.images import ImageError
    from saecore.sources.text import TextError

    try:
        require_device(arguments.device)
        model = load(arguments.model, weights=arguments.weights, device=arguments.device)
        fields = {name: getattr(arguments, name) for name in ("layer", "dataset", "rows", "context", "weights")}
        spec = ActivationSpec(model=arguments.model, d_model=model.d_model, **fields)
        if arguments.plan:
            print(f"{spec.name} on {spec.dataset}: {activations.plan(spec, model=model)}")
            return 0
        from tqdm import tqdm

        with tqdm(total=activations.total_rows(spec), unit=" rows", unit_scale=True, delay=1) as bar:
            where = activations.harvest(spec, progress=bar.update, model=model)
    except (ModelError, TextError, ImageError, SpecError) as error:
        return complain(error, REFUSED)
    except activations.StoreError as error:
        return complain(error, FAILED)
    print(f"{spec.name} on {spec.dataset}: {where}")
    return 0


def report(experiment: str, reasons: Mapping[str, str], runs: int, what: str = "recorded") -> int:
    """What is recorded or so, and what is not: ``reasons`` by key, and by the texts where some were named."""
    if reasons:
        lines = [f"{experiment}: {len(reasons)} of {runs} runs are not {what}"]
        for reason in dict.fromkeys(reasons.values()):
            keys = [key for key in reasons if reasons[key] == reason]
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            lines.append(f"  {' '.join(keys[:NAMED])}{more}: {reason}")
        return complain("\n".join(lines), FAILED)
    print(f"{experiment}: {runs} runs {what}")
    return 0


def complain(error: object, code: int) -> int:
    print(f"saecore: {error}", file=sys.stderr)
    return code


COMMANDS: tuple[Callable[[Subparsers], None], ...] = (add_chapters, add_run, add_measure, add_atlas, add_harvest)
"""A command is a function that adds its parser and sets `run`, which turns arguments into an exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="saecore", description="Sanity checks for sparse autoencoders.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(subparsers)
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("saecore").setLevel(logging.INFO)
    try:
        return arguments.run(arguments)
    except OSError as error:
        if isinstance(error, paths.PathError):
            return complain(error, REFUSED)
        if error.errno is not None and error.errno not in FULL:  # none: the package's own words
            raise
        return complain(error, FAILED)
