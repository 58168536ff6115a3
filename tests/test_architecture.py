"""Rules of structure and language: imports between packages, purity, sizes, docstrings, names.

Every rule is a function from source text to a list of complaints, so that it can be tested on
planted violations. Code is parsed, never imported.
"""

import ast
import collections
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "unclip_jax"
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
PROGRAMS = [  # beside the package
    path for folder in ("benchmarks", "studies") for path in sorted((ROOT / folder).rglob("*.py"))
]
EVERYTHING = [
    path
    for folder in ("unclip_jax", "experiments", "tests", "benchmarks", "studies")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

COMMANDS = {f"unclip_jax.{path.stem}" for path in PACKAGE.glob("*.py")}
COMMANDS -= {"unclip_jax.__init__", "unclip_jax.version"}

PURE = {
    *("core", "shapes", "portraits", "diffusion", "discrete", "backbones", "models"),
    *("fitting", "objectives", "conditioning", "stages"),
}
# Imports that no package may declare.
NEVER = {
    "core": {*PACKAGES},
    "diffusion": {"models", "stages"},
    "discrete": {"models", "stages"},
    "backbones": {"diffusion", "models", "stages"},
    "models": {"diffusion", "stages"},
    "fitting": {"diffusion", "stages"},
    "objectives": {"backbones", "models", "stages"},
    "conditioning": {"stages"},
    "stages": {"training", "data", "handoff"},
    "training": {"stages", "models"},
    "data": {"models", "pairs", "stages"},
    "weight_files": {"handoff", "models", "stages"},
    "metrics": {"convert", "stages"},
}
# Modules that pure packages may not import: files, processes, flags, logs. Pillow may draw.
IMPURE_MODULES = {
    *("absl", "argparse", "asyncio", "cv2", "etils", "glob", "grain", "io", "logging"),
    *("matplotlib", "multiprocessing", "optax", "orbax", "os", "pathlib", "psutil"),
    *("pyarrow", "requests", "shutil", "socket", "subprocess", "sys", "tempfile"),
    *("tensorboardX", "tensorflow_datasets", "threading", "tokenizers", "tqdm"),
    *("transformers", "urllib", "wandb"),
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "Image.open"}
IMPURE_ATTRIBUTES = {"jax.config", "jax.distributed"}
FILE_MODULES = {  # may do I/O
    PACKAGE / "core" / f"{name}.py"
    for name in ("digests", "files", "folder", "object_lock", "ranged_reads", "storage")
}
FORBIDDEN_IN = {
    "diffusion": {"flax"},
    "discrete": {"flax"},
    "objectives": {"flax"},
    "shapes": {"flax", "jax"},
    "portraits": {"flax", "jax"},
}  # package -> third parties
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
VAGUE_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}
MAX_MODULE, MAX_FUNCTION = 450, 70
MAX_SHARE = 8  # per cent of the lines of unclip_jax/ that one package may have
# First words of docstring headlines that are questions, and participles that name nothing.
QUESTION_WORDS = {"what", "which", "whether", "how", "where", "who", "why", "when", "will"}
BANNED_NAMES = {
    *("asked", "drawn", "found", "given", "held", "kept"),
    *("known", "made", "seen", "shown", "told", "wanted"),
}


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
    """True if the dotted `name` is one of `allowed` or lies below one."""
    return any(name == item or name.startswith(f"{item}.") for item in allowed)


def declared_imports(source: str, package: str) -> tuple[str, ...]:
    """MAY_IMPORT of a package's __init__.py, which holds a docstring and nothing else beside it."""
    match ast.parse(source).body:
        case [
            ast.Expr(ast.Constant(str() as text)),
            ast.AnnAssign(target=ast.Name("MAY_IMPORT"), value=ast.Tuple() as value),
        ] if text.startswith(f"{package}: "):
            return ast.literal_eval(value)
    raise AssertionError(
        f"{package}/__init__.py must hold a docstring that begins with '{package}: ' and "
        "MAY_IMPORT: tuple[str, ...] = (...), and nothing else"
    )


def undeclared_imports(source: str, package: str, allowed: tuple[str, ...]) -> list[str]:
    """Imports from this project that the package does not declare, and relative ones."""
    own = {f"unclip_jax.{name}" for name in (*allowed, package, "version")}
    return [
        f"{name} is not among the imports that {package} declares"
        for name in imports(source)
        if name.startswith(".") or (within(name, {"unclip_jax"}) and not within(name, own))
    ]


