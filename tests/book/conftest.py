"""Small notebooks made by hand, so that each rule is seen to fail."""

from collections.abc import Callable
from typing import Any

import nbformat.v4 as v4
import pytest


@pytest.fixture
def markdown() -> Callable[..., Any]:
    def make(source: str, **metadata: Any) -> Any:
        return v4.new_markdown_cell(source, metadata=metadata)

    return make


@pytest.fixture
def code() -> Callable[..., Any]:
    def make(source: str, count: int | None = None, outputs: tuple[Any, ...] = (), **metadata: Any) -> Any:
        return v4.new_code_cell(source, execution_count=count, outputs=list(outputs), metadata=metadata)

    return make


@pytest.fixture
def notebook() -> Callable[..., Any]:
    def make(*cells: Any) -> Any:
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        return v4.new_notebook(cells=list(cells), metadata={"kernelspec": kernel})

    return make


@pytest.fixture
def printed() -> Callable[..., Any]:
    def make(text: str, stream: str = "stdout") -> Any:
        return v4.new_output("stream", name=stream, text=text)

    return make
