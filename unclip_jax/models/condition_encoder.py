"""An encoder of vector conditions, trained together with the prior that reads its tokens.

A first linear map per subject, residual blocks that all subjects share, then tokens for the prior
and a projection to the space of the target for a contrastive loss (MindEye2, arXiv 2403.11207,
section 2.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.layers import LayerNorm, compute_dtype, dense, fan_in_normal
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.models.clip import INITIAL_LOG_SCALE, logit_scale
from unclip_jax.parallel.axes import sharded


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder and its contrastive loss.

    Attributes:
        width: of its layers and tokens; 0 = there is no encoder.
        depth: its blocks.
        tokens: number of tokens that the prior reads.
        subjects: number of first layers, chosen by the field "subject"; 1 = one for all. Training
            sets it to the number of labels in config.data.subjects.
        labels: of the subjects, in the order of their layers; () = numbers from 0 on. Training
            reads them from config.data.subjects.
        contrastive: weight of the contrastive loss beside the prior's; 0 = off.
        mixup: parameter of the Beta distribution by which conditions are mixed for the contrastive
            loss (BiMixCo of MindEye, arXiv 2305.18274, section 3.3); 0 = they are not mixed.
    """

    width: int = 0
    depth: int = 2
    tokens: int = 4
    subjects: int = 1
    labels: tuple[str, ...] = ()
    contrastive: float = 0.0
    mixup: float = 0.0

    def __post_init__(self):
        where = "config.model.encoder"
        in_range(f"{where}.width", self.width, 0, 2**16)
        in_range(f"{where}.contrastive", self.contrastive, 0.0, 1e6)
        in_range(f"{where}.mixup", self.mixup, 0.0, 1e3)
        for name in ("depth", "tokens", "subjects"):
            positive(f"{where}.{name}", getattr(self, name))
        if self.labels and len(self.labels) != self.subjects:
            raise UserError(
                f"{where}.labels has {len(self.labels)} labels for {self.subjects} subjects; give "
                "one per subject."
            )


class ConditionEncoder(nn.Module):
    """Encodes vectors as tokens and as a point in the space of the target.

    Attributes:
        cfg: sizes.
        target: width of the target.
        dtype: compute dtype.
    """

    cfg: EncoderConfig
    target: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, " b f"], subject: Int[Array, " b"]
    ) -> tuple[Float[Array, " b l d"], Float[Array, " b z"], Float[Array, ""]]:
        """Returns tokens, the projection, and the inverse temperature of the contrastive loss.

        Args:
            x: all vector conditions of an example in a row, standardised.
            subject: number of its subject.
        """
        cfg, dtype = self.cfg, compute_dtype(self.dtype)
        shape = (cfg.subjects, x.shape[1], cfg.width)
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("subjects", sharded(init, None, "z", "embed"), shape)
        every = jnp.einsum("b f, s f d -> b s d", x.astype(dtype), kernel.astype(dtype))
        h = jnp.take_along_axis(every, subject[:, None, None], axis=1)[:, 0]
        for index in range(cfg.depth):
            y = LayerNorm(name=f"norm_{index}")(h)
            y = dense(4 * cfg.width, name=f"fc_{index}_1", axes=("embed", "mlp"), dtype=dtype)(y)
            y = jax.nn.gelu(y)
            h = h + dense(cfg.width, name=f"fc_{index}_2", axes=("mlp", "embed"), dtype=dtype)(y)
        h = LayerNorm(name="final_norm")(h)
        axes, count = ("embed", "out"), cfg.tokens * cfg.width
        tokens = dense(count, name="tokens", axes=axes, dtype=dtype, init=fan_in_normal)(h)
        tokens = tokens.reshape(len(x), cfg.tokens, cfg.width).astype(jnp.float32)
        projected = dense(self.target, name="projection", axes=("embed", "z"), dtype=dtype)(h)
        init = sharded(nn.initializers.constant(INITIAL_LOG_SCALE))
        scale = logit_scale(self.param("log_scale", init, ()))
        return tokens, projected.astype(jnp.float32), scale
