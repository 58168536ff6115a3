"""Inputs of networks from pairs: standardised conditions, latents, and the linear prediction."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import FittedParams, Rows
from unclip_jax.core.types import HostBatch, Params
from unclip_jax.fitting import linear_fit
from unclip_jax.models.application import apply
from unclip_jax.models.condition_encoder import ConditionEncoder
from unclip_jax.models.embedding_prior import masked_mean
from unclip_jax.stages.embedding_prior_config import (
    ENCODED,
    SUBJECT,
    TARGET,
    EmbeddingPriorStageConfig,
    is_flat,
)

Latents = Float[Array, " b *s"]
Statistics = dict[str, linear_fit.FieldMoments]


class PairInputs(NamedTuple):
    """The inputs of a network beside the noised target; fields as in `EmbeddingPrior`."""

    conditions: dict[str, Array]
    masks: dict[str, Array]
    keep: Bool[Array, " b c"]
    ridge: Latents | None


def read(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    batch: Mapping[str, Any],
    *,
    size: int,
    leave_out: Latents | None = None,
) -> PairInputs:
    """Returns the inputs of `size` rows; missing conditions are dropped.

    Args:
        cfg: the stage.
        params: parameters that include the fit.
        batch: conditions and masks by name.
        size: number of rows.
        leave_out: latents of training pairs, as in `linear_prediction`.
    """
    conditions = standardised(cfg, params, batch, size=size)
    real = masks(cfg, batch, size=size)
    present = jnp.array([one.name in batch for one in cfg.model.conditions])
    keep = jnp.broadcast_to(present[None], (size, len(present)))
    ridge = None
    if cfg.fits_ridge:
        ridge = linear_prediction(cfg, params, conditions, real, leave_out=leave_out)
    if cfg.encoder.width:
        subject = jnp.asarray(batch.get(SUBJECT, jnp.zeros(size, jnp.int32)))
        x = vectors(cfg, conditions)
        tokens, _, _ = apply(make_encoder(cfg), params["encoder"], x, subject)
        conditions[ENCODED] = tokens
    return PairInputs(conditions, real, with_encoded(cfg, keep), ridge)


def make_encoder(cfg: EmbeddingPriorStageConfig) -> ConditionEncoder:
    """Creates the encoder of vector conditions."""
    return ConditionEncoder(cfg.encoder, cfg.model.target[-1], cfg.model.dtype)


def vectors(cfg: EmbeddingPriorStageConfig, conditions: Mapping[str, Array]) -> Array:
    """Returns all vector conditions of an example in a row, [b f]."""
    names = [one.name for one in cfg.model.conditions if not one.sequence]
    return jnp.concatenate([conditions[name] for name in names], axis=1)


def with_encoded(cfg: EmbeddingPriorStageConfig, keep: Bool[Array, " b c"]) -> Array:
    """Returns `keep` with a column for the encoder, dropped if any of its conditions is."""
    if not cfg.encoder.width:
        return keep
    encoded = np.array([not one.sequence for one in cfg.model.conditions])
    return jnp.concatenate([keep, jnp.all(keep | ~encoded[None], axis=1, keepdims=True)], axis=1)


def fit(cfg: EmbeddingPriorStageConfig, rows: Rows) -> FittedParams:
    """Fits statistics of all fields, and the ridge regression, to the training pairs.

    Raises:
        UserError: as `statistics`.
    """
    used, measured = statistics(cfg, rows)
    ridge = None
    if cfg.fits_ridge:
        params = linear_fit.as_params(used, None, "").params
        ridge = linear_fit.ridge(rows, lambda block: _linear_pair(cfg, params, block))
    return linear_fit.as_params(used, ridge, linear_fit.note(ridge, measured))


def statistics(cfg: EmbeddingPriorStageConfig, rows: Rows) -> tuple[Statistics, Statistics]:
    """Returns the statistics by which fields are standardised, and those of the training pairs.

    Raises:
        UserError: a dimension of the target that is to be standardised is constant.
    """
    named: dict[str, str | None] = {
        one.name: f"{one.name}_mask" if one.ragged else None
        for one in cfg.model.conditions
        if not one.vocab_size
    }
    named[TARGET] = f"{TARGET}_mask" if cfg.model.ragged else None

    def normalised(most: int) -> Iterator[HostBatch]:
        for block in rows(most):
            y = unit(block[TARGET]) if cfg.scaling == "unit" else block[TARGET]
            yield {**block, TARGET: y}

    measured = linear_fit.moments(normalised, named)
    return {name: _usable(cfg, name, one) for name, one in measured.items()}, measured


def _usable(
    cfg: EmbeddingPriorStageConfig, name: str, measured: linear_fit.FieldMoments
) -> linear_fit.FieldMoments:
    """Returns the mean and deviation by which a field is standardised."""
    mean, std = measured
    if name == TARGET and cfg.scaling == "unit":
        return linear_fit.FieldMoments(mean, np.full_like(std, max(np.sqrt(np.mean(std**2)), 1e-6)))
    if name == TARGET and cfg.scaling == "raw":
        return linear_fit.FieldMoments(np.zeros_like(mean), np.ones_like(std))
    if name == TARGET and not np.all(std > 0):
        raise UserError(
            f"dimension {int(std.argmin())} of y is the same in all training pairs, so it cannot "
            "be standardised; leave it out, or set config.model.scaling to 'unit' or 'raw'."
        )
    return linear_fit.FieldMoments(mean, np.where(std > 0, std, 1.0))


def _linear_pair(
    cfg: EmbeddingPriorStageConfig, params: Params, block: HostBatch
) -> tuple[np.ndarray, np.ndarray]:
    inputs = standardised(cfg, params, block, size=len(block[TARGET]))
    y = to_latent(cfg, params, jnp.asarray(block[TARGET]))
    if cfg.model.ragged:
        y = jnp.where(block[f"{TARGET}_mask"][..., None], y, 0.0)
    x = linear_features(cfg, inputs, masks(cfg, block, size=len(y)))
    return np.asarray(x), np.asarray(y).reshape(len(y), -1)


def to_latent(cfg: EmbeddingPriorStageConfig, params: Params, y: Latents) -> Latents:
    """Returns the target as the chain diffuses it."""
    y = unit(y) if cfg.scaling == "unit" else y
    mean, std = _statistics(params, TARGET, y.ndim)
    return (y - mean) / std


def from_latent(cfg: EmbeddingPriorStageConfig, params: Params, x_0: Latents) -> Latents:
    """Inverts `to_latent`."""
    mean, std = _statistics(params, TARGET, x_0.ndim)
    y = x_0 * std + mean
    return unit(y) if cfg.scaling == "unit" else y


def standardised(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Mapping[str, Any], *, size: int
) -> dict[str, Array]:
    """Returns the conditions of `size` rows as networks read them; zeros for a missing one."""
    inputs = {}
    for one in cfg.model.conditions:
        if one.name not in batch:
            dtype = jnp.int32 if one.vocab_size else jnp.float32
            inputs[one.name] = jnp.zeros((size, *one.shape), dtype)
            continue
        x = jnp.asarray(batch[one.name])
        if not one.vocab_size:
            mean, std = _statistics(params, one.name, x.ndim)
            x = (x - mean) / std
        inputs[one.name] = x
    return inputs


def _statistics(params: Params, name: str, ndim: int) -> tuple[Array, Array]:
    """Returns mean and deviation of a field, broadcast to `ndim` axes."""
    group = params["fitted"][name]
    shape = (1,) * (ndim - 1) + (-1,)
    mean, std = (jnp.asarray(group[name]).reshape(shape) for name in ("mean", "std"))
    return mean, std


def linear_features(
    cfg: EmbeddingPriorStageConfig, inputs: Mapping[str, Array], masks_of: Mapping[str, Any]
) -> Float[Array, " b f"]:
    """Returns the features of the ridge: vectors, short sequences flat, means of others."""
    parts = []
    for one in cfg.model.conditions:
        x = inputs[one.name]
        if one.vocab_size:
            continue
        if one.sequence and is_flat(one):
            x = x.reshape(len(x), -1)
        elif one.sequence:
            x = masked_mean(x, masks_of.get(one.name))
        parts.append(x)
    return jnp.concatenate(parts, axis=1)


def linear_prediction(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    inputs: Mapping[str, Array],
    masks_of: Mapping[str, Any],
    *,
    leave_out: Latents | None = None,
) -> Latents:
    """Returns the ridge's prediction of the latents.

    Args:
        cfg: the stage.
        params: parameters that include the fit.
        inputs: standardised conditions.
        masks_of: real tokens of ragged sequences, by name.
        leave_out: true latents of training pairs; each is predicted by the regression on all other
            pairs, so that errors in training are like those on new pairs.
    """
    ridge, x = params["fitted"]["ridge"], linear_features(cfg, inputs, masks_of)
    guess = jnp.matmul(x, ridge["weights"], precision="highest") + ridge["bias"][None]
    guess = guess.reshape(len(x), *cfg.model.target)
    if leave_out is None:
        return guess
    power = jnp.sum(jnp.matmul(x, ridge["root"].T, precision="highest") ** 2, axis=1)
    power = jnp.clip(power, 0.0, 0.99).reshape((-1,) + (1,) * (guess.ndim - 1))
    return guess - (leave_out - guess) * power / (1.0 - power)


def predict_linearly(
    cfg: EmbeddingPriorStageConfig, params: Params, batch: Mapping[str, Any]
) -> Latents:
    """Returns the ridge's prediction in the form of the training data, for any method.

    Args:
        cfg: the stage.
        params: parameters that include the fit.
        batch: all conditions, and their masks.
    """
    size = len(batch[cfg.model.conditions[0].name])
    inputs = standardised(cfg, params, batch, size=size)
    guess = linear_prediction(cfg, params, inputs, masks(cfg, batch, size=size))
    return from_latent(cfg, params, guess)


def masks(
    cfg: EmbeddingPriorStageConfig, batch: Mapping[str, Any], *, size: int
) -> dict[str, Array]:
    """Returns the masks of ragged sequences by name, True at all tokens by default.

    Masks of missing conditions are False.
    """
    result: dict[str, Array] = {}
    for one in cfg.model.conditions:
        if one.ragged:
            default = jnp.full((size, one.shape[0]), one.name in batch)
            result[one.name] = jnp.asarray(batch.get(f"{one.name}_mask", default))
    if cfg.model.ragged:
        default = jnp.ones((size, cfg.model.target[0]), bool)
        result[TARGET] = jnp.asarray(batch.get(f"{TARGET}_mask", default))
    return result
