"""Where compiled programs are kept."""

import jax
import pytest

from unclip_jax.cli import compilation_cache

KEY = "jax_compilation_cache_dir"


@pytest.mark.parametrize(
    ("folder", "environment", "expected"),
    [
        ("gs://bucket/xla", "/of/the/launcher", "gs://bucket/xla"),
        (compilation_cache.FOLDER, "/of/the/launcher", None),
        ("/mine", None, "/mine"),
        ("", None, None),
    ],
)
def test_a_flag_goes_before_the_environment(folder, environment, expected, monkeypatch):
    """A launcher sets the variable; JAX reads it itself."""
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    if environment:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment)
    compilation_cache.use(folder)
    assert updates.get(KEY) == expected
