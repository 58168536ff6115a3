"""Stage `prior`: the diffusion prior, caption -> CLIP image embedding (unCLIP, section 2.2).

Trained with plain MSE on x_0, where x_0 is the unit-norm z_img times `z_scale`, so that its
variance is that of pixels in [-1, 1] and an image schedule can be used (17.2 for 1,024 dimensions).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.conditioning import captions
from unclip_jax.conditioning.captions import ClipText, TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Rows, Stage
from unclip_jax.core.types import Batch, Embedding, Key, Keys, Mask, Metrics, Params, Scale, Tokens
from unclip_jax.diffusion import analytic, guidance
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.prior import Prior
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.prior_config import PriorStageConfig

MAX_ROWS = 1 << 18  # training embeddings whose mean and deviation are measured
DIAGNOSTIC_STEPS = 8  # sampling steps of evaluations during training


def make(cfg: PriorStageConfig) -> Stage:
    """Builds the `Stage` of the diffusion prior."""
    module, chain = Prior(cfg.model), cfg.diffusion.chain()
    z = Field((cfg.model.embed_dim,), "float32")
    text = batches.text_fields(cfg.model.context, cfg.model.vocab_size)
    spec = {"z_img": z, "z_txt": z, **text}
    if cfg.model.caption == "clip_sequence":
        width = cfg.model.clip_text_width or 0
        spec["text_seq"] = Field((cfg.model.context, width), "float32")

    def init(key: Key) -> Params:
        zero = one_example(spec)
        return module.init(key, zero["z_img"], jnp.zeros(1, jnp.int32), **_text(cfg, zero))[
            "params"
        ]

    def output(params: Params, batch: Batch, noised: gaussian.NoisedBatch, keep_text: Array | None):
        text = _text(cfg, batch)
        return apply(module, params, noised.x_t, noised.t, **text, keep_text=keep_text)

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.noise_batch(
            chain, to_latent(cfg, batch["z_img"]), key=rng.fold(key, "draw")
        )
        keep = None
        if cfg.model.null == "learned":
            keep = guidance.keep_mask(
                rng.fold(key, "drop_text"), batch_size=noised.t.shape[0], drop=cfg.drop_text
            )
        out = output(params, batch, noised, keep)
        value = jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        noised = gaussian.noise_batch(
            chain, to_latent(cfg, batch["z_img"]), key=rng.fold(key, "draw")
        )
        out = output(params, batch, noised, None)
        value = jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))
        return {"loss": value, **_diagnostics(cfg, params, batch, key)}

    return Stage(
        name="prior",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        describe={
            "config": as_dict(dataclasses.replace(cfg, z_scale=cfg.scale)),
            "embed_dim": cfg.model.embed_dim,
            "z_scale": cfg.scale,
            "embedding": "raw" if cfg.standardised else "unit",
        },
    )


def resolve_from_data(cfg: PriorStageConfig, rows: Rows) -> PriorStageConfig:
    """Returns `cfg` with the mean and deviation of the training data's raw z_img, if needed.

    Raises:
        UserError: a dimension that does not vary.
    """
    if not cfg.standardise or cfg.z_mean:
        return cfg
    z_img = np.concatenate([block["z_img"] for block in rows(MAX_ROWS)]).astype(np.float64)
    mean, std = (v.astype(np.float32) for v in (z_img.mean(axis=0), z_img.std(axis=0)))
    if not np.all(std > 0):
        raise UserError(
            f"dimension {int(std.argmin())} of z_img is the same in all {len(z_img)} training "
            "embeddings, so it cannot be standardised; train CLIP longer or embed more examples."
        )
    return dataclasses.replace(cfg, z_mean=tuple(mean.tolist()), z_std=tuple(std.tolist()))


def sample(
    cfg: PriorStageConfig,
    params: Params,
    *,
    tokens: Tokens,
    token_mask: Mask,
    z_txt: Embedding,
    keys: Keys,
    sampling: SamplingConfig | None = None,
    num_candidates: int | None = None,
    table: VarianceTable | None = None,
    text: ClipText | None = None,
    empty: ClipText | None = None,
) -> Embedding:
    """Samples z_img for captions, the best of several by z_img . z_txt (unCLIP, 2.2).

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        tokens: caption ids.
        token_mask: True at real tokens.
        z_txt: CLIP text embeddings, of any norm.
        keys: one key per caption.
        sampling: overrides `cfg.sampling`.
        num_candidates: overrides `cfg.num_candidates`.
        table: this prior's variance table, for sampling with variance "table".
        text: CLIP's features of the captions, for priors that read them.
        empty: CLIP's features of the empty caption (one row), for priors with this null.

    Returns:
        One embedding per caption: of norm 1, or raw if the stage standardises raw ones.

    Raises:
        UserError: `text` or `empty` is needed and missing.
    """
    sampling = sampling or cfg.sampling
    count = num_candidates or cfg.num_candidates
    batch = {"tokens": tokens, "token_mask": token_mask, "z_txt": z_txt}
    if cfg.model.caption == "clip_sequence":
        batch["text_seq"] = captions.clip_features(text, of="the captions").sequence
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)
    candidate_keys = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
    x_0 = sample_latent(
        cfg,
        params,
        batch=repeated,
        keys=candidate_keys,
        sampling=sampling,
        table=table,
        empty=empty,
    )
    z_img = from_latent(cfg, x_0).reshape(-1, count, cfg.model.embed_dim)
    return z_img[:, 0] if count == 1 else best_of(z_img, z_txt=unit(z_txt))


def sample_latent(
    cfg: PriorStageConfig,
    params: Params,
    *,
    batch: Batch,
    keys: Keys,
    sampling: SamplingConfig,
    table: VarianceTable | None = None,
    empty: ClipText | None = None,
) -> Embedding:
    """Samples one x_0 per caption as the prior diffuses it: scaled, and of any norm."""
    cfg.check_guidance(sampling)
    return gaussian.run(
        denoiser(cfg, params, batch=batch, scale=sampling.guidance_scale, empty=empty),
        shape=(cfg.model.embed_dim,),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
        table=table,
        origin=cfg.origin,
    )


def eps_power(
    cfg: PriorStageConfig,
    params: Params,
    batch: Batch,
    *,
    timesteps: Int[np.ndarray, " n"],
    key: Key,
) -> Float[Array, " n"]:
    """Returns the mean eps^2 of a trained prior on one training batch, for its variance table."""
    return analytic.eps_power(
        denoiser(cfg, params, batch=batch, scale=1.0),
        to_latent(cfg, batch["z_img"]),
        schedule=cfg.diffusion.chain(),
        timesteps=timesteps,
        key=key,
    )


def best_of(candidates: Float[Array, " b n z"], *, z_txt: Embedding) -> Embedding:
    """Returns the candidate nearest to z_txt by angle for each caption (unCLIP, section 2.2)."""
    scores = jnp.einsum("b n z, b z -> b n", unit(candidates), z_txt)
    return jnp.take_along_axis(candidates, scores.argmax(1)[:, None, None], axis=1)[:, 0]


def denoiser(
    cfg: PriorStageConfig,
    params: Params,
    *,
    batch: Batch,
    scale: Scale,
    empty: ClipText | None = None,
) -> guidance.Denoiser:
    """Returns the conditional, or guided, denoiser for captions; `empty` as in `sample`."""
    module = Prior(cfg.model)

    def predict(x_t, t, batch, keep_text):
        out = apply(module, params, x_t, t, **_text(cfg, batch), keep_text=keep_text)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    if guidance.is_off(scale):
        return lambda x_t, t: predict(x_t, t, batch, None)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), batch, _without(cfg, batch, empty))

    def denoise_both(x_t, t):
        learned = cfg.model.null == "learned"
        keep = jnp.arange(x_t.shape[0]) < x_t.shape[0] // 2 if learned else None
        return predict(x_t, t, both, keep)

    return guidance.guided(denoise_both, scale=scale)


def _without(cfg: PriorStageConfig, batch: Batch, empty: ClipText | None) -> Batch:
    """Returns the unconditional batch: with dropped captions, or with empty ones."""
    if cfg.model.null == "learned":
        return batch
    text = captions.clip_features(empty, of="the empty caption")
    text = captions.repeated(text, batch["token_mask"].shape[0])
    features = {"token_mask": text.mask, "z_txt": text.z_txt, "text_seq": text.sequence}
    return {**batch, **features}


def to_latent(cfg: PriorStageConfig, z_img: Embedding) -> Embedding:
    """Returns z_img, of any norm (raw if the stage standardises), as the chain diffuses it."""
    if not cfg.standardised:
        return cfg.scale * unit(z_img)
    mean, std = _statistics(cfg)
    return (z_img - mean) / std


def from_latent(cfg: PriorStageConfig, x_0: Embedding) -> Embedding:
    """Inverts `to_latent`: returns unit vectors, or raw embeddings."""
    if not cfg.standardised:
        return unit(x_0)
    mean, std = _statistics(cfg)
    return x_0 * std + mean


def _statistics(cfg: PriorStageConfig) -> tuple[Array, Array]:
    """Returns mean and deviation; 0 and 1 before they are measured, for planning alone."""
    size = cfg.model.embed_dim
    mean, std = (cfg.z_mean, cfg.z_std) if cfg.z_mean else ([0.0] * size, [1.0] * size)
    return jnp.array(mean)[None], jnp.array(std)[None]


def _text(cfg: PriorStageConfig, batch: Batch) -> Batch:
    """Returns the conditioning inputs; CLIP embeddings enter scaled (unCLIP, 2.2)."""
    names = ["tokens", "token_mask"]
    names += ["text_seq"] if cfg.model.caption == "clip_sequence" else []
    z_txt = batch["z_txt"]
    z_txt = z_txt if cfg.standardised else cfg.scale * unit(z_txt)
    return {**{name: batch[name] for name in names}, "z_txt": z_txt}


def _diagnostics(cfg: PriorStageConfig, params: Params, batch: Batch, key: Key) -> Metrics:
    """Computes diagnostic metrics of a prior (DALLE2-pytorch's notes), all by cosine.

    Of the one-step prediction from pure noise, which is the mean of z_img given the caption:
        cosine_image to the true z_img, cosine_text to z_txt, cosine_unrelated to another z_img;
        rank_image: mean rank of the true z_img among the batch's, 1 = nearest.
    Of one sample per caption in a few DDIM steps:
        drawn_cosine_image; drawn_norm: before it is normalised, 1 = as the data's;
        baseline_gap: cosine of samples to their z_txt minus that of the data (cosine_data); it
        should be within a hundredth of 0.
    """
    chain = cfg.diffusion.chain()
    z_img, z_txt = unit(batch["z_img"]), unit(batch["z_txt"])
    t = jnp.full(z_img.shape[:1], chain.num_timesteps - 1, jnp.int32)
    latent = to_latent(cfg, batch["z_img"])
    noised = gaussian.noise_at(chain, latent, t=t, key=rng.fold(key, "health"))
    guess = denoiser(cfg, params, batch=batch, scale=1.0)(noised.x_t, noised.t).x_0
    guess = unit(from_latent(cfg, guess))
    few = SamplingConfig(steps=str(min(DIAGNOSTIC_STEPS, chain.num_timesteps)), sampler="ddim")
    keys = rng.per_example(rng.fold(key, "health"), jnp.arange(len(z_img)))
    x_0 = sample_latent(cfg, params, batch=batch, keys=keys, sampling=few)
    samples = unit(from_latent(cfg, x_0))
    cosine_data = mean_cosine(z_img, z_txt)
    return {
        "cosine_image": mean_cosine(guess, z_img),
        "cosine_text": mean_cosine(guess, z_txt),
        "cosine_unrelated": mean_cosine(guess, jnp.roll(z_img, 1, axis=0)),
        "cosine_data": cosine_data,
        "rank_image": mean_rank(guess, z_img),
        "drawn_cosine_image": mean_cosine(samples, z_img),
        "drawn_norm": mean_norm(x_0) / mean_norm(latent),
        "baseline_gap": mean_cosine(samples, z_txt) - cosine_data,
    }


def mean_cosine(a: Embedding, b: Embedding) -> Float[Array, ""]:
    """Returns the mean dot product of rows of norm 1."""
    return jnp.mean(jnp.sum(a * b, axis=-1))


def mean_norm(z: Embedding) -> Float[Array, ""]:
    """Returns the mean Euclidean norm of the rows."""
    return jnp.mean(jnp.linalg.norm(z, axis=-1))


def mean_rank(guess: Embedding, z_img: Embedding) -> Float[Array, ""]:
    """Returns the mean rank of row i of `z_img` by dot product with row i of `guess`; 1 is best.

    Ties count as worse, so that a constant guess has the worst rank.
    """
    scores = jnp.einsum("b z, m z -> b m", guess, z_img)
    return jnp.mean(jnp.sum(scores >= jnp.diagonal(scores)[:, None], axis=1).astype(jnp.float32))


def denoiser_in_chain(
    cfg: PriorStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    scale: Scale,
) -> guidance.Denoiser:
    """Returns the denoiser for conditions by name (`entry.ChainDenoiser`)."""
    ids, text, empty = _text_in_chain(conditions)
    batch = {"tokens": ids.tokens, "token_mask": ids.mask, "z_txt": conditions["z_txt"]}
    if text is not None:
        batch["text_seq"] = text.sequence
    return denoiser(cfg, params, batch=batch, scale=scale, empty=empty)


def _text_in_chain(
    conditions: Mapping[str, Any],
) -> tuple[TokenIds, ClipText | None, ClipText | None]:
    """Returns the ids of captions, and CLIP's features of them and of the empty caption."""
    encoded: captions.EncodedCaptions | None = conditions.get("clip_text")
    if encoded is None:
        return conditions["caption"], None, None
    mask = encoded.text.mask
    ids = TokenIds(jnp.zeros_like(mask, jnp.int32), mask)  # of which the network reads the mask
    return ids, encoded.text, encoded.empty


def sample_in_chain(
    cfg: PriorStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples z_img (`entry.ChainSampler`)."""
    ids, text, empty = _text_in_chain(conditions)
    z_img = sample(
        cfg,
        params,
        tokens=ids.tokens,
        token_mask=ids.mask,
        z_txt=conditions["z_txt"],
        keys=keys,
        sampling=sampling,
        table=conditions.get("variance_table"),
        text=text,
        empty=empty,
    )
    return {"z_img": z_img}


ENTRY = StageEntry(
    name="prior",
    role="prior",
    config=PriorStageConfig,
    make=make,
    reads=lambda cfg: (
        "z_txt",
        "clip_text" if cfg.model.caption == "clip_sequence" else "caption",
    ),
    yields=("z_img",),
    sample=sample_in_chain,
    denoiser=denoiser_in_chain,
    latent=lambda cfg, params, batch: to_latent(cfg, batch["z_img"]),
    resolve=resolve_from_data,
    requires=("z_scale",),
    sidecars={"variance_table": ("variance.json", VarianceTable)},
)
