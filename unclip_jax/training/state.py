"""The training state: parameters, their average, optimiser state and counters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from unclip_jax.core.types import Params


@struct.dataclass
class TrainState:
    """The state of a run on the devices; with the data position it determines the run.

    Fields are Any because the same structure also carries shardings, shapes and boxes.

    Attributes:
        step: int32, number of steps taken (including skipped ones), hence of batches consumed.
        params: float32 master parameters.
        ema_params: their exponential moving average, used to evaluate, sample and export.
        opt_state: state of the optimiser, whose own counter excludes skipped steps.
        bad_steps: int32, number of consecutive steps up to now that were skipped as not finite.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    bad_steps: Any


def create(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Creates the state before the first step; the average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        bad_steps=jnp.zeros((), jnp.int32),
    )


def warmed_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Computes min(decay, (1 + step) / (10 + step)), so that the average forgets its random start.

    This is the form of TensorFlow's ExponentialMovingAverage with `num_updates`. Without it, the
    average of a short run is mostly the random initialisation.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def averaged(average: Params, params: Params, *, decay: Float[Array, ""]) -> Params:
    """Computes decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
