"""The configuration of the diffusion prior, and the checks of its options."""

import dataclasses
import math

from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.diffusion.analytic import ChainSignature
from unclip_jax.models.prior import PriorConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig

# 17.2 / sqrt(1024): a unit vector's RMS per dimension becomes that of pixels (unCLIP, 2.2).
PIXEL_RMS = 0.5375
SCALINGS = {"pixel_rms": PIXEL_RMS, "unit_rms": 1.0}  # RMS per dimension of the diffused embeddings


@dataclasses.dataclass(frozen=True)
class PriorStageConfig:
    """A diffusion prior and the settings of its training and sampling.

    Attributes:
        model: the causal transformer.
        diffusion: chain and target; the paper predicts x_0 without a learned variance.
        sampling: default sampling; 64 fractional strides in the paper.
        drop_text: fraction of examples whose caption and z_txt are both dropped (10 % in the
            paper).
        scaling: "pixel_rms": embeddings are diffused at the RMS of pixels, 0.5375 (the paper);
            "unit_rms": at 1, which is 5.4 dB less noisy at every t (DALLE2-pytorch).
        z_scale: factor on unit-norm embeddings; None = `scaling` times sqrt(d), in the paper 17.2
            at d = 1024.
        num_candidates: embeddings drawn per caption; the best by z_img . z_txt is kept (2).
        z_mean: per dimension; with `z_std` the chain diffuses (z_img - z_mean) / z_std of raw
            embeddings (Karlo) instead of scaled unit vectors, and z_txt enters raw. () = off.
        z_std: per dimension; see `z_mean`.
        standardise: measure z_mean and z_std on the training embeddings if they are ().
    """

    model: PriorConfig
    diffusion: DiffusionConfig = DiffusionConfig(target="x_0")
    sampling: SamplingConfig = SamplingConfig()
    drop_text: float = 0.1
    scaling: str = "pixel_rms"
    z_scale: float | None = None
    num_candidates: int = 2
    z_mean: tuple[float, ...] = ()
    z_std: tuple[float, ...] = ()
    standardise: bool = False

    def __post_init__(self):
        in_range("config.model.drop_text", self.drop_text, 0.0, 1.0)
        in_range("config.model.num_candidates", self.num_candidates, 1, 64)
        one_of("config.model.scaling", self.scaling, SCALINGS)
        sizes = {len(self.z_mean), len(self.z_std)}
        if sizes != {0} and sizes != {self.model.embed_dim}:
            raise UserError(
                f"config.model.z_mean and z_std have {len(self.z_mean)} and {len(self.z_std)} "
                f"values; give config.model.model.embed_dim ({self.model.embed_dim}) each, or none."
            )
        if self.model.null == "empty" and self.drop_text > 0:
            raise UserError(
                f"config.model.drop_text is {self.drop_text}, but this prior has no learned null "
                "(config.model.model.null is 'empty'): set it to 0 and give the empty caption to a "
                "share of the examples in the data."
            )
        self.check_guidance(self.sampling)

    @property
    def standardised(self) -> bool:
        """True if raw embeddings are standardised; False if unit vectors are scaled."""
        return self.standardise or bool(self.z_mean)

    @property
    def scale(self) -> float:
        """Factor applied to unit-norm embeddings."""
        if self.z_scale is not None:
            return self.z_scale
        if self.standardised:
            return 1.0
        return SCALINGS[self.scaling] * math.sqrt(self.model.embed_dim)

    @property
    def origin(self) -> ChainSignature:
        """Signature that a variance table of this prior must have.

        x_0 has norm `scale`, so no dimension can vary by more than scale^2 / d on average;
        standardised embeddings have variance 1.
        """
        variance = 1.0 if self.standardised else self.scale**2 / self.model.embed_dim
        return ChainSignature(
            schedule=self.diffusion.schedule,
            num_timesteps=self.diffusion.num_timesteps,
            target=self.diffusion.target,
            data_variance=variance,
        )

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Rejects guidance without drops, unless the null is the empty caption in the data.

        Raises:
            UserError: `drop_text` is 0 and the scale is not 1.
        """
        self.diffusion.check_sampling(sampling)
        if self.model.null == "learned":
            drops = {"config.model.drop_text": self.drop_text}
            gaussian.check_guidance(sampling.guidance_scale, drops=drops)
