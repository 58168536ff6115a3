"""PCA and quantization of embeddings to a sequence of integers (unCLIP, section 2.2).

    z -> coordinates on the principal components, largest eigenvalue first -> one bucket each

All parameters are fitted to training embeddings, not learned; they are stored with the learned ones
so that checkpoints and exports can decode their samples. Mean, basis, edges and centroids are
float32, computed in float64 by the fit.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.layers import zeros
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.types import Embedding, PerExample
from unclip_jax.parallel.axes import sharded

EXACT = jax.lax.Precision.HIGHEST  # a bucket is finer than bfloat16's digits

Codes = Int[Array, " b k"]


@dataclasses.dataclass(frozen=True)
class PcaQuantizerConfig:
    """Number of components and buckets.

    Attributes:
        components: principal components kept, hence codes per embedding (319 of 1,024 in the
            paper); 0 = as few as explain `explained_variance`, counted before training starts.
        explained_variance: share of the variance that the components must explain; only with
            components = 0.
        buckets: per component, with equal numbers of training embeddings (1,024).
        fit_rows: most training embeddings that the fit reads, evenly spread.
    """

    components: int = 319
    explained_variance: float = 0.0
    buckets: int = 1024
    fit_rows: int = 2**20

    def __post_init__(self):
        where = "config.model.model.codec"
        in_range(f"{where}.components", self.components, 0, 2**16)
        in_range(f"{where}.explained_variance", self.explained_variance, 0.0, 1.0)
        in_range(f"{where}.buckets", self.buckets, 2, 2**16)
        in_range(f"{where}.fit_rows", self.fit_rows, 2, 2**31 - 1)
        if bool(self.components) == bool(self.explained_variance):
            raise UserError(
                f"{where} has components {self.components} and explained_variance "
                f"{self.explained_variance}; give one of them and set the other to 0."
            )


@dataclasses.dataclass(frozen=True)
class DotQuantizerConfig(PcaQuantizerConfig):
    """Number of components and buckets of CLIP's image embeddings.

    Attributes:
        dot_buckets: of the dot product z_img . z_txt; the paper gives no number.
    """

    dot_buckets: int = 1024

    def __post_init__(self):
        super().__post_init__()
        in_range("config.model.model.codec.dot_buckets", self.dot_buckets, 2, 2**16)


class PcaQuantizer(nn.Module):
    """Maps embeddings to codes and back, by a fitted basis and fitted buckets.

    Fresh parameters divide the first axes of the space evenly over [-1, 1], a placeholder for a
    fit.

    Attributes:
        cfg: number of components and buckets.
        components: k, number of codes.
        dim: z, length of an embedding.
    """

    cfg: PcaQuantizerConfig
    components: int
    dim: int

    def setup(self):
        """Declares the fitted parameters."""
        k, z, n = self.components, self.dim, self.cfg.buckets
        levels = jnp.linspace(-1.0, 1.0, n + 1)
        self.mean = self.param("mean", sharded(zeros, "z"), (z,))
        self.basis = self.param("basis", sharded(lambda *_: jnp.eye(k, z), None, "z"))
        self.eigenvalues = self.param("eigenvalues", sharded(zeros, "z"), (z,))
        edges = jnp.tile(levels[1:-1], (k, 1))
        self.edges = self.param("edges", sharded(lambda *_: edges, None, None))
        middles = jnp.tile((levels[1:] + levels[:-1]) / 2, (k, 1))
        self.centroids = self.param("centroids", sharded(lambda *_: middles, None, None))

    def __call__(self, z: Embedding) -> Codes:
        """Returns the bucket of each coordinate of embeddings, 0 the lowest."""
        x = jnp.matmul(z - self.mean[None], self.basis.T, precision=EXACT)
        return jax.vmap(bucket, in_axes=(0, 1), out_axes=1)(self.edges, x)

    def decode(self, codes: Codes) -> Embedding:
        """Returns the embedding whose coordinates are the training means of these buckets."""
        x = jnp.take_along_axis(jnp.asarray(self.centroids).T, codes, axis=0)
        return jnp.matmul(x, self.basis, precision=EXACT) + self.mean[None]

    def explained(self) -> Float[Array, ""]:
        """Computes the share of variance that the components explain; 0 before a fit."""
        total = jnp.maximum(jnp.sum(self.eigenvalues), 1e-30)
        return jnp.sum(self.eigenvalues[: self.components]) / total


class DotQuantizer(PcaQuantizer):
    """Also maps dot products z_img . z_txt to codes; `cfg` is a `DotQuantizerConfig`."""

    def setup(self):
        """Declares the fitted parameters."""
        super().setup()
        assert isinstance(self.cfg, DotQuantizerConfig)
        dots = jnp.linspace(-1.0, 1.0, self.cfg.dot_buckets + 1)[1:-1]
        self.dot_edges = self.param("dot_edges", sharded(lambda *_: dots, None))

    def dot_code(self, dot: PerExample) -> Int[Array, " b"]:
        """Returns the bucket of dot products z_img . z_txt, 0 the lowest."""
        return bucket(self.dot_edges, dot)


def bucket(edges: Float[Array, " e"], x: Float[Array, " b"]) -> Int[Array, " b"]:
    """Counts the edges at or below each x: its bucket among e + 1.

    Counting is faster than a binary search on accelerators and needs no memory where it is fused.
    """
    return jnp.searchsorted(edges, x, side="right", method="compare_all").astype(jnp.int32)
