"""Imagen's base model: noised image and frozen text features to an image-shaped output.

A U-Net that attends to the caption; no CLIP, no image embedding (arXiv 2205.11487, section 2.5).
"""

import dataclasses

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import TimeEmbedding, compute_dtype
from unclip_jax.backbones.unet import UNet
from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.core.types import Image, Steps
from unclip_jax.models.text_condition import TextCondition, TextConditionConfig, TextFeatures


@dataclasses.dataclass(frozen=True)
class TextBaseConfig:
    """Size of the base model.

    Attributes:
        unet: the U-Net.
        text: the path of the caption into it.
        num_timesteps: length of the trained chain.
    """

    unet: UNetConfig
    text: TextConditionConfig
    num_timesteps: int = 1000


class TextBase(nn.Module):
    """Maps x_t, t and the features of a caption to an image-shaped output; zero when fresh."""

    cfg: TextBaseConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        unet = self.cfg.unet
        dtype, width = compute_dtype(unet.dtype), unet.emb_width
        steps = self.cfg.num_timesteps
        self.time = TimeEmbedding(unet.channels, width, steps, dtype, unet.activation)
        self.text = TextCondition(self.cfg.text, width, dtype)
        self.unet = UNet(unet)

    def __call__(
        self,
        x_t: Image,
        t: Steps,
        *,
        features: Float[Array, " b l d"],
        mask: Bool[Array, " b l"],
        keep_text: Bool[Array, " b"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Computes the raw output of the U-Net.

        Args:
            x_t: noised image.
            t: timesteps of the trained chain.
            features: of the frozen text encoder.
            mask: True at real tokens.
            keep_text: False replaces the caption by its null; None keeps all.
            deterministic: no dropout; otherwise a "dropout" key is needed.
        """
        text = self.encode_text(features, mask, keep_text)
        return self.denoise(x_t, t, text=text, deterministic=deterministic)

    def encode_text(
        self,
        features: Float[Array, " b l d"],
        mask: Bool[Array, " b l"],
        keep_text: Bool[Array, " b"] | None = None,
    ) -> TextFeatures:
        """Projects and pools the features of captions."""
        return self.text(features, mask, keep_text)

    def denoise(
        self, x_t: Image, t: Steps, *, text: TextFeatures, deterministic: bool = True
    ) -> Float[Array, " b h w o"]:
        """Runs the U-Net with encoded captions."""
        emb = self.time(t) + text.last
        attended = {"context": text.sequence, "context_mask": text.mask}
        return self.unet(
            x_t,
            emb,
            **(attended if self.cfg.text.attend else {}),
            deterministic=deterministic,
        )
