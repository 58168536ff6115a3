"""Finding and reading exports: strictly, and directly onto the devices that will use them."""

import contextlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from unclip_jax.core import digests, trees
from unclip_jax.core.checks import UserError, listed
from unclip_jax.core.files import check_regular, read_small, regular_files
from unclip_jax.core.types import Params
from unclip_jax.handoff.export import MANIFEST, PARAMS, TENSORS, TOKENIZER
from unclip_jax.handoff.manifest import ADVICE, Manifest, file_digests, from_json

# What Orbax and safetensors raise on files that are damaged.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    SafetensorError,
)
# Sizes of stages that no experiment file describes.
FOREIGN = (":imported", ":finetune", ":distilled")


def find_stages(
    run_dir: pathlib.Path, *, names: Iterable[str], required: Sequence[str] = ()
) -> dict[str, pathlib.Path]:
    """Returns the exports inside a run directory: {"prior": RUN/prior/export, ...}.

    Args:
        run_dir: the folder that `launch/cascade` fills, with one folder per stage.
        names: folders of stages, in the order of a chain.
        required: those of them that must hold an export.

    Raises:
        UserError: there is no such folder, or a required stage is not exported.
    """
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir} is not a folder; give a run directory such as runs/shapes, written by "
            "`launch/cascade shapes`."
        )
    exports = {name: run_dir / name / "export" for name in names}
    exports = {name: path for name, path in exports.items() if (locate(path) / MANIFEST).is_file()}
    for name in required:
        if name not in exports:
            raise not_exported(run_dir, name, exports)
    return exports


def locate(directory: pathlib.Path) -> pathlib.Path:
    """Returns the folder of an export: `directory`, or `directory.old` after a crash.

    The latter happens only if the machine died between the two renames of `write_export`.
    """
    old = directory.with_name(f"{directory.name}.old")
    return old if not directory.exists() and (old / MANIFEST).is_file() else directory


def tokenizer_dir(directory: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the tokenizer in an export.

    Raises:
        UserError: the export has none, or its files are not those that were exported.
    """
    folder = locate(directory) / TOKENIZER
    if not folder.is_dir():
        raise UserError(
            f"{directory} holds no tokenizer; use the export of a stage that reads text."
        )
    _verify(directory, TOKENIZER)
    return folder


def read_manifest(directory: pathlib.Path) -> Manifest:
    """Reads the manifest of an export.

    Raises:
        UserError: there is no complete export, or its manifest cannot be read.
    """
    text, where = _manifest_text(directory)
    return from_json(text, where=where)


def _manifest_text(directory: pathlib.Path) -> tuple[bytes, str]:
    """Returns the text of an export's manifest and its path."""
    path = locate(directory) / MANIFEST
    if not path.is_file():
        half = directory.with_name(f"{directory.name}.tmp").exists()
        why = "an export was begun there but not finished" if half else f"there is no {path}"
        raise UserError(
            f"{directory} is not a finished export ({why}); train that stage to its end, "
            "or give the folder that holds manifest.json."
        )
    try:
        return read_small(path), str(path)
    except OSError as error:
        raise UserError(f"could not read {path} ({error}); export the stage again.") from None


def file_digests_of(directory: pathlib.Path) -> dict[str, str] | None:
    """Returns the digests that the manifest of an export lists; None in one of version 0.1.0.

    Raises:
        UserError: there is no complete export, or its manifest was changed.
    """
    text, where = _manifest_text(directory)
    return file_digests(text, where=where)


def content_digest(directory: pathlib.Path) -> str:
    """Returns a digest of the parameters and the tokenizer of an export, wherever it lies.

    Raises:
        UserError: there is no complete export, or its manifest was changed.
    """
    stored = file_digests_of(directory)
    if stored is None:
        stored = digests.of_files(locate(directory), _names(directory, PARAMS, TOKENIZER))
    parts = (f"{PARAMS}/", f"{TOKENIZER}/", TENSORS)
    return digests.of_json({n: digest for n, digest in stored.items() if n.startswith(parts)})


def _verify(directory: pathlib.Path, part: str) -> None:
    """Compares the files of one part of an export with the digests in its manifest.

    Raises:
        UserError: files that are missing, changed or not regular, by name.
    """
    stored = file_digests_of(directory)
    _names(directory, part)
    if stored is None:
        return
    mine = {name: digest for name, digest in stored.items() if name.split("/")[0] == part}
    if not mine:
        raise UserError(f"the manifest of {directory} lists no files in {part}; {ADVICE}")
    digests.check_files(locate(directory), mine, advice=ADVICE)


def _names(directory: pathlib.Path, *parts: str) -> list[str]:
    """Returns the paths of all files in folders of an export; a part may be a file.

    Raises:
        UserError: they hold anything but files, such as a named pipe, which stops its readers.
    """
    export, names = locate(directory), []
    try:
        for part in parts:
            if part != TENSORS:
                names += [f"{part}/{name}" for name in regular_files(export / part)]
            elif (export / part).exists():
                check_regular(export / part)
                names.append(part)
        return names
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); {ADVICE}") from None


