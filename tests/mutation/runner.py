"""Runs mutants: which tests reach a line, and whether one of them fails."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.mutation import operators
from tests.mutation.operators import Mutant

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
# Folder of source -> folders and files of its own tests.
PACKAGES = {
    "diffusion": ("tests/diffusion",),
    "backbones": ("tests/backbones", "tests/models"),
    "models": ("tests/models",),
    # what stages share is tested through them, too
    "fitting": ("tests/fitting", "tests/stages"),
    "objectives": ("tests/objectives", "tests/stages"),
    "conditioning": ("tests/conditioning", "tests/stages"),
    "stages": ("tests/stages",),
    "training": ("tests/training",),
    "inference": (  # some of its modules are the library of one command
        "tests/inference",
        "tests/engine/test_complete.py",
        "tests/entry/test_dvae_codes.py",
        "tests/entry/test_embed.py",
        "tests/entry/test_embed_prior.py",
        "tests/entry/test_embedding_prior.py",
        "tests/entry/test_guide.py",
    ),
    "editing": ("tests/editing",),
    "experiment": ("tests/experiment",),
    "tokenization": ("tests/tokenization",),
    "data": ("tests/data",),
    "pairs": ("tests/pairs",),
    "discrete": ("tests/discrete",),
    "metrics": ("tests/metrics",),
    "handoff": ("tests/handoff",),
    "experiments": ("tests/test_paper_presets.py",),
}
LISTED_ONLY = ("experiment",)  # mutated by the list alone
# Imported once, before the forks; none of them may start threads.
PRELOADED = ("numpy", "scipy.stats", "jax", "jax.numpy", "flax.linen", "optax", "PIL.Image")
PRELOADED += ("beartype", "tqdm", "_pytest.assertion.rewrite")
LEFT_OUT = {".git", ".venv", "runs", "data", "build", "dist", ".mutants"}  # of the root
MEMORY = 6 << 30
SURVIVED = ("passed", "unreached")  # states of mutants that no test has noticed
UNKNOWN_SECONDS = 60.0  # of a test file that was not recorded


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of running the tests on a mutant.

    Attributes:
        mutant: the change.
        status: "failed", "crashed", "timeout" and "memory" are caught, "passed" and "unreached"
            survived.
        test: the first that failed.
        reason: last line of its report.
        seconds: until then.
    """

    mutant: Mutant
    status: str
    test: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """True if a test failed or the mutant did not end."""
        return self.status not in SURVIVED


def package(path: str) -> str:
    """Returns the package of a source file, or "experiments"."""
    parts = pathlib.PurePath(path).parts
    return parts[0] if parts[0] == "experiments" else parts[1]


def sources(root: pathlib.Path, names: Iterable[str]) -> Iterator[pathlib.Path]:
    """Yields the modules of packages that are mutated."""
    for name in names:
        folder = root / name if name == "experiments" else root / "unclip_jax" / name
        paths = sorted(folder.rglob("*.py"))
        yield from (p for p in paths if p.name not in ("__init__.py", "finetune.py", "distill.py"))


def generated(root: pathlib.Path, names: Iterable[str]) -> list[Mutant]:
    """Returns every mutant of the packages `names`; of experiments those of `paper` alone."""
    result = []
    for path in sources(root, names):
        relative = str(path.relative_to(root))
        function = "paper" if relative.startswith("experiments/") else ""
        result += operators.mutants(path.read_text(), relative, function=function)
    return result


def listed(root: pathlib.Path, file: pathlib.Path = HERE / "listed.toml") -> list[Mutant]:
    """Returns the mutants written by hand.

    Raises:
        ValueError: one that does not fit the code as it is.
    """
    result = []
    for entry in tomllib.loads(file.read_text())["mutant"]:
        source = (root / entry["file"]).read_text()
        if source.count(entry["before"]) != 1:
            raise ValueError(f"{entry['file']} has {source.count(entry['before'])} times {entry}")
        offset = source.index(entry["before"])
        line = source.count("\n", 0, offset) + 1
        mutant = Mutant(entry["file"], line, "listed", entry["before"], entry["after"], offset)
        result.append(mutant)
    return result


