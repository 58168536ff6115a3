# ruff: noqa: E402  (the environment has to be set before JAX is imported)
"""Settings every test runs under; they must be in place before JAX starts."""

import os
import pathlib

DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update("jax_platforms", "cpu")  # the environment is read too late if JAX came first
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the checkout; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("UNCLIP_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set UNCLIP_SHARED to run this test")
    return folder
