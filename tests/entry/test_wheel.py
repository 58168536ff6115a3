"""The wheel works where there is no checkout: commands, experiments and training."""

import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

from unclip_jax.handoff import shipped

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = (
    *("unclip_jax", "experiments", "setup.py", "pyproject.toml"),
    *("MANIFEST.in", "README.md", "LICENSE"),
)
SDIST = "import setuptools.build_meta as backend; backend.build_sdist('..')"


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def executable(tmp_path_factory) -> pathlib.Path:
    """The script `unclip` of a virtual environment that holds the wheel, and no checkout."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 71:
        pytest.skip("building a wheel offline needs setuptools 71 or later")
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    run(sys.executable, "-c", SDIST, cwd=source)  # a wheel of the sdist, as of a release
    shutil.rmtree(source)
    (sdist,) = place.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={place}", sdist)
    run(*pip, *build, cwd=place)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=place)
    (packages,) = (place / "venv" / "lib").glob("python*/site-packages")
    # Dependencies come from the environment of the tests; its .pth files are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.with_name("unclip")


@pytest.mark.slow
def test_a_wheel_holds_the_page(executable, tmp_path):
    pytest.importorskip("starlette", reason="needs the extra demo")
    code = "from unclip_jax.serving import page; print(*(r.path for r in page.routes('')))"
    paths = run(executable.with_name("python"), "-c", code, cwd=tmp_path).split()
    assert {"/", "/page.js", "/page.css", "/icon.svg"} <= {*paths}


@pytest.mark.slow
def test_a_wheel_holds_the_trained_models(executable, tmp_path):
    code = "from unclip_jax.handoff import shipped as s; print(*s.names(), s.WEIGHTS)"
    *names, folder = run(executable.with_name("python"), "-c", code, cwd=tmp_path).split()
    assert names == shipped.names()
    files = {path.relative_to(folder) for path in pathlib.Path(folder).rglob("*")}
    assert files == {path.relative_to(shipped.WEIGHTS) for path in shipped.WEIGHTS.rglob("*")}


@pytest.mark.slow
def test_experiments_of_a_wheel_are_found_by_name(executable, tmp_path):
    where = "import unclip_jax; print(unclip_jax.__file__)"
    file = pathlib.Path(run(executable.with_name("python"), "-c", where, cwd=tmp_path).strip())
    assert file.is_relative_to(executable.parents[1])
    code = "from unclip_jax.experiment import files; print(*files.names())"
    names = run(executable.with_name("python"), "-c", code, cwd=tmp_path).split()
    assert names == sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
    assert "usage: unclip train" in run(executable, "train", "--help", cwd=tmp_path)


@pytest.mark.nightly
def test_a_stage_is_trained_from_the_wheel(executable, tmp_path):
    run(executable, "prepare", "shapes:train=64,validation=16", "--out=data", cwd=tmp_path)
    small = ("--config.data.path=data", "--config.train.steps=2", "--config.train.batch_size=16")
    small += ("--config.optim.warmup_steps=1",)
    run(executable, "train", "--config=clip:tiny", "--workdir=clip", *small, cwd=tmp_path)
    manifest = json.loads((tmp_path / "clip" / "export" / "manifest.json").read_text())
    assert (manifest["stage"], manifest["size"], manifest["step"]) == ("clip", "tiny", 2)
