"""Every command that a document shows is one that works.

Each bash block of README.md and docs/ is taken apart. A command of ours is started as `python -m`
starts it and stopped as soon as its own parser has accepted its arguments; experiments are built
with the overrides shown. What is cheap is carried out as well, in the order of its document, on
untrained stages in an empty folder. A command that nobody here knows fails.
"""

import argparse
import contextlib
import functools
import itertools
import json
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from tests import cascades
from tests.conftest import ROOT
from tests.serving.conftest import png
from unclip_jax import bundle, sample
from unclip_jax.cli import shell_completion
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.experiment import loading
from unclip_jax.serving import schemas

DOCUMENTS = sorted(["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
CARRIED_OUT = {"unclip_jax.sample": sample.main, "unclip_jax.bundle": bundle.main}

Words = list[str]


class Parsed(BaseException):
    """Raised in place of going on once the arguments have been understood."""


def blocks(document: str) -> list[str]:
    """The bash blocks of a document."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)


def commands(document: str) -> list[Words]:
    """Every command of a document as words; loops are taken apart, redirections left out."""
    result = []
    for block in blocks(document):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";>")
            lexer.whitespace_split = True
            ends = (list(part) for end, part in itertools.groupby(lexer, ";".__eq__) if not end)
            for words in ends:
                words = words[1:] if words[0] == "do" else words
                words = words[: words.index(">")] if ">" in words else words
                if words != ["done"]:
                    result.append(words)
    return result


def parse_arguments(
    module: str, arguments: Words, monkeypatch: pytest.MonkeyPatch
) -> tuple[object, Words]:
    """The values that a command's parser reads from its arguments, and what it leaves over."""
    parse = argparse.ArgumentParser.parse_known_args

    def once(self, *args, **kwargs):
        raise Parsed(*parse(self, *args, **kwargs))

    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setenv("UNCLIP_TRACEBACK", "1")  # mistakes are raised
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", once)
        patch.setattr(sys, "argv", [module, *arguments])
        # The import hook of the type checks would cache checked code as the module's own.
        patch.setattr(sys, "dont_write_bytecode", True)
        with pytest.raises(Parsed) as error:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return error.value.args


def ours(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m MODULE ...` of this project."""
    assert words[1] == "-m" and re.match(r"(unclip_jax|benchmarks|studies)\.", words[2]), words
    args, rest = parse_arguments(words[2], words[3:], monkeypatch)
    if rest or words[2] == "unclip_jax.train":
        assert all(word.startswith("--config.") for word in rest), words
        loading.read(getattr(args, "config"), overrides=rest)  # noqa: B009  (of whatever parser)


def script(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`unclip COMMAND ...`, which is `python -m unclip_jax.COMMAND ...`."""
    if words[1:2] == ["completion"]:
        assert words[2:] and set(words[2:]) <= set(shell_completion.SHELLS), words
    elif words[1:]:
        ours(["python", "-m", f"unclip_jax.{words[1]}", *words[2:]], monkeypatch)


def cascade(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch/cascade`, which knows a dry run."""
    run = subprocess.run(
        [*words, "--dry-run", "--data=/d"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def launcher(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch/tpu_pod.sh` or `launch/gke.sh` as a dry run, and the command for the hosts."""
    end = words.index("--") if "--" in words else len(words)
    _dry_run([*words[:end], "--dry-run", *words[end:]], words[end + 1 :], monkeypatch)


def batch(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch OPTIONS launch/slurm.sbatch COMMAND`, or an array with --wrap=COMMAND."""
    options = list(itertools.takewhile(lambda word: word.startswith("--"), words[1:]))
    names = {option.split("=")[0][2:] for option in options}
    assert names <= {"nodes", "gpus-per-node", "time", "array", "cpus-per-task", "wrap"}, words
    for option in options:
        if option.startswith("--wrap="):
            text = option.removeprefix("--wrap=").replace("$SLURM_ARRAY_TASK_ID", "17")
            ours(shlex.split(text), monkeypatch)
    script = words[1 + len(options) :]
    if "wrap" not in names:
        _dry_run(["bash", script[0], "--dry-run", *script[1:]], script[1:], monkeypatch)


def _dry_run(words: Words, command: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    if command:
        ours(command, monkeypatch)


def make(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make TARGET`, perhaps with variables."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert words[1] in targets and all("=" in word for word in words[2:]), words


def pip(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install` of a checkout, with extras that there are."""
    assert words[1:3] == ["install", "-e"] and len(words) == 4, words
    match = re.fullmatch(r"\.\[(.*)\]", words[3])
    extras = (ROOT / "setup.py").read_text("utf-8").partition("extras_require={")[2]
    names = re.findall(r'^ +"(\w+)": ', extras.partition("},")[0], re.MULTILINE)
    assert match and set(match[1].split(",")) <= set(names), (words, names)


def curl(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to the API that is accepted; images are put where the shell puts them."""
    command = re.fullmatch(r"localhost:\d+/api/([\w-]+)", words[2])
    assert words[1] == "-s" and command, words
    values = json.loads(words[words.index("-d") + 1])
    for field in schemas.served_fields(command[1]).values():
        if field.scalar == "image" and field.name in values:
            assert re.fullmatch(r"\$\(base64 -w0 \w+\.png\)", values[field.name]), words
            values[field.name] = png()
    schemas.read(command[1], values)


def of_the_shell(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, links and a sourced file, which need no check of ours."""


COVERED: dict[str, Callable[[Words, pytest.MonkeyPatch], None]] = {
    "python": ours,
    "unclip": script,
    "launch/cascade": cascade,
    "launch/tpu_pod.sh": launcher,
    "launch/gke.sh": launcher,
    "sbatch": batch,
    "make": make,
    "pip": pip,
    "curl": curl,
    **dict.fromkeys((".", "mkdir", "ln", "for"), of_the_shell),
}


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name)])
def test_every_command_is_understood(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(document):
        assert words[0] in COVERED, f"{document} shows {words}, which no test covers"
        COVERED[words[0]](words, monkeypatch)


def test_a_command_that_is_wrong_or_unknown_is_found(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for wrong in (
        "python -m unclip_jax.sample 'a cat' --sed=3",
        "python -m unclip_jax.train --config=experiments/clip.py:shapes --workdir=x --config.sed=3",
        "python -m somebody.else",
        "unclip completion csh",
        "unclip train --confg=clip:shapes",
        "make tea",
        "pip install -e .[tea]",
        "curl -s localhost:7860/api/text -d '{\"captions\": []}'",
        "launch/cascade nonsense",
        "launch/tpu_pod.sh watch --name=n --zone=z --type=t -- python -m unclip_jax.sample",
        "launch/gke.sh create --cluster=c --zone=z --type=t",
        "sbatch --node=4 launch/slurm.sbatch python -m unclip_jax.sample",
        "sbatch --nodes=4 launch/slurm.sbatch python -m unclip_jax.sample 'a cat' --sed=3",
    ):
        words = shlex.split(wrong)
        with pytest.raises((AssertionError, ValueError)):
            COVERED[words[0]](words, monkeypatch)
    assert "rm" not in COVERED


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_that_the_words_name_exist(document):
    for module in re.findall(r"python -m ([\w.]+\w)", (ROOT / document).read_text("utf-8")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@functools.cache
def _cheap() -> list[tuple[str, Words]]:
    """Returns the commands that are carried out: (document, words)."""
    return [
        (document, words)
        for document in DOCUMENTS
        for words in commands(document)
        if words[0] == "python" and words[2] in CARRIED_OUT
    ]


def move_dalle(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves the stages of DALL-E; a run that holds two chains needs `--chain` in every command."""
    target.mkdir(exist_ok=True)
    for name in ("dvae", "dalle"):
        (source / name).rename(target / name)


@contextlib.contextmanager
def chain_of(words: Words, place: pathlib.Path) -> Iterator[None]:
    """Lets the run hold the stages of DALL-E while a command names its chain."""
    if "--chain=dalle" not in words:
        yield
        return
    move_dalle(place / "dalle", place / "runs/shapes")
    yield
    move_dalle(place / "runs/shapes", place / "dalle")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with untrained stages, their embeddings, and the pictures that documents name."""
    folder, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    more = ("dvae", "dalle", "classifier")
    run_dir = cascades.write(folder / "runs" / "shapes", names=(*cascades.NAMES, *more))
    cascades.write_guide(run_dir)
    shutil.copytree(run_dir, folder / "runs/mindalle", ignore=lambda *_: cascades.NAMES[1:])
    move_dalle(run_dir, folder / "dalle")
    for name in ("karlo-v1-alpha", "runs/emoji"):  # what is not here
        (folder / name).symlink_to(run_dir)
    engine = InferenceEngine.open(run_dir)
    info = {"clip_id": engine.clip_id}
    writer = EmbeddingWriter(run_dir / "embeddings" / "train", info=info, shard_size=40)
    z = rng.normal(size=(40, 32)).astype(np.float32)
    writer.add([f"{i}" for i in range(40)], [""] * 40, z_img=z, z_txt=z)
    writer.finish()
    for name in ("one.png", "other.png"):
        pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(np.tri(40, dtype=np.uint8) * 255).save(folder / "mask.png")
    return folder


@pytest.mark.nightly
def test_commands_that_draw_are_carried_out(place, monkeypatch, capsys):
    """In the order of their document: later ones use what earlier ones wrote."""
    monkeypatch.chdir(place)
    cascades.share_engines(monkeypatch, most=2)
    for _, words in _cheap():
        words = [word.replace("top-k=100", "top-k=10") for word in words]  # of 64 codes
        with chain_of(words, place):
            CARRIED_OUT[words[2]](words[3:])
        assert capsys.readouterr().out.startswith("wrote "), words
    case = {path.name for path in place.iterdir()}
    assert {"grid.png", "back.png", "interpolate.gif", "shapes.unclip", "upscale.json"} <= case
