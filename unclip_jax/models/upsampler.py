"""The upsampler: a U-Net of convolutions alone, on the noised image and the enlarged low-res one.

No attention, no caption, no class (unCLIP, arXiv 2204.06125, section 2.1), so parameters
trained on crops run at any size that the levels can halve.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Image, LowRes, Steps
from unclip_jax.models.layers import TimeEmbedding, compute_dtype
from unclip_jax.models.unet import UNet, UNetConfig

# ADM's code enlarges bilinearly, Karlo with the antialiased cubic kernel; unCLIP does not say.
INTERPOLATIONS = ("bilinear", "cubic")


@dataclasses.dataclass(frozen=True)
class UpsamplerConfig:
    """Size of an upsampler.

    Attributes:
        unet: without attention; `in_channels` counts noised and low-res channels together.
        factor: sides of the output over sides of the low-res image.
        interpolation: enlargement of the low-res input, of INTERPOLATIONS.
        num_timesteps: length of the trained chain.
    """

    unet: UNetConfig
    factor: int
    interpolation: str = "bilinear"
    num_timesteps: int = 1000

    def __post_init__(self):
        positive("upsampler.factor", self.factor)
        one_of("upsampler.interpolation", self.interpolation, INTERPOLATIONS)
        if self.unet.attention_at:
            raise UserError(
                f"upsampler.unet.attention_at is {self.unet.attention_at}; unCLIP's upsamplers "
                "have no attention, so leave it empty."
            )


class Upsampler(nn.Module):
    """Maps x_t, t and the low-res image to an image-shaped output; zero when fresh."""

    cfg: UpsamplerConfig

    @nn.compact
    def __call__(
        self,
        x_t: Image,
        t: Steps,
        *,
        low_res: LowRes,
        low_res_t: Steps | None = None,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Computes the raw output of the U-Net.

        Args:
            x_t: noised image at the target size.
            t: timesteps of the trained chain.
            low_res: image `factor` times smaller, in [-1, 1].
            low_res_t: timesteps of the noise that was added to `low_res` (Ho et al. 2021, arXiv
                2106.15282, section 4.2); None = the network has no such input (unCLIP).
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Raises:
            UserError: sizes that do not differ by the factor.
        """
        cfg = self.cfg
        expected = tuple(side * cfg.factor for side in low_res.shape[1:3])
        if x_t.shape[1:3] != expected:
            raise UserError(
                f"the low-res image is {low_res.shape[1:3]}; times {cfg.factor} that is "
                f"{expected}, not {x_t.shape[1:3]}. Pass images whose sizes match."
            )
        shape = (*x_t.shape[:3], low_res.shape[-1])
        enlarged = jax.image.resize(low_res, shape, cfg.interpolation, antialias=True)
        dtype = compute_dtype(cfg.unet.dtype)
        width = cfg.unet.emb_width
        embedding = functools.partial(
            TimeEmbedding, cfg.unet.channels, width, cfg.num_timesteps, dtype
        )
        emb = embedding(name="time")(t)
        if low_res_t is not None:
            emb = emb + embedding(name="low_res_time")(low_res_t)
        x = jnp.concatenate([x_t, enlarged], axis=-1)
        return UNet(cfg.unet, name="unet")(x, emb, deterministic=deterministic)
