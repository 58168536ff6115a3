"""The floor plan holds: who may import whom, what stays pure, how big things may grow.

Every rule is a function from source text to a list of complaints, so that a planted violation can
be shown to it. Nothing is imported but the syntax tree.
"""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "unclip_jax"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
EVERYTHING = [
    path
    for folder in ("unclip_jax", "experiments", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

PURE = {"core", "shapes", "diffusion", "models", "stages", "parallel"}
# Whatever a room declares, these doors stay shut.
NEVER = {
    "core": {*ROOMS},
    "diffusion": {"models", "stages"},
    "models": {"diffusion", "stages"},
    "stages": {"training", "data", "handoff"},
    "training": {"stages", "models"},
    "data": {"models", "stages"},
}
# What a pure room may not touch: files, processes, flags, logs, codecs, storage. (Pillow may draw.)
OUTSIDE = {
    *("absl", "argparse", "asyncio", "cv2", "etils", "glob", "grain", "io", "logging"),
    *("matplotlib", "multiprocessing", "optax", "orbax", "os", "pathlib", "psutil"),
    *("pyarrow", "requests", "shutil", "socket", "subprocess", "sys", "tempfile"),
    *("tensorboardX", "tensorflow_datasets", "threading", "tokenizers", "tqdm"),
    *("transformers", "urllib", "wandb"),
}
OUTSIDE_CALLS = {"open", "print", "input", "exec", "eval", "Image.open"}
OUTSIDE_ATTRIBUTES = {"jax.config", "jax.distributed"}
SHUT_OUT = {"diffusion": {"flax"}, "shapes": {"flax", "jax"}}  # room -> further third parties
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper"}
MAX_MODULE, MAX_FUNCTION, MAX_SWITCHBOARD = 350, 70, 200


# The rules.


def imports(source: str) -> Iterator[str]:
    """Dotted names of everything a module imports: `from a.b import c` is "a.b.c"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (f"{prefix}{alias.name}" for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    """Whether the dotted `name` is one of `allowed` or lies below one."""
    return any(name == item or name.startswith(f"{item}.") for item in allowed)


def contract(source: str, room: str) -> tuple[str, ...]:
    """MAY_IMPORT of a room's __init__.py, which holds a docstring and nothing else beside it."""
    match ast.parse(source).body:
        case [
            ast.Expr(ast.Constant(str() as text)),
            ast.AnnAssign(target=ast.Name("MAY_IMPORT"), value=ast.Tuple() as value),
        ] if text.startswith(f"{room}: "):
            return ast.literal_eval(value)
    raise AssertionError(
        f"{room}/__init__.py must hold a docstring that begins with '{room}: ' and "
        "MAY_IMPORT: tuple[str, ...] = (...), and nothing else"
    )


def crossings(source: str, room: str, allowed: tuple[str, ...]) -> list[str]:
    """Imports of our own that the room's contract does not name, and relative ones."""
    own = {f"unclip_jax.{name}" for name in (*allowed, room, "version")}
    return [
        f"{name} crosses the floor plan of {room}"
        for name in imports(source)
        if name.startswith(".") or (within(name, {"unclip_jax"}) and not within(name, own))
    ]


def impurities(source: str, room: str) -> list[str]:
    """Third parties, calls and global settings that a room may not use."""
    shut = {"ml_collections", *SHUT_OUT.get(room, ())} | (OUTSIDE if room in PURE else set())
    found = [f"{name} in {room}" for name in imports(source) if within(name, shut)]
    if room not in PURE:
        return found
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in OUTSIDE_CALLS:
            found.append(f"{ast.unparse(node.func)}() in the pure room {room}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in OUTSIDE_ATTRIBUTES:
            found.append(f"{ast.unparse(node)} in the pure room {room}")
    return found


def strangers(source: str, path: str) -> list[str]:
    """Imports and habits that are nowhere welcome, or only in one place."""
    may_torch = path.startswith(("unclip_jax/convert/", "tests/parity/", "benchmarks/"))
    found = []
    for name in imports(source):
        if within(name, {"tensorflow"}):
            found.append(f"{path} imports {name}")
        if within(name, PICKLES) and not path.startswith("tests/"):
            found.append(f"{path} imports {name}; what is stored is data, never code")
        if within(name, {"torch", "torchvision"}) and not may_torch:
            found.append(f"{path} imports {name}; torch stays in convert/ and tests/parity/")
        if name == "__future__.annotations" and path.startswith("unclip_jax/"):
            found.append(f"{path} postpones annotations, which jaxtyping cannot check")
        if within(name, {"experiments"}) and not path.startswith("tests/"):
            found.append(f"{path} imports {name}; configs are leaves")
        if within(name, {"jax._src"}):
            found.append(f"{path} imports {name}, which is private to JAX")
    if path.startswith("experiments/"):
        welcome = {"ml_collections", "unclip_jax.core.checks"}
        found += [f"{path} imports {n}" for n in imports(source) if not within(n, welcome)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            forbidden = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if forbidden else [f"{path}:{node.lineno} allows pickle"]
    return found


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def oversized(source: str, path: str) -> list[str]:
    """Modules and functions beyond their budget."""
    switchboard = path in ("unclip_jax/experiment.py", "unclip_jax/registry.py")
    cap = MAX_SWITCHBOARD if switchboard else MAX_MODULE
    length = len(source.splitlines())
    found = [f"{path} has {length} lines; the cap is {cap}"] if length > cap else []
    for node in functions(source):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION:
            found.append(f"{path}: {node.name} has {length} lines; the cap is {MAX_FUNCTION}")
    return found


def undocumented(source: str, path: str) -> list[str]:
    """Public functions, methods and classes, and modules, that lack a docstring."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{path} has no module docstring"]
    pending: list[ast.Module | ast.ClassDef] = [tree]
    while pending:
        for node in pending.pop().body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(f"{path}: {node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                pending.append(node)
    return found


def drawers(path: str) -> list[str]:
    """Junk drawers among the parts of a path."""
    parts = {pathlib.PurePath(part).stem for part in pathlib.PurePath(path).parts}
    return [f"{path}: name it after what it holds, not {part}" for part in parts & DRAWERS]


def cycle(graph: dict[str, set[str]]) -> set[str]:
    """Rooms left after repeatedly removing those that depend on none of the rest."""
    left = dict(graph)
    while free := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in free:
            del left[room]
    return set(left)


def listed_files(workspace: str, heading: str) -> list[str]:
    """The backticked paths of one section of WORKSPACE.md."""
    section = re.split(rf"^## {re.escape(heading)}.*$", workspace, flags=re.MULTILINE)[1]
    return re.findall(r"`([\w./]+\.\w+)`", section.split("\n## ")[0])


def mapped_imports(workspace: str) -> dict[str, set[str]]:
    """What the map in WORKSPACE.md says each room may import."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", workspace, flags=re.MULTILINE)
    return {room: set(re.findall(r"`([\w.]+)`", cell)) for room, cell in rows}


# The rules applied to the house.


def text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_contract(room: str) -> tuple[str, ...]:
    return contract(text(PACKAGE / room / "__init__.py"), room)


def complaints(rule: Callable[[str, str], list[str]], paths: list[pathlib.Path]) -> list[str]:
    return [line for path in paths for line in rule(text(path), relative(path))]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_declares(room: str):
    allowed = room_contract(room)
    # a room that is also a command has its entry point in __main__.py, above all rooms
    paths = sorted(p for p in (PACKAGE / room).rglob("*.py") if p.name != "__main__.py")
    assert not [f"{p}: {line}" for p in paths for line in crossings(text(p), room, allowed)]
    assert not {name.split(".")[0] for name in allowed} & NEVER.get(room, set())
    assert {name.split(".")[0] for name in allowed} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_stays_as_pure_as_it_should(room: str):
    paths = sorted((PACKAGE / room).rglob("*.py"))
    assert not [f"{p}: {line}" for p in paths for line in impurities(text(p), room)]


def test_rooms_form_no_cycle():
    graph = {r: {name.split(".")[0] for name in room_contract(r)} - {r} for r in ROOMS}
    assert not cycle(graph)


def test_folders_with_code_are_rooms():
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} == set(ROOMS)


@pytest.mark.parametrize("rule", [oversized, undocumented])
def test_package_keeps_its_budgets_and_docstrings(rule: Callable):
    assert not complaints(rule, SOURCES)


def test_no_strangers_anywhere():
    assert not complaints(strangers, EVERYTHING)


def test_no_junk_drawers():
    assert not [line for path in SOURCES for line in drawers(relative(path))]


def test_reading_an_experiment_starts_no_jax():
    names = [path.stem for path in EXPERIMENTS]
    assert names
    loop = "import runpy, sys; [runpy.run_path(p)['get_config']() for p in sys.argv[1:]]"
    heavy = "; sys.exit(sorted({'jax', 'flax', 'tensorflow', 'torch'} & sys.modules.keys()) or 0)"
    command = [sys.executable, "-c", loop + heavy, *map(str, EXPERIMENTS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_workspace_map_is_true():
    workspace = text(ROOT / "WORKSPACE.md")
    reading = listed_files(workspace, "Reading order")
    assert len(reading) >= 8
    assert not [name for name in reading if not (ROOT / name).is_file()]
    told = mapped_imports(workspace)
    assert {room: told.get(room) for room in ROOMS} == {r: set(room_contract(r)) for r in ROOMS}


# Planted violations: each rule complains about what it is there for.


@pytest.mark.parametrize(
    "source",
    [
        "import unclip_jax.stages.prior",
        "from unclip_jax import stages",
        "from unclip_jax.stages.prior import make",
        "def f():\n    from unclip_jax.registry import STAGES",
        "from ..stages import prior",
        "from . import schedule",
        "from unclip_jax.parallel import mesh",
        "from unclip_jax.parallel.axes_of_evil import NAMES",
    ],
)
def test_a_crossing_is_seen(source: str):
    assert crossings(source, "diffusion", ("core", "parallel.axes"))


def test_declared_imports_are_no_crossings():
    source = """
        import jax
        from unclip_jax.core.checks import UserError
        from unclip_jax.diffusion import process
        from unclip_jax.parallel import axes
        from unclip_jax.parallel.axes import NAMES
        from unclip_jax.version import __version__
    """
    assert not crossings(textwrap.dedent(source), "diffusion", ("core", "parallel.axes"))


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import flax.linen as nn", "diffusion"),
        ("import optax", "models"),
        ("from ml_collections import ConfigDict", "training"),
        ("from absl import logging", "stages"),
        ("import orbax.checkpoint as ocp", "parallel"),
        ("import jax.numpy as jnp", "shapes"),
        ("def f():\n    import pathlib", "core"),
        ("open('x')", "core"),
        ("from PIL import Image\nImage.open('x')", "core"),
        ("print(1)", "models"),
        ("import jax\njax.config.update('jax_enable_x64', True)", "diffusion"),
        ("import jax\njax.distributed.initialize()", "parallel"),
    ],
)
def test_an_impurity_is_seen(source: str, room: str):
    assert impurities(source, room)


def test_outer_rooms_may_do_io():
    assert not impurities("import os, tqdm, optax\nopen('x')\nprint(1)", "training")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import tensorflow as tf", "tests/data/test_sources.py"),
        ("import torch", "unclip_jax/models/clip.py"),
        ("from torch import nn", "tests/models/test_clip.py"),
        ("import pickle", "unclip_jax/data/records.py"),
        ("numpy.load(path, allow_pickle=True)", "unclip_jax/data/records.py"),
        ("from __future__ import annotations", "unclip_jax/core/rng.py"),
        ("from experiments import prior", "unclip_jax/train.py"),
        ("import jax", "experiments/prior.py"),
        ("from unclip_jax.models.prior import PriorConfig", "experiments/prior.py"),
        ("from jax._src import core", "unclip_jax/parallel/mesh.py"),
    ],
)
def test_a_stranger_is_seen(source: str, path: str):
    assert strangers(source, path)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import torch", "unclip_jax/convert/karlo.py"),
        ("import torch", "tests/parity/test_clip.py"),
        ("import pickle", "tests/data/test_text.py"),
        ("import tensorflow_datasets as tfds", "unclip_jax/data/sources.py"),
        ("numpy.load(path, allow_pickle=False)", "unclip_jax/data/records.py"),
        ("from ml_collections import ConfigDict", "experiments/prior.py"),
    ],
)
def test_a_guest_is_welcome(source: str, path: str):
    assert not strangers(source, path)


