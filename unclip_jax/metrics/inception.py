"""The Inception-v3 of FID: the network of 2015-12-05, whose features define FID.

The architecture is that of arXiv 1512.00567, table 1, without the auxiliary head. It differs from
current classifiers of the same name, as pytorch-fid documents: 1008 classes, average pooling that
excludes the padding, and maximum instead of average pooling in the last block. Blocks and layers
have the names of the public weights.

The network is described by data: `BLOCKS` contains branches of steps, and a step is a convolution,
a pooling, or several parallel convolutions.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from unclip_jax.core.types import Image

SIDE = 299  # pixels; the network accepts any size from 75 on
CLASSES = 1008
EPS = 1e-3  # of batch normalisation
SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d", 7  # "mixed_6/conv" of the TensorFlow graph; sFID


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution without bias, batch normalisation, ReLU.

    Attributes:
        name: name of the layer in its block.
        features: output channels.
        size: height and width of the kernel.
        stride: stride 2 has no padding; stride 1 has, unless `valid`.
        valid: True for no padding.
    """

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


Map = Float[Array, " b _ _ _"]
Step = Conv | tuple[Conv, ...] | str
Branch = tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """Size of the network: that of the public weights, or with fewer channels for tests.

    Attributes:
        divide: divisor of all numbers of channels.
    """

    divide: int = 1

    @property
    def width(self) -> int:
        """Dimensions of the pooled features."""
        return 2048 // self.divide


@struct.dataclass
class InceptionOutput:
    """Features and logits.

    Attributes:
        pool: pooled features ("pool_3"), for FID and nearest-neighbour scores.
        spatial: seven channels of the 17 x 17 map before the last third, flattened, for sFID.
        logits: logits of the classes.
        unbiased: logits without the bias of the last layer, for ADM's Inception score.
    """

    pool: Float[Array, " b d"]
    spatial: Float[Array, " b s"]
    logits: Float[Array, " b classes"]
    unbiased: Float[Array, " b classes"]


def _a(name: str, pool: int) -> tuple[str, tuple[Branch, ...]]:
    tower = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return name, (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (*tower, Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pool)),
    )


def _b(name: str) -> tuple[str, tuple[Branch, ...]]:
    tower = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return name, (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (*tower, Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        ("halve",),
    )


def _c(name: str, width: int) -> tuple[str, tuple[Branch, ...]]:
    wide, high = (1, 7), (7, 1)
    return name, (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, wide),
            Conv("branch7x7_3", 192, high),
        ),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, high),
            Conv("branch7x7dbl_3", width, wide),
            Conv("branch7x7dbl_4", width, high),
            Conv("branch7x7dbl_5", 192, wide),
        ),
        ("average", Conv("branch_pool", 192)),
    )


def _d(name: str) -> tuple[str, tuple[Branch, ...]]:
    return name, (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        ("halve",),
    )


def _e(name: str, pooling: str) -> tuple[str, tuple[Branch, ...]]:
    wide, high = (1, 3), (3, 1)
    return name, (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, wide), Conv("branch3x3_2b", 384, high)),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, wide), Conv("branch3x3dbl_3b", 384, high)),
        ),
        (pooling, Conv("branch_pool", 192)),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), valid=True),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "halve",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), valid=True),
    "halve",
)
BLOCKS: tuple[tuple[str, tuple[Branch, ...]], ...] = (
    *(_a("Mixed_5b", 32), _a("Mixed_5c", 64), _a("Mixed_5d", 64)),
    _b("Mixed_6a"),
    *(_c("Mixed_6b", 128), _c("Mixed_6c", 160), _c("Mixed_6d", 160), _c("Mixed_6e", 192)),
    _d("Mixed_7a"),
    *(_e("Mixed_7b", "average"), _e("Mixed_7c", "maximum")),
)


def conv_paths() -> Iterator[str]:
    """Yields slash-separated paths of all convolutions."""
    for prefix, branch in (("", STEM), *((f"{n}/", b) for n, branches in BLOCKS for b in branches)):
        for step in branch:
            if not isinstance(step, str):
                parts = step if isinstance(step, tuple) else (step,)
                yield from (f"{prefix}{part.name}" for part in parts)


class Inception(nn.Module):
    """Maps images in [-1, 1] of `SIDE` pixels to features and logits."""

    cfg: InceptionConfig = InceptionConfig()

    @nn.compact
    def __call__(self, images: Image) -> InceptionOutput:
        """Runs the network; the caller has resized the images according to its protocol."""
        divide, spatial = self.cfg.divide, None
        x = _run(STEM, images, divide)
        for name, branches in BLOCKS:
            parts = _Block(branches, divide, name=name)(x)
            if name == SPATIAL_BLOCK:
                spatial = parts[0][..., :SPATIAL_CHANNELS].reshape(len(x), -1)
            x = jnp.concatenate(parts, axis=-1)
        assert spatial is not None
        pool = jnp.mean(x, axis=(1, 2))
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (x.shape[-1], CLASSES))
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        unbiased = jnp.matmul(pool, kernel, precision=jax.lax.Precision.HIGHEST)
        return InceptionOutput(pool, spatial, unbiased + bias[None], unbiased)


class _Block(nn.Module):
    """Parallel branches; returns their outputs."""

    branches: tuple[Branch, ...]
    divide: int

    @nn.compact
    def __call__(self, x: Map) -> list[Map]:
        return [_run(branch, x, self.divide) for branch in self.branches]


class _ConvNorm(nn.Module):
    """The module of one `Conv`."""

    conv: Conv
    divide: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        conv, features = self.conv, self.conv.features // self.divide
        x = nn.Conv(
            features,
            conv.size,
            strides=conv.stride,
            padding="VALID" if conv.valid or conv.stride > 1 else "SAME",
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(_Norm(name="bn")(x))


class _Norm(nn.Module):
    """Batch normalisation with the statistics of training, which are parameters here."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        starts = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        own = {n: self.param(n, s, (x.shape[-1],))[None, None, None] for n, s in starts.items()}
        return (x - own["mean"]) * jax.lax.rsqrt(own["var"] + EPS) * own["scale"] + own["bias"]


def _run(branch: Branch, x: Map, divide: int) -> Map:
    """Runs the steps of a branch in order, within the calling module."""
    for step in branch:
        if isinstance(step, str):
            x = _POOLINGS[step](x)
        elif isinstance(step, tuple):
            x = jnp.concatenate([_ConvNorm(s, divide, name=s.name)(x) for s in step], axis=-1)
        else:
            x = _ConvNorm(step, divide, name=step.name)(x)
    return x


_POOLINGS = {
    "average": lambda x: nn.avg_pool(
        x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
    ),
    "maximum": lambda x: nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME"),
    "halve": lambda x: nn.max_pool(x, (3, 3), strides=(2, 2)),
}
