"""nbval, set up as `make nbval` sets it up, notices an output that is no longer what the cell prints."""

import shutil
import subprocess
import sys

import nbformat
import nbformat.v4 as v4
import pytest

from saecore import paths


def _nbval(folder, *cells):
    shutil.copy(paths.book() / "conftest.py", folder)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(v4.new_notebook(cells=list(cells), metadata={"kernelspec": kernel}), folder / "chapter.ipynb")
    options = [
        "--nbval",
        "--nbval-sanitize-with",
        str(paths.book() / "nbval.cfg"),
        "--nbval-cell-timeout",
        "60",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "chapter.ipynb"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def _prints(code, text):
    return v4.new_code_cell(code, execution_count=1, outputs=[v4.new_output("stream", name="stdout", text=text)])


def _glues(code, text):
    data = {"application/papermill.record/text/plain": repr(text)}
    return v4.new_code_cell(code, execution_count=1, outputs=[v4.new_output("display_data", data=data)])


GLUE = "from saecore.chapter import glue\nglue('a', 0.12345, '.3f')"


@pytest.mark.parametrize(
    ("cell", "passes"),
    [
        (_prints("print(round(2 / 3, 3))", "0.667\n"), True),
        (_prints("print(round(2 / 3, 3))", "0.666\n"), False),
        (_glues(GLUE, "0.123"), True),
        (_glues(GLUE, "0.124"), False),
        (_prints("print(hex(id(object())))", "0x7f0000000000\n"), True),
        (
            _prints("import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'])", "1 1\n"),
            True,
        ),
    ],
    ids=["same", "changed", "same glued", "changed glued", "address", "environment"],
)
def test_nbval_fails_on_a_changed_output_alone(tmp_path, cell, passes):
    run = _nbval(tmp_path, cell)
    assert (run.returncode == 0) is passes, run.stdout + run.stderr
