"""Networks of the prior between any two embedding spaces: a denoiser, and a regression baseline.

    [tokens of condition 1..., tokens of condition 2..., timestep, noised target..., queries...]

The trunk is that of the paper's prior (`token_denoiser`). A vector becomes one or more tokens, a
sequence one token per element, token ids their embeddings; the target is a vector or a sequence,
with one query per token. In addition the output receives, scaled per dimension by functions of the
timestep, the noised target and a linear prediction of the target, so that a trunk narrower than the
target need not carry what is linear.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import LayerNorm, compute_dtype, dense, normal, zeros
from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.types import Steps
from unclip_jax.models.condition_tokens import (
    ConditionConfig,
    ConditionedTokens,
    Conditions,
    Masks,
)
from unclip_jax.models.dalle2_pytorch_prior import Dalle2PytorchConfig, Dalle2PytorchNetwork
from unclip_jax.models.pca_quantizer import PcaQuantizer, PcaQuantizerConfig
from unclip_jax.parallel.axes import sharded

CODEC = PcaQuantizerConfig(components=0, explained_variance=0.9, buckets=64)

Target = Float[Array, " b *s"]


@dataclasses.dataclass(frozen=True)
class EmbeddingPriorConfig:
    """Sizes of the networks.

    Attributes:
        conditions: what the target is predicted from.
        target: shape of the target, [z] or [l, z].
        width: of the transformer.
        depth: its blocks.
        heads: its heads.
        ragged: target sequences have different lengths.
        vector_tokens: tokens of each condition that is a vector.
        causal: slots attend to themselves and earlier ones only, as in the paper's prior.
        queries: outputs are read at learned queries (the paper); False reads them at the noised
            tokens, which is cheaper for sequences (MindEye2).
        skips: add the noised target and the linear prediction to the output.
        ridge: a linear prediction of the target is one of the inputs.
        num_timesteps: length of the trained chain.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
        dalle2_pytorch: the network of DALLE2-pytorch or MindEye2 in the place of ours, of which
            width, depth, heads, vector_tokens, causal and queries are then ignored; its conditions
            are z_txt (and caption features), or a sequence as long as the target.
        codec: the quantizer of an autoregressive prior, whose codes one by one take the place of
            the noised target, timestep and queries.
    """

    conditions: tuple[ConditionConfig, ...]
    target: tuple[int, ...]
    width: int
    depth: int
    heads: int
    ragged: bool = False
    vector_tokens: int = 1
    causal: bool = True
    queries: bool = True
    skips: bool = True
    ridge: bool = True
    num_timesteps: int = 1000
    remat: str = "none"
    dtype: str = "float32"
    dalle2_pytorch: Dalle2PytorchConfig | None = None
    codec: PcaQuantizerConfig = CODEC

    def __post_init__(self):
        positive("config.model.model.vector_tokens", self.vector_tokens)
        if self.dalle2_pytorch is not None:
            self._check_dalle2_pytorch(self.dalle2_pytorch)
        if len(self.target) not in (1, 2) or min(self.target) < 1:
            raise UserError(
                f"config.model.model.target is {list(self.target)}; give [z] for a vector or "
                "[l, z] for a sequence."
            )
        if not self.conditions:
            raise UserError("config.model.model.conditions is empty; give at least one.")
        if self.causal and not self.queries:
            raise UserError(
                "config.model.model.queries is False, so the noised tokens are the output, but "
                "causal attention hides later tokens from them; set causal to False."
            )

    def _check_dalle2_pytorch(self, network: Dalle2PytorchConfig) -> None:
        """Rejects conditions that the network of those libraries does not read."""
        z, lone = self.target[-1], network.queries == "last"
        shapes = [
            (z,) if lone else self.target,
            *([(network.context, z)] if network.context else []),
        ]
        if self.ridge or [one.shape for one in self.conditions] != shapes or self.ragged:
            listed = ", ".join(str(list(shape)) for shape in shapes)
            raise UserError(
                "config.model.model.dalle2_pytorch is a network with conditions of the shapes "
                f"{listed}, without a ridge regression; set config.model.model.ridge to False "
                "and give those."
            )

    @property
    def components(self) -> int:
        """Codes per target; the largest possible number until the fit has counted them."""
        return self.codec.components or math.prod(self.target)

    def make_quantizer(self) -> PcaQuantizer:
        """Creates the module of the codes of flattened targets."""
        return PcaQuantizer(self.codec, self.components, math.prod(self.target))

    @property
    def tokens(self) -> tuple[int, int]:
        """Length and width of the target as a sequence."""
        return (1, *self.target) if len(self.target) == 1 else (self.target[0], self.target[1])


class EmbeddingPrior(ConditionedTokens):
    """Predicts the target of a diffusion from the noised target and conditions."""

    cfg: EmbeddingPriorConfig

    @nn.compact
    def __call__(
        self,
        x_t: Target,
        t: Steps,
        *,
        conditions: Conditions,
        masks: Masks,
        keep: Bool[Array, " b c"] | None = None,
        ridge: Target | None = None,
    ) -> Target:
        """Computes the raw output, of the shape of `x_t`.

        Args:
            x_t: noised target.
            t: timesteps of the trained chain.
            conditions: by name; standardised by the caller.
            masks: of sequences whose lengths differ, by name; that of the target is "y".
            keep: False replaces condition c of an example by learned nulls; None keeps all.
            ridge: linear prediction of the target from all conditions, dropped with any of them.
        """
        cfg, (length, z) = self.cfg, self.cfg.tokens
        tokens = self._conditions(conditions, masks, keep)
        time, shape = self._time(t), x_t.shape
        x_t = x_t.reshape(len(x_t), length, z)
        noised = self._project("x_t_in", x_t)
        if cfg.ridge:
            assert ridge is not None, "this network reads a linear prediction"
            whole = jnp.ones(len(x_t), bool) if keep is None else jnp.all(keep, axis=1)
            ridge = jnp.where(whole[:, None, None], ridge.reshape(x_t.shape), 0.0)
            linear = self._project("ridge_in", ridge)
            noised = noised + self._filled("null_ridge", linear, whole[:, None], rows=1)
        if cfg.ragged:
            noised = self._filled("padding", noised, masks["y"])
        out = self._denoised(
            tokens,
            time=time,
            noised=noised,
            queries=self._table("queries", length) if cfg.queries else None,
            features=z,
            causal=cfg.causal,
        )
        if cfg.skips:
            inputs = [x_t, ridge] if cfg.ridge else [x_t]
            out = out + self._skips(time, inputs)
        return out.reshape(shape)

    def _skips(self, time: Float[Array, " b d"], inputs: list[Any]) -> Float[Array, " b l z"]:
        """Returns the sum of `inputs`, each scaled per dimension by a function of the timestep."""
        z, exact = self.cfg.tokens[1], jnp.dtype("float32")
        axes = ("time", "z")
        layer = dense(z * len(inputs), name="skips", axes=axes, dtype=exact, init=zeros)
        scales = jnp.split(layer(jax.nn.silu(time.astype(exact)))[:, None], len(inputs), axis=-1)
        return sum(
            (scale * x for scale, x in zip(scales, inputs, strict=True)),
            start=jnp.zeros_like(inputs[0]),
        )


class Dalle2PytorchPrior(nn.Module):
    """The network of DALLE2-pytorch or MindEye2 with the arguments of `EmbeddingPrior`."""

    cfg: EmbeddingPriorConfig

    @nn.compact
    def __call__(
        self,
        x_t: Target,
        t: Steps,
        *,
        conditions: Conditions,
        masks: Masks,
        keep: Bool[Array, " b c"] | None = None,
        ridge: Target | None = None,
    ) -> Target:
        """Computes the raw output, of the shape of `x_t`."""
        cfg, (length, z) = self.cfg, self.cfg.tokens
        assert cfg.dalle2_pytorch is not None
        first, *others = cfg.conditions
        options = {}
        for other in others:
            mask = masks.get(other.name)
            options = {"features": conditions[other.name], "features_mask": mask}
        if keep is not None:
            options |= {"keep": keep[:, 0], **({"keep_features": keep[:, 1]} if others else {})}
        condition = conditions[first.name]
        network = Dalle2PytorchNetwork(
            cfg.dalle2_pytorch, length, z, cfg.num_timesteps, cfg.dtype, name="dalle2_pytorch"
        )
        x = x_t.reshape(len(x_t), length, z)
        out = network(x, t, condition=condition.reshape(len(x), -1, z), **options)
        return out.reshape(x_t.shape)


def make_denoiser(cfg: EmbeddingPriorConfig) -> nn.Module:
    """Creates the network that predicts the target of a diffusion."""
    return EmbeddingPrior(cfg) if cfg.dalle2_pytorch is None else Dalle2PytorchPrior(cfg)


class Regressor(nn.Module):
    """An MLP from conditions to the target: residual blocks over all conditions as one vector.

    Sequences enter as the mean of their tokens.
    """

    cfg: EmbeddingPriorConfig

    @nn.compact
    def __call__(self, *, conditions: Conditions, masks: Masks) -> Target:
        """Computes the target, [b *target] in float32; arguments as in `EmbeddingPrior`."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        parts = []
        for one in cfg.conditions:
            x = conditions[one.name]
            if one.vocab_size:
                init = sharded(normal(0.02), "vocab", "embed")
                table = self.param(f"{one.name}_table", init, (one.vocab_size, cfg.width))
                tokens = jnp.take(table, jnp.maximum(x, 0), axis=0)
                x = masked_mean(tokens, (x >= 0) & masks.get(one.name, True))
            elif one.sequence:
                x = masked_mean(x, masks.get(one.name))
            parts.append(x)
        hidden = 4 * cfg.width
        x = jnp.concatenate(parts, axis=-1).astype(dtype)
        x = dense(hidden, name="input", axes=("z", "embed"), dtype=dtype)(x)
        for index in range(cfg.depth):
            y = LayerNorm(name=f"norm_{index}")(x)
            y = dense(hidden, name=f"fc_{index}_1", axes=("embed", "mlp"), dtype=dtype)(y)
            y = dense(hidden, name=f"fc_{index}_2", axes=("mlp", "embed"), dtype=dtype)(
                jax.nn.gelu(y)
            )
            x = x + y
        x = LayerNorm(name="final_norm")(x)
        out = dense(math.prod(cfg.target), name="out", axes=("embed", "z"), dtype=dtype)(x)
        return out.astype(jnp.float32).reshape(len(x), *cfg.target)


