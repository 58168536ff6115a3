"""The upsampler: a U-Net on the noised image and the enlarged low-res one.

unCLIP's has convolutions alone: no attention, no caption, no class (arXiv 2204.06125, section 2.1),
so parameters trained on crops run at any size that the levels can halve. Imagen's read the caption
too (arXiv 2205.11487, section 2.5).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import TimeEmbedding, compute_dtype
from unclip_jax.backbones.unet import UNet
from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Image, LowRes, Steps
from unclip_jax.models.text_condition import TextCondition, TextConditionConfig, TextFeatures

# ADM's code enlarges bilinearly, Karlo with the antialiased cubic kernel; unCLIP does not say.
# DeepFloyd IF enlarges bilinearly with the corners of both images aligned.
INTERPOLATIONS = ("bilinear", "cubic", "bilinear_corners")


@dataclasses.dataclass(frozen=True)
class UpsamplerConfig:
    """Size of an upsampler.

    Attributes:
        unet: `in_channels` counts noised and low-res channels together; without text it has no
            attention.
        factor: sides of the output over sides of the low-res image.
        interpolation: enlargement of the low-res input, of INTERPOLATIONS.
        num_timesteps: length of the trained chain.
        text: the path of the caption into the U-Net; None = it reads none.
    """

    unet: UNetConfig
    factor: int
    interpolation: str = "bilinear"
    num_timesteps: int = 1000
    text: TextConditionConfig | None = None

    def __post_init__(self):
        positive("upsampler.factor", self.factor)
        one_of("upsampler.interpolation", self.interpolation, INTERPOLATIONS)
        if self.unet.attention_at and self.text is None:
            raise UserError(
                f"upsampler.unet.attention_at is {self.unet.attention_at}; upsamplers without text "
                "have no attention, so leave it empty, or describe the text in upsampler.text."
            )


class Upsampler(nn.Module):
    """Maps x_t, t and the low-res image to an image-shaped output; zero when fresh."""

    cfg: UpsamplerConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        unet = self.cfg.unet
        dtype, width = compute_dtype(unet.dtype), unet.emb_width
        steps, act = self.cfg.num_timesteps, unet.activation
        self.time = TimeEmbedding(unet.channels, width, steps, dtype, act)
        self.low_res_time = TimeEmbedding(unet.channels, width, steps, dtype, act)
        if self.cfg.text is not None:
            self.text = TextCondition(self.cfg.text, width, dtype)
        self.unet = UNet(unet)

    def __call__(
        self,
        x_t: Image,
        t: Steps,
        *,
        low_res: LowRes,
        low_res_t: Steps | None = None,
        features: Float[Array, " b l d"] | None = None,
        mask: Bool[Array, " b l"] | None = None,
        keep_text: Bool[Array, " b"] | None = None,
        enlarged: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Computes the raw output of the U-Net.

        Args:
            x_t: noised image at the target size.
            t: timesteps of the trained chain.
            low_res: image `factor` times smaller, in [-1, 1].
            low_res_t: timesteps of the noise that was added to `low_res` (Ho et al. 2021, arXiv
                2106.15282, section 4.2); None = the network has no such input (unCLIP).
            features: of the frozen text encoder, if the network reads text.
            mask: True at real tokens.
            keep_text: False replaces the caption by its null; None keeps all.
            enlarged: True if `low_res` has the target size already, by `enlarge`.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Raises:
            UserError: sizes that do not differ by the factor, or text that is missing.
        """
        text = None
        if features is not None and mask is not None:
            text = self.encode_text(features, mask, keep_text)
        options = {"low_res_t": low_res_t, "text": text, "enlarged": enlarged}
        return self.denoise(x_t, t, low_res=low_res, **options, deterministic=deterministic)

    def encode_text(
        self,
        features: Float[Array, " b l d"],
        mask: Bool[Array, " b l"],
        keep_text: Bool[Array, " b"] | None = None,
    ) -> TextFeatures:
        """Projects and pools the features of captions."""
        return self.text(features, mask, keep_text)

    def denoise(
        self,
        x_t: Image,
        t: Steps,
        *,
        low_res: LowRes,
        low_res_t: Steps | None = None,
        text: TextFeatures | None = None,
        enlarged: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Runs the U-Net with encoded captions."""
        cfg = self.cfg
        if (text is None) != (cfg.text is None):
            raise UserError(
                "this upsampler reads captions; pass the features of the text encoder."
                if text is None
                else "this upsampler reads no captions; pass no text features."
            )
        low_res = low_res if enlarged else enlarge(cfg, low_res, x_t.shape[1:3])
        emb = self.time(t)
        if low_res_t is not None:
            emb = emb + self.low_res_time(low_res_t)
        attended = {}
        if text is not None and cfg.text is not None:
            emb = emb + text.last
            if cfg.text.attend:
                attended = {"context": text.sequence, "context_mask": text.mask}
        x = jnp.concatenate([x_t, low_res], axis=-1)
        return self.unet(x, emb, **attended, deterministic=deterministic)


def enlarge(cfg: UpsamplerConfig, low_res: LowRes, size: tuple[int, ...]) -> Image:
    """Returns low-res images at height and width `size`.

    Raises:
        UserError: sizes that do not differ by the factor.
    """
    expected = tuple(side * cfg.factor for side in low_res.shape[1:3])
    if tuple(size) != expected:
        raise UserError(
            f"the low-res image is {low_res.shape[1:3]}; times {cfg.factor} that is "
            f"{expected}, not {tuple(size)}. Pass images whose sizes match."
        )
    shape = (low_res.shape[0], *size, low_res.shape[-1])
    if cfg.interpolation != "bilinear_corners":
        return jax.image.resize(low_res, shape, cfg.interpolation, antialias=True)
    scale = jnp.array(
        [(out - 1) / (side - 1) for out, side in zip(size, low_res.shape[1:3], strict=True)]
    )
    return jax.image.scale_and_translate(
        low_res, shape, (1, 2), scale, (1 - scale) / 2, "linear", antialias=False
    )
