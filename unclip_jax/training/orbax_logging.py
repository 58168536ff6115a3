"""Filters for Orbax's log messages, because checkpoint.py reports the same failures in one line.

When storage fails, Orbax logs stack traces and abandons asynchronous reads and writes, whose
failures Python reports one by one later. All other messages pass.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

ORBAX = ("orbax", "OCDBT", "TensorStore")


def install_filters() -> None:
    """Installs the filters for Orbax's messages and for late reports of abandoned tasks."""
    logging.getLogger("absl").addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_abandoned)
    if not isinstance(sys.unraisablehook, _DropLate):
        sys.unraisablehook = _DropLate(sys.unraisablehook)


class _DropLate:
    """An unraisablehook that drops errors raised after the event loop was closed."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, report: Any) -> None:
        closed = "Event loop is closed" in str(report.exc_value)
        if not (closed and isinstance(report.exc_value, RuntimeError)):
            self._before(report)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _not_abandoned(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and any(name in text for name in ORBAX))
