"""Stage `prior`: the diffusion prior, caption -> CLIP image embedding (unCLIP, section 2.2).

Trained with plain MSE on x_0, where x_0 is the unit-norm z_img times `z_scale`, so that its
variance is that of pixels in [-1, 1] and an image schedule can be used (17.2 for 1,024 dimensions).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Batch, Embedding, Key, Keys, Mask, Metrics, Params, Tokens
from unclip_jax.diffusion import guidance
from unclip_jax.models.prior import Prior, PriorConfig
from unclip_jax.stages import gaussian
from unclip_jax.stages.base import Stage, apply, one_example
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig

# 17.2 / sqrt(1024): a unit vector's RMS per dimension becomes that of pixels (unCLIP, 2.2).
PIXEL_RMS = 0.5375


@dataclasses.dataclass(frozen=True)
class PriorStageConfig:
    """A diffusion prior and how it is trained and sampled.

    Attributes:
        model: the causal transformer.
        diffusion: chain and target; the paper predicts x_0 without a learned variance.
        sampling: default sampling; 64 fractional strides in the paper.
        drop_text: share of examples whose caption and z_txt are both dropped (10 % in the paper).
        z_scale: factor on unit-norm embeddings; None = 0.5375 sqrt(d), 17.2 at d = 1024.
        num_candidates: embeddings drawn per caption; the best by z_img . z_txt is kept (2).
    """

    model: PriorConfig
    diffusion: DiffusionConfig = DiffusionConfig(target="x_0")
    sampling: SamplingConfig = SamplingConfig()
    drop_text: float = 0.1
    z_scale: float | None = None
    num_candidates: int = 2

    def __post_init__(self):
        in_range("prior.drop_text", self.drop_text, 0.0, 1.0)
        in_range("prior.num_candidates", self.num_candidates, 1, 64)

    @property
    def scale(self) -> float:
        """The factor actually applied to unit-norm embeddings."""
        if self.z_scale is not None:
            return self.z_scale
        return PIXEL_RMS * math.sqrt(self.model.embed_dim)


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

    Returns:
        One unit-norm embedding per caption.
    """
    sampling = sampling or cfg.sampling
    count = num_candidates or cfg.num_candidates
    batch = {"tokens": tokens, "token_mask": token_mask, "z_txt": z_txt}
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)
    candidate_keys = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
    denoise = denoiser(cfg, params, batch=repeated, scale=sampling.guidance_scale)
    drawn = gaussian.run(
        denoise,
        shape=(cfg.model.embed_dim,),
        keys=candidate_keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return best_of(unit(drawn).reshape(-1, count, cfg.model.embed_dim), z_txt=unit(z_txt))


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
    """Cosines of the one-step prediction from pure noise, beside the data's own cosine."""
    chain = cfg.diffusion.chain()
    z_img, z_txt = unit(batch["z_img"]), unit(batch["z_txt"])
    t = jnp.full(z_img.shape[:1], chain.num_timesteps - 1, jnp.int32)
    noised = gaussian.noise_at(chain, cfg.scale * z_img, t=t, key=rng.fold(key, "health"))
    denoise = denoiser(cfg, params, batch=batch, scale=1.0)
    guess = unit(denoise(noised.x_t, noised.t).x_0)
    return {
        "cosine_image": jnp.mean(jnp.sum(guess * z_img, -1)),
        "cosine_text": jnp.mean(jnp.sum(guess * z_txt, -1)),
        "cosine_unrelated": jnp.mean(jnp.sum(guess * jnp.roll(z_img, 1, axis=0), -1)),
        "cosine_data": jnp.mean(jnp.sum(z_img * z_txt, -1)),
    }