def test_what_is_too_long_is_seen():
    assert oversized("\n" * 351, "unclip_jax/models/unet.py")
    assert not oversized("\n" * 350, "unclip_jax/models/unet.py")
    assert oversized("\n" * 201, "unclip_jax/registry.py")
    body = "    pass\n" * 70
    nested = "class A:\n  def g(self):\n" + body
    assert oversized("def f():\n" + body, "x.py") == ["x.py: f has 71 lines; the cap is 70"]
    assert oversized(nested, "x.py") == ["x.py: g has 71 lines; the cap is 70"]
    assert not oversized("def f():\n" + body[len("    pass\n") :], "x.py")


def test_what_lacks_a_docstring_is_seen():
    assert undocumented("x = 1", "x.py") == ["x.py has no module docstring"]
    source = '"""Doc."""\nclass A:\n  """Doc."""\n  def f(self): ...\n  def _g(self): ...\n'
    assert undocumented(source, "x.py") == ["x.py: f has no docstring"]
    assert undocumented('"""Doc."""\ndef f(): ...', "x.py") == ["x.py: f has no docstring"]
    assert not undocumented('"""Doc."""\ndef _f(): ...\nclass _A:\n  def g(self): ...', "x.py")


def test_a_junk_drawer_is_seen():
    assert drawers("unclip_jax/data/utils.py")
    assert drawers("unclip_jax/helpers/image.py")
    assert not drawers("unclip_jax/core/checks.py")


