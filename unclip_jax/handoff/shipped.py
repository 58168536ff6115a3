"""The trained models that are installed with the package, one run directory per world.

`unclip_jax/weights/` is package data: `convert --to=compact` writes its folders, and nothing is
downloaded. Commands take them when `--models` is not given, and by name: `--models=portraits`.
"""

import pathlib

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load, remote
from unclip_jax.handoff.export import MANIFEST

WEIGHTS = pathlib.Path(__file__).parents[1] / "weights"
DEFAULT = "portraits"
TRAINED = pathlib.Path("runs") / DEFAULT  # where `make train-demo` leaves its models


def names() -> list[str]:
    """Returns the names of the installed models."""
    return sorted(path.name for path in WEIGHTS.glob("*") if path.is_dir())


def run_directories() -> list[pathlib.Path]:
    """Returns the run directories of all installed models, the default first.

    Without installed models, it is the one that `make train-demo` trained.

    Raises:
        UserError: there is none.
    """
    return [run_directory(), *(WEIGHTS / name for name in names() if name != DEFAULT)]


def run_directory(models: str | storage.Location | None = None) -> pathlib.Path:
    """Returns the run directory that `models` names.

    Args:
        models: a folder or file, the URL of a run directory in an object store, which is copied,
            or the name of installed models where there is no such folder; None = the installed
            default, or what `make train-demo` trained.

    Raises:
        UserError: `models` is None and neither exists; or a URL at which there is no export.
    """
    if models is not None:
        path = storage.location(models) if isinstance(models, str) else models
        if isinstance(path, storage.Url):
            return remote.local_run(path)
        return WEIGHTS / path if str(path) in names() and not path.exists() else path
    for folder in (WEIGHTS / DEFAULT, TRAINED):
        if (load.locate(folder / "decoder" / "export") / MANIFEST).is_file():
            return folder
    raise UserError(
        f"--models was not given, this installation has no trained models ({WEIGHTS / DEFAULT} is "
        f"missing or incomplete), and there are none in {TRAINED}; install unclip_jax from a "
        "complete checkout, or train them with `make train-demo`."
    )
