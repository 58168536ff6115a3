"""Compiled programs kept between runs, so that the second one starts in seconds."""

import os
import pathlib

FOLDER = "~/.cache/unclip_jax/xla"


def use(folder: str = FOLDER) -> None:
    """Keeps compiled programs in `folder`, unless JAX_COMPILATION_CACHE_DIR names another.

    Args:
        folder: a folder, or a URL that JAX can write to, such as gs://; "" = keep none.
    """
    import jax

    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        place = folder if "://" in folder else str(pathlib.Path(folder).expanduser())
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
