"""unclip_jax: train, run and study DALL-E 2 (unCLIP) in JAX.

    engine = unclip_jax.open("runs/shapes")
    engine.sample("a red circle", num=4).save("circles.png")

Start with WORKSPACE.md. Importing the package imports nothing else; `open` and `InferenceEngine`
are loaded when they are used.
"""

from typing import TYPE_CHECKING, Any

from unclip_jax.version import __version__

if TYPE_CHECKING:
    import pathlib

    from unclip_jax.engine.bundle_engine import BundleEngine
    from unclip_jax.engine.inference_engine import InferenceEngine

__all__ = ["InferenceEngine", "__version__", "open"]


def open(path: "str | pathlib.Path", **options: Any) -> "InferenceEngine | BundleEngine":
    """Opens trained models or a bundle of them; see `engine.bundle_engine.open_engine`."""
    from unclip_jax.engine.bundle_engine import open_engine

    return open_engine(path, **options)


def __getattr__(name: str) -> Any:
    if name != "InferenceEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unclip_jax.engine.inference_engine import InferenceEngine

    return InferenceEngine
