"""Stage `prior_ar`: the autoregressive prior, caption -> z_img by codes (unCLIP, section 2.2).

z_img becomes codes (principal components by decreasing eigenvalue, one bucket each), which a causal
transformer predicts one after another from the caption, z_txt and the bucket of z_img . z_txt.
Trained with cross-entropy. Parameters are {"codec": fitted once, "network": learned}.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Rows, Stage
from unclip_jax.core.types import Batch, Embedding, Key, Keys, Mask, Metrics, Params, Tokens
from unclip_jax.diffusion import guidance
from unclip_jax.discrete import categorical
from unclip_jax.discrete.categorical import CodeSamplingConfig
from unclip_jax.fitting import quantizer_fit
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.pca_quantizer import Codes, DotQuantizer
from unclip_jax.models.prior_ar import PriorAr, PriorArConfig
from unclip_jax.objectives import gaussian
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.prior import best_of

DIAGNOSTIC_ROWS = 64  # rows of a held-out batch for which embeddings are sampled, one pass per code


@dataclasses.dataclass(frozen=True)
class PriorArSamplingConfig(CodeSamplingConfig):
    """The settings of sampling an embedding.

    Attributes:
        dot_percentile: the dot product z_img . z_txt to condition on is drawn from the training
            data's own distribution above this percentile; 50 in the paper, which also tried 70, 85
            and 95.
    """

    dot_percentile: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        in_range("sampling.dot_percentile", self.dot_percentile, 0.0, 99.9)


@dataclasses.dataclass(frozen=True)
class PriorArStageConfig:
    """An autoregressive prior and the settings of its training and sampling.

    Attributes:
        model: text encoder, transformer over codes and quantizer.
        sampling: default sampling.
        drop_text: fraction of examples whose caption and z_txt are both dropped (10 % in the
            paper).
        num_candidates: embeddings drawn per caption; the best by z_img . z_txt is kept. 1 here:
            the dot token already selects a large dot product.
    """

    model: PriorArConfig
    sampling: PriorArSamplingConfig = PriorArSamplingConfig()
    drop_text: float = 0.1
    num_candidates: int = 1

    def __post_init__(self):
        in_range("config.model.drop_text", self.drop_text, 0.0, 1.0)
        in_range("config.model.num_candidates", self.num_candidates, 1, 64)
        self.check_guidance(self.sampling)

    def check_guidance(self, sampling: PriorArSamplingConfig) -> None:
        """Rejects guidance without drops.

        Raises:
            UserError: `drop_text` is 0 and the scale is not 1.
        """
        drops = {"config.model.drop_text": self.drop_text}
        gaussian.check_guidance(sampling.guidance_scale, drops=drops)


class EncodedEmbeddings(NamedTuple):
    """A batch as the network reads it."""

    codes: Codes
    dot: Int[Array, " b"]
    text: Batch


def make(cfg: PriorArStageConfig) -> Stage:
    """Builds the `Stage` of the autoregressive prior."""
    module, codec = PriorAr(cfg.model), cfg.model.make_quantizer()
    z = Field((cfg.model.embed_dim,), "float32")
    text = batches.text_fields(cfg.model.context, cfg.model.vocab_size)
    spec = {"z_img": z, "z_txt": z, **text}

    def init(key: Key) -> Params:
        zero = one_example(spec)
        fitted = codec.init(rng.fold(key, "codec"), zero["z_img"])["params"]
        encoded = _encoded(cfg, nn.meta.unbox(fitted), zero)
        network = module.init(key, encoded.codes, dot=encoded.dot, **encoded.text)["params"]
        return {"codec": fitted, "network": network}

    def losses(params: Params, batch: Batch, keep: Bool[Array, " b"] | None):
        codes, dot, text = _encoded(cfg, params["codec"], batch)
        logits = apply(module, params["network"], codes, dot=dot, **text, keep_text=keep)
        return categorical.cross_entropy(logits, codes)

    def loss(params: Params, batch: Batch, key: Key):
        key, size = rng.fold(key, "drop_text"), batch["z_img"].shape[0]
        keep = guidance.keep_mask(key, batch_size=size, drop=cfg.drop_text)
        value = jnp.mean(losses(params, batch, keep))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        nats = losses(params, batch, None)
        positions = categorical.by_position(nats)
        return {"loss": jnp.mean(nats), **positions, **_diagnostics(cfg, params, batch, key)}

    return Stage(
        name="prior_ar",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        fit=lambda rows: quantizer_fit.fit(cfg.model.codec, rows, components=cfg.model.components),
        describe={"config": as_dict(cfg), "embed_dim": cfg.model.embed_dim},
    )


def resolve_from_data(cfg: PriorArStageConfig, rows: Rows) -> PriorArStageConfig:
    """Returns `cfg` with the number of components for its fraction of the data's variance.

    Raises:
        UserError: more components than the model has, or embeddings that cannot be used.
    """
    if cfg.model.codec.components:
        return cfg
    count = quantizer_fit.count_components(cfg.model.codec, rows, most=cfg.model.most_components)
    codec = dataclasses.replace(cfg.model.codec, components=count, explained_variance=0.0)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, codec=codec))


def sample(
    cfg: PriorArStageConfig,
    params: Params,
    *,
    tokens: Tokens,
    token_mask: Mask,
    z_txt: Embedding,
    keys: Keys,
    sampling: PriorArSamplingConfig | None = None,
    num_candidates: int | None = None,
) -> Embedding:
    """Samples unit-norm z_img for captions (unCLIP, section 2.2).

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        tokens: caption ids.
        token_mask: True at real tokens.
        z_txt: CLIP text embeddings, of any norm.
        keys: one key per caption.
        sampling: overrides `cfg.sampling`.
        num_candidates: overrides `cfg.num_candidates`.

    Returns:
        One unit-norm embedding per caption.

    Raises:
        UserError: guidance of a model that was trained without drops.
    """
    count = num_candidates or cfg.num_candidates
    batch = {"tokens": tokens, "token_mask": token_mask, "z_txt": z_txt}
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)
    keys = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
    codes = sample_codes(cfg, params, batch=repeated, keys=keys, sampling=sampling or cfg.sampling)
    z_img = unit(
        apply(cfg.model.make_quantizer(), params["codec"], codes, method=DotQuantizer.decode)
    )
    return best_of(z_img.reshape(-1, count, cfg.model.embed_dim), z_txt=unit(z_txt))


def sample_codes(
    cfg: PriorArStageConfig,
    params: Params,
    *,
    batch: Batch,
    keys: Keys,
    sampling: PriorArSamplingConfig,
) -> Codes:
    """Samples all codes of each row.

    Args:
        cfg: the trained stage.
        params: its parameters.
        batch: "tokens", "token_mask" and "z_txt".
        keys: one key per row; row i depends on its key and condition alone.
        sampling: settings.

    Raises:
        UserError: guidance of a model that was trained without drops.
    """
    scale, size = sampling.guidance_scale, len(keys)
    cfg.check_guidance(sampling)
    module = PriorAr(cfg.model)
    text, keep = _text(cfg, batch), None
    dot = sample_dot(cfg, keys, percentile=sampling.dot_percentile)
    if not guidance.is_off(scale):
        text, dot = jax.tree.map(lambda x: jnp.concatenate([x, x]), (text, dot))
        keep = jnp.arange(2 * size) < size
    run = functools.partial(apply, module, params["network"])

    def step(codes, cache, index):
        options = {"index": index, "token_mask": text["token_mask"], "keep_text": keep}
        return run(codes, cache, **options, method=PriorAr.step)

    first = run(dot=dot, **text, keep_text=keep, method=PriorAr.start)
    return categorical.sample_sequence(
        first, step, keys=keys, count=cfg.model.components, sampling=sampling
    )


def sample_dot(cfg: PriorArStageConfig, keys: Keys, *, percentile: float) -> Int[Array, " b"]:
    """Samples the dot token to condition on: a training example's above `percentile`.

    Buckets hold equally many training examples, so this draws uniformly from the upper buckets
    (unCLIP, section 2.2: the top half).
    """
    count = cfg.model.codec.dot_buckets
    least = min(math.ceil(count * percentile / 100), count - 1)
    return jax.vmap(lambda key: jax.random.randint(rng.fold(key, "dot"), (), least, count))(keys)


def _encoded(cfg: PriorArStageConfig, fitted: Params, batch: Batch) -> EncodedEmbeddings:
    """Returns codes and dot bucket of a batch, through which no gradient flows."""
    fitted = jax.lax.stop_gradient(fitted)
    codec, z_img, z_txt = cfg.model.make_quantizer(), unit(batch["z_img"]), unit(batch["z_txt"])
    codes = apply(codec, fitted, z_img)
    dot = apply(codec, fitted, jnp.sum(z_img * z_txt, -1), method=DotQuantizer.dot_code)
    return EncodedEmbeddings(codes, dot, _text(cfg, batch))


def _text(cfg: PriorArStageConfig, batch: Batch) -> Batch:
    """Returns the conditioning inputs; z_txt enters with unit variance per dimension."""
    return {
        "tokens": batch["tokens"],
        "token_mask": batch["token_mask"],
        "z_txt": math.sqrt(cfg.model.embed_dim) * unit(batch["z_txt"]),
    }


def _diagnostics(cfg: PriorArStageConfig, params: Params, batch: Batch, key: Key) -> Metrics:
    """Computes cosines of sampled embeddings to the true ones, and the error of the codes.

    drawn_cosine_image to the true z_img, drawn_cosine_unrelated to another; baseline_gap: cosine
    of samples to their z_txt minus that of the data (cosine_data), above 0 because the dot token
    comes from the top half; codec_error: squared distance of z_img to its decoded codes.
    """
    few = jax.tree.map(lambda x: x[:DIAGNOSTIC_ROWS], batch)
    z_img, z_txt = unit(few["z_img"]), unit(few["z_txt"])
    keys = rng.per_example(rng.fold(key, "health"), jnp.arange(len(z_img)))
    text = {name: few[name] for name in ("tokens", "token_mask", "z_txt")}
    samples = sample(cfg, params, **text, keys=keys, num_candidates=1)
    codec, fitted = cfg.model.make_quantizer(), params["codec"]
    through = apply(codec, fitted, apply(codec, fitted, z_img), method=DotQuantizer.decode)
    cosine_data = _cosine(z_img, z_txt)
    return {
        "drawn_cosine_image": _cosine(samples, z_img),
        "drawn_cosine_unrelated": _cosine(samples, jnp.roll(z_img, 1, axis=0)),
        "baseline_gap": _cosine(samples, z_txt) - cosine_data,
        "cosine_data": cosine_data,
        "codec_error": jnp.mean(jnp.sum((through - z_img) ** 2, -1)),
        "explained_variance": apply(codec, fitted, method=DotQuantizer.explained),
    }


def _cosine(a: Embedding, b: Embedding) -> Float[Array, ""]:
    """Returns the mean dot product of rows of norm 1."""
    return jnp.mean(jnp.sum(a * b, axis=-1))


def sample_in_chain(
    cfg: PriorArStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: PriorArSamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples z_img (`entry.ChainSampler`)."""
    caption: TokenIds = conditions["caption"]
    z_img = sample(
        cfg,
        params,
        tokens=caption.tokens,
        token_mask=caption.mask,
        z_txt=conditions["z_txt"],
        keys=keys,
        sampling=sampling,
    )
    return {"z_img": z_img}


ENTRY = StageEntry(
    name="prior_ar",
    role="prior",
    config=PriorArStageConfig,
    make=make,
    reads=lambda cfg: ("z_txt", "caption"),
    yields=("z_img",),
    sample=sample_in_chain,
    resolve=resolve_from_data,
)
