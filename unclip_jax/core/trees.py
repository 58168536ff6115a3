"""Paths, sizes and comparison of pytrees."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Returns leaves by slash-separated path: {"blocks/0/kernel": leaf}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_part(p) for p in path): leaf for path, leaf in leaves}


def count(tree: Any) -> int:
    """Counts the scalars of all leaves, arrays or ShapeDtypeStructs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """Counts the bytes of all leaves."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def shape_differences(expected: Any, actual: Any) -> list[str]:
    """Returns a line per leaf that is missing, extra or of another shape or dtype."""
    left, right = flatten_paths(expected), flatten_paths(actual)
    lines = [f"missing {path} {left[path].shape}" for path in sorted(left.keys() - right.keys())]
    lines += [f"extra {path} {right[path].shape}" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        a, b = left[path], right[path]
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"{path}: expected {a.shape} {a.dtype}, found {b.shape} {b.dtype}")
    return lines


def json_differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted path, value in a, value in b) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            where = f"{path}.{key}" if path else key
            yield from json_differences(a.get(key, "absent"), b.get(key, "absent"), where)
    elif a != b:
        yield path, json.dumps(a), json.dumps(b)


def _part(entry: Any) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)
