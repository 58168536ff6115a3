"""Filters of examples by their metadata: `--where "similarity > 0.28 and punsafe < 0.5"`.

An expression is parsed, checked node by node and interpreted; it is never executed as Python.
Columns are those of the JSON that img2dataset writes beside an image, of a row of a Parquet file,
or of a table. Text is compared with a number by its numeric value if it has one.
"""

import ast
import operator
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError, short
from unclip_jax.preparation.items import Skip

FILTERED = "filtered out"  # a reason that does not count as bad
_LONGEST = 2000  # characters of an expression
_DEEPEST = 50  # levels of nesting
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda x, y: x in y,
    ast.NotIn: lambda x, y: x not in y,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs, "len": len}


class Where:
    """A condition on the columns of an example."""

    def __init__(self, text: str):
        """Parses an expression of columns, numbers, texts, comparisons, and, or, not, in, + - * /.

        The functions are min, max, abs and len. Names that are not identifiers are quoted with
        backticks: `clip similarity` > 0.3.

        Raises:
            UserError: `text` is not such an expression.
        """
        self.text, self._quoted = text, []
        self._tree = self._parse(text)
        calls = {node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        nodes = (node for node in ast.walk(self._tree) if node not in calls)
        names = (self._name(node.id) for node in nodes if isinstance(node, ast.Name))
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(names))

    def check(self, facts: Mapping[str, Any]) -> None:
        """Checks the condition on the metadata of an example.

        Raises:
            Skip: the condition is false (`FILTERED`), or a column is missing, empty or of another
                type.
        """
        try:
            holds = self._value(self._tree, facts)
        except (TypeError, ZeroDivisionError) as error:
            raise Skip("metadata of another type than --where compares") from error
        if not holds:
            raise Skip(FILTERED)

    def _parse(self, text: str) -> ast.expr:
        if len(text) > _LONGEST:
            raise UserError(f"--where has {len(text)} characters; give at most {_LONGEST}.")
        parts = text.split("`")
        if len(parts) % 2 == 0:
            raise UserError(
                f"--where is {short(text)}, with a backtick that is not closed; close it."
            )
        self._quoted = parts[1::2]
        names = (f" _quoted_{number} " for number in range(len(self._quoted)))
        plain = parts[0] + "".join(n + p for n, p in zip(names, parts[2::2], strict=True))
        try:
            tree = ast.parse(plain.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(
                f"--where is {short(text)}, which is not an expression; give one such as "
                "similarity > 0.28 and punsafe < 0.5."
            ) from error
        self._check_form(tree, depth=0)
        return tree

    def _check_form(self, node: ast.AST, *, depth: int) -> None:
        """Rejects any node that `_value` does not interpret, with a UserError."""
        allowed = (
            *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.BinOp),
            *(ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List, ast.Call),
            *_COMPARE,
            *_ARITHMETIC,
        )
        plain = not isinstance(node, ast.Constant) or isinstance(node.value, int | float | str)
        call = not isinstance(node, ast.Call) or (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        )
        if not (isinstance(node, allowed) and plain and call) or depth > _DEEPEST:
            raise UserError(
                f"--where is {short(self.text)}; expected columns, numbers, texts, comparisons, "
                f"and, or, not, in, + - * / and {', '.join(_FUNCTIONS)}."
            )
        for child in ast.iter_child_nodes(node):
            self._check_form(child, depth=depth + 1)

    def _value(self, node: ast.AST, facts: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._column(name, facts)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return [self._value(part, facts) for part in parts]
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._value(part, facts) for part in parts)
            case ast.BoolOp(values=parts):
                return any(self._value(part, facts) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, facts)
            case ast.UnaryOp(operand=operand):
                return -_number(self._value(operand, facts))
            case ast.BinOp(left=left, op=kind, right=right):
                x, y = (_number(self._value(side, facts)) for side in (left, right))
                if not (isinstance(x, int | float) and isinstance(y, int | float)):
                    raise TypeError(f"{x!r} and {y!r} are not both numbers")
                return _ARITHMETIC[type(kind)](x, y)
            case ast.Call(func=ast.Name(id=name), args=args):
                values = [self._value(arg, facts) for arg in args]
                return _FUNCTIONS[name](*(values if name == "len" else map(_number, values)))
            case ast.Compare(left=left, ops=kinds, comparators=others):
                values = [self._value(side, facts) for side in (left, *others)]
                pairs = zip(values, values[1:], kinds, strict=False)
                return all(_COMPARE[type(kind)](*_alike(x, y)) for x, y, kind in pairs)
        raise AssertionError(ast.dump(node))

    def _name(self, name: str) -> str:
        """Returns the column that a name in the parsed expression stands for."""
        if name.startswith("_quoted_"):
            return self._quoted[int(name.removeprefix("_quoted_"))]
        return name

    def _column(self, name: str, facts: Mapping[str, Any]) -> Any:
        name = self._name(name)
        value = facts.get(name)
        if value is None or value == "" or value != value:  # NaN
            raise Skip(f"metadata without {name}")
        return value


class Uids:
    """A list of examples to keep, by their `uid` or key, as in DataComp's published subsets."""

    def __init__(self, path: pathlib.Path):
        """Reads a text file with one uid or key per line, or DataComp's .npy of 128-bit uids.

        Raises:
            UserError: there is no such file, or it has another format.
        """
        try:
            if path.suffix == ".npy":
                rows = np.load(path, allow_pickle=False).reshape(-1)
                if rows.dtype.names is None or len(rows.dtype.names) != 2:
                    raise ValueError(f"its type is {rows.dtype}")
                first, second = (rows[name].astype("u8").tolist() for name in rows.dtype.names)
                self._uids = {f"{a:016x}{b:016x}" for a, b in zip(first, second, strict=True)}
            else:
                lines = path.read_text("utf-8-sig").splitlines()
                self._uids = {line.strip() for line in lines} - {""}
        except (OSError, ValueError) as error:
            raise UserError(
                f"--uids={path} cannot be read ({error}); give a text file with one uid or key per "
                "line, or DataComp's .npy."
            ) from error
        if not self._uids:
            raise UserError(f"--uids={path} names no example; give one uid or key per line.")

    @property
    def identity(self) -> list[str]:
        """The uids in sorted order."""
        return sorted(self._uids)

    def check(self, key: str, facts: Mapping[str, Any]) -> None:
        """Checks that an example is on the list.

        Raises:
            Skip: it is not on the list.
        """
        if key not in self._uids and str(facts.get("uid", "")) not in self._uids:
            raise Skip(FILTERED)


def _number(value: Any) -> Any:
    """Returns text as the number that it represents; all other values unchanged."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """Returns two values for a comparison, both as numbers if one of them is a number."""
    if isinstance(x, int | float) and isinstance(y, str):
        return x, _number(y)
    if isinstance(y, int | float) and isinstance(x, str):
        return _number(x), y
    return x, y
