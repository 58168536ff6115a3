"""Compiled programs kept between runs, so that the second one starts in seconds."""

import os
import pathlib

FOLDER = "~/.cache/unclip_jax/xla"


def use(folder: str = FOLDER) -> None:
    """Keeps compiled programs in `folder`.

    Args:
        folder: a folder, or a URL that JAX can write to, such as gs://; "" = keep none. The default
            is replaced by JAX_COMPILATION_CACHE_DIR, which launchers set.
    """
    import jax

    replaced = folder == FOLDER and os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder and not replaced:
        place = folder if "://" in folder else str(pathlib.Path(folder).expanduser())
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