def read_params(
    directory: pathlib.Path, *, abstract: Any, grows: Mapping[str, int] | None = None
) -> Params:
    """Reads the parameters of an export, all of them or none.

    Args:
        directory: the export.
        abstract: tree of `jax.ShapeDtypeStruct` to fill. Leaves come back in its dtypes, and
            placed by its shardings where it has them, else on this process's first device.
        grows: `Stage.grows`, where training starts from a network that reads fewer channels.

    Raises:
        UserError: listing every leaf that is missing, extra or of another shape, or saying that
            the files are damaged.
    """
    part = _params_part(directory)
    path = pathlib.Path(locate(directory) / part).absolute()
    if part == PARAMS and not path.is_dir():
        raise UserError(
            f"{directory} holds no {PARAMS} folder, so it is not a finished export; export the "
            "stage again."
        )
    _verify(directory, part)
    read = _read_tensors if part == TENSORS else _read_orbax
    try:
        return read(directory, path, abstract, grows or {})
    except UserError:
        raise
    except DAMAGE as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"the parameters in {directory} cannot be read ({reason}); the files are damaged or "
            "incomplete. Copy or export the stage again."
        ) from error


def _params_part(directory: pathlib.Path) -> str:
    """Returns the part of an export that holds its parameters: PARAMS, or TENSORS if listed."""
    has_manifest = (locate(directory) / MANIFEST).is_file()
    return TENSORS if has_manifest and TENSORS in (file_digests_of(directory) or ()) else PARAMS


def _read_orbax(
    directory: pathlib.Path, path: pathlib.Path, abstract: Any, grows: Mapping[str, int]
) -> Params:
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:  # Orbax logs why and goes on
            raise OSError("its list of arrays is unreadable")
        narrow = _narrowed(abstract, metadata.tree, grows)
        _check_tree(directory, metadata.tree, narrow)
        params = checkpointer.restore(path, jax.tree.map(_placed, narrow))
        return _widened(params, abstract, grows)


def _read_tensors(
    directory: pathlib.Path, path: pathlib.Path, abstract: Any, grows: Mapping[str, int]
) -> Params:
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    narrow = _narrowed(abstract, tensors, grows)
    _check_tree(directory, tensors, narrow)
    places = trees.flatten_paths(jax.tree.map(_placed, narrow))
    leaves = [
        jax.device_put(tensors[name].astype(leaf.dtype), leaf.sharding)
        for name, leaf in places.items()
    ]
    return _widened(jax.tree.unflatten(jax.tree.structure(abstract), leaves), abstract, grows)


def stored_shapes(directory: pathlib.Path) -> Any:
    """Returns names, shapes and types of the parameters as they are stored.

    Raises:
        UserError: the export is not complete or its list of arrays is damaged.
    """
    part = _params_part(directory)
    path, tree = pathlib.Path(locate(directory) / part).absolute(), None
    if path.exists():
        _names(directory, part)
        with contextlib.suppress(*DAMAGE):
            tree = _tensor_tree(path) if part == TENSORS else _orbax_tree(path)
    if tree is None:
        raise UserError(f"{directory} holds no readable {part}; export the stage again.")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _orbax_tree(path: pathlib.Path) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        return None if metadata is None else metadata.tree


