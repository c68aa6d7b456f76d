"""What every reader of the Hugging Face hub does: keep it quiet, and say in one line what failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*others: str) -> Iterator[None]:
    """Without a line on stderr for every retry. ``others``: loggers that are to be quiet as well."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", *others)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason(error: Exception) -> str:
    """The first line of an error, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")