def test_a_cycle_is_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
    assert not cycle({"a": {"b"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize(
    "source",
    [
        'MAY_IMPORT: tuple[str, ...] = ("core",)',
        '"""diffusion: maths."""\nfrom unclip_jax.core import rng\nMAY_IMPORT: tuple = ()',
        '"""maths of diffusion"""\nMAY_IMPORT: tuple[str, ...] = ()',
        '"""diffusion: maths."""\nMAY_IMPORT = ()',
    ],
)
def test_a_room_without_a_proper_contract_is_seen(source: str):
    with pytest.raises(AssertionError, match=r"diffusion/__init__.py must hold a docstring"):
        contract(source, "diffusion")


def test_a_contract_is_read():
    source = '"""diffusion: maths."""\n\nMAY_IMPORT: tuple[str, ...] = ("core", "shapes")\n'
    assert contract(source, "diffusion") == ("core", "shapes")


def test_the_map_is_read():
    row = "| `data` | records | `core`, `parallel.axes` |\n"
    rows = "| room | what | may import |\n|---|---|---|\n| `core` | words | nothing of ours |\n"
    assert mapped_imports(rows + row) == {"core": set(), "data": {"core", "parallel.axes"}}


def test_the_reading_list_is_read():
    workspace = "## Reading order\n1. `a/b.py` then `c.md`\n\n## Rooms\n`d.py`\n"
    assert listed_files(workspace, "Reading order") == ["a/b.py", "c.md"]
