"""Mutation operators: small changes of a module's text that leave it valid Python.

Every operator walks the syntax tree and yields replacements of source ranges, so that a mutant
differs from its module in one expression and nothing else. Types, docstrings, messages of errors,
logging and `__init__` files are left alone.
"""

import ast
import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.BitAnd: "|", ast.BitOr: "&"}
# Calls that are replaced by their first argument.
REMOVABLE = {
    *("abs", "antialias", "ceil", "clip", "exp", "log", "log_softmax", "maximum", "minimum"),
    *("normalise", "round", "softmax", "sqrt", "square", "stop_gradient", "tanh", "unit"),
}
# Functions of which the order of arguments does not matter.
SYMMETRIC = {"maximum", "minimum", "max", "min", "isclose", "allclose", "array_equal"}
# Names with a counterpart of the same type in the field's vocabulary.
COUNTERPARTS = [
    ("ema_params", "params"),
    ("z_img", "z_txt"),
    ("x_0", "eps"),
    ("signal", "noise"),
    ("conditional", "unconditional"),
    ("mean", "var_frac"),
    ("prediction", "variational"),
    ("total", "prediction"),
    ("beta", "beta_tilde"),
    ("height", "width"),
    ("logits", "unbiased"),
    ("zeros", "ones"),
    ("normal", "uniform"),
    ("argmax", "argmin"),
    ("floor", "ceil"),
    ("min", "max"),
    ("any", "all"),
]
SWAPS = dict(COUNTERPARTS) | {b: a for a, b in COUNTERPARTS}
# Arguments whose absence switches something off; None is what they are without it.
OPTIONAL = {
    *("dropout_key", "empty", "gradient", "inpaint", "keep_text", "keep_z", "low_res_t"),
    *("mask", "negative", "token_mask", "weighting"),
}
# Settings of experiments, and other values that they could have.
CHOICES = [
    ("x_0", "eps", "v"),
    ("cosine", "linear", "constant"),
    ("static", "none", "dynamic"),
    ("small", "large", "learned_range", "table"),
    ("ancestral", "ddim"),
    ("z_img", "z_txt"),
    ("adamw", "muon"),
    ("15", "27"),
    ("64", "250"),
    ("fast27", "27"),
]
KEY_FUNCTIONS = {"fold", "fold_each"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of one line.

    Attributes:
        path: of the module, below the root.
        line: on which the change begins, from 1.
        operator: that made it; "listed" for changes written by hand.
        before: text that is replaced.
        after: its replacement.
        offset: of `before` in the module's text.
    """

    path: str
    line: int
    operator: str
    before: str
    after: str
    offset: int

    def apply(self, source: str) -> str:
        """Returns the changed module."""
        end = self.offset + len(self.before)
        if source[self.offset : end] != self.before:
            raise ValueError(f"{self.path}:{self.line} is no longer {self.before!r}")
        return source[: self.offset] + self.after + source[end:]

    def diff(self, source: str) -> str:
        """Returns the changed lines in the form of a diff without its heading."""
        old, new = source.splitlines(), self.apply(source).splitlines()
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))
        return "\n".join(lines[3:])


class Edit(NamedTuple):
    """A node and the text in its place."""

    node: ast.AST
    text: str


class Module:
    """A parsed module with the text of its nodes."""

    def __init__(self, source: str, path: str):
        """Parses `source`."""
        self.source, self.path = source, path
        self.tree = ast.parse(source)
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines(keepends=True)
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        # by the text of the key that is folded: labels below different keys share nothing
        self.labels: dict[str, set[str]] = {}
        for call in calls:
            for label in _labels_of(call):
                self.labels.setdefault(self.text(call.args[0]), set()).add(label.value)

    def span(self, node: Any) -> tuple[int, int]:
        """Returns the range of a node in the text."""
        start = self._offset(node.lineno, node.col_offset)
        return start, self._offset(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        """Returns the text of a node."""
        start, end = self.span(node)
        return self.source[start:end]

    def between(self, left: ast.AST, right: ast.AST) -> tuple[int, int]:
        """Returns the range between two nodes."""
        return self.span(left)[1], self.span(right)[0]

    def _offset(self, line: int, column: int) -> int:
        """Returns the character at a column, which `ast` counts in bytes."""
        before = self._lines[line - 1].encode()[:column].decode()
        return self._starts[line - 1] + len(before)


Range = tuple[int, int, str]  # start, end, replacement


def comparison(module: Module, node: ast.AST) -> Iterator[Range]:
    """Changes a comparison by its boundary, or to its opposite."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        start, end = module.between(node.left, node.comparators[0])
        yield start, end, f" {COMPARISONS[type(node.ops[0])]} "


def constant(module: Module, node: ast.AST) -> Iterator[Range]:
    """Changes a number: integers by one, others by a factor of two."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        start, end = module.span(node)
        value = node.value + 1 if isinstance(node.value, int) else (2 * node.value or 1.0)
        yield start, end, repr(value)


def sign(module: Module, node: ast.AST) -> Iterator[Range]:
    """Exchanges plus and minus, and "and" and "or" of masks; drops a minus."""
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        start, end = module.between(node.left, node.right)
        operator = module.source[start:end]
        for old in "+-&|":
            if operator.strip("() \n") == old:
                yield start, end, operator.replace(old, ARITHMETIC[type(node.op)])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        start, end = module.span(node)
        yield start, end, module.text(node.operand)


def factor(module: Module, node: ast.AST) -> Iterator[Range]:
    """Drops a factor, a divisor or an exponent."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Pow):
        start, end = module.span(node)
        yield start, end, module.text(node.left)
        if isinstance(node.op, ast.Mult):
            yield start, end, module.text(node.right)


def arguments(module: Module, node: ast.AST) -> Iterator[Range]:
    """Swaps the first two positional arguments, whose order matters to most functions."""
    if isinstance(node, ast.Call) and len(node.args) >= 2 and _name(node.func) not in SYMMETRIC:
        first, second = node.args[:2]
        texts = module.text(first), module.text(second)
        if texts[0] != texts[1] and not any(isinstance(a, ast.Starred) for a in (first, second)):
            start, end = module.span(first)[0], module.span(second)[1]
            middle = module.source[slice(*module.between(first, second))]
            yield start, end, texts[1] + middle + texts[0]


def key_label(module: Module, node: ast.AST) -> Iterator[Range]:
    """Addresses a random key by another label of the module, so that two draws share it."""
    if isinstance(node, ast.Call):
        for label in _labels_of(node):
            others = sorted(module.labels[module.text(node.args[0])] - {label.value})
            start, end = module.span(label)
            yield from ((start, end, f'"{other}"') for other in others[:2])


def boolean(module: Module, node: ast.AST) -> Iterator[Range]:
    """Negates a boolean or a condition; exchanges "and" and "or"."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield *module.span(node), repr(not node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield *module.span(node), module.text(node.operand)
    if isinstance(node, ast.BoolOp) and len(node.values) == 2:
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield *module.between(*node.values), other
    if isinstance(node, ast.IfExp):
        yield *module.span(node), module.text(node.body)
        yield *module.span(node), module.text(node.orelse)
    if isinstance(node, ast.If) and not _only_raises(node):
        yield *module.span(node.test), f"not ({module.text(node.test)})"


def removed_call(module: Module, node: ast.AST) -> Iterator[Range]:
    """Replaces a call by its first argument."""
    if isinstance(node, ast.Call) and node.args and _name(node.func) in REMOVABLE:
        yield *module.span(node), module.text(node.args[0])


def removed_statement(module: Module, node: ast.AST) -> Iterator[Range]:
    """Removes an update in place."""
    if isinstance(node, ast.AugAssign):
        yield *module.span(node), "pass"


def counterpart(module: Module, node: ast.AST) -> Iterator[Range]:
    """Exchanges a name with its counterpart: averaged and raw, image and caption, x_0 and eps."""
    if isinstance(node, ast.Attribute) and node.attr in SWAPS and isinstance(node.ctx, ast.Load):
        _, end = module.span(node)
        yield end - len(node.attr), end, SWAPS[node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        key = node.slice.value
        if isinstance(key, str) and key in SWAPS and isinstance(node.ctx, ast.Load):
            yield *module.span(node.slice), f'"{SWAPS[key]}"'


def omitted(module: Module, node: ast.AST) -> Iterator[Range]:
    """Passes None in place of an optional argument."""
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg in OPTIONAL and not isinstance(keyword.value, ast.Constant):
                yield *module.span(keyword.value), "None"


def setting(module: Module, node: ast.AST) -> Iterator[Range]:
    """Exchanges a text setting with another value that it could have."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for choices in CHOICES:
            if node.value in choices:
                following = choices[(choices.index(node.value) + 1) % len(choices)]
                yield *module.span(node), f'"{following}"'
                return


OPERATORS: dict[str, Callable[[Module, ast.AST], Iterator[Range]]] = {
    "comparison": comparison,
    "constant": constant,
    "sign": sign,
    "factor": factor,
    "arguments": arguments,
    "key_label": key_label,
    "boolean": boolean,
    "removed_call": removed_call,
    "removed_statement": removed_statement,
    "counterpart": counterpart,
    "omitted": omitted,
}


def mutants(source: str, path: str, *, function: str = "") -> list[Mutant]:
    """Returns all mutants of a module, or of one of its functions, in the order of the text.

    A few may not be valid Python (`is_valid`), for want of parentheses.
    """
    module = Module(source, path)
    operators = {**OPERATORS, "setting": setting} if path.startswith("experiments/") else OPERATORS
    result = {}
    for node in _meaningful(module.tree, function):
        for name, operator in operators.items():
            for start, end, after in operator(module, node):
                line = source.count("\n", 0, start) + 1
                mutant = Mutant(path, line, name, source[start:end], after, start)
                result.setdefault((start, end, after), mutant)
    return sorted(result.values(), key=lambda m: (m.offset, m.before, m.after))


def _meaningful(tree: ast.Module, function: str) -> Iterator[ast.AST]:
    """Yields nodes that decide what is computed."""
    roots = [n for n in tree.body if not function or getattr(n, "name", "") == function]
    stack: list[ast.AST] = list(reversed(roots))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # docstring
        if isinstance(node, ast.Call) and _silent(node):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # `zip` checks what it is of, and no more
        yield node
        unused_fields = set()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            unused_fields = {"returns", "decorator_list"}
        if isinstance(node, ast.AnnAssign | ast.arg):
            unused_fields = {"annotation"}
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            if name not in unused_fields:
                stack.extend(c for c in reversed(children) if isinstance(c, ast.AST))


def _silent(call: ast.Call) -> bool:
    """True for calls that write to the log, show progress or check an argument's range."""
    text = ast.unparse(call.func)
    return text.startswith("log.") or text in {"tqdm", "UserError", "in_range", "one_of", "suggest"}


def _only_raises(node: ast.If) -> bool:
    return all(isinstance(statement, ast.Raise) for statement in node.body)


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _labels_of(call: ast.Call) -> list[ast.Constant]:
    if _name(call.func) not in KEY_FUNCTIONS:
        return []
    return [a for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def is_valid(source: str) -> bool:
    """True if Python can compile the text."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True
