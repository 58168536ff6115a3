import logging
import sys
import types

from unclip_jax.training import orbax_logging


def record(path: str, text: str) -> logging.LogRecord:
    return logging.LogRecord("absl", logging.ERROR, path, 1, text, (), None)


def test_only_records_of_orbax_are_dropped():
    assert not orbax_logging._not_from_orbax(record("/site-packages/orbax/checkpoint/a.py", "boom"))
    assert orbax_logging._not_from_orbax(record("/site-packages/grain/a.py", "boom"))
    assert not orbax_logging._not_abandoned(
        record("", "Task exception was never retrieved\n orbax/x.py")
    )
    assert orbax_logging._not_abandoned(
        record("", "Task exception was never retrieved\n ours/x.py")
    )
    assert orbax_logging._not_abandoned(record("", "orbax is slow"))


def test_only_late_reports_are_dropped(monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    orbax_logging.install_filters()
    orbax_logging.install_filters()  # installing twice wraps once
    for error in (RuntimeError("Event loop is closed"), RuntimeError("x"), OSError("y")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(report.exc_value) for report in reports] == ["x", "y"]
    assert sys.unraisablehook._before == reports.append