def _tensor_tree(path: pathlib.Path) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = file.get_tensor(name)
    return tree


def _narrowed(abstract: Any, stored: Any, grows: Mapping[str, int]) -> Any:
    """Returns `abstract` with the kernels that may grow as narrow as they are stored."""
    stored_leaves = trees.flatten_paths(stored)

    def leaf(path: str, kernel: Any) -> Any:
        old = stored_leaves.get(path)
        if path not in grows or old is None or old.shape[-2] >= kernel.shape[-2]:
            return kernel
        shape = (*kernel.shape[:-2], old.shape[-2], kernel.shape[-1])
        return jax.ShapeDtypeStruct(shape, kernel.dtype)

    leaves = [leaf(*item) for item in trees.flatten_paths(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _widened(params: Params, abstract: Any, grows: Mapping[str, int]) -> Params:
    """Returns the parameters with weights of zero for the channels that kernels read anew."""
    full = trees.flatten_paths(abstract)

    def leaf(path: str, kernel: Any) -> Any:
        width, groups = full[path].shape[-2] if path in grows else 0, grows.get(path, 1)
        if not width or kernel.shape[-2] == width:
            return kernel
        *outer, old, out = kernel.shape
        parts = kernel.reshape(*outer, groups, old // groups, out)
        more = [(0, 0)] * (parts.ndim - 2) + [(0, (width - old) // groups), (0, 0)]
        return jnp.pad(parts, more).reshape(*outer, width, out)

    leaves = [leaf(*item) for item in trees.flatten_paths(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _check_tree(directory: pathlib.Path, stored_tree: Any, abstract: Any) -> None:
    """Compares names and shapes; types may differ, since floating point ones are converted."""
    stored, expected = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), tree)
        for tree in (stored_tree, abstract)
    )
    lines = trees.shape_differences(expected, stored)
    if lines:
        differences = listed([line.replace(" float32", "") for line in lines])
        raise UserError(
            f"{directory} does not fit this model in {len(lines)} parameters: {differences}. "
            "Nothing was loaded; use the configuration in its manifest."
        )


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def not_exported(
    run_dir: pathlib.Path, name: str, exports: Mapping[str, pathlib.Path]
) -> UserError:
    """Returns the error for a stage that is missing from a run; `exports` are those it has."""
    if not exports and (runs := _runs_near(run_dir)):
        others = f" Others: {', '.join(runs[1:])}." if runs[1:] else ""
        return UserError(f"{run_dir} is no run directory. Did you mean {runs[0]!r}?{others}")
    have = f"it has {', '.join(exports)}" if exports else "it has none"
    if (size := _size(exports)) in FOREIGN:
        return UserError(
            f"{run_dir} has no export of the {name} ({have}); copy RUN/{name} of the cascade that "
            "these stages came from, or convert a source that has it."
        )
    config = f"experiments/{name}.py{size}"
    return UserError(
        f"{run_dir} has no export of the {name} ({have}); train it with `python -m "
        f"unclip_jax.train --config={config} --workdir={run_dir / name}` or finish the run with "
        "launch/cascade."
    )


def _runs_near(folder: pathlib.Path) -> list[str]:
    """Returns the run directories in `folder`, or the one that it is a stage of."""
    if (folder / "export" / MANIFEST).is_file():
        return [str(folder.parent)]
    manifests = folder.glob(f"*/*/export/{MANIFEST}")
    return sorted({str(manifest.parents[2]) for manifest in manifests})


def _size(exports: Mapping[str, pathlib.Path]) -> str:
    """Returns the suffix of an experiment file, such as ":shapes", from the first manifest."""
    for path in exports.values():
        try:
            return f":{read_manifest(path).size}"
        except UserError:
            continue
    return ""
