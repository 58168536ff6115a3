"""The settings of a decoder's training and sampling."""

import dataclasses
import math

from unclip_jax.backbones.unet import plan
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.types import Scale
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig

EMBEDDINGS = ("unit", "raw")
CONDITIONS = ("z_img", "z_txt")


@dataclasses.dataclass(frozen=True)
class DecoderStageConfig:
    """A decoder and the settings of its training and sampling.

    Attributes:
        model: U-Net, caption transformer and the pathways of z_img.
        diffusion: chain and target; the paper predicts eps and learns the variance.
        sampling: default sampling; 250 strided steps with learned variance in the paper.
        drop_z: fraction of examples whose z_img is dropped (10 %).
        drop_text: fraction of examples whose caption is dropped (50 %), independent of `drop_z`.
        z_scale: factor on the unit-norm z_img that the network reads; None = sqrt(d).
        embedding: "unit": z_img is normalised and scaled; "raw": it is neither (Karlo).
        condition: the CLIP embedding that it is trained on: "z_img", or "z_txt" for the baseline of
            unCLIP's section 5.1, sampled with `--condition=z_txt`.
    """

    model: DecoderConfig
    diffusion: DiffusionConfig = DiffusionConfig(learned_variance=True)
    sampling: SamplingConfig = SamplingConfig(
        steps="250", variance="learned_range", threshold="static"
    )
    drop_z: float = 0.1
    drop_text: float = 0.5
    z_scale: float | None = None
    embedding: str = "unit"
    condition: str = "z_img"

    def __post_init__(self):
        one_of("config.model.condition", self.condition, CONDITIONS)
        one_of("config.model.embedding", self.embedding, EMBEDDINGS)
        if self.model.caption == "clip_sequence" and self.drop_text > 0:
            raise UserError(
                f"config.model.drop_text is {self.drop_text}, but this decoder has no null caption "
                "(config.model.model.caption is 'clip_sequence'): set it to 0 and give the empty "
                "caption to a share of the examples in the data."
            )
        in_range("config.model.drop_z", self.drop_z, 0.0, 1.0)
        in_range("config.model.drop_text", self.drop_text, 0.0, 1.0)
        self.check_guidance(self.sampling)
        unet = self.model.unet
        plan(unet)  # rejects an image that its levels cannot halve
        expected = unet.in_channels * (2 if self.diffusion.learned_variance else 1)
        if unet.out_channels != expected:
            raise UserError(
                f"config.model.model.unet.out_channels is {unet.out_channels}; "
                f"diffusion.learned_variance={self.diffusion.learned_variance} needs {expected}."
            )

    @property
    def scale(self) -> float:
        """Factor applied to unit-norm embeddings."""
        return math.sqrt(self.model.z_dim) if self.z_scale is None else self.z_scale

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Rejects guidance away from the null without drops.

        Raises:
            UserError: the scale is not 1, and `drop_z` or, with a caption of its own, `drop_text`
                is 0.
        """
        self.diffusion.check_sampling(sampling)
        self.check_null(sampling.guidance_scale, text=self.model.caption == "own")

    def check_null(self, scale: Scale, *, z_img: bool = True, text: bool = True) -> None:
        """Rejects guidance away from a null of inputs that were not dropped in training.

        Args:
            scale: guidance scale.
            z_img: True if z_img is dropped.
            text: True if the caption is dropped.

        Raises:
            UserError: naming the drop that is 0.
        """
        drops = {}
        if z_img and self.model.reads_z:
            drops["config.model.drop_z"] = self.drop_z
        if text and self.model.caption == "own":
            drops["config.model.drop_text"] = self.drop_text
        gaussian.check_guidance(scale, drops=drops)
