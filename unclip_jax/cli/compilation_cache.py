"""Stores compiled programs, so that later runs start in seconds."""

import os
import pathlib

from unclip_jax.core.storage import Location, Url

FOLDER = "~/.cache/unclip_jax/xla"
BESIDE = "compilation_cache"  # name of the folder beside a workdir


def use(folder: str | None = None, *, workdir: Location | None = None) -> str:
    """Stores compiled programs in a folder.

    Args:
        folder: a folder, or a URL that JAX can write to, such as gs://; "" = store none. None =
            JAX_COMPILATION_CACHE_DIR, or else beside `workdir`.
        workdir: workdir of a run; None = `FOLDER` in the home directory.

    Returns:
        The folder or URL; "" if none is used.
    """
    import jax

    if folder is None and (stated := os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return stated  # JAX reads it itself
    if folder is None and workdir is not None:
        folder = str(_parent(workdir) / BESIDE)
    folder = FOLDER if folder is None else folder
    if not folder:
        return ""
    place = folder if "://" in folder else str(pathlib.Path(folder).expanduser())
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return place


def _parent(workdir: Location) -> Location:
    """Returns the folder of a workdir, or the workdir itself where that is a whole bucket."""
    if isinstance(workdir, Url):
        return workdir.parent if "/" in workdir.text.partition("://")[2] else workdir
    return workdir.absolute().parent