def impurities(source: str, package: str) -> list[str]:
    """Third parties, calls and global settings that a package may not use."""
    config = set() if package == "experiment" else {"ml_collections"}
    forbidden = config | FORBIDDEN_IN.get(package, set())
    forbidden |= IMPURE_MODULES if package in PURE else set()
    complaints = [f"{name} in {package}" for name in imports(source) if within(name, forbidden)]
    if package not in PURE:
        return complaints
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
            complaints.append(f"{ast.unparse(node.func)}() in the pure package {package}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE_ATTRIBUTES:
            complaints.append(f"{ast.unparse(node)} in the pure package {package}")
    return complaints


def changeable(source: str, path: str) -> list[str]:
    """Dataclasses whose attributes can be assigned; configs and records are values."""
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in map(ast.unparse, node.decorator_list):
            plain = decorator.startswith(("dataclass", "dataclasses.dataclass"))
            if plain and "frozen=True" not in decorator:
                complaints.append(f"{path}: {node.name} is not frozen")
    return complaints


def forbidden_imports(source: str, path: str) -> list[str]:
    """Imports that are allowed nowhere, or in a few places only, and unpickling."""
    may_torch = path.startswith(("unclip_jax/weight_files/", "tests/parity/", "benchmarks/"))
    complaints = []
    for name in imports(source):
        if within(name, {"tensorflow"}):
            complaints.append(f"{path} imports {name}")
        if within(name, PICKLES) and not path.startswith("tests/"):
            complaints.append(f"{path} imports {name}; what is stored is data, never code")
        if within(name, {"torch", "torchvision"}) and not may_torch:
            complaints.append(
                f"{path} imports {name}; torch stays in weight_files/ and tests/parity/"
            )
        if name == "__future__.annotations" and path.startswith("unclip_jax/"):
            complaints.append(f"{path} postpones annotations, which jaxtyping cannot check")
        if within(name, {"experiments"}) and not path.startswith("tests/"):
            complaints.append(f"{path} imports {name}; configs are leaves")
        if within(name, COMMANDS) and not path.startswith("tests/"):
            complaints.append(
                f"{path} imports {name}; commands parse and call, libraries are below"
            )
        if within(name, {"jax._src"}):
            complaints.append(f"{path} imports {name}, which is private to JAX")
    if path.startswith("experiments/"):
        allowed = {"ml_collections", "unclip_jax.core.checks", "collections.abc"}
        allowed |= {f".{other.stem}" for other in EXPERIMENTS}
        complaints += [f"{path} imports {n}" for n in imports(source) if not within(n, allowed)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            forbidden = isinstance(node.value, ast.Constant) and node.value.value is False
            complaints += [] if forbidden else [f"{path}:{node.lineno} allows pickle"]
    return complaints


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def size_complaints(source: str, path: str) -> list[str]:
    """Modules and functions beyond their budget."""
    length, cap = len(source.splitlines()), MAX_MODULE
    complaints = [f"{path} has {length} lines; the cap is {cap}"] if length > cap else []
    for node in functions(source):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION:
            complaints.append(f"{path}: {node.name} has {length} lines; the cap is {MAX_FUNCTION}")
    return complaints


def overgrown(lines: dict[str, int]) -> list[str]:
    """Packages with more than their share of the lines.

    Args:
        lines: path of every module below unclip_jax/ -> its number of lines.
    """
    total, sizes = sum(lines.values()), collections.Counter()
    most = total * MAX_SHARE // 100
    for path, length in lines.items():
        if "/" in path:
            sizes[path.split("/")[0]] += length
    return [
        f"{folder} has {size} of {total} lines; the cap is {MAX_SHARE} %, {most}"
        for folder, size in sizes.items()
        if size > most
    ]


def docstring_complaints(source: str, path: str) -> list[str]:
    """Public functions, methods and classes, and modules, that lack a docstring."""
    tree = ast.parse(source)
    complaints = [] if ast.get_docstring(tree) else [f"{path} has no module docstring"]
    pending: list[ast.Module | ast.ClassDef] = [tree]
    while pending:
        for node in pending.pop().body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                complaints.append(f"{path}: {node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                pending.append(node)
    return complaints


def unidiomatic(source: str, path: str) -> list[str]:
    """Docstring headlines that are questions, and names of `BANNED_NAMES`."""
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].lower() in QUESTION_WORDS:
                complaints.append(f"{path}: docstring begins with {' '.join(words[:6])!r}")
        name = assigned_name(node)
        if name and name.strip("_").lower() in BANNED_NAMES:
            complaints.append(f"{path}:{getattr(node, 'lineno', 1)} names something {name}")
    return complaints


def assigned_name(node: ast.AST) -> str | None:
    """The variable, argument, attribute, function, class or alias that a node binds, if any."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
        case ast.arg(arg=name) | ast.alias(asname=name):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
    return None


def vague_names(path: str) -> list[str]:
    """Parts of a path that do not describe its contents, such as utils."""
    parts = {pathlib.PurePath(part).stem for part in pathlib.PurePath(path).parts}
    return [f"{path}: name it after what it holds, not {part}" for part in parts & VAGUE_NAMES]


def cycle(graph: dict[str, set[str]]) -> set[str]:
    """Packages left after repeatedly removing those that depend on none of the others."""
    remaining = dict(graph)
    while free := [package for package, needs in remaining.items() if not needs & remaining.keys()]:
        for package in free:
            del remaining[package]
    return set(remaining)


def listed_files(workspace: str, heading: str) -> list[str]:
    """The backticked paths of one section of WORKSPACE.md."""
    section = re.split(rf"^## {re.escape(heading)}.*$", workspace, flags=re.MULTILINE)[1]
    return re.findall(r"`([\w./]+\.\w+)`", section.split("\n## ")[0])


def mapped_imports(workspace: str) -> dict[str, set[str]]:
    """Imports that the map in WORKSPACE.md allows each package."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", workspace, flags=re.MULTILINE)
    return {package: set(re.findall(r"`([\w.]+)`", cell)) for package, cell in rows}


# The rules applied to this repository.


def text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(package: str) -> tuple[str, ...]:
    return declared_imports(text(PACKAGE / package / "__init__.py"), package)


def apply_rule(rule: Callable[[str, str], list[str]], paths: list[pathlib.Path]) -> list[str]:
    return [line for path in paths for line in rule(text(path), relative(path))]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_declare(package: str):
    allowed = imports_of(package)
    # a package that is also a command has its entry point in __main__.py, above all packages
    paths = sorted(p for p in (PACKAGE / package).rglob("*.py") if p.name != "__main__.py")
    assert not [
        f"{p}: {line}" for p in paths for line in undeclared_imports(text(p), package, allowed)
    ]
    assert not {name.split(".")[0] for name in allowed} & NEVER.get(package, set())
    assert {name.split(".")[0] for name in allowed} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_pure_packages_stay_pure(package: str):
    paths = sorted({*(PACKAGE / package).rglob("*.py")} - FILE_MODULES)
    assert not [f"{p}: {line}" for p in paths for line in impurities(text(p), package)]


def test_packages_form_no_cycle():
    graph = {r: {name.split(".")[0] for name in imports_of(r)} - {r} for r in PACKAGES}
    assert not cycle(graph)


def test_folders_with_code_are_packages():
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} == set(PACKAGES)


