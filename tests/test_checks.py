"""The checks on a sweep's SAEs: recorded once, under the runs' own keys, with what was left out and why."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from saecore import checks, cli, paths, sweep
from saecore.judges.endpoint import MODEL, URL
from saecore.report import ledger
from saecore.spec import SpecError
from saecore.studies import interpretability, probed, probing

SWEEP = """
experiment: tiny
defaults: {{source.model: "{model}", source.layer: 0, source.dataset: {dataset}, source.d_model: 16, source.rows: 600,
           sae.l0: 2, sae.n_latents: 32, training.steps: 3, training.batch_size: 64, architecture: batch_topk, seed: 0}}
blocks:
  - {{constraint: [free, untrained]}}
"""


@pytest.fixture
def groups(tiny_llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(paths.RESULTS, str(tmp_path / "results"))
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    file = tmp_path / "tiny.yml"
    file.write_text(SWEEP.format(model=tiny_llama, dataset="atlas"))
    return sweep.load(file)[1]


class Counted:
    """A check that says how often it was asked."""

    def __init__(self) -> None:
        self.made, self.asked = 0, 0

    def __call__(self, source):
        self.made += 1
        return self

    def measure(self, sae):
        self.asked += 1
        return {"found": float(sae.spec.n_latents)}

    def references(self):
        return {"majority": {"found": 0.5}}


def test_every_trained_sae_is_checked_once_beside_its_references(groups, monkeypatch):
    check = Counted()
    monkeypatch.setitem(checks.CHECKS, "counted", check)
    assert set(checks.run_all("counted", groups)) == {(run.key(), "") for run in groups[0]} and check.made == 0
    sweep.run_all("tiny", groups)
    assert checks.run_all("counted", groups) == {}
    assert checks.run_all("counted", groups) == {} and (check.made, check.asked) == (1, 2)
    found = ledger.read("counted")
    assert dict(zip(found["key"], found["value"], strict=True)) == {
        **{run.key(): 32.0 for run in groups[0]}, groups[0][0].source.key(): 0.5
    }  # fmt: skip


def test_a_source_that_a_check_cannot_take_is_left_out_with_the_reason(groups, monkeypatch, caplog):
    def refuse(source):
        raise SpecError("it says nothing")

    sweep.run_all("tiny", groups)
    monkeypatch.setitem(checks.CHECKS, "refusing", refuse)
    assert set(checks.run_all("refusing", groups).values()) == {"it says nothing"}
    assert not ledger.path("refusing").exists() and "it says nothing" in caplog.text


def test_an_unknown_check_is_refused(groups, tmp_path, capsys):
    with pytest.raises(SpecError, match="check='reading' is unknown; choose one of interpretability"):
        checks.run_all("reading", groups)
    assert cli.main(["measure", "reading", str(tmp_path / "tiny.yml")]) == cli.REFUSED
    assert "choose one of interpretability" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in (["run"], ["measure", "sparse_probing"]):
        assert cli.main([*command, str(tmp_path / "tiny.yml"), "--device", "cuda"]) == cli.REFUSED
        assert "torch sees no GPU here" in capsys.readouterr().err
        assert cli.main([*command, str(tmp_path / "tiny.yml"), "--device", "cudda"]) == cli.REFUSED
        assert "--device cudda is unknown; choose cpu, cuda" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert cli.main(["run", str(tmp_path / "tiny.yml"), "--plan", "--device", "cuda:1"]) == cli.REFUSED
    assert cli.main(["run", str(tmp_path / "tiny.yml"), "--plan", "--device", "cuda:0"]) == 0


def test_the_command_line_says_what_is_not_trained(groups, tmp_path, capsys):
    assert cli.main(["measure", "sparse_probing", str(tmp_path / "tiny.yml")]) == cli.FAILED
    said = capsys.readouterr().err
    assert "2 of 2 runs are not recorded" in said and "`saecore run SWEEP --saes` trains it" in said
    assert groups[0][0].key() in said


def test_a_stream_harvests_nothing(groups, tmp_path, monkeypatch):
    """As the run did that made the SAEs, where the disk is too small for a store."""
    check = Counted()
    monkeypatch.setitem(checks.CHECKS, "counted", check)
    file = str(tmp_path / "tiny.yml")
    assert cli.main(["run", file, "--stream"]) == cli.main(["measure", "counted", file, "--stream"]) == 0
    assert check.asked == 2 and not (tmp_path / "cache" / "activations").exists()


def test_a_judge_that_is_not_set_is_missed_before_the_source_is_opened(groups, monkeypatch):
    sweep.run_all("tiny", groups)
    unlabelled = [replace(run, source=replace(run.source, dataset="some.txt")) for run in groups[0]]
    for run in unlabelled:
        sweep.sae_path(run).write_bytes(sweep.sae_path(groups[0][0]).read_bytes())
    monkeypatch.setattr(checks, "open_source", lambda *_: pytest.fail("a source was opened"))
    for name in (MODEL, URL):
        monkeypatch.delenv(name, raising=False)
    reasons = checks.run_all(interpretability.EXPERIMENT, [unlabelled])
    assert len(reasons) == 2 and all("no judge is set" in reason for reason in reasons.values())


def test_the_plan_says_what_would_be_measured(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "counted", Counted())
    assert {state for _, state in checks.plan("counted", groups)} == {"not trained"}
    sweep.run_all("tiny", groups)
    assert cli.main(["measure", "counted", str(tmp_path / "tiny.yml"), "--plan"]) == 0
    assert capsys.readouterr().out.count("to measure") == 2 and not ledger.path("counted").exists()
    checks.run_all("counted", groups)
    assert {state for _, state in checks.plan("counted", groups)} == {"recorded"}


def test_the_checks_are_those_of_the_book():
    assert list(checks.CHECKS) == ["interpretability", "sparse_probing", "causal_editing", "causal_editing_small"]


def table(folder: Path, name: str, kinds: Sequence[str] = ("fish", "bird"), header: str = "prompt,target") -> str:
    lines = [
        f"The {kind} number {i} {'swims' if kind == 'fish' else 'flies'},{kind}" for i in range(30) for kind in kinds
    ]
    (folder / name).write_text("\n".join([header, *lines]))
    return str(folder / name)


def test_named_texts_are_recorded_apart_each_under_its_name(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probing, "prepare", partial(probing.prepare, ks=(1, 2)))
    sweep.run_all("tiny", groups)
    measure = ["measure", "sparse_probing", str(tmp_path / "tiny.yml"), "--texts"]
    animals, more = table(tmp_path, "Land animals.v2.csv"), table(tmp_path, "more.csv", header="what,kind")
    assert cli.main([*measure, animals]) == 0 and not ledger.path(probing.EXPERIMENT).exists()
    found = ledger.read(probing.ON_TEXTS)
    assert set(found["metric"]) == {f"probing_top{k}_{probing.Texts(animals).name}" for k in (1, 2)}
    assert {metric.partition(".")[0] for metric in found["metric"]} == {f"probing_top{k}_land_animals" for k in (1, 2)}
    assert set(found["constraint"]) == {"free", "untrained", "majority", "neurons", "pca", "dense_probe"}
    capsys.readouterr()
    for named, states in (
        ((more, "--columns", "what", "kind"), (2, 0)),
        ((animals,), (0, 2)),
        ((animals, more), (2, 0)),
    ):
        assert cli.main([*measure, *named, "--plan"]) == 0
        said = capsys.readouterr().out
        assert (said.count("to measure"), said.count("recorded")) == states
    assert cli.main([*measure, more, "--columns", "what", "kind"]) == 0
    both = ledger.read(probing.ON_TEXTS)
    assert set(probed.by_table(both)["table"]) == {"land animals", "more"}
    kept = both[both["metric"].isin(found["metric"])].reset_index(drop=True)
    assert kept.equals(found), "a second set moves nothing of the first"

    (tmp_path / "empty.csv").write_text("")
    bad = {
        str(
            tmp_path / "nowhere.csv"
        ): "nowhere.csv' are no file and none of SAEBench's sets; give a CSV, or one of Lab",
        str(tmp_path / "empty.csv"): "empty.csv cannot be read as CSV",
        table(tmp_path, "header.csv", kinds=()): "'header' has no texts",
        table(tmp_path, "one.csv", kinds=("fish",)): "'one' has one class only, 'fish'",
        table(tmp_path, "other.csv", header="a,b"): "has the columns a, b, not 'prompt'",
    }
    assert cli.main([*measure, *bad, table(tmp_path, "good.csv")]) == cli.FAILED
    told = capsys.readouterr().err
    assert "10 of 12 runs are not recorded" in told and all(said in told for said in bad.values())
    assert f"{groups[0][0].key()} on {tmp_path / 'empty.csv'}" in told, "one SAE may fail on each for its own reason"
    assert "good" in set(probed.by_table(ledger.read(probing.ON_TEXTS))["table"]), "the others are measured"
    for place, said in bad.items():
        assert cli.main([*measure, place]) == cli.FAILED
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("command", "state"), [("run", "to run"), ("measure sparse_probing", "not trained")])
def test_a_source_of_the_sweep_may_be_named(groups, tmp_path, capsys, command, state):
    file = tmp_path / "two.yml"
    file.write_text((tmp_path / "tiny.yml").read_text() + "  - {constraint: free, source.weights: random}\n")
    asked = [*command.split(), str(file), "--plan"]
    assert cli.main([*asked, "--source", "tiny.1"]) == cli.REFUSED
    name = groups[0][0].source.name
    assert f"no such source; it has {name}" in capsys.readouterr().err
    other = sweep.load(file)[1][1][0].source.name
    for options, count in (([], 3), (["--source", name], 2), (["--source", other, "--part", "1/2"], 1)):
        assert cli.main([*asked, *options]) == 0
        assert capsys.readouterr().out.count(state) == count


def test_an_sae_that_a_check_cannot_take_is_left_out_and_the_others_go_on(groups, monkeypatch):
    class Particular(Counted):
        def measure(self, sae):
            if self.asked == 0:
                self.asked = 1
                raise SpecError("k=20 must lie between 1 and 16")
            return super().measure(sae)

    monkeypatch.setitem(checks.CHECKS, "counted", Particular())
    sweep.run_all("tiny", groups)
    first, second = (run.key() for run in groups[0])
    assert checks.run_all("counted", groups) == {(first, ""): "k=20 must lie between 1 and 16"}
    assert checks.recorded("counted") == {second, groups[0][0].source.key()}


def test_a_fault_of_the_program_is_no_reason_to_go_on(groups, monkeypatch):
    class Broken(Counted):
        def measure(self, sae):
            raise ValueError("operands could not be broadcast together")

    monkeypatch.setitem(checks.CHECKS, "counted", Broken())
    sweep.run_all("tiny", groups)
    with pytest.raises(ValueError, match="could not be broadcast"):
        checks.run_all("counted", groups)


def test_texts_and_columns_that_nothing_reads_are_refused(groups, tmp_path, capsys):
    file, animals = str(tmp_path / "tiny.yml"), table(tmp_path, "animals.csv")
    for options, said in (
        (["causal_editing", file, "--texts", animals], "reads no texts of your choice"),
        (["sparse_probing", file, "--columns", "a", "b"], "--columns a b are of no texts"),
        (["sparse_probing", file, "--texts", "fancyzhx/ag_news", "--columns", "a", "b"], "has its own; leave them out"),
    ):
        assert cli.main(["measure", *options]) == cli.REFUSED
        assert said in capsys.readouterr().err


def test_tables_of_one_name_are_told_apart_by_what_they_hold(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "prepare", partial(probing.prepare, ks=(1,)))
    sweep.run_all("tiny", groups)
    (tmp_path / "other").mkdir()
    first, twin = table(tmp_path, "animals.csv"), table(tmp_path / "other", "animals.csv")
    other = table(tmp_path, "animals.v2.csv", kinds=("bird", "fish"))
    texts = [probing.Texts(place) for place in (first, twin, other)]
    assert checks.run_all("sparse_probing", groups, texts=texts) == {}
    assert len(set(ledger.read(probing.ON_TEXTS)["metric"])) == 2, "the twin holds the same"


def test_rows_of_two_judges_never_mix(groups, tmp_path, monkeypatch):
    """Text without labels is read by the model that the environment names, and its rows stand in a file of its own."""
    sweep.run_all("tiny", groups)
    unlabelled = [replace(run, source=replace(run.source, dataset="some.txt")) for run in groups[0]]
    for run in unlabelled:
        sweep.sae_path(run).write_bytes(sweep.sae_path(groups[0][0]).read_bytes())
    monkeypatch.setattr(checks, "open_source", lambda spec, *_: SimpleNamespace(spec=spec))
    monkeypatch.setenv(URL, "http://127.0.0.1:9/v1")
    keys = {run.key() for run in unlabelled}
    for judge, wanted in (("gpt-4o-mini", "gpt_4o_mini"), ("Qwen/Qwen2.5-7B", "qwen_qwen2_5_7b")):
        check = Counted()
        monkeypatch.setitem(checks.CHECKS, interpretability.EXPERIMENT, check)
        monkeypatch.setenv(MODEL, judge)
        assert checks.run_all(interpretability.EXPERIMENT, [groups[0], unlabelled]) == {}
        assert checks.run_all(interpretability.EXPERIMENT, [groups[0], unlabelled]) == {}
        own = ledger.read(f"interpretability_{wanted}")
        assert keys < set(own["key"]) and not {run.key() for run in groups[0]} & set(own["key"])
        assert {state for run, state in checks.plan(interpretability.EXPERIMENT, [unlabelled])} == {"recorded"}
        assert check.asked == (4 if judge == "gpt-4o-mini" else 2), (
            "the oracle's rows are there once, whoever else judges"
        )
    assert not keys & set(ledger.read(interpretability.EXPERIMENT)["key"])
    monkeypatch.delenv(MODEL)
    assert {state for run, state in checks.plan(interpretability.EXPERIMENT, [unlabelled])} == {"to measure"}
