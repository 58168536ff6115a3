import pytest

from tests.convert.conftest import recordings  # noqa: F401 (a fixture)


def pytest_collection_modifyitems(items):
    """Whatever lies here compares with PyTorch."""
    for item in items:
        if "tests/parity/" in item.path.as_posix():
            item.add_marker(pytest.mark.parity)
