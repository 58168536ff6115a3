"""A layout is a table: this parameter of ours is that tensor of theirs, in this form.

The same table reads and writes, so that import, export and import again are exact. Layers that we
stack along a leading axis are one tensor per layer there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unclip_jax.convert.tensor_source import Shape, TensorSource
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Params


class Entry(NamedTuple):
    """One tensor.

    Attributes:
        leaf: path of our parameter.
        name: of their tensor.
        form: how it is laid out there, a key of FORMS.
        layer: index along our leading axis of stacked layers, or None.
    """

    leaf: str
    name: str
    form: str = "same"
    layer: int | None = None


class Form(NamedTuple):
    """A permutation of axes, and axes of length 1 that theirs has beside ours.

    Attributes:
        axes: our axes in the order in which theirs come.
        ones: positions of axes of length 1 in their shape.
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


def to_theirs(form: str, array: np.ndarray) -> np.ndarray:
    """One of our parameters (of one layer) as their tensor; a view where possible."""
    axes, ones = FORMS[form]
    return np.expand_dims(array if axes is None else array.transpose(axes), ones)


def to_ours(form: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_theirs`."""
    axes, ones = FORMS[form]
    array = array.squeeze(ones) if ones else array
    return array if axes is None else array.transpose(np.argsort(axes))


def linear(leaf: str, name: str, *, layer: int | None = None, form: str = "linear") -> list[Entry]:
    """A linear map (or another kernel of the given form) with its bias."""
    return [
        Entry(f"{leaf}/kernel", f"{name}.weight", form, layer),
        Entry(f"{leaf}/bias", f"{name}.bias", "same", layer),
    ]


def norm(leaf: str, name: str, *, layer: int | None = None) -> list[Entry]:
    """Gain and offset of a norm."""
    return [
        Entry(f"{leaf}/scale", f"{name}.weight", "same", layer),
        Entry(f"{leaf}/bias", f"{name}.bias", "same", layer),
    ]


def transformer(leaf: str, name: str, *, depth: int, parts: Mapping[str, str]) -> list[Entry]:
    """A stack of blocks; `parts` maps the parts of our block to theirs."""
    entries = []
    for layer in range(depth):
        for ours, theirs in parts.items():
            make = norm if ours.startswith("norm") else linear
            entries += make(f"{leaf}/blocks/{ours}", f"{name}.{layer}.{theirs}", layer=layer)
    return entries


def under(entries: Sequence[Entry], *, leaf: str = "", name: str = "") -> list[Entry]:
    """The same table one level down: `leaf` and `name` go before our paths and their names."""
    return [e._replace(leaf=leaf + e.leaf, name=name + e.name) for e in entries]


def expected(entries: Sequence[Entry], abstract: Params) -> dict[str, Shape]:
    """Names and shapes of the tensors that fill the tree `abstract`.

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
    return to_theirs(entry.form, np.broadcast_to(np.int8(0), part)).shape


def check(source: TensorSource, entries: Sequence[Entry], abstract: Params) -> None:
    """Refuses a source that does not fill the tree exactly.

    Raises:
        UserError: listing every tensor that is missing, extra or of another shape.
    """
    wanted, there = expected(entries, abstract), source.shapes
    lines = [f"missing {name} {wanted[name]}" for name in sorted(wanted.keys() - there.keys())]
    lines += [f"extra {name} {there[name]}" for name in sorted(there.keys() - wanted.keys())]
    lines += [
        f"{name}: expected {wanted[name]}, found {there[name]}"
        for name in sorted(wanted.keys() & there.keys())
        if wanted[name] != there[name]
    ]
    if lines:
        raise UserError(
            f"{source.where} does not fit the architecture in {len(lines)} tensors: "
            f"{'; '.join(lines)}. Nothing was loaded; check that weights and config belong "
            "together."
        )


def fill(
    source: TensorSource, entries: Sequence[Entry], abstract: Params, *, dtype: str = "float32"
) -> dict[str, Any]:
    """Reads the tree `abstract`, one tensor at a time, after `check`.

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
        part[...] = to_ours(entry.form, source.read(entry.name))
    return nested(leaves)


def tensors(params: Params, entries: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors from our tree, in the table's order, contiguous."""
    leaves = trees.flatten_paths(params)
    for entry in entries:
        leaf = np.asarray(leaves[entry.leaf])
        part = leaf if entry.layer is None else leaf[entry.layer]
        yield entry.name, np.asarray(to_theirs(entry.form, part), order="C")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict from leaves by slash-separated path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree
