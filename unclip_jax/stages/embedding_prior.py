"""Stage `embedding_prior`: from embeddings of any kind to embeddings of another.

The paper's prior (unCLIP, section 2.2) with conditions and target of any dimension: several
conditions by name, vectors or token sequences, each dropped independently for guidance. Statistics
and a ridge regression are fitted before training (`linear_fit`); the prior reads the ridge's
prediction, in training that of a fit without the example. `method` "autoregressive" samples codes
instead (`embedding_codes`). The same stage trains the baselines: "mlp" is a regression, "ridge" the
linear fit alone. Parameters are {"fitted": fitted once, "network": learned}.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Key, Keys, Metrics, Params, Scale
from unclip_jax.diffusion import guidance, process
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.embedding_prior import Regressor, make_denoiser, masked_mean, unfitted
from unclip_jax.objectives import contrastive, gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import embedding_codes, pair_inputs
from unclip_jax.stages.embedding_prior_config import (
    SUBJECT,
    TARGET,
    EmbeddingPriorStageConfig,
    batch_spec,
    resolve_fields,
)
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.pair_inputs import PairInputs
from unclip_jax.stages.prior import mean_cosine, mean_rank

ROWS = 64  # rows of a held-out batch for which targets are sampled
STEPS = 8  # of these samples
REPEATS = 4  # samples of codes per row, whose mean is the prediction

Latents = Float[Array, " b *s"]


def make(cfg: EmbeddingPriorStageConfig) -> Stage:
    """Builds the `Stage` of the prior between two embedding spaces."""
    spec = batch_spec(cfg)

    def init(key: Key) -> Params:
        features = cfg.features if cfg.fits_ridge else 0
        params: dict[str, Any] = {"fitted": unfitted(cfg.model, features=features)}
        if cfg.method != "ridge":
            params["network"] = _init_network(cfg, key, one_example(spec))
        if cfg.encoder.width:
            x = jnp.zeros((1, cfg.encoded_features))
            encoder = pair_inputs.make_encoder(cfg)
            subject = jnp.zeros(1, jnp.int32)
            params["encoder"] = encoder.init(rng.fold(key, "encoder"), x, subject)["params"]
        if cfg.method == "autoregressive":
            flat = jnp.zeros((1, math.prod(cfg.model.target)))
            params["codec"] = cfg.model.make_quantizer().init(key, flat)["params"]
        return params

    def loss(params: Params, batch: Batch, key: Key):
        value = jnp.mean(losses(cfg, params, batch, key=key, training=True))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        value = jnp.mean(losses(cfg, params, batch, key=key, training=False))
        return {"loss": value, **_agreement(cfg, params, batch, key)}

    return Stage(
        name="embedding_prior",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=not cfg.encoder.contrastive,
        fit=lambda rows: (embedding_codes if cfg.method == "autoregressive" else pair_inputs).fit(
            cfg, rows
        ),
        describe={
            "config": as_dict(cfg),
            "embed_dim": cfg.model.target[-1],
            "embedding": "unit" if cfg.scaling == "unit" else "raw",
        },
    )


def _init_network(cfg: EmbeddingPriorStageConfig, key: Key, zero: Batch) -> Params:
    """Initialises the network of the method."""
    conditions = {
        one.name: zero.get(one.name, jnp.zeros((1, *one.shape))) for one in cfg.network.conditions
    }
    masks = pair_inputs.masks(cfg, zero, size=1)
    inputs = {"conditions": conditions, "masks": masks}
    if cfg.method == "mlp":
        return Regressor(cfg.model).init(key, **inputs)["params"]
    if cfg.method == "autoregressive":
        return embedding_codes.init(cfg, key, inputs=inputs)
    y, t = zero[TARGET], jnp.zeros(1, jnp.int32)
    inputs["ridge"] = y if cfg.fits_ridge else None
    return make_denoiser(cfg.network).init(key, y, t, **inputs)["params"]


def losses(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Batch, *, key: Key, training: bool
) -> Float[Array, " b"]:
    """Returns the loss of every example.

    Args:
        cfg: the stage.
        params: its parameters.
        batch: all fields.
        key: key of noise and drops.
        training: True drops conditions, and leaves each example out of its linear prediction.
    """
    params = {**params, "fitted": jax.lax.stop_gradient(params["fitted"])}
    x_0 = pair_inputs.to_latent(cfg, params, batch[TARGET])
    inputs = pair_inputs.read(
        cfg, params, batch, size=len(x_0), leave_out=x_0 if training else None
    )
    real = inputs.masks.get(TARGET)
    if not cfg.generative:
        return _mean_square(_regressed(cfg, params, inputs) - x_0, real)
    if training:
        inputs = inputs._replace(keep=keep_masks(cfg, key, len(x_0)))
    if cfg.method == "autoregressive":
        loss = embedding_codes.losses(cfg, params, x_0, inputs)
    else:
        loss = _denoising_losses(cfg, params, x_0, inputs, key=rng.fold(key, "draw"))
    if cfg.encoder.width and cfg.encoder.contrastive:
        loss = loss + cfg.encoder.contrastive * _contrastive(
            cfg,
            params,
            batch,
            key=rng.fold(key, "mixup"),
            mixup=cfg.encoder.mixup if training else 0.0,
        )
    return loss


def _denoising_losses(
    cfg: EmbeddingPriorStageConfig, params: Params, x_0: Latents, inputs: PairInputs, *, key: Key
) -> Float[Array, " b"]:
    """Returns the loss of the diffusion of every example, over real tokens."""
    noised = gaussian.noise_batch(cfg.diffusion.chain(), x_0, key=key)
    real = inputs.masks.get(TARGET)
    out = output(cfg, params, noised.x_t, noised.t, inputs)
    if real is None:
        return gaussian.loss(cfg.diffusion, out, noised=noised)
    level = cfg.diffusion.chain().level(noised.t, ndim=x_0.ndim)
    target = process.Target(cfg.diffusion.target)
    ideal = process.target_value(target, x_0=x_0, eps=noised.eps, alpha_bar=level)
    share = jnp.maximum(jnp.mean(real.astype(jnp.float32), axis=1), 1e-6)
    out = jnp.where(real[..., None], out, ideal)
    return gaussian.loss(cfg.diffusion, out, noised=noised) / share


def _contrastive(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Batch, *, key: Key, mixup: float
) -> Float[Array, " b"]:
    """Returns the contrastive loss of the encoder; a target sequence enters as its mean.

    Mixed rows use the subject of the first of both rows.
    """
    size, y = len(batch[TARGET]), batch[TARGET]
    inputs = pair_inputs.standardised(cfg, params, batch, size=size)
    mixture = contrastive.mixed(pair_inputs.vectors(cfg, inputs), mixup=mixup, key=key)
    subject = batch.get(SUBJECT, jnp.zeros(size, jnp.int32))
    _, projected, scale = apply(
        pair_inputs.make_encoder(cfg), params["encoder"], mixture.x, subject
    )
    if y.ndim == 3:
        y = masked_mean(y, batch.get(f"{TARGET}_mask"))
    rows = {"scale": scale, "share": mixture.share, "other": mixture.other}
    return contrastive.losses(unit(projected), unit(y), **rows)


def keep_masks(cfg: EmbeddingPriorStageConfig, key: Key, size: int) -> Bool[Array, " b c"]:
    """Draws which conditions are kept."""
    count = len(cfg.model.conditions)
    every = guidance.keep_mask(rng.fold(key, "drop_all"), batch_size=size, drop=cfg.drop_all)
    single = guidance.keep_mask(
        rng.fold(key, "drop_each"), batch_size=size * count, drop=cfg.drop_each
    )
    return pair_inputs.with_encoded(cfg, every[:, None] & single.reshape(size, count))


def sample(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> Latents:
    """Samples one target per key, in the form of the training data.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        conditions: arrays and masks by name, one row per key; missing ones are dropped.
        keys: one key per row. A regression ignores them.
        sampling: overrides `cfg.sampling`.

    Raises:
        UserError: guidance of a model that was trained without drops, or a regression without all
            of its conditions.
    """
    sampling = sampling or cfg.sampling
    cfg.check_guidance(sampling)
    inputs = pair_inputs.read(cfg, params, conditions, size=len(keys))
    if cfg.method == "autoregressive":
        codes = cfg.code_sampling(sampling)
        x_0 = embedding_codes.sample(cfg, params, inputs, keys=keys, sampling=codes)
    elif not cfg.generative:
        names = [one.name for one in cfg.model.conditions]
        if not {*names} <= {*conditions}:
            raise UserError(f"method {cfg.method!r} needs all conditions: {', '.join(names)}.")
        x_0 = _regressed(cfg, params, inputs)
    else:
        x_0 = gaussian.run(
            denoiser(cfg, params, inputs, scale=sampling.guidance_scale),
            shape=cfg.model.target,
            keys=keys,
            diffusion=cfg.diffusion,
            sampling=sampling,
        )
    return pair_inputs.from_latent(cfg, params, x_0)


def denoiser(
    cfg: EmbeddingPriorStageConfig, params: Params, inputs: PairInputs, *, scale: Scale
) -> guidance.Denoiser:
    """Returns the conditional denoiser, guided away from no condition if the scale is not 1."""

    def predict(x_t: Array, t: Array, inputs: PairInputs):
        out = output(cfg, params, x_t, t, inputs)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    if guidance.is_off(scale):
        return lambda x_t, t: predict(x_t, t, inputs)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), inputs)
    both = both._replace(keep=jnp.concatenate([inputs.keep, jnp.zeros_like(inputs.keep)]))
    return guidance.guided(lambda x_t, t: predict(x_t, t, both), scale=scale)


def output(
    cfg: EmbeddingPriorStageConfig, params: Params, x_t: Array, t: Array, inputs: PairInputs
) -> Latents:
    """Returns the raw output of the denoising network."""
    return apply(make_denoiser(cfg.network), params["network"], x_t, t, **inputs._asdict())


def _regressed(cfg: EmbeddingPriorStageConfig, params: Params, inputs: PairInputs) -> Latents:
    """Returns the prediction of a regression."""
    if cfg.method == "ridge":
        assert inputs.ridge is not None
        return inputs.ridge
    options = {"conditions": inputs.conditions, "masks": inputs.masks}
    return apply(Regressor(cfg.model), params["network"], **options)


def _mean_square(error: Latents, real: Bool[Array, " b l"] | None) -> Float[Array, " b"]:
    """Returns the mean square of every example, over real tokens."""
    square = jnp.square(error)
    if real is not None:
        return masked_mean(square, real).mean(axis=1)
    return jnp.mean(square.reshape(len(square), -1), axis=1)


def _agreement(cfg: EmbeddingPriorStageConfig, params: Params, batch: Batch, key: Key) -> Metrics:
    """Computes agreement with the true targets, by cosine of flattened targets.

    cosine and rank (1 = the nearest of the batch) of the prediction: of a diffusion that from pure
    noise, which is the mean of its samples, of codes the mean of `REPEATS` samples for some rows;
    cosine_ridge of the ridge; sample_cosine of one sample per row, of a diffusion in a few steps.
    """
    size, key = len(batch[TARGET]), rng.fold(key, "agreement")
    inputs = pair_inputs.read(cfg, params, batch, size=size)
    true = _unit_rows(batch[TARGET])
    metrics: Metrics = {}
    if inputs.ridge is not None:
        ridge = pair_inputs.from_latent(cfg, params, inputs.ridge)
        metrics["cosine_ridge"] = mean_cosine(_unit_rows(ridge), true)
    if not cfg.generative:
        guess = pair_inputs.from_latent(cfg, params, _regressed(cfg, params, inputs))
    else:
        repeats = 1 if cfg.method == "diffusion" else REPEATS
        samples = _few_samples(cfg, params, batch, key=key, repeats=repeats)
        metrics["sample_cosine"] = mean_cosine(_unit_rows(samples[:, 0]), true[: len(samples)])
        if cfg.method == "diffusion":
            guess = _guess_from_noise(cfg, params, batch, inputs, key)
        else:
            guess, true = jnp.mean(samples, axis=1), true[: len(samples)]
    guess = _unit_rows(guess)
    return {**metrics, "cosine": mean_cosine(guess, true), "rank": mean_rank(guess, true)}


def _unit_rows(y: Latents) -> Float[Array, " b z"]:
    return unit(y.reshape(len(y), -1))


def _guess_from_noise(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Batch, inputs: PairInputs, key: Key
) -> Latents:
    """Returns the target that a diffusion predicts from pure noise."""
    chain, x_0 = cfg.diffusion.chain(), pair_inputs.to_latent(cfg, params, batch[TARGET])
    t = jnp.full((len(x_0),), chain.num_timesteps - 1, jnp.int32)
    noised = gaussian.noise_at(chain, x_0, t=t, key=key)
    guess = denoiser(cfg, params, inputs, scale=1.0)(noised.x_t, t).x_0
    return pair_inputs.from_latent(cfg, params, guess)


def _few_samples(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Batch, *, key: Key, repeats: int
) -> Float[Array, " b m *s"]:
    """Returns samples for the first rows, `repeats` of each."""
    few = min(len(batch[TARGET]), ROWS)
    rows = {name: jnp.repeat(batch[name][:few], repeats, axis=0) for name in _sample_fields(cfg)}
    steps = str(min(STEPS, cfg.diffusion.num_timesteps))
    keys = rng.per_example(key, jnp.arange(few * repeats))
    sampling = SamplingConfig(steps=steps, sampler="ddim")
    samples = sample(cfg, params, rows, keys=keys, sampling=sampling)
    return samples.reshape(few, repeats, *cfg.model.target)


def sample_in_chain(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples the target as z_img (`entry.ChainSampler`)."""
    return {"z_img": sample(cfg, params, conditions, keys=keys, sampling=sampling)}


def denoiser_in_chain(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    scale: Scale,
) -> guidance.Denoiser:
    """Returns the denoiser for conditions by name (`entry.ChainDenoiser`).

    Raises:
        UserError: the method is not diffusion.
    """
    if cfg.method != "diffusion":
        raise UserError(
            f"config.model.method is {cfg.method!r}, which does not diffuse and cannot be "
            "distilled; expected 'diffusion'."
        )
    params = {**params, "fitted": jax.lax.stop_gradient(params["fitted"])}
    inputs = pair_inputs.read(cfg, params, conditions, size=len(keys))
    return denoiser(cfg, params, inputs, scale=scale)


def _sample_fields(cfg: EmbeddingPriorStageConfig) -> BatchSpec:
    """Returns the batch fields of all conditions."""
    spec = batch_spec(cfg)
    return {name: field for name, field in spec.items() if name not in (TARGET, f"{TARGET}_mask")}


ENTRY = StageEntry(
    name="embedding_prior",
    role="prior",
    config=EmbeddingPriorStageConfig,
    make=make,
    reads=lambda cfg: tuple(_sample_fields(cfg)),
    yields=("z_img",),
    sample=sample_in_chain,
    denoiser=denoiser_in_chain,
    latent=lambda cfg, params, batch: pair_inputs.to_latent(cfg, params, batch[TARGET]),
    sample_fields=_sample_fields,
    resolve=embedding_codes.resolve_from_data,
    resolve_fields=resolve_fields,
)
