"""Stage `clip`: two towers and a symmetric contrastive loss (Radford et al. 2021, section 2.3).

The loss is a function of the embeddings of the whole global batch. It is computed on globally
sharded arrays, and microbatches share one loss (`training.embedding_cache`). If replicas have
different parameters (`training.sam`), each computes its part of the same loss.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.conditioning.captions import ClipText, EncodedCaptions, TokenIds, empty_caption
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import PairwiseLoss, Stage
from unclip_jax.core.types import Batch, Embedding, Image, Key, Keys, Metrics, Params, Scalar
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.clip import Clip, ClipConfig, ClipOutput, TextOutput
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.embedding_rank import rank_metrics
from unclip_jax.objectives.gaussian import DiffusionConfig, NoisedBatch
from unclip_jax.stages.entry import StageEntry

NOISE_LEVELS = (250, 500, 750)  # per mille of the chain, at which retrieval is reported


@dataclasses.dataclass(frozen=True)
class ClipStageConfig:
    """CLIP's architecture and the images that it is trained on.

    Attributes:
        model: the two towers.
        diffusion: images are noised along this chain, for guidance by gradients; None = clean
            images. A CLIP of noised images cannot supply the embeddings of a cascade.
    """

    model: ClipConfig
    diffusion: DiffusionConfig | None = None

    def __post_init__(self):
        if (self.diffusion is not None) != self.model.reads_time:
            raise UserError(
                f"config.model.model.reads_time is {self.model.reads_time}, but config.model."
                f"diffusion is {'set' if self.diffusion else 'not'}; a CLIP of noised images has "
                "both."
            )


def make(cfg: ClipStageConfig) -> Stage:
    """Builds the `Stage` of contrastive training."""
    module = Clip(cfg.model)
    spec = {}
    if "image" in cfg.model.towers:
        spec["image"] = batches.image_field(cfg.model.image_size)
    if "text" in cfg.model.towers:
        spec |= batches.text_fields(cfg.model.context, cfg.model.vocab_size)

    def init(key: Key) -> Params:
        zeros = one_example(spec)
        inputs = (zeros.get(name) for name in ("image", "tokens", "token_mask"))
        return module.init(key, *inputs, method=Clip.run)["params"]

    def embed(params: Params, batch: Batch, noised: NoisedBatch | None = None) -> ClipOutput:
        text = (batch["tokens"], batch["token_mask"])
        if noised is None:
            return apply(module, params, batch["image"], *text)
        return apply(module, params, noised.x_t, *text, noised.t)

    def noise(batch: Batch, key: Key, t: int | None = None) -> NoisedBatch | None:
        if cfg.diffusion is None:
            return None
        chain, images = cfg.diffusion.chain(), batch["image"]
        if t is None:
            return gaussian.noise_batch(chain, images, key=key)
        steps = jnp.full(len(images), t, jnp.int32)
        return gaussian.noise_at(chain, images, t=steps, key=key)

    def embed_for_training(params: Params, batch: Batch, key: Key) -> ClipOutput:
        return embed(params, batch, noise(batch, key))

    pairwise = PairwiseLoss(embed_for_training, _share)

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        out = embed(params, batch)
        _, metrics = _reported(out, contrastive(out.z_img, out.z_txt, scale=out.logit_scale))
        metrics |= rank_metrics(out.z_img, name="z_img")
        if cfg.diffusion is None:
            return metrics
        for t in NOISE_LEVELS:
            level = t * cfg.diffusion.num_timesteps // 1000
            noised = embed(params, batch, noise(batch, key, level))
            contrast = contrastive(noised.z_img, noised.z_txt, scale=noised.logit_scale)
            metrics[f"image_to_text@1_t{t:03d}"] = contrast.top1_image
        return metrics

    return Stage(
        name="clip",
        batch_spec=spec,
        init=init,
        loss=pairwise.loss,
        evaluate=evaluate,
        preview=None,
        splittable=False,
        describe={"config": as_dict(cfg), "embed_dim": cfg.model.embed_dim},
        pairwise=pairwise,
    )


def encode_text(cfg: ClipStageConfig, params: Params, captions: TokenIds) -> ClipText:
    """Returns the frozen CLIP's raw embeddings and token features of captions."""
    out: TextOutput = apply(
        Clip(cfg.model), params, captions.tokens, captions.mask, method=Clip.encode_text
    )
    return ClipText(out.pooled, out.sequence, captions.mask)


