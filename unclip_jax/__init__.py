"""unclip_jax: train, run and study DALL-E 2 (unCLIP) in JAX.

    engine = unclip_jax.open("runs/shapes")
    engine.sample("a red circle", num=4).save("circles.png")

    prior = unclip_jax.fit_prior(x, y)  # between any two embedding spaces
    samples = prior.sample(new_x, num=8)

Start with WORKSPACE.md. Importing the package imports nothing else; classes and functions are
loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unclip_jax.version import __version__

if TYPE_CHECKING:
    import pathlib

    from unclip_jax.engine.bundle_engine import BundleEngine
    from unclip_jax.engine.inference_engine import InferenceEngine
    from unclip_jax.experiment.fit_prior import fit_prior
    from unclip_jax.inference.embedding_prior import EmbeddingPriorModel

__all__ = [
    "EmbeddingPriorModel",
    "InferenceEngine",
    "__version__",
    "fit_prior",
    "open",
    "open_prior",
]
_MODULES = {
    "EmbeddingPriorModel": "unclip_jax.inference.embedding_prior",
    "InferenceEngine": "unclip_jax.engine.inference_engine",
    "fit_prior": "unclip_jax.experiment.fit_prior",
}


def open(
    path: "str | pathlib.Path | None" = None, **options: Any
) -> "InferenceEngine | BundleEngine":
    """Opens trained models, by default installed ones; see `engine.bundle_engine.open_engine`."""
    from unclip_jax.engine.bundle_engine import open_engine

    return open_engine(path, **options)


def open_prior(path: "str | pathlib.Path") -> "EmbeddingPriorModel":
    """Opens a prior between two embedding spaces; see `EmbeddingPriorModel.open`."""
    from unclip_jax.inference.embedding_prior import EmbeddingPriorModel

    return EmbeddingPriorModel.open(path)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