def masked_mean(
    x: Float[Array, " b l z"], mask: Bool[Array, " b l"] | None
) -> Float[Array, " b z"]:
    """Returns the mean over real tokens; zero where there is none."""
    if mask is None:
        return jnp.mean(x, axis=1)
    weights = mask[..., None].astype(x.dtype)
    return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def unfitted(cfg: EmbeddingPriorConfig, *, features: int) -> dict[str, Any]:
    """Returns the parameters that are fitted instead of learned, before the fit, boxed.

    Args:
        cfg: conditions and target, of which mean and deviation are measured.
        features: of the ridge regression; 0 = there is none.
    """
    names = {one.name: one.shape[-1] for one in cfg.conditions if not one.vocab_size}

    def filled(value: float, *shape: int) -> Any:
        axes = (None,) * (len(shape) - 1) + ("z",)
        return sharded(nn.initializers.constant(value), *axes)(None, shape, jnp.float32)

    group: dict[str, Any] = {
        name: {"mean": filled(0.0, width), "std": filled(1.0, width)}
        for name, width in {**names, "y": cfg.target[-1]}.items()
    }
    if features:
        outputs = math.prod(cfg.target)
        group["ridge"] = {
            "weights": filled(0.0, features, outputs),
            "bias": filled(0.0, outputs),
            "root": filled(0.0, features, features),
        }
    return group
