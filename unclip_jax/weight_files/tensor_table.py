"""Tables between parameters of this package and tensors of another layout.

The same table reads and writes, so that import, export and import again are exact. Layers that are
stacked along a leading axis here are one tensor per layer there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError, listed
from unclip_jax.core.types import Params
from unclip_jax.weight_files.tensor_source import Shape, TensorSource


class Entry(NamedTuple):
    """One row of a table.

    Attributes:
        leaf: path of the parameter.
        name: of the external tensor.
        form: layout of the external tensor, a key of FORMS.
        layer: index along the leading axis of stacked layers, or None.
    """

    leaf: str
    name: str
    form: str = "same"
    layer: int | None = None


class Form(NamedTuple):
    """A permutation of axes, and axes of length 1 that the external tensor has in addition.

    Attributes:
        axes: axes of the parameter in the order of the external tensor.
        ones: positions of axes of length 1 in the external shape.
    """

    axes: tuple[int, ...] | None = None
    ones: tuple[int, ...] = ()


FORMS: Mapping[str, Form] = {
    "same": Form(),
    "linear": Form((1, 0)),  # [in, out] here, [out, in] there
    "conv": Form((3, 2, 0, 1)),  # [h, w, in, out] here, [out, in, h, w] there
    "conv_1x1": Form((1, 0), (2, 3)),  # a linear map here
    "conv_1d": Form((1, 0), (2,)),  # likewise, in the original U-Nets
    "row": Form(ones=(0,)),
    "row_of_row": Form(ones=(0, 1)),
}


def to_external(form: str, array: np.ndarray) -> np.ndarray:
    """Returns a parameter (of one layer) as external tensor, as a view where possible."""
    axes, ones = FORMS[form]
    return np.expand_dims(array if axes is None else array.transpose(axes), ones)


def from_external(form: str, array: np.ndarray) -> np.ndarray:
    """Inverts `to_external`."""
    axes, ones = FORMS[form]
    array = array.squeeze(ones) if ones else array
    return array if axes is None else array.transpose(np.argsort(axes))


def linear(leaf: str, name: str, *, layer: int | None = None, form: str = "linear") -> list[Entry]:
    """Returns the rows of a linear map (or another kernel of this form) with its bias."""
    return [
        Entry(f"{leaf}/kernel", f"{name}.weight", form, layer),
        Entry(f"{leaf}/bias", f"{name}.bias", "same", layer),
    ]


def norm(leaf: str, name: str, *, layer: int | None = None) -> list[Entry]:
    """Returns the rows of gain and offset of a norm."""
    return [
        Entry(f"{leaf}/scale", f"{name}.weight", "same", layer),
        Entry(f"{leaf}/bias", f"{name}.bias", "same", layer),
    ]


def transformer(leaf: str, name: str, *, depth: int, parts: Mapping[str, str]) -> list[Entry]:
    """Returns the rows of a stack of blocks; `parts` maps the parts of a block to external ones."""
    entries = []
    for layer in range(depth):
        for ours, theirs in parts.items():
            make = norm if ours.startswith("norm") else linear
            entries += make(f"{leaf}/blocks/{ours}", f"{name}.{layer}.{theirs}", layer=layer)
    return entries


def under(entries: Sequence[Entry], *, leaf: str = "", name: str = "") -> list[Entry]:
    """Returns the table one level down, with `leaf` and `name` before paths and names."""
    return [e._replace(leaf=leaf + e.leaf, name=name + e.name) for e in entries]


def expected(entries: Sequence[Entry], abstract: Params) -> dict[str, Shape]:
    """Returns names and shapes of the tensors that fill the tree `abstract`.

    The table and the tree must cover each other; that they do not is a bug, not a user's mistake.
    """
    shapes = {path: leaf.shape for path, leaf in trees.flatten_paths(abstract).items()}
    covered = {(entry.leaf, entry.layer) for entry in entries}
    assert len(covered) == len(entries), "a parameter is named twice"
    assert {leaf for leaf, _ in covered} == shapes.keys(), sorted(
        {leaf for leaf, _ in covered} ^ shapes.keys()
    )
    return {entry.name: _their_shape(entry, shapes[entry.leaf]) for entry in entries}


def _their_shape(entry: Entry, shape: Shape) -> Shape:
    part = shape if entry.layer is None else shape[1:]
    return to_external(entry.form, np.broadcast_to(np.int8(0), part)).shape


def check(source: TensorSource, entries: Sequence[Entry], abstract: Params) -> None:
    """Rejects a source that does not fill the tree exactly.

    Raises:
        UserError: listing every tensor that is missing, extra or of another shape.
    """
    required, shapes = expected(entries, abstract), source.shapes
    missing, extra = required.keys() - shapes.keys(), shapes.keys() - required.keys()
    lines = [f"missing {name} {required[name]}" for name in sorted(missing)]
    lines += [f"extra {name} {shapes[name]}" for name in sorted(extra)]
    lines += [
        f"{name}: expected {required[name]}, found {shapes[name]}"
        for name in sorted(required.keys() & shapes.keys())
        if required[name] != shapes[name]
    ]
    if lines:
        raise UserError(
            f"{source.where} does not fit the architecture in {len(lines)} tensors: "
            f"{listed(lines)}. Nothing was loaded; check that weights and config belong "
            "together."
        )


def fill(
    source: TensorSource, entries: Sequence[Entry], abstract: Params, *, dtype: str = "float32"
) -> dict[str, Any]:
    """Reads the tree `abstract`, one tensor at a time, after `check`.

    Raises:
        UserError: tensors that do not fit, are not of floating point, or hold values that are not
            finite (in `dtype`).

    Args:
        source: what to read.
        entries: the table.
        abstract: tree of shapes.
        dtype: "float32" or "bfloat16" of every parameter; values are rounded to nearest.
    """
    check(source, entries, abstract)
    leaves = {
        path: np.empty(leaf.shape, jax.numpy.dtype(dtype))
        for path, leaf in trees.flatten_paths(abstract).items()
    }
    for entry in entries:
        place = leaves[entry.leaf]
        part = (place if entry.layer is None else place[entry.layer])[...]
        tensor = source.read(entry.name)
        if not jax.numpy.issubdtype(tensor.dtype, jax.numpy.floating) or tensor.itemsize < 2:
            raise UserError(
                f"{source.where} holds {entry.name} as {tensor.dtype}; expected float16, bfloat16 "
                "or wider. Quantised weights are not supported."
            )
        with np.errstate(over="ignore"):
            part[...] = from_external(entry.form, tensor)
        if not np.isfinite(part).all():
            raise UserError(
                f"{source.where} holds values in {entry.name} that are not finite in {dtype}; the "
                "file is damaged or its training diverged. Take another checkpoint."
            )
    return nested(leaves)


def tensors(params: Params, entries: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the external tensors of a tree, in the table's order, contiguous."""
    leaves = trees.flatten_paths(params)
    for entry in entries:
        leaf = np.asarray(leaves[entry.leaf])
        part = leaf if entry.layer is None else leaf[entry.layer]
        yield entry.name, np.asarray(to_external(entry.form, part), order="C")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nests leaves by slash-separated path into a dict."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree
