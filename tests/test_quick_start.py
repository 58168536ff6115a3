"""The Python that the README and the notebook show, run on an untrained cascade."""

import ast
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import unclip_jax
from tests import cascades
from tests.conftest import ROOT
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import shipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with models where the documents expect them, and an image."""
    folder = tmp_path_factory.mktemp("place")
    cascades.write(folder / "weights" / shipped.DEFAULT)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    return folder


def faster(code: str) -> str:
    """The code with chains of four steps, which behave alike here."""
    code = code.replace('steps="50"', 'steps="4"')
    return code.replace("num=4", 'num=4, steps="4"').replace('"one.png"', '"one.png", steps="4"')


def test_the_readme_begins_with_python_that_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shipped, "WEIGHTS", folder / "weights")
    readme = (ROOT / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    assert readme.index("```python") < readme.index("## Tour")
    names: dict = {}
    exec(faster(code), names)
    result, latent = names["result"], names["latent"]
    assert result.images.shape == (4, 32, 32, 3) and result.z_img.shape == (4, 32)
    assert result.record["request"]["captions"] == ["a person with curly red hair"]
    assert latent.latent.x_T.shape == (1, 16, 16, 3)
    with Image.open(folder / "people.png") as grid:
        assert grid.width > 2 * 32
    assert json.loads((folder / "people.json").read_text())["request"]["seed"] == 0


def test_the_notebook_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shipped, "WEIGHTS", folder / "weights")
    notebook = json.loads((ROOT / "docs" / "quick_start.ipynb").read_text("utf-8"))
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            run_cell(faster("".join(cell["source"])), names)
    assert names["result"]._repr_png_().startswith(b"\x89PNG")
    assert names["path"].images.shape[0] == 3


def run_cell(code: str, names: dict) -> None:
    """Runs a cell; its last expression is shown as Jupyter shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        assert hasattr(value, "_repr_png_") or isinstance(value, (dict, tuple))


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, unclip_jax; before = {*sys.modules}; unclip_jax.InferenceEngine; "
        "print('jax' in before, 'jax' in sys.modules, hasattr(unclip_jax, 'nothing'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["False", "True", "False"], run.stderr


def test_images_are_taken_as_paths_bytes_arrays_and_pillow_images(folder):
    engine = unclip_jax.open(folder / "weights" / shipped.DEFAULT, batch=2)
    path = folder / "one.png"
    with Image.open(path) as file:
        image = file.copy()
    same = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    first, *others = [engine.encode(each, steps="4") for each in same]
    for other in others:
        np.testing.assert_array_equal(other.latent.x_T, first.latent.x_T)
    with pytest.raises(UserError, match=r"image is an array of float64 \[2, 2\]; give uint8"):
        engine.encode(np.zeros((2, 2)))
    with pytest.raises(UserError, match="text has no 'sed'. Did you mean 'seed'"):
        engine.sample("x", sed=1)
    with pytest.raises(UserError, match=r"num is 0; it must lie in \[1, 4096\]"):
        engine.sample("x", num=0)
