"""Every rule for chapters passes what it should and fails what it should."""

import nbformat.v4 as v4
import pytest

from saecore.chapter import rules

DEF = "def f():\n    pass"
FOR = "for i in range(3):\n    train(i)"


def test_outputs_accepts_a_run_notebook(notebook, code, printed):
    assert rules.outputs(notebook(code("1", 1), code("print(2)", 2, (printed("2\n"),)))) == []


def test_outputs_refuses_a_notebook_that_was_never_run(notebook, code):
    found = rules.outputs(notebook(code("1"), code("2")))
    assert any("no cell holds an output" in p for p in found)
    assert any("execution count None, not 1" in p for p in found)


@pytest.mark.parametrize("counts", [(2, 3), (1, 3), (2, 1), (1, None)])
def test_outputs_refuses_counts_out_of_order(notebook, code, printed, counts):
    cells = [code("print(1)", count, (printed("1\n"),)) for count in counts]
    assert any("execution count" in p for p in rules.outputs(notebook(*cells)))


def test_outputs_refuses_errors_and_stderr(notebook, code, printed):
    error = v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    found = rules.outputs(notebook(code("x", 1, (error,)), code("y", 2, (printed("warning\n", "stderr"),))))
    assert found == ["cell 1 ended in ValueError: no", "cell 2 wrote to stderr: 'warning'"]


def test_thin_accepts_twelve_lines_comprehensions_and_magics(notebook, code):
    twelve = "\n".join(f"x{i} = {i}" for i in range(12))
    assert rules.thin(notebook(code(twelve), code("%time [i for i in x]"), code("if a:\n    !ls\n    %cd -q b"))) == []


def test_thin_refuses_thirteen_lines(notebook, code):
    found = rules.thin(notebook(code("\n".join(f"x{i} = {i}" for i in range(13)))))
    assert found == ["cell 1 has 13 lines; at most 12, the rest belongs in the package"]


@pytest.mark.parametrize("source", [DEF, f"async {DEF}", "class A:\n    pass", FOR, "while True:\n    step()"])
def test_thin_refuses_what_belongs_in_the_package(notebook, code, source):
    assert any("belongs in the package" in p for p in rules.thin(notebook(code(source))))


def test_thin_names_what_is_not_python(notebook, code):
    assert any("is not Python" in p for p in rules.thin(notebook(code("x = = 1"))))


def _parameters(code, source):
    return code(source, tags=["parameters"])


def test_parameters_accepts_literals_that_are_used(notebook, code):
    cells = (
        _parameters(code, 'profile = "smoke"\nsteps: int = -3\nls = [1, (2,)]'),
        code("f(profile, steps, ls)"),
    )
    assert rules.parameter_cell(notebook(*cells)) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('profile = "smoke"\nn = 2 * 3', "sets n = 2 * 3"),
        ('profile = "smoke"\nimport os', "holds 'import os'"),
        ('profile = "smoke"\na, b = 1, 2', "write name = literal"),
        ('profile = "full"', 'does not set profile = "smoke"'),
        ("n = 1", 'does not set profile = "smoke"'),
        ('profile = "smoke"\nunused = 1', "'unused' is never used"),
    ],
)
def test_parameters_refuses(notebook, code, source, problem):
    found = rules.parameter_cell(notebook(_parameters(code, source), code("f(profile, n)")))
    assert any(problem in p for p in found), found


def test_parameters_must_be_there_once(notebook, code):
    assert rules.parameter_cell(notebook(code("n = 1"))) == ["0 cells are tagged `parameters`; there must be one"]
    two = [_parameters(code, "n = 1") for _ in range(2)]
    assert rules.parameter_cell(notebook(*two)) == ["2 cells are tagged `parameters`; there must be one"]


@pytest.mark.parametrize(
    "text",
    [
        "It recovers {glue:text}`share` of the features.",
        "Twelve runs, 12 seeds, 3 of 6 architectures, in 2026.",
        "`tau = 0.8` and $\\tau = 0.8$ and $$p = 0.00625$$",
        "Sections 3.1 and 4.2, Figures 2, 3 and 9, Table 2.1, Eq. 3.2, Appendix B.2, Python 3.11",
        "# Heading with 0.5\n\ntext",
        "See [the paper](https://arxiv.org/abs/2602.14111) and arXiv:2602.14111v1, {cite:p}`author2024a`.",
        "```python\nx = 0.5\n```",
        "```{math}\nx = 0.5\n```",
        "<!-- 0.5 -->",
        "1. first\n2. second",
        "\\begin{align}x = 0.5\\end{align}",
    ],
)
def test_prose_accepts(text):
    assert rules.typed_numbers(text) == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("EV is 0.68.", ["0.68"]),
        ("It finds 9 % of them, or 9%, or 9 per cent.", ["9 %", "9%", "9 per cent"]),
        ("A rate of 1e-3 or .5 does.", ["1e-3", ".5"]),
        ("It finds 1,602 of 3200.", ["1,602", "3200"]),
        ("| EV | 0.68 |", ["0.68"]),
        ("```{note}\nIt is 0.68.\n```", ["0.68"]),
        (":::{admonition} Seen\nIt is 0.68.\n:::", ["0.68"]),
        ("```{figure} a.png\n:name: a\n\nCaption with 0.68.\n```", ["0.68"]),
        ("**0.68** and (0.69)", ["0.68", "0.69"]),
        ("Of `a` features 0.5, of `b` 0.6", ["0.5", "0.6"]),
        ("-0.017 in Table 2", ["0.017"]),
        ("[finds 9 %](https://x.org)", ["9 %"]),
    ],
)
def test_prose_finds(text, numbers):
    assert rules.typed_numbers(text) == numbers


def test_prose_allows_what_is_listed_with_a_reason(notebook, markdown):
    listed = markdown("The paper has 3,200 features and 0.8.", numbers={"3200": "its setting", "0.8": "its threshold"})
    assert rules.prose(notebook(listed)) == []


def test_prose_refuses_typed_unexplained_and_stale_numbers(notebook, markdown):
    cells = (
        markdown("EV is 0.68."),
        markdown("EV is 0.68.", numbers={"0.68": " "}),
        markdown("EV.", numbers={"0.68": "why"}),
    )
    found = rules.prose(notebook(*cells))
    assert len(found) == 3
    assert "types '0.68'" in found[0] and "without a reason" in found[1] and "does not hold" in found[2]


def test_figures_need_alt_text(notebook, code):
    picture = v4.new_output("display_data", data={"image/png": "aaaa"})
    assert len(rules.figures(notebook(code("plot()", 1, (picture,))))) == 1
    assert rules.figures(notebook(code("plot()", 1, (picture,), mystnb={"image": {"alt": "A line."}}))) == []
    assert rules.figures(notebook(code("1", 1))) == []


def test_problems_runs_every_rule(notebook, code, markdown):
    cells = (
        markdown("0.68"),
        code(DEF, outputs=(v4.new_output("display_data", data={"image/png": "aaaa"}),)),
    )
    assert len(rules.problems(notebook(*cells))) == 5
