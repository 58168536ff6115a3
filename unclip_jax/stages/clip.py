"""Stage `clip`: two towers and a symmetric contrastive loss (Radford et al. 2021, section 2.3).

The loss is a function of the whole global batch, so it is computed on globally sharded arrays and
the batch is never split for gradient accumulation.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import batch as batches
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Batch, Embedding, Key, Metrics, Params, Scalar
from unclip_jax.models.clip import Clip, ClipConfig, ClipOutput
from unclip_jax.stages.base import Stage, apply, one_example


@dataclasses.dataclass(frozen=True)
class ClipStageConfig:
    """CLIP's architecture; the objective has no options.

    Attributes:
        model: the two towers.
    """

    model: ClipConfig


def make(cfg: ClipStageConfig) -> Stage:
    """The stage record for contrastive training."""
    module = Clip(cfg.model)
    spec = {
        "image": batches.image_field(cfg.model.image_size),
        **batches.text_fields(cfg.model.context, cfg.model.vocab_size),
    }

    def init(key: Key) -> Params:
        zeros = one_example(spec)
        return module.init(key, zeros["image"], zeros["tokens"], zeros["token_mask"])["params"]

    def metrics(params: Params, batch: Batch) -> tuple[Scalar, Metrics]:
        out: ClipOutput = apply(
            module, params, batch["image"], batch["tokens"], batch["token_mask"]
        )
        loss, top1_image, top1_text = contrastive(out.z_img, out.z_txt, scale=out.logit_scale)
        return loss, {
            "loss": loss,
            "image_to_text@1": top1_image,
            "text_to_image@1": top1_text,
            "logit_scale": out.logit_scale,
            "cosine_pairs": jnp.mean(jnp.sum(out.z_img * out.z_txt, -1)),
        }

    return Stage(
        name="clip",
        batch_spec=spec,
        init=init,
        loss=lambda params, batch, key: metrics(params, batch),
        evaluate=lambda params, batch, key: metrics(params, batch)[1],
        preview=None,
        splittable=False,
        describe={"config": as_dict(cfg), "embed_dim": cfg.model.embed_dim},
    )


def contrastive(
    z_img: Embedding, z_txt: Embedding, *, scale: Float[Array, ""]
) -> tuple[Scalar, Scalar, Scalar]:
    """Symmetric cross-entropy over the batch, and retrieval@1 both ways (CLIP, figure 3).

    Args:
        z_img: L2-normalised image embeddings.
        z_txt: L2-normalised caption embeddings; row i belongs to image i.
        scale: exp of the learned temperature.

    Returns:
        (loss in nats, image -> text retrieval@1, text -> image retrieval@1).
    """
    logits = scale * jnp.einsum("b z, m z -> b m", z_img, z_txt)
    own = jnp.arange(logits.shape[0])
    by_image = -jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
    by_text = -jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
    loss = 0.5 * (jnp.mean(by_image) + jnp.mean(by_text))
    return loss, jnp.mean(logits.argmax(1) == own), jnp.mean(logits.argmax(0) == own)
