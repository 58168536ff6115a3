"""Recordings of the originals: models in public layouts, inputs, outputs and their tolerances."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Case(NamedTuple):
    """One recording; half-precision inputs are given in float32, integers in int32."""

    name: str
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    outputs: dict[str, dict[str, Any]]

    def argument(self, name: str) -> jax.Array:
        value = self.arrays[f"in_{name}"]
        narrow = {"float16": np.float32, "int64": np.int32}
        return jnp.asarray(value.astype(narrow.get(value.dtype.name, value.dtype)))

    def images(self, name: str) -> jax.Array:
        """An input of images with channels last."""
        return jnp.moveaxis(self.argument(name), -3, -1)

    def check(self, name: str, got: Any, *, image: bool = False) -> None:
        """Hold `got` to a recorded output and its tolerances (greatest and mean difference)."""
        expected, rule = self.arrays[f"out_{name}"], self.outputs[name]
        got = np.asarray(got)
        got = np.moveaxis(got, -1, -3) if image else got
        assert got.shape == expected.shape, f"{self.name} {name}: {got.shape}, not {expected.shape}"
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(got, expected)
            return
        scale = max(1.0, rule["rms"])
        error = np.abs(np.float64(got) - np.float64(expected))
        most, mean = rule.get("atol", 2e-5 * scale), rule.get("mean_atol", 4e-6 * scale)
        message = f"{self.name} {name}: {error.max():.2e} of {most:.2e}, mean {error.mean():.2e}"
        assert error.max() <= most and error.mean() <= mean, message


class Recordings:
    """The folder of recordings."""

    def __init__(self, root: pathlib.Path):
        self.root = root

    def case(self, name: str) -> Case:
        entry = _index(self.root)[name]
        with np.load(self.root / entry["npz"], allow_pickle=False) as file:
            arrays = dict(file)
        return Case(name, entry.get("config") or {}, arrays, entry["outputs"])

    def model(self, name: str) -> pathlib.Path:
        return self.root / "models" / name


@functools.cache
def _index(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {case["id"]: case for case in json.loads((root / "index.json").read_text())["cases"]}


def find(shared: pathlib.Path) -> Recordings:
    root = shared / "oracles"
    if not (root / "index.json").is_file():
        pytest.skip(f"no recordings of the originals at {root}")
    return Recordings(root)
