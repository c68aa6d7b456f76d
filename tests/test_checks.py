"""The checks on a sweep's SAEs: recorded once, under the runs' own keys, with what was left out and why."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from saecore import checks, cli, paths, sweep
from saecore.report import ledger
from saecore.spec import SpecError

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
    assert set(checks.run_all("counted", groups)) == {run.key() for run in groups[0]} and check.made == 0
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


def test_the_command_line_says_what_is_not_trained(groups, tmp_path, capsys):
    assert cli.main(["measure", "sparse_probing", str(tmp_path / "tiny.yml")]) == cli.FAILED
    said = capsys.readouterr().err
    assert "2 of 2 runs are not recorded" in said and "`saecore run`" in said and groups[0][0].key() in said


def test_the_plan_says_what_would_be_measured(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "counted", Counted())
    assert {state for _, state in checks.plan("counted", groups)} == {"not trained"}
    sweep.run_all("tiny", groups)
    assert cli.main(["measure", "counted", str(tmp_path / "tiny.yml"), "--plan"]) == 0
    assert capsys.readouterr().out.count("to measure") == 2 and not ledger.path("counted").exists()
    checks.run_all("counted", groups)
    assert {state for _, state in checks.plan("counted", groups)} == {"recorded"}


def test_the_three_checks_are_those_of_the_book():
    assert list(checks.CHECKS) == ["interpretability", "sparse_probing", "causal_editing"]
