"""A stage in one file: a decoder that paints a caption's colours, without a CLIP and a prior."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.models.application import apply, one_example
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages.entry import StageEntry


@dataclasses.dataclass(frozen=True)
class ToyModelConfig:
    image_size: int = 16
    context: int = 24
    vocab_size: int = 1024


@dataclasses.dataclass(frozen=True)
class ToyStageConfig:
    model: ToyModelConfig
    sampling: SamplingConfig = SamplingConfig()


class ToyNetwork(nn.Module):
    """Mean embedding of a caption as one image."""

    cfg: ToyModelConfig

    @nn.compact
    def __call__(self, tokens, mask):
        side = self.cfg.image_size
        axes = nn.with_partitioning(nn.initializers.normal(0.1), ("vocab", "embed"))
        table = self.param("table", axes, (self.cfg.vocab_size, 8))
        kernel = nn.with_partitioning(nn.initializers.normal(0.1), ("embed", "out"))
        out = self.param("out", kernel, (8, side * side * 3))
        mean = jnp.einsum("b l d, b l -> b d", table[tokens], mask.astype(jnp.float32))
        return jnp.tanh(mean @ out).reshape(-1, side, side, 3)


def make(cfg):
    module = ToyNetwork(cfg.model)
    text = batches.text_fields(cfg.model.context, cfg.model.vocab_size)
    spec = {"image": batches.image_field(cfg.model.image_size), **text}

    def init(key):
        zero = one_example(spec)
        return module.init(key, zero["tokens"], zero["token_mask"])["params"]

    def evaluate(params, batch, key):
        out = apply(module, params, batch["tokens"], batch["token_mask"])
        return {"loss": jnp.mean((out - batch["image"]) ** 2)}

    def loss(params, batch, key):
        noise = 0.1 * jax.random.normal(rng.fold(key, "noise"), batch["image"].shape)
        value = evaluate(params, {**batch, "image": batch["image"] + noise}, key)["loss"]
        return value, {"loss": value}

    return Stage(
        name="toy",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        describe={"config": as_dict(cfg), "image_size": cfg.model.image_size},
    )


def sample_in_chain(cfg, params, conditions, *, keys, sampling=None):
    caption = conditions["caption"]
    images = apply(ToyNetwork(cfg.model), params, caption.tokens, caption.mask)
    noise = rng.normal_each(keys, images.shape[1:])
    return {"image": jnp.clip(images + 0.05 * noise, -1.0, 1.0)}


ENTRY = StageEntry(
    name="toy",
    role="decoder",
    config=ToyStageConfig,
    make=make,
    reads=lambda cfg: ("caption",),
    yields=("image",),
    sample=sample_in_chain,
    requires=("image_size",),
)
