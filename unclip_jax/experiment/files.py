"""Experiment files: where they are, and how they are loaded.

An experiment is named by its file (`experiments/prior.py`) or, if it comes with the package, by its
name (`prior`). Its module may import its neighbours (`from . import decoder`).
"""

import importlib.util
import pathlib
import sys
import types
from typing import Any

from unclip_jax.core.checks import UserError, suggest

_PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel holds the files inside the package; in a checkout they are beside it.
FOLDERS = (_PACKAGE / "experiments", _PACKAGE.parent / "experiments")


def folder() -> pathlib.Path:
    """Returns the folder of the experiments that come with the package."""
    return next((each for each in FOLDERS if each.is_dir()), FOLDERS[0])


def names() -> list[str]:
    """Returns the names of the experiments that come with the package."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def find(name: str) -> pathlib.Path:
    """Returns the file of an experiment.

    Args:
        name: path of a Python file, or the name of an experiment of the package.

    Raises:
        UserError: no such file or experiment.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if path.suffix != ".py":
        if name not in names():
            raise UserError(f"there is no experiment {name!r}.{suggest(name, names())}")
        return folder() / f"{name}.py"
    if path.parent.is_dir():
        hint = suggest(path.name, [each.name for each in path.parent.glob("*.py")])
    else:
        hint = suggest(path.stem, names())
    raise UserError(f"there is no experiment file {name!r}.{hint}")


def get_config(spec: str) -> Any:
    """Returns the ConfigDict that the `get_config` of an experiment makes.

    Args:
        spec: FILE.py or NAME, then a colon and the size if it is not the default one.

    Raises:
        UserError: no such file or size, or the file is no experiment.
    """
    name, _, size = spec.partition(":")
    module = _load(find(name))
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} defines no get_config(size); see experiments/prior.py.")
    return module.get_config(size) if size else module.get_config()


def _load(path: pathlib.Path) -> types.ModuleType:
    """Executes a file as a module of a package that consists of the files beside it."""
    directory = path.parent.resolve()
    package = f"experiments@{directory}".replace(".", "_")
    if package not in sys.modules:
        parent = types.ModuleType(package)
        parent.__path__ = [str(directory)]
        sys.modules[package] = parent
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; give one like experiments/prior.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
