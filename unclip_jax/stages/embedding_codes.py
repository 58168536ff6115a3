"""The method "autoregressive" of the prior between embedding spaces (unCLIP, section 2.2).

Latents become codes: principal components by decreasing eigenvalue, one bucket each
(`quantizer_fit`), which a causal transformer predicts one after another from the conditions. The
fitted quantizer is the parameter group "codec".
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.core.stage import FittedParams, Rows
from unclip_jax.core.types import Batch, HostBatch, Key, Keys, Params
from unclip_jax.diffusion import guidance
from unclip_jax.discrete import categorical
from unclip_jax.discrete.categorical import CodeSamplingConfig
from unclip_jax.fitting import linear_fit, quantizer_fit
from unclip_jax.models.application import apply
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.models.pca_quantizer import Codes, PcaQuantizer
from unclip_jax.stages import pair_inputs
from unclip_jax.stages.embedding_prior_config import TARGET, EmbeddingPriorStageConfig
from unclip_jax.stages.pair_inputs import Latents, PairInputs


def fit(cfg: EmbeddingPriorStageConfig, rows: Rows) -> FittedParams:
    """Fits statistics, the ridge regression and the quantizer to the training pairs.

    Raises:
        UserError: as `pair_inputs.fit` and `quantizer_fit.fit`.
    """
    statistics = pair_inputs.fit(cfg, rows)
    codec = quantizer_fit.fit(
        cfg.model.codec,
        rows,
        components=cfg.model.components,
        read=functools.partial(_flat_latents, cfg, statistics.params),
    )
    return FittedParams({**statistics.params, **codec.params}, f"{statistics.note}; {codec.note}")


def resolve_from_data(cfg: EmbeddingPriorStageConfig, rows: Rows) -> EmbeddingPriorStageConfig:
    """Returns `cfg` with the number of components for its fraction of the data's variance.

    Raises:
        UserError: targets that cannot be quantised.
    """
    if cfg.method != "autoregressive" or cfg.model.codec.components:
        return cfg
    used, _ = pair_inputs.statistics(cfg, rows)
    params = linear_fit.as_params(used, None, "").params
    count = quantizer_fit.count_components(
        cfg.model.codec,
        rows,
        most=math.prod(cfg.model.target),
        read=functools.partial(_flat_latents, cfg, params),
    )
    codec = dataclasses.replace(cfg.model.codec, components=count, explained_variance=0.0)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, codec=codec))


def _flat_latents(
    cfg: EmbeddingPriorStageConfig, params: Params, block: HostBatch
) -> tuple[np.ndarray, None]:
    """Returns the latents of a block, flattened to rows (`quantizer_fit.Read`)."""
    latents = pair_inputs.to_latent(cfg, params, jnp.asarray(block[TARGET]))
    return np.asarray(latents, np.float64).reshape(len(latents), -1), None


def init(cfg: EmbeddingPriorStageConfig, key: Key, *, inputs: Batch) -> Params:
    """Initialises the network; `inputs` are conditions and masks of one example by name."""
    codes = jnp.zeros((1, cfg.model.components), jnp.int32)
    ridge = codes if cfg.fits_ridge else None
    return EmbeddingCodes(cfg.network).init(key, codes, **inputs, ridge=ridge)["params"]


def losses(
    cfg: EmbeddingPriorStageConfig, params: Params, x_0: Latents, inputs: PairInputs
) -> Float[Array, " b"]:
    """Returns the mean cross-entropy of the codes of every example, in nats."""
    codes = encode(cfg, params, x_0)
    options = _inputs(cfg, params, inputs)
    logits = apply(EmbeddingCodes(cfg.network), params["network"], codes, **options)
    return jnp.mean(categorical.cross_entropy(logits, codes), axis=1)


def sample(
    cfg: EmbeddingPriorStageConfig,
    params: Params,
    inputs: PairInputs,
    *,
    keys: Keys,
    sampling: CodeSamplingConfig,
) -> Latents:
    """Samples latents, one per key; row i depends on its key and conditions alone."""
    options = _inputs(cfg, params, inputs)
    if not guidance.is_off(sampling.guidance_scale):
        options = jax.tree.map(lambda x: jnp.concatenate([x, x]), options)
        keep = options["keep"]
        options["keep"] = keep & (jnp.arange(len(keep)) < len(keys))[:, None]
    run = functools.partial(apply, EmbeddingCodes(cfg.network), params["network"])
    later = {name: options[name] for name in ("keep", "ridge")}

    def step(codes, cache, index):
        return run(codes, cache, index=index, **later, method=EmbeddingCodes.step)

    first = run(**options, method=EmbeddingCodes.start)
    codes = categorical.sample_sequence(
        first, step, keys=keys, count=cfg.model.components, sampling=sampling
    )
    return decode(cfg, params, codes)


def encode(cfg: EmbeddingPriorStageConfig, params: Params, x_0: Latents) -> Codes:
    """Returns the codes of latents, through which no gradient flows."""
    fitted = jax.lax.stop_gradient(params["codec"])
    return apply(cfg.model.make_quantizer(), fitted, x_0.reshape(len(x_0), -1))


def decode(cfg: EmbeddingPriorStageConfig, params: Params, codes: Codes) -> Latents:
    """Returns the latents of codes; omitted components have their mean."""
    flat = apply(cfg.model.make_quantizer(), params["codec"], codes, method=PcaQuantizer.decode)
    return flat.reshape(len(codes), *cfg.model.target)


def _inputs(cfg: EmbeddingPriorStageConfig, params: Params, inputs: PairInputs) -> Batch:
    """Returns the inputs of the network other than codes."""
    ridge = None if inputs.ridge is None else encode(cfg, params, inputs.ridge)
    return {**inputs._asdict(), "ridge": ridge}