def encode_image(cfg: ClipStageConfig, params: Params, images: Image) -> Embedding:
    """Returns raw embeddings of images in [-1, 1] at CLIP's input size."""
    return apply(Clip(cfg.model), params, images, method=Clip.encode_image)


def sample_in_chain(
    cfg: ClipStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: None = None,
) -> dict[str, Any]:
    """Encodes captions (`entry.ChainSampler`); deterministic."""
    captions: TokenIds = conditions["caption"]
    text = encode_text(cfg, params, captions)
    empty = encode_text(cfg, params, TokenIds(*empty_caption(captions.tokens, captions.mask)))
    return {"z_txt": text.z_txt, "clip_text": EncodedCaptions(text, empty)}


class Contrast(NamedTuple):
    """Loss in nats, and retrieval@1 from images to texts and from texts to images."""

    loss: Scalar
    top1_image: Scalar
    top1_text: Scalar


def contrastive(z_img: Embedding, z_txt: Embedding, *, scale: Float[Array, ""]) -> Contrast:
    """Computes symmetric cross-entropy over the batch, and retrieval@1 both ways (CLIP, figure 3).

    Args:
        z_img: L2-normalised image embeddings.
        z_txt: L2-normalised caption embeddings; row i belongs to image i.
        scale: exp of the learned temperature.
    """
    logits = scale * jnp.einsum("b z, m z -> b m", z_img, z_txt)
    own = jnp.arange(logits.shape[0])
    by_image = -jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
    by_text = -jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
    loss = 0.5 * (jnp.mean(by_image) + jnp.mean(by_text))
    return Contrast(loss, jnp.mean(logits.argmax(1) == own), jnp.mean(logits.argmax(0) == own))


def contrastive_share(
    z_img: Embedding, z_txt: Embedding, *, scale: Float[Array, ""], axes: tuple[str, ...]
) -> Contrast:
    """Computes one replica's part of `contrastive`, which is the mean over replicas.

    Args:
        z_img: this replica's L2-normalised image embeddings.
        z_txt: its caption embeddings.
        scale: its temperature, which may differ from other replicas'.
        axes: names of the axes along which the replicas lie, outermost first.
    """
    all_img, all_txt, first = z_img, z_txt, jnp.int32(0)
    for axis in reversed(axes):
        all_img, all_txt = (jax.lax.all_gather(z, axis, tiled=True) for z in (all_img, all_txt))
    for axis in axes:
        first = first * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
    own = first * len(z_img) + jnp.arange(len(z_img))
    by_image = scale * jnp.einsum("b z, m z -> b m", z_img, all_txt)
    by_text = scale * jnp.einsum("b z, m z -> b m", z_txt, all_img)
    pairs = [
        jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), own[:, None], axis=1)
        for logits in (by_image, by_text)
    ]
    loss = -0.5 * (jnp.mean(pairs[0]) + jnp.mean(pairs[1]))
    return Contrast(loss, jnp.mean(by_image.argmax(1) == own), jnp.mean(by_text.argmax(1) == own))


def _share(axes: tuple[str, ...]) -> Callable[[ClipOutput], tuple[Scalar, Metrics]]:
    """Returns the loss of one replica's embeddings (`PairwiseLoss.share`)."""

    def share(out: ClipOutput) -> tuple[Scalar, Metrics]:
        if not axes:
            return _reported(out, contrastive(out.z_img, out.z_txt, scale=out.logit_scale))
        contrast = contrastive_share(out.z_img, out.z_txt, scale=out.logit_scale, axes=axes)
        return _reported(out, contrast)

    return share


def _reported(out: ClipOutput, contrast: Contrast) -> tuple[Scalar, Metrics]:
    """Returns a loss with its metrics."""
    return contrast.loss, {
        "loss": contrast.loss,
        "image_to_text@1": contrast.top1_image,
        "text_to_image@1": contrast.top1_text,
        "logit_scale": out.logit_scale,
        "cosine_pairs": jnp.mean(jnp.sum(out.z_img * out.z_txt, -1)),
    }


ENTRY = StageEntry(
    name="clip",
    role="encoder",
    config=ClipStageConfig,
    make=make,
    reads=lambda cfg: ("caption",),
    yields=("z_txt", "clip_text"),
    sample=sample_in_chain,
    requires=("embed_dim",),
    identity="clip_id",
)
