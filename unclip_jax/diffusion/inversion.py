"""DDIM inversion: the noise from which deterministic sampling gives an image back.

Together with z_img it is unCLIP's bipartite latent (arXiv 2204.06125, section 3).
Source: ADM (arXiv 2105.05233, appendix F), DDIM (arXiv 2010.02502, section 4.3).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Level, Schedule

X = Float[Array, " b *s"]


def invert(denoise: Denoiser, x_0: X, *, schedule: Schedule, skip_last: bool = True) -> X:
    """Run the DDIM update towards the noise.

        x_{k+1} = signal_{k+1} x_0(x_k) + noise_{k+1} eps(x_k)

    The clean sample stands for x at position 0 of the chain. With `skip_last` the result lies at
    the last position, T' - 1, which is where `samplers.sample` starts on the same `schedule`: 249
    updates on a chain of 250. Without it one more update leads to pure noise, a level that no step
    of the chain starts from; ADM saw noise in such reconstructions.

    For a faithful reconstruction give the same condition both ways, guide by 1, do not threshold,
    and sample with `ddim(0.0)`.

    Args:
        denoise: (x_t, original timesteps) -> Prediction.
        x_0: what to invert; images in [-1, 1].
        schedule: the chain, strided or full, that sampling will walk back.
        skip_last: whether to stop at the level where sampling starts.

    Returns:
        x_T in float32.
    """
    steps = slice(None, -1) if skip_last else slice(None)
    # the level after the last is alpha_bar = 0
    signal, noise = np.append(schedule.signal[1:], 0.0), np.append(schedule.noise[1:], 1.0)
    levels = Level(jnp.asarray(signal[steps], jnp.float32), jnp.asarray(noise[steps], jnp.float32))

    def body(x_t: X, inputs: tuple[Int[Array, ""], Level]) -> tuple[X, None]:
        t, level = inputs
        pred = denoise(x_t, jnp.broadcast_to(t, x_t.shape[:1]))
        return process.q_sample(pred.x_0, pred.eps, alpha_bar=level), None

    timesteps = jnp.asarray(schedule.timesteps[steps], jnp.int32)
    return jax.lax.scan(body, x_0.astype(jnp.float32), (timesteps, levels))[0]
