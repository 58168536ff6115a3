# ruff: noqa: E402  (the environment has to be set before JAX is imported)
"""Settings every test runs under; they must be in place before JAX starts."""

import gc
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from tests import compiler, type_checks  # noqa: F401  (pytest knows the latter by name)

ROOT = pathlib.Path(__file__).parents[1]
MAPPINGS = 20_000  # of memory; Linux ends a process that needs more than 65,530

# Modules are compiled once, here and in the processes that tests start, whatever the shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["JAX_PLATFORMS"] = "cpu"
compiler.settle()
# Many tests compile the same program, in this process and in those they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # the environment is read too late if JAX came first
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("UNCLIP_THOROUGH") != "1":
    compiler.share_contexts()
    compiler.compare_shapes()


def pytest_configure(config: pytest.Config) -> None:
    """A cache entry that another process is just writing is compiled again, not an error."""
    for verb in ("reading", "writing"):
        ignore = f"ignore:Error {verb} persistent compilation cache:UserWarning"
        config.addinivalue_line("filterwarnings", ignore)


def pytest_collection_finish() -> None:
    """Garbage is looked for less often, and not among the modules that are imported by now."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, it would leave all workers but its own idle."""
    items.sort(key=lambda item: item.path.name != "test_cascade.py")  # else as they come


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs after a file once they take many memory mappings."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def google_store() -> Iterator[Any]:
    """gs://bucket of an emulated store, empty at the beginning of a file."""
    from tests import object_stores

    with object_stores.google():
        yield object_stores.Url(f"gs://{object_stores.BUCKET}")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the checkout; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("UNCLIP_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set UNCLIP_SHARED to run this test")
    return folder