def equivalents(root: pathlib.Path) -> dict[tuple[str, str], str]:
    """Returns the reasons of mutants that change nothing, by file and diff."""
    entries = tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
    return {(entry["file"], entry["diff"].strip()): entry["reason"] for entry in entries}


def identity(mutant: Mutant, root: pathlib.Path) -> tuple[str, str]:
    """Returns the file and the diff of a mutant without indentation, its name in lists."""
    diff = mutant.diff((root / mutant.path).read_text())
    lines = [line[0] + line[1:].strip() for line in diff.splitlines()]
    return mutant.path, "\n".join(lines)


class Server:
    """A copy of a tree, and a process that runs its tests there."""

    def __init__(self, root: pathlib.Path, copy: pathlib.Path, *, preload: Sequence[str]):
        """Copies `root` to `copy` and starts the process."""
        caches = shutil.ignore_patterns("__pycache__", ".*_cache")

        def ignore(folder: str, names: list[str]) -> set[str]:
            top = LEFT_OUT if pathlib.Path(folder) == root else set()
            return caches(folder, names) | (top & set(names))

        shutil.copytree(root, copy, ignore=ignore)
        self.folder = copy
        self._clock = 1_000_000_000  # of mutated files, so that no cached bytecode fits two
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), *preload],
            cwd=copy,
            env=_environment(root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        if self._out.readline() != "ready\n":
            raise RuntimeError("the test server did not start; run server.py by hand")

    def close(self) -> None:
        """Ends the process."""
        self._in.close()
        self._process.wait()
        self._out.close()

    def run(
        self,
        tests: Sequence[str],
        *,
        timeout: float,
        first: Sequence[str] = (),
        trace: bool = False,
        memory: int = MEMORY,
        options: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Runs test files up to the first failure."""
        job = {"tests": list(tests), "first": list(first), "trace": trace, "timeout": timeout}
        self._in.write(json.dumps({**job, "memory": memory, "options": list(options)}) + "\n")
        self._in.flush()
        return json.loads(self._out.readline())

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """Has a mutated module in the copy for as long as the context lasts."""
        path = self.folder / mutant.path
        original = path.read_text()
        self._write(path, mutant.apply(original))
        try:
            yield
        finally:
            self._write(path, original)

    def _write(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        self._clock += 10
        os.utime(path, (self._clock, self._clock))


class Servers:
    """A pool of servers, each with a copy of the tree of its own."""

    def __init__(self, root: pathlib.Path, number: int, *, preload: Sequence[str]):
        """Starts `number` servers."""
        self._folder = tempfile.TemporaryDirectory()
        copies = [pathlib.Path(self._folder.name, f"tree_{i}") for i in range(number)]
        self._all = [Server(root, copy, preload=preload) for copy in copies]
        self._idle: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for server in self._all:
            self._idle.put(server)

    @contextlib.contextmanager
    def acquire(self) -> Iterator[Server]:
        """Waits for an idle server, which is busy for as long as the context lasts."""
        server = self._idle.get()
        try:
            yield server
        finally:
            self._idle.put(server)

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._all:
            server.close()
        self._folder.cleanup()


def _environment(root: pathlib.Path) -> dict[str, str]:
    """Returns the environment of tests, with compiled programs and reference data at one place.

    XLA's flags are left to `tests/conftest.py`, which compiles quickly, in nightly tests as well.
    """
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / ".mutants" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "UNCLIP_SHARED": str(root.parent / "shared"),
    }
    names = ("XLA_FLAGS", "UNCLIP_THOROUGH", "PYTHONDONTWRITEBYTECODE")  # imports are repeated
    own = {k: v for k, v in os.environ.items() if k not in names}
    return {**defaults, **own, "PYTHONPATH": ""}


class Reach:
    """The tests that reach each line: recorded once per test file, in a file of JSON."""

    def __init__(self, root: pathlib.Path, store: pathlib.Path):
        """Reads what was recorded before."""
        self._root, self._store = root, store
        self._records = json.loads(store.read_text()) if store.exists() else {}

    def record(
        self, servers: Servers, files: Iterable[str], *, apply: Callable[..., Iterable[Any]] = map
    ) -> Iterator[tuple[str, float]]:
        """Runs test files that are new or changed; yields them with their seconds.

        Args:
            servers: that run the tests.
            files: test files below the root.
            apply: applies a function to all files, in threads or one after the other.

        Raises:
            RuntimeError: a test that fails without a mutant.
        """

        def run(file: str) -> dict[str, Any]:
            with servers.acquire() as server:
                return server.run([file], timeout=3600, trace=True)

        digests = {file: _digest(self._root / file) for file in files}
        new = [f for f in digests if self._records.get(f, {}).get("digest") != digests[f]]
        for file, actual in zip(new, apply(run, new), strict=True):
            if actual["status"] != "passed" and actual["test"] != "exit 5":  # 5: all are nightly
                failed = f"{actual['test']}, {actual['reason']}"
                raise RuntimeError(f"{file} fails without a mutant: {failed}")
            self._records[file] = self._summary(actual, digests[file])
            self._store.parent.mkdir(exist_ok=True)
            self._store.write_text(json.dumps(self._records))
            yield file, self._records[file]["seconds"]

    def _summary(self, actual: dict[str, Any], digest: str) -> dict[str, Any]:
        lines: dict[str, dict[str, list[str]]] = {}
        for test, places in actual["lines"].items():
            for path, line in places:
                lines.setdefault(path, {}).setdefault(str(line), []).append(test)
        digests = {path: _digest(self._root / path) for path in lines}
        seconds = sum(actual["durations"].values())
        return {"digest": digest, "seconds": seconds, "digests": digests, "lines": lines}

    def select(
        self, mutant: Mutant, files: Iterable[str], *, unrecorded: bool = False
    ) -> tuple[list[str], list[str], float]:
        """Returns the test files that reach a mutant, best first, their tests that do, seconds.

        With `unrecorded`, files without a record are run on every mutant. A file whose record is of
        an older version of the module counts as reaching all of it. A file is run whole: what a
        test compiles, later tests call without reaching the line.
        """
        candidates: list[tuple[bool, float, str]] = []
        first: list[str] = []
        newlines = mutant.before.count("\n")
        for file in files:
            record = self._records.get(file)
            if record is None and unrecorded:
                candidates.append((True, UNKNOWN_SECONDS, file))
            if record is None or mutant.path not in record["lines"]:
                continue
            hits = record["lines"][mutant.path]
            span = range(mutant.line, mutant.line + newlines + 1)
            tests = [test for line in span for test in hits.get(str(line), [])]
            old = record["digests"][mutant.path] != _digest(self._root / mutant.path)
            if tests or old:
                stem = pathlib.PurePath(mutant.path).stem
                same_name = pathlib.PurePath(file).stem == f"test_{stem}"
                candidates.append((not same_name, record["seconds"], file))
                first += tests
        candidates.sort()
        return (
            [file for *_, file in candidates],
            first,
            sum(seconds for _, seconds, _ in candidates),
        )


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def tests_of(root: pathlib.Path, name: str) -> list[str]:
    """Returns the test files of a package."""
    files: list[pathlib.Path] = []
    for place in PACKAGES[name]:
        path = root / place
        files += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    return [str(path.relative_to(root)) for path in files if path.exists()]


def outcome(
    servers: Servers,
    reach: Reach,
    mutant: Mutant,
    *,
    tests: Sequence[str],
    unrecorded: bool = False,
) -> Outcome:
    """Runs those `tests` that reach a mutant, in the copy, up to the first failure."""
    files, first, seconds = reach.select(mutant, tests, unrecorded=unrecorded)
    if not files:
        return Outcome(mutant, "unreached")
    with servers.acquire() as server, server.mutated(mutant):
        actual = server.run(files, first=first, timeout=120 + 5 * seconds)
    return Outcome(mutant, *(actual[name] for name in ("status", "test", "reason", "seconds")))
