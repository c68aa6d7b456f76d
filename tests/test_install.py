"""Set-up decides what torch to take before it downloads anything."""

import importlib.util
import subprocess

import pytest

from saecore import paths

spec = importlib.util.spec_from_file_location("install", paths.root() / "tools" / "install.py")
assert spec is not None and spec.loader is not None
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def _report(*names: str) -> dict:
    return {"install": [{"metadata": {"name": name}} for name in names]}


class Recorded(install.Environment):
    """An environment whose pip answers from a script and keeps what it was asked."""

    def __init__(self, folder, report, reachable=False):
        super().__init__(folder)
        self.report, self.reachable, self.asked = report, reachable, []

    def _has(self, version):
        return False

    def _pip(self, *arguments, quiet=False):
        self.asked.append(arguments)
        return self.reachable if install.CPU_INDEX in arguments else True

    def dry_run(self, *arguments):
        return self.report


@pytest.fixture
def linux_without_gpu(monkeypatch):
    monkeypatch.setattr(install.sys, "platform", "linux")
    monkeypatch.setattr(install, "has_gpu", lambda: False)


def test_cuda_packages_are_told_from_others():
    report = _report("torch", "nvidia-cublas-cu12", "cuda-bindings", "sympy", "nvidia_nccl", "cudatoolkit-not")
    assert install.cuda_packages(report) == ["cuda-bindings", "nvidia-cublas-cu12", "nvidia_nccl"]
    assert install.cuda_packages(_report("torch", "sympy", "networkx")) == []


def test_a_reachable_cpu_index_is_taken(tmp_path, linux_without_gpu):
    environment = Recorded(tmp_path, _report("torch"), reachable=True)
    environment.torch("2.13.0", "")
    assert "torch==2.13.0+cpu" in environment.asked[0] and "--retries" in environment.asked[0]


def test_without_the_cpu_index_a_cpu_build_is_taken(tmp_path, linux_without_gpu):
    environment = Recorded(tmp_path, _report("torch", "sympy"))
    environment.torch("2.13.0", "")
    assert "torch==2.13.0" in environment.asked[-1]


def test_without_the_cpu_index_cuda_packages_stop_set_up(tmp_path, linux_without_gpu):
    environment = Recorded(tmp_path, _report("torch", "nvidia-cudnn-cu12"))
    with pytest.raises(install.InstallError, match="make book TORCH_INDEX="):
        environment.torch("2.13.0", "")
    assert len(environment.asked) == 1, "nothing but the CPU index may have been asked to install"


def test_with_a_gpu_torch_is_taken_as_pip_finds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "has_gpu", lambda: True)
    environment = Recorded(tmp_path, _report("torch", "nvidia-cudnn-cu12"))
    environment.torch("2.13.0", "")
    assert len(environment.asked) == 1 and "torch==2.13.0" in environment.asked[0]


def test_an_index_named_by_the_caller_is_taken(tmp_path, linux_without_gpu):
    environment = Recorded(tmp_path, _report())
    environment.torch("2.13.0", "https://example.org/simple")
    assert environment.asked[0][-2:] == ("--index-url", "https://example.org/simple")


def test_pins_are_read_and_their_absence_named():
    assert install.pinned("torch", "toolz==1.0\ntorch==2.13.0\n") == "2.13.0"
    with pytest.raises(install.InstallError, match="no line torch==VERSION"):
        install.pinned("torch", "torchvision==1.0\n")


def test_an_old_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "OLDEST", (9, 0))
    with pytest.raises(install.InstallError, match="make PYTHON="):
        install.Environment(tmp_path / "venv").create()


def test_make_names_a_missing_python():
    make = subprocess.run(
        ["make", "--always-make", "setup", "PYTHON="], cwd=paths.root(), capture_output=True, text=True
    )
    assert make.returncode != 0 and "no Python 3.11 or newer" in make.stderr


def test_make_gpu_needs_no_set_up(monkeypatch):
    monkeypatch.setenv("OUT", "over there")
    command = ["make", "--no-print-directory", "gpu", "GPU_PYTHON=echo run", "GPU_MINUTES=1"]
    make = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True)
    assert make.stdout.splitlines()[-1] == "run benchmarks/gpu.py --minutes 1 --out over there", make.stderr
