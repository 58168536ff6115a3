"""unclip_jax: train, run and study DALL-E 2 (unCLIP) in JAX.

Start with WORKSPACE.md. Importing the package imports nothing else; import the module you need.
"""

from unclip_jax.version import __version__

__all__ = ["__version__"]
