"""Stage `dalle`: caption -> codes of a discrete VAE, the second half of DALL-E (arXiv 2102.12092).

One causal transformer over the caption's tokens and the image's codes, trained to predict both:
1/8 of the loss is that of tokens, 7/8 that of codes. Captions are dropped in training where
guidance is wanted; the paper drops none and chooses among 512 images by CLIP.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from unclip_jax.backbones.causal_transformer import Patterns
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Key, Keys, Mask, Metrics, Params, Tokens
from unclip_jax.diffusion import guidance
from unclip_jax.discrete import categorical, patterns
from unclip_jax.discrete.categorical import CodeSamplingConfig, FixedCodes
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.dalle import Codes, Dalle, DalleConfig, StreamLogits
from unclip_jax.objectives import gaussian
from unclip_jax.stages.dvae import code_fields
from unclip_jax.stages.entry import StageEntry


@dataclasses.dataclass(frozen=True)
class DalleStageConfig:
    """DALL-E's transformer and the settings of its training and sampling.

    Attributes:
        model: the transformer.
        sampling: default sampling.
        drop_text: share of examples whose caption is dropped; 0 in the paper, which has no
            guidance.
        text_weight: weight of the loss of tokens; codes have the remainder (section 2.2).
    """

    model: DalleConfig
    sampling: CodeSamplingConfig = CodeSamplingConfig()
    drop_text: float = 0.0
    text_weight: float = 0.125

    def __post_init__(self):
        in_range("config.model.drop_text", self.drop_text, 0.0, 1.0)
        in_range("config.model.text_weight", self.text_weight, 0.0, 1.0)
        self.check_sampling(self.sampling)
        self.attention_plan()  # rejects unknown patterns

    def check_sampling(self, sampling: CodeSamplingConfig) -> None:
        """Rejects guidance without drops, and `top_k` above the number of codes.

        Raises:
            UserError: naming the setting.
        """
        drops = {"config.model.drop_text": self.drop_text}
        gaussian.check_guidance(sampling.guidance_scale, drops=drops)
        if (sampling.top_k or 0) > self.model.code_count:
            raise UserError(
                f"sampling.top_k is {sampling.top_k}, but there are {self.model.code_count} codes; "
                "give fewer, or none for all."
            )

    def attention_plan(self) -> Patterns:
        """Returns the masks of the layers."""
        cfg = self.model
        cycle = cfg.attention or patterns.sparse_order(cfg.depth)
        names = [cycle[i % len(cycle)] for i in range(cfg.depth)]
        plan = patterns.plan(names, context=cfg.context, grid=cfg.grid, kernel=cfg.kernel)
        return Patterns(*plan)


def make(cfg: DalleStageConfig) -> Stage:
    """Builds the `Stage` of DALL-E's transformer."""
    module, layout = Dalle(cfg.model), cfg.attention_plan()
    text = batches.text_fields(cfg.model.context, cfg.model.vocab_size)
    spec = {**text, **code_fields(cfg.model.grid, cfg.model.code_count)}

    def init(key: Key) -> Params:
        zero = one_example(spec)
        fields = (zero[name] for name in ("tokens", "token_mask", "codes"))
        return module.init(key, *fields, patterns=layout)["params"]

    def nats(params: Params, batch: Batch, mask: Mask) -> StreamLogits:
        """Computes the cross-entropy of tokens (0 for padding) and of codes."""
        inputs = (batch["tokens"], mask, batch["codes"])
        logits: StreamLogits = apply(module, params, *inputs, patterns=layout)
        tokens = categorical.cross_entropy(logits.text, batch["tokens"][:, 1:]) * mask[:, 1:]
        return StreamLogits(tokens, categorical.cross_entropy(logits.codes, batch["codes"]))

    def metrics(result: StreamLogits, mask: Mask) -> Metrics:
        count = jnp.maximum(jnp.sum(mask[:, 1:], axis=1), 1)
        text, image = jnp.mean(jnp.sum(result.text, axis=1) / count), jnp.mean(result.codes)
        total = cfg.text_weight * text + (1.0 - cfg.text_weight) * image
        return {"loss": total, "loss_text": text, "loss_image": image}

    def loss(params: Params, batch: Batch, key: Key):
        key, mask = rng.fold(key, "drop_text"), batch["token_mask"]
        keep = guidance.keep_mask(key, batch_size=len(mask), drop=cfg.drop_text)
        mask = mask if keep is None else mask & keep[:, None]
        values = metrics(nats(params, batch, mask), mask)
        return values["loss"], values

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        result = nats(params, batch, batch["token_mask"])
        other = {**batch, **{n: jnp.roll(batch[n], 1, axis=0) for n in text}}
        wrong = jnp.mean(nats(params, other, other["token_mask"]).codes)
        positions = categorical.by_position(result.codes)
        return {**metrics(result, batch["token_mask"]), "loss_wrong_text": wrong, **positions}

    return Stage(
        name="dalle",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        describe={
            "config": as_dict(cfg),
            "grid": cfg.model.grid,
            "code_count": cfg.model.code_count,
        },
    )


def sample(
    cfg: DalleStageConfig,
    params: Params,
    *,
    tokens: Tokens,
    token_mask: Mask,
    keys: Keys,
    sampling: CodeSamplingConfig | None = None,
    fixed: FixedCodes | None = None,
) -> Codes:
    """Samples the codes of images for captions, one cached step per code, in one scan.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        tokens: caption ids.
        token_mask: True at real tokens.
        keys: one key per row; row i depends on its key and caption alone.
        sampling: overrides `cfg.sampling`.
        fixed: codes of an image to complete, which are kept.

    Raises:
        UserError: guidance of a model that was trained without drops.
    """
    sampling = sampling or cfg.sampling
    cfg.check_sampling(sampling)
    if not guidance.is_off(sampling.guidance_scale):  # the same rows again, without captions
        tokens = jnp.concatenate([tokens, tokens])
        token_mask = jnp.concatenate([token_mask, jnp.zeros_like(token_mask)])
    run = functools.partial(apply, Dalle(cfg.model), params, patterns=cfg.attention_plan())
    return categorical.sample_sequence(
        run(tokens, token_mask, method=Dalle.start),
        lambda code, cache, index: run(code, cache, index=index, method=Dalle.step),
        keys=keys,
        count=cfg.model.length,
        sampling=sampling,
        fixed=fixed,
    )


def sample_in_chain(
    cfg: DalleStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: CodeSamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples codes (`entry.ChainSampler`)."""
    caption: TokenIds = conditions["caption"]
    codes = sample(
        cfg,
        params,
        tokens=caption.tokens,
        token_mask=caption.mask,
        keys=keys,
        sampling=sampling,
    )
    return {"codes": codes}


ENTRY = StageEntry(
    name="dalle",
    role="prior",
    config=DalleStageConfig,
    make=make,
    reads=lambda cfg: ("caption",),
    yields=("codes",),
    sample=sample_in_chain,
    requires=("dvae_id", "grid", "code_count"),
    chain="dalle",
)
