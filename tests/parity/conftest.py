"""Whatever lies here compares with PyTorch, and `make parity` does not let it be skipped.

Nothing here needs files from elsewhere: the originals are built on the spot, with random weights.
"""

import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
REQUIRED = "UNCLIP_REQUIRE_PARITY"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Runs PyTorch on one thread: on a busy machine more make tiny networks ten times slower."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file that skips itself, because a library is not there."""
    return _require((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that skips itself, or that is expected to fail."""
    return _require((yield))


def _require(report):
    """With UNCLIP_REQUIRE_PARITY=1 a skipped test fails, with its reason."""
    if report.skipped and os.environ.get(REQUIRED) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped with {REQUIRED}=1: {reason}"
    return report
