"""The directory of the compilation cache."""

import pathlib

import jax
import pytest

from unclip_jax.cli import compilation_cache
from unclip_jax.core.storage import location

KEY = "jax_compilation_cache_dir"
VARIABLE = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def updates(monkeypatch):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.delenv(VARIABLE)
    return updates


@pytest.mark.parametrize(
    ("folder", "environment", "workdir", "expected"),
    [
        ("gs://bucket/xla", "/of/the/launcher", "/run/clip", "gs://bucket/xla"),
        ("/mine", None, "/run/clip", "/mine"),
        ("", "/of/the/launcher", "/run/clip", ""),
        (None, "/of/the/launcher", "/run/clip", "/of/the/launcher"),
        (None, None, "/run/clip", "/run/compilation_cache"),
        (None, None, "gs://bucket/run/clip", "gs://bucket/run/compilation_cache"),
        (None, None, "gs://bucket/clip", "gs://bucket/compilation_cache"),
        (None, None, "gs://bucket", "gs://bucket/compilation_cache"),
        (None, None, None, str(pathlib.Path("~/.cache/unclip_jax/xla").expanduser())),
    ],
)
def test_flag_environment_and_workdir_in_this_order(
    folder, environment, workdir, expected, updates, monkeypatch
):
    if environment:
        monkeypatch.setenv(VARIABLE, environment)
    place = location(workdir) if workdir else None
    assert compilation_cache.use(folder, workdir=place) == expected
    by_jax = folder is None and environment  # which reads the variable itself
    assert updates.get(KEY, "") == ("" if by_jax else expected)


def test_a_relative_workdir(updates, tmp_path, monkeypatch):
    """JAX may be in another folder when it writes."""
    monkeypatch.chdir(tmp_path)
    folder = compilation_cache.use(workdir=pathlib.Path("clip"))
    assert folder == updates[KEY] == str(tmp_path / "compilation_cache")
