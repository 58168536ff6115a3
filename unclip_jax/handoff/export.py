"""Writing an export atomically: readers see a complete one or none.

The manifest holds the SHA-256 digest of every other file, and its own. Everything is written to
`DIR.tmp` beside the target and renamed at the end. An existing export is
moved to `DIR.old` between the two renames and removed after the new one is complete; `load.locate`
finds it if the machine dies in between.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from unclip_jax.core import digests, trees
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.files import regular_files, write_atomically
from unclip_jax.core.types import Params
from unclip_jax.handoff.manifest import Manifest, to_json, with_tokenizer

PARAMS, MANIFEST, TOKENIZER = "params", "manifest.json", "tokenizer"
TENSORS = "params.safetensors"  # one file in the place of PARAMS, for small models
LAYOUTS = ("orbax", "safetensors")


def write_export(
    directory: pathlib.Path,
    *,
    params: Params,
    manifest: Manifest,
    tokenizer_dir: pathlib.Path | None,
    identity: str | None = None,
    dtype: str = "float32",
    layout: str = "orbax",
) -> Manifest:
    """Writes parameters, manifest and tokenizer to `directory`, all or nothing.

    With several processes every one of them calls this; the first writes the small files.

    Args:
        directory: the export's folder; an existing export is replaced by the complete new one.
        params: unboxed arrays, on host or devices, sharded or not.
        manifest: `parameters` is filled in here.
        tokenizer_dir: folder of a tokenizer to copy, or None.
        identity: manifest field to fill with the identity of these parameters, such as "clip_id";
            "text_encoder_id" includes the tokenizer's.
        dtype: "float32" or "bfloat16", the type in which floating point parameters are stored.
        layout: "orbax", which many hosts write in parallel, or "safetensors", a single file.

    Returns:
        The manifest as written.

    Raises:
        UserError: the folder is no export, or cannot be written; its files are untouched.
    """
    one_of("export dtype", dtype, ("float32", "bfloat16"))
    one_of("export layout", layout, LAYOUTS)
    directory = pathlib.Path(os.path.abspath(directory))
    stored = _cast(params, jnp.dtype(dtype))
    facts: dict[str, Any] = {"parameters": trees.count(stored)}
    if identity:
        tokenizer_hash = manifest.tokenizer_hash if identity == "text_encoder_id" else None
        facts[identity] = with_tokenizer(params_id(stored), tokenizer_hash)
    manifest = dataclasses.replace(manifest, **facts)
    to_json(manifest)  # rejects what JSON cannot express, before the parameters are written
    with _clear_errors(directory):
        _check_replaceable(directory)
        draft = _sibling(directory, "tmp")
        _first_process(lambda: _start(draft), "export: start")
        _write_params(draft, stored, layout)
        _first_process(lambda: _finish(draft, directory, manifest, tokenizer_dir), "export: finish")
    return manifest


def _write_params(draft: pathlib.Path, params: Params, layout: str) -> None:
    if layout == "safetensors":
        tensors = {path: _on_host(leaf) for path, leaf in trees.flatten_paths(params).items()}
        _first_process(lambda: save_file(tensors, draft / TENSORS), "export: parameters")
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(draft / PARAMS, dict(params))
        checkpointer.wait_until_finished()


def replace_manifest(directory: pathlib.Path, manifest: Manifest) -> None:
    """Gives an export another manifest, with the digests of the files that it has now.

    Raises:
        UserError: `config` or `embed_stats` holds a value that JSON cannot express.
        OSError: the folder cannot be read or written.
    """
    write_atomically(directory / MANIFEST, to_json(manifest, _digests(directory)))


def _digests(directory: pathlib.Path) -> dict[str, str]:
    """Returns the digests of parameters and tokenizer by their paths."""
    parts = (PARAMS, TOKENIZER)
    names = [f"{part}/{name}" for part in parts for name in regular_files(directory / part)]
    names += [TENSORS] if (directory / TENSORS).is_file() else []
    return digests.of_files(directory, names)


def params_id(params: Params) -> str:
    """Returns the sha256 over paths, shapes, types and little-endian bytes of a parameter tree.

    It does not depend on how the arrays are sharded nor on the order of the tree's keys.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten_paths(params).items()):
        array = _on_host(leaf)
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        flat = np.ascontiguousarray(array).reshape(-1)
        digest.update(flat.view(np.uint8).data)
    return digest.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _cast(params: Params, dtype: np.dtype) -> Params:
    """Returns floating point leaves in `dtype`, others as they are."""

    def cast(leaf: Any) -> Any:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating and leaf.dtype != dtype else leaf

    return jax.tree.map(cast, params)


def _check_replaceable(directory: pathlib.Path) -> None:
    """Checks against replacing a folder that is not an export."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MANIFEST).exists():
        raise UserError(
            f"{directory} holds files but no {MANIFEST}, so it is not an export; "
            "give another folder or move those files away."
        )


def _start(draft: pathlib.Path) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    if draft.exists():
        shutil.rmtree(draft)  # left by a run that was killed while exporting
    draft.mkdir()


def _finish(
    draft: pathlib.Path,
    directory: pathlib.Path,
    manifest: Manifest,
    tokenizer_dir: pathlib.Path | None,
) -> None:
    """Adds tokenizer and manifest, with the digests of all files, and renames the draft."""
    if tokenizer_dir is not None:
        shutil.copytree(tokenizer_dir, draft / TOKENIZER)
    _write_durably(draft / MANIFEST, to_json(manifest, _digests(draft)))
    old = _sibling(directory, "old")
    if directory.exists():
        if old.exists():
            shutil.rmtree(old)
        directory.rename(old)
    draft.rename(directory)
    if old.exists():
        shutil.rmtree(old)


def _write_durably(path: pathlib.Path, text: str) -> None:
    """Writes and flushes to the disk, so that a full disk is noticed before the rename."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sibling(directory: pathlib.Path, suffix: str) -> pathlib.Path:
    return directory.with_name(f"{directory.name}.{suffix}")


def _first_process(action: Any, name: str) -> None:
    """Runs `action` in process 0 while the others wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def _clear_errors(directory: pathlib.Path) -> Iterator[None]:
    """Turns errors of file systems and Orbax into one line, and removes the draft."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        shutil.rmtree(_sibling(directory, "tmp"), ignore_errors=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"could not write the export {directory}: {reason}. Free some space or choose a "
            "writable folder and run the same command again; an export that was there is untouched."
        ) from error