@pytest.mark.parametrize("rule", [size_complaints, docstring_complaints])
def test_sizes_and_docstrings(rule: Callable):
    assert not apply_rule(rule, [*SOURCES, *PROGRAMS])


def test_no_package_dominates():
    assert not overgrown(
        {path.relative_to(PACKAGE).as_posix(): len(text(path).splitlines()) for path in SOURCES}
    )


def test_headlines_and_names_are_idiomatic():
    assert not apply_rule(unidiomatic, EVERYTHING)


def test_configs_and_records_are_values():
    """But for a base class of a library that is not frozen, and three counters."""
    counters = {"import_report.py", "items.py", "job_store.py", "world_builder.py"}
    assert not apply_rule(changeable, [path for path in SOURCES if path.name not in counters])


def test_no_forbidden_imports():
    assert not apply_rule(forbidden_imports, EVERYTHING)


def test_no_vague_names():
    assert not [line for path in SOURCES for line in vague_names(relative(path))]


def test_reading_an_experiment_starts_no_jax():
    names = [path.stem for path in EXPERIMENTS]
    assert names
    loop = "import sys; from unclip_jax.experiment.files import get_config; "
    loop += "[get_config(p) for p in sys.argv[1:]]"
    heavy = "; sys.exit(sorted({'jax', 'flax', 'tensorflow', 'torch'} & sys.modules.keys()) or 0)"
    command = [sys.executable, "-c", loop + heavy, *map(str, EXPERIMENTS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_workspace_map_is_true():
    workspace = text(ROOT / "WORKSPACE.md")
    reading = listed_files(workspace, "Reading order")
    assert len(reading) >= 8
    assert not [name for name in reading if not (ROOT / name).is_file()]
    mapped = mapped_imports(workspace)
    assert {package: mapped.get(package) for package in PACKAGES} == {
        r: set(imports_of(r)) for r in PACKAGES
    }


# Planted violations: each rule complains about what it is there for.


@pytest.mark.parametrize(
    "source",
    [
        "import unclip_jax.stages.prior",
        "from unclip_jax import stages",
        "from unclip_jax.stages.prior import make",
        "def f():\n    from unclip_jax.stages.registry import STAGES",
        "from ..stages import prior",
        "from . import schedule",
        "from unclip_jax.parallel import mesh",
        "from unclip_jax.parallel.axes_of_evil import NAMES",
    ],
)
def test_undeclared_import_is_reported(source: str):
    assert undeclared_imports(source, "diffusion", ("core", "parallel.axes"))


def test_declared_import_is_accepted():
    source = """
        import jax
        from unclip_jax.core.checks import UserError
        from unclip_jax.diffusion import process
        from unclip_jax.parallel import axes
        from unclip_jax.parallel.axes import NAMES
        from unclip_jax.version import __version__
    """
    assert not undeclared_imports(textwrap.dedent(source), "diffusion", ("core", "parallel.axes"))


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import flax.linen as nn", "diffusion"),
        ("import optax", "models"),
        ("from ml_collections import ConfigDict", "training"),
        ("from absl import logging", "stages"),
        ("import orbax.checkpoint as ocp", "stages"),
        ("import jax.numpy as jnp", "shapes"),
        ("def f():\n    import pathlib", "core"),
        ("open('x')", "core"),
        ("from PIL import Image\nImage.open('x')", "core"),
        ("print(1)", "models"),
        ("import jax\njax.config.update('jax_enable_x64', True)", "diffusion"),
        ("import jax\njax.distributed.initialize()", "models"),
    ],
)
def test_impurity_is_reported(source: str, package: str):
    assert impurities(source, package)


