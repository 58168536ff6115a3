"""The identity of the run in a workdir, and checksums of saved states."""

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
_INPUTS = {  # digest in an identity -> its description
    "data": "the digest of the training records",
    "tokenizer": "the hash of the tokenizer",
    "embeddings": "the CLIP that computed the embeddings",
    "text_encoder": "the text encoder that the stage reads",
    "init_from": "the digest of the export named by config.init_from",
}


def claim(
    workdir: pathlib.Path,
    identity: Mapping[str, Any],
    *,
    earlier: Mapping[str, Any] | None = None,
) -> bool:
    """Reserves `workdir` for the run with this identity.

    The first call writes `fingerprint.json` (in process 0); later calls compare with it.

    Args:
        workdir: created if absent.
        identity: JSON-ready, readable facts that are equal in continuations of one run; below
            "inputs", the digests of what the run reads.
        earlier: the identity in the form of versions that identified inputs by their paths;
            compared with files of those versions, which are then rewritten.

    Returns:
        True if the folder was not reserved before.

    Raises:
        UserError: the folder belongs to another experiment (names the first key that differs),
            cannot be written, or contains checkpoints but no readable fingerprint.
    """
    path = workdir / FILE
    first = not path.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not first:
            stored = _read(workdir, path.read_text(encoding="utf-8"))
            comparable = identity if earlier is None or "inputs" in stored else earlier
            _compare(workdir, stored, comparable)
            if comparable is earlier and jax.process_index() == 0:
                write_json(path, {"hash": digest(identity), "identity": identity})
        elif (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
            raise UserError(
                f"{workdir} holds checkpoints but no {FILE}; the experiment that "
                "wrote them is unknown. Choose another --workdir."
            )
        elif jax.process_index() == 0:
            write_json(path, {"hash": digest(identity), "identity": identity})
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir}: {error.strerror}. Choose another --workdir."
        ) from error
    return first


def release(workdir: pathlib.Path) -> None:
    """Cancels the first `claim` of a workdir without checkpoints."""
    if jax.process_index() == 0:
        (workdir / FILE).unlink(missing_ok=True)


def digest(identity: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:16]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def describe_tree(tree: Any) -> dict[str, str]:
    """Returns path -> "float32[3, 4]" for every leaf."""
    return {path: f"{x.dtype}{list(x.shape)}" for path, x in flatten_paths(tree).items()}


def checksum(tree: Any) -> int:
    """Computes a 32-bit checksum of all leaves, independent of their sharding.

    Bits are read as words, multiplied by an odd number derived from their position and added modulo
    2^32. Addition commutes, so the order of devices does not matter. An odd factor is invertible,
    so every change of a single word changes the sum. Each leaf is a program of its own, because XLA
    takes half a minute to compile one program for all leaves of a U-Net.
    """
    sums = fetch_all(_weighted_sum(leaf) for leaf in jax.tree.leaves(tree))
    return sum((2 * index + 1) * int(value) for index, value in enumerate(sums)) % 2**32


@jax.jit
def _weighted_sum(x: Array) -> UInt32[Array, ""]:
    """Sums the words of `x` times 2 * position + 1; indexing by axis preserves the sharding."""
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


def _read(workdir: pathlib.Path, text: str) -> dict[str, Any]:
    """Returns the identity in a fingerprint file."""
    try:
        stored = json.loads(text)["identity"]
        stored.get("model", {}).pop("sampling", None)  # written by earlier versions
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir / FILE} is damaged, so the identity of this run is unknown; restore the "
            "file or choose another --workdir."
        ) from error
    return stored


def _compare(workdir: pathlib.Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if _canonical(stored) == _canonical(identity):
        return
    current = json.loads(_canonical(identity))
    differences = list(json_differences(stored, current))
    key, theirs, ours = differences[0]
    same_settings = all(path.startswith("inputs.") for path, _, _ in differences)
    for name, what in _INPUTS.items():
        digests = stored.get("inputs", {}).get(name), current.get("inputs", {}).get(name)
        if same_settings and digests[0] != digests[1] and None not in digests:
            before, now = map(_short, digests)
            raise UserError(
                f"{workdir} belongs to a run on other inputs: {what} is {before} there, "
                f"{now} now. Give the inputs of that run, wherever they are now, or "
                "choose another --workdir."
            )
    raise UserError(
        f"{workdir} belongs to another experiment: its {key} is {theirs}, this one's {ours}. "
        "Choose another --workdir, or use that experiment's settings."
    )


def _short(digests: str) -> str:
    """Shortens all digests in a text, such as those of a mixture: "abc... + def..."."""
    return " ".join(word[:12] for word in digests.split())


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))
