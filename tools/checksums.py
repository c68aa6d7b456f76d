"""Hold data/README.md against data/: each file has a row, each checksum is right. Standard library only.

    python tools/checksums.py           says what is wrong
    python tools/checksums.py --write   puts the right checksums in

A row begins with a file's path in data/, in backquotes, and ends with the first 16 hex digits of its SHA-256.
It may end with a dash instead: then the path may be a pattern, and its files are written anew by a command.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROW = re.compile(r"^\| `(?P<path>[^`]+)` \|(?P<middle>.*)\| (?P<sum>`[0-9a-f]{16}`|–) \|$", re.MULTILINE)


def checksum(path: Path) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def files(data: Path) -> Iterator[str]:
    """Paths in data/ that need a row."""
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if path.is_file() and name != "README.md" and not name.startswith(("cache/", ".")):
            yield name


def problems(data: Path) -> list[str]:
    """Files without a row, rows without a file, wrong checksums; one line each."""
    text = (data / "README.md").read_text("utf-8")
    rows = {row["path"]: row["sum"].strip("`") for row in ROW.finditer(text)}
    patterns = [path for path, given in rows.items() if given == "–"]
    present = list(files(data))
    found = [
        f"data/{name} has no row in data/README.md"
        for name in present
        if name not in rows and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    for path, given in rows.items():
        if given == "–":
            continue
        if path not in present:
            found.append(f"data/README.md has a row for {path}, which is not there")
        elif checksum(data / path) != given:
            found.append(f"data/{path} has the checksum {checksum(data / path)}; data/README.md says {given}")
    return found


def write(data: Path) -> None:
    """Put the right checksum into every row that has one."""

    def corrected(row: re.Match[str]) -> str:
        path = data / row["path"]
        given = f"`{checksum(path)}`" if row["sum"] != "–" and path.is_file() else row["sum"]
        return f"| `{row['path']}` |{row['middle']}| {given} |"

    readme = data / "README.md"
    readme.write_text(ROW.sub(corrected, readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    DATA = Path(__file__).resolve().parent.parent / "data"
    if "--write" in sys.argv[1:]:
        write(DATA)
    wrong = problems(DATA)
    print("\n".join(wrong) or "data/README.md is right")
    sys.exit(bool(wrong))
