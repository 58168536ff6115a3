"""Optimisers: AdamW or Adafactor for all parameters, or Muon for matrices and AdamW for the rest.

The treatment of a parameter follows from its logical axis names and its path, never from its size:
*weights* (leaves called "kernel", and tables with a "vocab" axis) decay; gains, biases, position
tables and learned tokens do not. Muon applies to the kernels.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from unclip_jax.core.checks import UserError, in_range, one_of, positive, suggest
from unclip_jax.parallel.place import axis_names, unbox
from unclip_jax.training.adafactor import adafactor
from unclip_jax.training.muon import scale_by_muon

Rate = Callable[[Any], Any]  # step -> learning rate, both scalars


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser of one run.

    Attributes:
        name: "adamw", "muon" (Muon for kernels, AdamW for the rest) or "adafactor".
        learning_rate: peak rate of AdamW or Adafactor.
        warmup_steps: steps over which the rate rises linearly.
        schedule: rate after the warm-up: "constant", or a "cosine" or "linear" decay.
        decay_steps: step at which the decay ends and the final rate begins; 0 = the end of the run.
        final_scale: ratio of the final rate to the peak rate.
        b1: decay of AdamW's first moment.
        b2: decay of AdamW's second moment.
        eps: added to AdamW's denominator.
        weight_decay: decay of weights under AdamW, times the rate.
        clip_norm: largest global norm of the gradients; None = no clipping.
        muon_learning_rate: peak rate of Muon (updates have spectral norm near 1 times
            max(1, out / in)^1/2).
        muon_momentum: momentum of Muon.
        muon_weight_decay: decay of kernels under Muon, times Muon's rate.
        muon_exclude: fragments of paths of kernels that use AdamW.
        adafactor_scale: True multiplies Adafactor's updates by the size of the parameter (optax's
            default); without it zero-initialised layers learn within a short run.
        decay_tables: True applies weight decay to token tables too.
        sam: rho of sharpness-aware minimisation (`training.sam`); 0 = off.
        sam_batch: examples that share one perturbation; 0 = all of a (micro)batch.
        sam_cached: True processes one of these replicas at a time (`training.embedding_cache`): a
            device stores one perturbed copy of the parameters, for 1.8 times the computation.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    decay_steps: int = 0
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    muon_learning_rate: float = 0.01
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.0
    muon_exclude: tuple[str, ...] = ()
    adafactor_scale: bool = True
    decay_tables: bool = True
    sam: float = 0.0
    sam_batch: int = 0
    sam_cached: bool = False

    def __post_init__(self):
        one_of("config.optim.name", self.name, ("adamw", "muon", "adafactor"))
        one_of("config.optim.schedule", self.schedule, ("constant", "cosine", "linear"))
        for name in ("learning_rate", "eps", "muon_learning_rate"):
            positive(f"config.optim.{name}", getattr(self, name))
        for name in ("final_scale", "b1", "b2", "muon_momentum"):
            in_range(f"config.optim.{name}", getattr(self, name), 0.0, 1.0)
        for name in (
            "warmup_steps",
            "decay_steps",
            "weight_decay",
            "muon_weight_decay",
            "sam",
            "sam_batch",
        ):
            in_range(f"config.optim.{name}", getattr(self, name), 0, math.inf)
        if self.sam_cached and not self.sam_batch:
            raise UserError(
                "config.optim.sam_cached is True, but sam_batch is 0: there is one replica, the "
                "whole batch. Give the examples of a replica in config.optim.sam_batch."
            )
        if self.clip_norm is not None:
            positive("config.optim.clip_norm", self.clip_norm)


class Optimizer(NamedTuple):
    """An optax transformation and the learning rate of AdamW as a function of the step."""

    tx: optax.GradientTransformation
    rate: Rate


def make_optimizer(config: OptimConfig, boxed: Any, *, steps: int) -> Optimizer:
    """Creates the optimiser of a run.

    Args:
        config: settings of the optimiser.
        boxed: parameters (or their ShapeDtypeStructs) in boxes with logical axis names.
        steps: length of the run, at whose end the schedule ends.

    Raises:
        UserError: the warm-up is longer than the run, or an exclusion matches no kernel.
    """
    if config.warmup_steps > steps:
        raise UserError(
            f"config.optim.warmup_steps is {config.warmup_steps}, longer than the run of {steps} "
            "steps; shorten it."
        )
    make = {"adamw": _adamw_alone, "muon": _muon, "adafactor": _adafactor}[config.name]
    tx = make(config, boxed, steps)
    if config.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return Optimizer(tx, rate(config, config.learning_rate, steps=steps))


def rate(config: OptimConfig, peak: float, *, steps: int) -> Rate:
    """Returns the learning rate by step: linear warm-up to `peak`, then the schedule of `config`.

    Step k (from 0) of a warm-up of n steps has rate peak * (k + 1) / n, so no step has rate zero.
    """

    def value(step: ArrayLike) -> Float[Array, ""]:
        done = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (done + 1.0) / max(config.warmup_steps, 1))
        length = max((config.decay_steps or steps) - config.warmup_steps, 1)
        progress = jnp.clip((done - config.warmup_steps) / length, 0.0, 1.0)
        fall = {
            "constant": jnp.zeros_like(progress),
            "cosine": 0.5 - 0.5 * jnp.cos(math.pi * progress),
            "linear": progress,
        }[config.schedule]
        return peak * warm * (1.0 - fall * (1.0 - config.final_scale))

    return value


def decayed(boxed: Any, *, tables: bool = True) -> Any:
    """Returns a tree that is True for parameters with weight decay: kernels, optionally tables."""
    return _by_path(boxed, lambda path, names: _is_kernel(path) or (tables and "vocab" in names))


def muon_labels(boxed: Any, *, exclude: tuple[str, ...] = ()) -> Any:
    """Labels every leaf "muon" (kernels whose path contains none of `exclude`) or "adamw".

    Raises:
        UserError: a fragment of `exclude` occurs in no kernel's path.
    """
    kernels = [path for path in axis_names(boxed) if _is_kernel(path)]
    for fragment in exclude:
        if not any(fragment in path for path in kernels):
            raise UserError(
                f"config.optim.muon_exclude has {fragment!r}, which no kernel's path holds."
                f"{suggest(fragment, kernels[:20])}"
            )

    def label(path: str, names: tuple[str | None, ...]) -> str:
        skipped = any(fragment in path for fragment in exclude)
        return "muon" if _is_kernel(path) and not skipped else "adamw"

    return _by_path(boxed, label)


def _adamw(config: OptimConfig, mask: Any, steps: int) -> optax.GradientTransformation:
    return optax.adamw(
        rate(config, config.learning_rate, steps=steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=mask,
    )


def _adamw_alone(config: OptimConfig, boxed: Any, steps: int) -> optax.GradientTransformation:
    return _adamw(config, decayed(boxed, tables=config.decay_tables), steps)


def _muon(config: OptimConfig, boxed: Any, steps: int) -> optax.GradientTransformation:
    """Returns Muon for kernels and AdamW for the rest."""
    labels = muon_labels(boxed, exclude=config.muon_exclude)
    stacked = _masked("muon", labels, _by_path(boxed, lambda _, names: names[:1] == ("layers",)))
    muon = optax.chain(
        scale_by_muon(stacked, momentum=config.muon_momentum),
        optax.add_decayed_weights(config.muon_weight_decay),
        optax.scale_by_learning_rate(rate(config, config.muon_learning_rate, steps=steps)),
    )
    mask = decayed(boxed, tables=config.decay_tables)
    adamw = _adamw(config, _masked("adamw", labels, mask), steps)
    return optax.partition({"muon": muon, "adamw": adamw}, labels)


def _adafactor(config: OptimConfig, boxed: Any, steps: int) -> optax.GradientTransformation:
    """Returns Adafactor without weight decay."""
    if config.weight_decay:
        raise UserError(
            f"config.optim.weight_decay is {config.weight_decay}; Adafactor has none here (Imagen, "
            "appendix F), so set it to 0."
        )
    return adafactor(rate(config, config.learning_rate, steps=steps), scale=config.adafactor_scale)


def _is_kernel(path: str) -> bool:
    return path.rsplit("/", 1)[-1] == "kernel"


def _masked(label: str, labels: Any, tree: Any) -> Any:
    """Replaces leaves with other labels than `label` by optax's placeholder."""
    return jax.tree.map(
        lambda own, value: value if own == label else optax.MaskedNode(), labels, tree
    )


def _by_path(boxed: Any, function: Callable[[str, tuple[str | None, ...]], Any]) -> Any:
    """Returns a tree like `unbox(boxed)` of function(path, logical axis names)."""
    leaves = [function(path, names) for path, names in axis_names(boxed).items()]
    return jax.tree.unflatten(jax.tree.structure(unbox(boxed)), leaves)