def test_other_packages_may_do_io():
    assert not impurities("import os, tqdm, optax\nopen('x')\nprint(1)", "training")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import tensorflow as tf", "tests/data/test_sources.py"),
        ("import torch", "unclip_jax/models/clip.py"),
        ("import torch", "unclip_jax/convert/karlo.py"),
        ("from torch import nn", "tests/models/test_clip.py"),
        ("import pickle", "unclip_jax/data/records.py"),
        ("numpy.load(path, allow_pickle=True)", "unclip_jax/data/records.py"),
        ("from __future__ import annotations", "unclip_jax/core/rng.py"),
        ("from experiments import prior", "unclip_jax/train.py"),
        ("from unclip_jax import sample", "unclip_jax/demo.py"),
        ("from unclip_jax.train import main", "studies/findings/harness.py"),
        ("import jax", "experiments/prior.py"),
        ("from unclip_jax.models.prior import PriorConfig", "experiments/prior.py"),
        ("from ..unclip_jax import train", "experiments/prior.py"),
        ("from jax._src import core", "unclip_jax/parallel/mesh.py"),
    ],
)
def test_forbidden_import_is_reported(source: str, path: str):
    assert forbidden_imports(source, path)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import torch", "unclip_jax/weight_files/torch_files.py"),
        ("import torch", "tests/parity/test_clip.py"),
        ("import pickle", "tests/tokenization/test_caption_tokenizer.py"),
        ("import tensorflow_datasets as tfds", "unclip_jax/data/sources.py"),
        ("numpy.load(path, allow_pickle=False)", "unclip_jax/data/records.py"),
        ("from ml_collections import ConfigDict", "experiments/prior.py"),
        ("from . import decoder", "experiments/glide.py"),
    ],
)
def test_import_in_its_allowed_place_is_accepted(source: str, path: str):
    assert not forbidden_imports(source, path)


