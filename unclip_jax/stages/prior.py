"""Stage `prior`: the diffusion prior, caption -> CLIP image embedding (unCLIP, section 2.2).

Trained with plain MSE on x_0, where x_0 is the unit-norm z_img times `z_scale`, so that its
variance is that of pixels in [-1, 1] and an image schedule can be used (17.2 for 1,024 dimensions).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import in_range, one_of
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Batch, Embedding, Key, Keys, Mask, Metrics, Params, Tokens
from unclip_jax.diffusion import analytic, guidance
from unclip_jax.diffusion.analytic import Origin, VarianceTable
from unclip_jax.models.prior import Prior, PriorConfig
from unclip_jax.stages import gaussian
from unclip_jax.stages.base import Stage, apply, one_example
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig

# 17.2 / sqrt(1024): a unit vector's RMS per dimension becomes that of pixels (unCLIP, 2.2).
PIXEL_RMS = 0.5375
SCALINGS = {"pixel_rms": PIXEL_RMS, "unit_rms": 1.0}  # RMS per dimension of what is diffused
HEALTH_STEPS = 8  # of the draws that are looked at while training


@dataclasses.dataclass(frozen=True)
class PriorStageConfig:
    """A diffusion prior and how it is trained and sampled.

    Attributes:
        model: the causal transformer.
        diffusion: chain and target; the paper predicts x_0 without a learned variance.
        sampling: default sampling; 64 fractional strides in the paper.
        drop_text: share of examples whose caption and z_txt are both dropped (10 % in the paper).
        scaling: "pixel_rms": embeddings are diffused at the RMS of pixels, 0.5375 (the paper);
            "unit_rms": at 1, which is 5.4 dB less noisy at every t (DALLE2-pytorch).
        z_scale: factor on unit-norm embeddings; None = `scaling` times sqrt(d), in the paper 17.2
            at d = 1024.
        num_candidates: embeddings drawn per caption; the best by z_img . z_txt is kept (2).
    """

    model: PriorConfig
    diffusion: DiffusionConfig = DiffusionConfig(target="x_0")
    sampling: SamplingConfig = SamplingConfig()
    drop_text: float = 0.1
    scaling: str = "pixel_rms"
    z_scale: float | None = None
    num_candidates: int = 2

    def __post_init__(self):
        in_range("prior.drop_text", self.drop_text, 0.0, 1.0)
        in_range("prior.num_candidates", self.num_candidates, 1, 64)
        one_of("prior.scaling", self.scaling, SCALINGS)
        self.check_guidance(self.sampling)

    @property
    def scale(self) -> float:
        """The factor actually applied to unit-norm embeddings."""
        if self.z_scale is not None:
            return self.z_scale
        return SCALINGS[self.scaling] * math.sqrt(self.model.embed_dim)

    @property
    def origin(self) -> Origin:
        """What a variance table of this prior must say of itself.

        x_0 has norm `scale`, so no dimension can vary by more than scale^2 / d on average.
        """
        return Origin(
            schedule=self.diffusion.schedule,
            num_timesteps=self.diffusion.num_timesteps,
            target=self.diffusion.target,
            data_variance=self.scale**2 / self.model.embed_dim,
        )

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Refuse guidance without drops.

        Raises:
            UserError: `drop_text` is 0 and the scale is not 1.
        """
        gaussian.check_guidance(sampling, drops={"prior.drop_text": self.drop_text})


def make(cfg: PriorStageConfig) -> Stage:
    """The stage record for the diffusion prior."""
    module, chain = Prior(cfg.model), cfg.diffusion.chain()
    z = Field((cfg.model.embed_dim,), "float32")
    text = batches.text_fields(cfg.model.context, cfg.model.vocab_size)
    spec = {"z_img": z, "z_txt": z, **text}

    def init(key: Key) -> Params:
        zero = one_example(spec)
        return module.init(key, zero["z_img"], jnp.zeros(1, jnp.int32), **_text(cfg, zero))[
            "params"
        ]

    def output(params: Params, batch: Batch, noised: gaussian.Noised, keep_text: Array | None):
        text = _text(cfg, batch)
        return apply(module, params, noised.x_t, noised.t, **text, keep_text=keep_text)

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.draw(chain, cfg.scale * unit(batch["z_img"]), key=rng.fold(key, "draw"))
        keep = guidance.keep_mask(
            rng.fold(key, "drop_text"), batch_size=noised.t.shape[0], drop=cfg.drop_text
        )
        out = output(params, batch, noised, keep)
        value = jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        noised = gaussian.draw(chain, cfg.scale * unit(batch["z_img"]), key=rng.fold(key, "draw"))
        out = output(params, batch, noised, None)
        value = jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))
        return {"loss": value, **_health(cfg, params, batch, key)}

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
        },
    )


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
) -> Embedding:
    """Draw unit-norm z_img for captions, the best of several by z_img . z_txt (unCLIP, 2.2).

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

    Returns:
        One unit-norm embedding per caption.
    """
    sampling = sampling or cfg.sampling
    count = num_candidates or cfg.num_candidates
    batch = {"tokens": tokens, "token_mask": token_mask, "z_txt": z_txt}
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)
    candidate_keys = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
    drawn = draw(cfg, params, batch=repeated, keys=candidate_keys, sampling=sampling, table=table)
    return best_of(unit(drawn).reshape(-1, count, cfg.model.embed_dim), z_txt=unit(z_txt))


