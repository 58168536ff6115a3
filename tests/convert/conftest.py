import pathlib

import pytest

from tests.convert import recorded


@pytest.fixture(scope="session")
def recordings(shared: pathlib.Path) -> recorded.Recordings:
    return recorded.find(shared)
