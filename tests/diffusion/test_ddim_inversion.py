import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import process
from unclip_jax.diffusion.ddim_inversion import invert
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.respace import respace, timesteps
from unclip_jax.diffusion.samplers import Ddim, sample
from unclip_jax.diffusion.schedule import Schedule, make_schedule

LINEAR = make_schedule("linear", num_timesteps=1000)
X_0 = jnp.linspace(-1.0, 1.0, 12).reshape(2, 6)
KEYS = rng.per_example(jax.random.key(0), jnp.arange(2))


def chain(spec: str, schedule: Schedule = FULL) -> Schedule:
    return respace(schedule, timesteps=timesteps(spec, num_timesteps=1000))


def constant_noise(eps: jax.Array, schedule: Schedule = FULL) -> Denoiser:
    """Always predicts the same noise, so that one update is exactly undone by another."""

    def denoise(x_t, t):
        return process.from_eps(eps, x_t, alpha_bar=schedule.level(t, ndim=x_t.ndim))

    return denoise


def back(denoise: Denoiser, x_T: jax.Array, schedule: Schedule) -> jax.Array:
    return sample(denoise, x_T, schedule=schedule, solver=Ddim(0.0), keys=KEYS)


def test_known_noise_leads_to_the_level_where_sampling_starts():
    short = chain("ddim25")
    eps = jax.random.normal(jax.random.key(1), X_0.shape)
    x_T = invert(constant_noise(eps), X_0, schedule=short)
    # x_0 stands for x at position 0, whose clean sample it is not quite
    clean = (X_0 - short.noise[0] * eps) / short.signal[0]
    np.testing.assert_allclose(x_T, short.signal[-1] * clean + short.noise[-1] * eps, atol=1e-5)
    np.testing.assert_allclose(back(constant_noise(eps), x_T, short), clean, atol=1e-4)


def test_all_updates_end_in_the_predicted_noise_alone():
    eps = jax.random.normal(jax.random.key(1), X_0.shape)
    x_T = invert(constant_noise(eps), X_0, schedule=chain("ddim25"), skip_last=False)
    np.testing.assert_allclose(x_T, eps, atol=1e-6)


def test_inversion_converges_to_the_probability_flow():
    # of N(m, s^2): (x_t - signal m) / sqrt(s^2 alpha_bar + 1 - alpha_bar) stays what it was
    mean, std = 0.3, 0.5
    errors = []
    for spec in ("ddim25", "ddim100", "1000"):
        short = chain(spec)
        x_T = invert(exact_denoiser(mean, std), X_0, schedule=short)
        spread = np.sqrt(std**2 * short.alpha_bar[-1] + 1.0 - short.alpha_bar[-1])
        exact = short.signal[-1] * mean + spread * (X_0 - mean) / std
        errors.append(float(jnp.max(jnp.abs(x_T - exact))))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 2e-2


@pytest.mark.parametrize("schedule", [FULL, LINEAR], ids=["cosine", "linear"])
def test_round_trip_of_a_linear_denoiser_is_exact_in_the_limit(schedule):
    denoise = exact_denoiser(0.3, 0.5, schedule=schedule)
    errors = []
    for spec in ("ddim25", "ddim100", "1000"):  # first order: the error falls as 1 / steps
        short = chain(spec, schedule)
        again = back(denoise, invert(denoise, X_0, schedule=short), short)
        errors.append(float(jnp.max(jnp.abs(again - X_0))))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 2e-2


def test_249_of_250_updates_reconstruct_what_all_of_them_lose():
    short = chain("ddim250", LINEAR)
    denoise = constant_noise(jax.random.normal(jax.random.key(1), X_0.shape), LINEAR)
    without_last = back(denoise, invert(denoise, X_0, schedule=short), short)
    with_last = back(denoise, invert(denoise, X_0, schedule=short, skip_last=False), short)
    assert (
        float(jnp.max(jnp.abs(without_last - X_0))) < 3 * short.noise[0]
    )  # x_0 in place of x at position 0
    assert float(jnp.max(jnp.abs(with_last - X_0))) > 0.5


def test_the_network_is_given_original_timesteps():
    network_steps, short = [], chain("fast27")

    def denoise(x_t, t):
        jax.debug.callback(lambda t: network_steps.append(int(t[0])), t, ordered=True)
        return exact_denoiser(0.0, 1.0)(x_t, t)

    invert(denoise, X_0, schedule=short).block_until_ready()
    jax.effects_barrier()
    assert network_steps == short.timesteps[:-1].tolist()


@pytest.mark.parametrize("schedule", [FULL, LINEAR], ids=["cosine", "linear"])
def test_refined_inversion_of_a_linear_denoiser_is_exact_on_a_short_chain(schedule):
    short, denoise = chain("ddim25", schedule), exact_denoiser(0.3, 0.5, schedule=schedule)
    plain = back(denoise, invert(denoise, X_0, schedule=short), short)
    exact = back(denoise, invert(denoise, X_0, schedule=short, refinements=8), short)
    assert float(jnp.max(jnp.abs(plain - X_0))) > 0.02
    np.testing.assert_allclose(exact, X_0, atol=2e-5)


@pytest.mark.parametrize("schedule", [FULL, LINEAR], ids=["cosine", "linear"])
def test_one_refinement_makes_the_error_of_a_round_trip_one_of_second_order(schedule):
    denoise, errors = exact_denoiser(0.3, 0.5, schedule=schedule), {}
    for count in (0, 1):
        for spec in ("ddim25", "ddim50", "ddim100"):
            short = chain(spec, schedule)
            x_T = invert(denoise, X_0, schedule=short, refinements=count)
            again = back(denoise, x_T, short)
            errors[count, spec] = float(jnp.max(jnp.abs(again - X_0)))
    for count, least, most in ((0, 1.8, 2.2), (1, 3.5, 4.5)):
        for coarse, fine in (("ddim25", "ddim50"), ("ddim50", "ddim100")):
            assert least < errors[count, coarse] / errors[count, fine] < most
    assert errors[1, "ddim25"] < errors[0, "ddim25"] / 5


def test_refinement_holds_where_the_signal_is_gone():
    """Eight steps from 4e-5 of signal, where the update itself would move x by next to nothing."""
    short, denoise = chain("8"), exact_denoiser(0.3, 0.5)
    exact = back(denoise, invert(denoise, X_0, schedule=short, refinements=16), short)
    np.testing.assert_allclose(exact, X_0, atol=1e-5)


def test_a_refinement_that_leads_away_is_taken_back():
    """Of N(0, 6^2) this long step has a slope of 3, from which iterations by 1 run away."""
    short, denoise = respace(FULL, timesteps=np.array([290, 870])), exact_denoiser(0.0, 6.0)
    errors = []
    for count in (0, 4, 8):
        x_T = invert(denoise, X_0, schedule=short, refinements=count)
        errors.append(float(jnp.max(jnp.abs(back(denoise, x_T, short) - X_0))))
    assert errors[0] > 0.1 and max(errors[1:]) < 1e-5


def test_refinements_that_invert_nothing_are_rejected():
    short, denoise = chain("ddim25"), exact_denoiser(0.0, 1.0)
    with pytest.raises(UserError, match="refinements is 2 with skip_last=False"):
        invert(denoise, X_0, schedule=short, skip_last=False, refinements=2)
    with pytest.raises(UserError, match=r"refinements is 99; it must lie in \[0, 32\]"):
        invert(denoise, X_0, schedule=short, refinements=99)
