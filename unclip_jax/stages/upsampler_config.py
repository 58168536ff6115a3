"""The settings of an upsampler's training and sampling."""

import dataclasses

from unclip_jax.conditioning import text_features
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.conditioning.text_features import check_text_path
from unclip_jax.core.checks import UserError, divisible, in_range
from unclip_jax.diffusion import guidance
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig


@dataclasses.dataclass(frozen=True)
class UpsamplerStageConfig:
    """An upsampler and the settings of its training and sampling.

    Attributes:
        model: the U-Net; `model.unet.image_size` is the full target size.
        crop: side of the training crops in target pixels (a quarter of the target in the paper).
        diffusion: chain and target; eps without a learned variance.
        sampling: default sampling; 27 and 15 DDIM steps in the paper.
        residual: x_0 target only: the network predicts the difference to the enlarged low-res
            image, a miniature-only option that learns faster.
        augment: noise on the low-res image; off in unCLIP.
        last_step: a separate network predicts at t = 0 (Karlo); the parameters are then
            {"first": ..., "last": ...}.
        quantise: low-res images are rounded to 8-bit levels when sampling (GLIDE's released
            sampler); Karlo does not.
        drop_text: fraction of examples whose caption is dropped, if the network reads text (10 % in
            Imagen, section 4.1).
        empty_captions: fraction of the training captions that were replaced by the empty one, where
            `text.null` is "empty"; set by training (`config.data.empty_captions`), None after a
            conversion.
    """

    model: UpsamplerConfig
    crop: int
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig(steps="fast27", sampler="ddim", threshold="static")
    residual: bool = False
    augment: AugmentConfig = AugmentConfig()
    last_step: bool = False
    quantise: bool = True
    drop_text: float = 0.0
    empty_captions: float | None = None

    def __post_init__(self):
        size, factor, stride = self.model.unet.image_size, self.model.factor, self.model.unet.stride
        divisible("config.model.crop", self.crop, factor, "a crop must match whole low-res pixels.")
        divisible("upsampler image_size", size, factor, "the low-res image has whole pixels.")
        for what, side in (("crop", self.crop), ("image_size", size)):
            why = (
                "the U-Net halves it at every level but the last; drop a level or change the size."
            )
            divisible(f"upsampler {what}", side, stride, why)
        if self.crop > size:
            raise UserError(
                f"config.model.crop is {self.crop}, larger than the image ({size}); make it "
                "smaller."
            )
        self._check_text()
        self.check_guidance(self.sampling)
        if self.residual and self.diffusion.target != "x_0":
            raise UserError(
                "config.model.residual needs config.model.diffusion.target 'x_0', not "
                f"{self.diffusion.target!r}."
            )

    def _check_text(self) -> None:
        """Rejects drops without captions, and attention that depends on the size."""
        in_range(text_features.DROP, self.drop_text, 0.0, 1.0)
        text, unet = self.model.text, self.model.unet
        if text is None:
            if self.drop_text:
                raise UserError(
                    f"config.model.drop_text is {self.drop_text}, but this upsampler reads no "
                    "captions; set it to 0, or describe the text in config.model.model.text."
                )
            return
        text_features.check_drops(text, self.drop_text)
        check_text_path(text, attention=bool(unet.attention_at), norm=unet.context_norm)
        if unet.attention_at and unet.attention == "joint" and self.crop < unet.image_size:
            raise UserError(
                f"config.model.crop is {self.crop} of {unet.image_size}, but unet.attention "
                "'joint' sees the whole image, larger ones than in training; train on whole images "
                "or set it to 'cross' (Imagen, section 2.5)."
            )

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Rejects guidance of an upsampler that was trained without drops (unCLIP, 2.1).

        Raises:
            UserError: the scale is not 1.
        """
        self.diffusion.check_sampling(sampling)
        if self.model.text is not None:
            shares = {"drop": self.drop_text, "empty": self.empty_captions}
            text_features.check_guidance(self.model.text, sampling.guidance_scale, **shares)
        elif not guidance.is_off(sampling.guidance_scale):
            raise UserError(
                f"guidance_scale is {sampling.guidance_scale}, but upsamplers see no "
                "caption and are trained without drops; use 1.0."
            )

    @property
    def low_res_size(self) -> int:
        """Side of the low-res image at full size."""
        return self.model.unet.image_size // self.model.factor
