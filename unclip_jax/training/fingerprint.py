"""Whose run lives in a workdir, and whether a stored state is bit for bit what was saved."""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import write_atomically
from unclip_jax.core.trees import flatten_paths, json_differences
from unclip_jax.parallel.place import fetch_all

FILE = "fingerprint.json"


def claim(workdir: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Make `workdir` the home of the run with this identity, or refuse.

    The first call writes `fingerprint.json` (process 0 alone); later ones compare with it.

    Args:
        workdir: made if absent.
        identity: JSON-ready facts that make two runs the same run, for people to read.

    Raises:
        UserError: the folder belongs to another experiment (naming the first key that differs),
            cannot be written, or holds checkpoints but no readable fingerprint.
    """
    path = workdir / FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _compare(workdir, path.read_text(encoding="utf-8"), identity)
        elif (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
            raise UserError(
                f"{workdir} holds checkpoints but no {FILE}; it is not known which experiment "
                "made them. Choose another --workdir."
            )
        elif jax.process_index() == 0:
            write_json(path, {"hash": digest(identity), "identity": identity})
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir}: {error.strerror}. Choose another --workdir."
        ) from error


def digest(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:16]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def describe_tree(tree: Any) -> dict[str, str]:
    """Path -> "float32[3, 4]" of every leaf: what a checkpoint must hold to be restored."""
    return {path: f"{x.dtype}{list(x.shape)}" for path, x in flatten_paths(tree).items()}


def checksum(tree: Any) -> int:
    """A 32-bit sum of all bits of all leaves, the same however they are sharded.

    Bits are read as words, each times an odd number made from its position, and added modulo
    2^32. Addition commutes, so no device order matters; an odd factor is invertible, so every
    change of a single word changes the sum. Summed on the devices, leaf by leaf: a program for all
    leaves at once takes XLA half a minute to compile for a U-Net.
    """
    sums = fetch_all(_weighted_sum(leaf) for leaf in jax.tree.leaves(tree))
    return sum((2 * index + 1) * int(value) for index, value in enumerate(sums)) % 2**32


@jax.jit
def _weighted_sum(x: Array) -> UInt32[Array, ""]:
    """Words of `x` times 2 * position + 1, summed; indexed by axis so that sharding is kept."""
    words = _words(x)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * jnp.uint32(stride)
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


def _words(x: Array) -> Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _compare(workdir: pathlib.Path, text: str, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads(text)["identity"]
        found.get("model", {}).pop("sampling", None)  # runs noted it once
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir / FILE} is damaged, so it is not known whose run this is; restore the file "
            "or choose another --workdir."
        ) from error
    if _canonical(found) == _canonical(identity):
        return
    ours = json.loads(_canonical(identity))
    key, there, here = next(json_differences(found, ours))
    raise UserError(
        f"{workdir} belongs to another experiment: {key} is {there} there and {here} here. "
        "Choose another --workdir, or use that experiment's settings."
    )


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))