def test_a_changeable_record_is_reported():
    source = "@dataclasses.dataclass(kw_only=True)\nclass A: ...\n@dataclass\nclass B: ...\n"
    source += "@dataclasses.dataclass(frozen=True)\nclass C: ...\n@struct.dataclass\nclass D: ..."
    assert changeable(source, "x.py") == ["x.py: A is not frozen", "x.py: B is not frozen"]


def test_oversized_code_is_reported():
    assert size_complaints("\n" * 451, "unclip_jax/backbones/unet.py")
    assert not size_complaints("\n" * 450, "unclip_jax/backbones/unet.py")
    body = "    pass\n" * 70
    nested = "class A:\n  def g(self):\n" + body
    assert size_complaints("def f():\n" + body, "x.py") == ["x.py: f has 71 lines; the cap is 70"]
    assert size_complaints(nested, "x.py") == ["x.py: g has 71 lines; the cap is 70"]
    assert not size_complaints("def f():\n" + body[len("    pass\n") :], "x.py")


def test_overgrown_package_is_reported():
    lines = {"train.py": 83, "data/a.py": 6, "data/b/c.py": 3, "core/a.py": 8}
    assert overgrown(lines) == ["data has 9 of 100 lines; the cap is 8 %, 8"]
    assert not overgrown({**lines, "data/a.py": 5, "train.py": 84})


def test_missing_docstring_is_reported():
    assert docstring_complaints("x = 1", "x.py") == ["x.py has no module docstring"]
    source = '"""Doc."""\nclass A:\n  """Doc."""\n  def f(self): ...\n  def _g(self): ...\n'
    assert docstring_complaints(source, "x.py") == ["x.py: f has no docstring"]
    assert docstring_complaints('"""Doc."""\ndef f(): ...', "x.py") == ["x.py: f has no docstring"]
    assert not docstring_complaints(
        '"""Doc."""\ndef _f(): ...\nclass _A:\n  def g(self): ...', "x.py"
    )


@pytest.mark.parametrize(
    "source",
    [
        '"""What a run remembers."""',
        'def f():\n    """Whether it fits."""',
        'class A:\n    """How long a run is."""',
        'class A:\n    def _f(self):\n        """Will it fit?"""',
        "found = []",
        "def f(*, told): ...",
        "def held(): ...",
        "class Found: ...",
        "class A:\n    made: int = 0",
        "for _kept in range(3): ...",
        "f = lambda wanted: 0",
        "import numpy as known",
        "self.shown = 1",
    ],
)
def test_unidiomatic_language_is_reported(source: str):
    assert len(unidiomatic(source, "x.py")) == 1


def test_idiomatic_language_is_accepted():
    source = '"""Computes what is needed."""\nheld_out = f(found=1)\nx.made()\ny = wanted\n'
    assert not unidiomatic(source, "x.py")


def test_vague_name_is_reported():
    assert vague_names("unclip_jax/data/utils.py")
    assert vague_names("unclip_jax/helpers/image.py")
    assert not vague_names("unclip_jax/core/checks.py")


def test_cycle_is_reported():
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
def test_package_without_declared_imports_is_reported(source: str):
    with pytest.raises(AssertionError, match=r"diffusion/__init__.py must hold a docstring"):
        declared_imports(source, "diffusion")


def test_declared_imports_are_read():
    source = '"""diffusion: maths."""\n\nMAY_IMPORT: tuple[str, ...] = ("core", "shapes")\n'
    assert declared_imports(source, "diffusion") == ("core", "shapes")


def test_the_map_is_read():
    row = "| `data` | records | `core`, `parallel.axes` |\n"
    rows = "| package | what | may import |\n|---|---|---|\n| `core` | words | nothing of ours |\n"
    assert mapped_imports(rows + row) == {"core": set(), "data": {"core", "parallel.axes"}}


def test_the_reading_list_is_read():
    workspace = "## Reading order\n1. `a/b.py` then `c.md`\n\n## Rooms\n`d.py`\n"
    assert listed_files(workspace, "Reading order") == ["a/b.py", "c.md"]