def draw(
    cfg: PriorStageConfig,
    params: Params,
    *,
    batch: Batch,
    keys: Keys,
    sampling: SamplingConfig,
    table: VarianceTable | None = None,
) -> Embedding:
    """One x_0 per caption as the prior diffuses it: scaled, and of whatever norm came out."""
    cfg.check_guidance(sampling)
    return gaussian.run(
        denoiser(cfg, params, batch=batch, scale=sampling.guidance_scale),
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
    """Mean eps^2 of a trained prior on one training batch, for its variance table."""
    return analytic.eps_power(
        denoiser(cfg, params, batch=batch, scale=1.0),
        cfg.scale * unit(batch["z_img"]),
        schedule=cfg.diffusion.chain(),
        timesteps=timesteps,
        key=key,
    )


def best_of(candidates: Float[Array, " b n z"], *, z_txt: Embedding) -> Embedding:
    """Per caption, the candidate with the largest dot product with z_txt (unCLIP, section 2.2)."""
    scores = jnp.einsum("b n z, b z -> b n", candidates, z_txt)
    return jnp.take_along_axis(candidates, scores.argmax(1)[:, None, None], axis=1)[:, 0]


def denoiser(
    cfg: PriorStageConfig, params: Params, *, batch: Batch, scale: float
) -> guidance.Denoiser:
    """The conditional, or guided, denoiser for a batch of captions."""
    module = Prior(cfg.model)

    def predict(x_t, t, batch, keep_text):
        out = apply(module, params, x_t, t, **_text(cfg, batch), keep_text=keep_text)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    if scale == 1.0:
        return lambda x_t, t: predict(x_t, t, batch, None)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)

    def denoise_both(x_t, t):
        return predict(x_t, t, both, jnp.arange(x_t.shape[0]) < x_t.shape[0] // 2)

    return guidance.guided(denoise_both, scale=scale)


def unit(z: Float[Array, " *b z"]) -> Float[Array, " *b z"]:
    """Rows scaled to norm 1."""
    return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)


def _text(cfg: PriorStageConfig, batch: Batch) -> Batch:
    """The conditioning inputs of the network; CLIP embeddings enter scaled (unCLIP, 2.2)."""
    return {
        "tokens": batch["tokens"],
        "token_mask": batch["token_mask"],
        "z_txt": cfg.scale * unit(batch["z_txt"]),
    }


def _health(cfg: PriorStageConfig, params: Params, batch: Batch, key: Key) -> Metrics:
    """What a healthy prior shows (DALLE2-pytorch's notes), all by cosine.

    Of the one-step prediction from pure noise, which is the mean of z_img given the caption:
        cosine_image to the true z_img, cosine_text to z_txt, cosine_unrelated to another z_img;
        rank_image: mean rank of the true z_img among the batch's, 1 = nearest.
    Of one draw per caption in a few DDIM steps:
        drawn_cosine_image; drawn_norm: before it is normalised, 1 = as the data's;
        baseline_gap: how much nearer draws are to their z_txt than the data are (cosine_data);
        it should be within a hundredth of 0.
    """
    chain = cfg.diffusion.chain()
    z_img, z_txt = unit(batch["z_img"]), unit(batch["z_txt"])
    t = jnp.full(z_img.shape[:1], chain.num_timesteps - 1, jnp.int32)
    noised = gaussian.noise_at(chain, cfg.scale * z_img, t=t, key=rng.fold(key, "health"))
    guess = unit(denoiser(cfg, params, batch=batch, scale=1.0)(noised.x_t, noised.t).x_0)
    few = SamplingConfig(steps=str(min(HEALTH_STEPS, chain.num_timesteps)), sampler="ddim")
    keys = rng.per_example(rng.fold(key, "health"), jnp.arange(len(z_img)))
    x_0 = draw(cfg, params, batch=batch, keys=keys, sampling=few)
    cosine_data = mean_cosine(z_img, z_txt)
    return {
        "cosine_image": mean_cosine(guess, z_img),
        "cosine_text": mean_cosine(guess, z_txt),
        "cosine_unrelated": mean_cosine(guess, jnp.roll(z_img, 1, axis=0)),
        "cosine_data": cosine_data,
        "rank_image": mean_rank(guess, z_img),
        "drawn_cosine_image": mean_cosine(unit(x_0), z_img),
        "drawn_norm": jnp.mean(jnp.linalg.norm(x_0, axis=-1)) / cfg.scale,
        "baseline_gap": mean_cosine(unit(x_0), z_txt) - cosine_data,
    }


def mean_cosine(a: Embedding, b: Embedding) -> Float[Array, ""]:
    """Mean dot product of rows of norm 1."""
    return jnp.mean(jnp.sum(a * b, axis=-1))


def mean_rank(guess: Embedding, z_img: Embedding) -> Float[Array, ""]:
    """Mean rank of row i of `z_img` by its dot product with row i of `guess`; 1 is the best.

    Ties count in full, so that a guess which cannot tell rows apart has the worst rank.
    """
    scores = jnp.einsum("b z, m z -> b m", guess, z_img)
    return jnp.mean(jnp.sum(scores >= jnp.diagonal(scores)[:, None], axis=1).astype(jnp.float32))
