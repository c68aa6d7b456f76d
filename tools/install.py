"""Build a virtual environment with pinned packages, torch first. Standard library only; run by make.

    python install.py .venv --editable ".[book,dev]"
    python install.py .venv-peers --requirements benchmarks/requirements-peers.txt --without torchvision

Whatever asks for torch before torch is there may pull gigabytes of CUDA packages. So torch comes first: with
a GPU or on macOS as pip finds it, elsewhere as a CPU build. TORCH_INDEX names another index to take it from;
TORCH_INDEX=default takes what pip finds, CUDA or not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA = re.compile(r"(nvidia|cuda)([-_]|$)")
OLDEST = (3, 11)
QUICK = ("--timeout", "10", "--retries", "0")


class InstallError(Exception):
    """Set-up cannot go on; the message says what to do."""


def pinned(name: str, constraints: str) -> str:
    """The version that `constraints` gives the package. Raises InstallError where it gives none."""
    match = re.search(rf"^{re.escape(name)}==(\S+)$", constraints, re.MULTILINE)
    if match is None:
        raise InstallError(f"constraints.txt has no line {name}==VERSION")
    return match[1]


def cuda_packages(report: dict) -> list[str]:
    """Names of CUDA packages in a report of `pip install --dry-run --report`."""
    names = {item["metadata"]["name"].lower() for item in report["install"]}
    return sorted(name for name in names if CUDA.match(name))


def has_gpu() -> bool:
    """Whether NVIDIA's own tool is here and finds one."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


class Environment:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def create(self) -> None:
        """The environment, unless it is there and works. Raises InstallError."""
        if self.python.exists() and self._pip("--version", quiet=True):
            return
        if sys.version_info < OLDEST:
            raise InstallError(
                f"{sys.executable} is Python {platform.python_version()}, but 3.11 or newer is needed; "
                "name one with: make PYTHON=/path/to/python3.11"
            )
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        if made.returncode:
            raise InstallError(f"{sys.executable} -m venv failed; on Debian and Ubuntu, apt install python3-venv helps")

    def _pip(self, *arguments: str, quiet: bool = False) -> bool:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=quiet).returncode == 0

    def pip(self, *arguments: str) -> None:
        """pip, with its own output. Raises InstallError where it fails."""
        if not self._pip(*arguments):
            raise InstallError(f"pip {' '.join(arguments)} failed; its message is above")

    def torch(self, version: str, index: str) -> None:
        """torch and what it needs, as a CPU build unless there is a GPU or the caller says otherwise.

        Raises InstallError where nothing but CUDA packages could be had.
        """
        plain = ("install", "--quiet", "--constraint", str(CONSTRAINTS), f"torch=={version}")
        if self._has(version):
            return
        if index not in ("", "default"):
            return self.pip(*plain, "--index-url", index)
        if index == "default" or sys.platform == "darwin" or has_gpu():
            return self.pip(*plain)
        # Without dependencies: the index of PyTorch has copies of them, in other versions than our pins.
        cpu = ("install", "--quiet", "--no-deps", "--index-url", CPU_INDEX, f"torch=={version}+cpu")
        if self._pip(*cpu, *QUICK, quiet=True):
            return self.pip(*plain)
        unwanted = cuda_packages(self.dry_run(*plain))
        if unwanted:
            raise InstallError(
                f"there is no GPU here, {CPU_INDEX} gives no torch {version}, and the one from pip's own "
                f"index would bring {len(unwanted)} CUDA packages ({', '.join(unwanted[:3])}, ...).\n"
                "Name an index that has the CPU build:  make book TORCH_INDEX=https://...\n"
                "or take the CUDA build all the same:   make book TORCH_INDEX=default"
            )
        self.pip(*plain)

    def _has(self, version: str) -> bool:
        code = f"from importlib.metadata import version as v; assert v('torch').split('+')[0] == {version!r}"
        return subprocess.run([str(self.python), "-c", code], capture_output=True).returncode == 0

    def dry_run(self, *arguments: str) -> dict:
        """pip's report of what these arguments would do."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            self.pip(*arguments, "--dry-run", "--report", str(report))
            return json.loads(report.read_text(encoding="utf-8"))


def install(arguments: argparse.Namespace) -> None:
    """Everything, in the order that keeps CUDA out. Raises InstallError."""
    constraints = CONSTRAINTS.read_text(encoding="utf-8")
    torch = pinned("torch", constraints)
    environment = Environment(arguments.folder)
    environment.create()
    environment.torch(torch, os.environ.get("TORCH_INDEX", ""))
    if arguments.requirements:
        # Other people's packages have pins of their own; ours hold only for torch.
        environment.pip("install", "--quiet", f"torch=={torch}", "--requirement", str(arguments.requirements))
    if arguments.editable:
        # The build tool is pinned like everything else, so pip may not fetch its own.
        setuptools = f"setuptools=={pinned('setuptools', constraints)}"
        limits = () if arguments.requirements else ("--constraint", str(CONSTRAINTS))
        environment.pip("install", "--quiet", setuptools)
        environment.pip("install", "--quiet", "--no-build-isolation", *limits, "--editable", arguments.editable)
    for name in arguments.without:
        environment.pip("uninstall", "--quiet", "--yes", name)
    if not arguments.requirements:
        environment.pip("check")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--editable", help="a project to install in place, such as .[book,dev]")
    parser.add_argument("--requirements", type=Path, help="packages under their own pins")
    parser.add_argument("--without", nargs="*", default=[], help="packages to remove again")
    try:
        install(parser.parse_args(argv))
    except InstallError as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
