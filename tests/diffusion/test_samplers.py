import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.respace import respace, timesteps
from unclip_jax.diffusion.samplers import ancestral, ddim, sample, step_inputs
from unclip_jax.diffusion.schedule import Schedule

MEAN, STD = 0.4, 0.5
RULES = {
    "ddim 0": ddim(0.0),
    "ddim 0.5": ddim(0.5),
    "ddim 1": ddim(1.0),
    "small": ancestral("small"),
    "large": ancestral("large"),
    "learned_range": ancestral("learned_range"),
}


def chain(spec: str) -> Schedule:
    return respace(FULL, timesteps=timesteps(spec, num_timesteps=1000))


def keys(count: int, seed: int = 0) -> jax.Array:
    return rng.per_example(jax.random.key(seed), jnp.arange(count))


def moments_at_the_end(rule: Callable, shorts: list[Schedule]) -> list[tuple[float, float]]:
    """Mean and standard deviation of x_0 from x_T ~ N(0, 1) on each chain, to the last digit.

    With an affine denoiser a step is x_s = a x_t + b + c n. Three calls of the rule read off
    a, b and c; moments follow without drawing anything.
    """
    # the best variance of a Gaussian lies between the bounds, wherever var_frac is
    denoise = exact_denoiser(MEAN, STD, var_frac=0.0)
    x_t, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])

    def one(inputs):
        at_t = denoise(x_t, jnp.full(3, inputs.t))
        return rule(x_t, at_t, inputs, noise)[:, 0]

    inputs = jax.tree.map(lambda *rows: jnp.concatenate(rows), *map(step_inputs, shorts))
    steps = np.float64(jax.jit(jax.vmap(one))(inputs))
    moments = []
    for part in np.split(steps, np.cumsum([short.num_timesteps for short in shorts])[:-1]):
        mean, variance = 0.0, 1.0
        for zero, gain, spread in part:
            mean = (gain - zero) * mean + zero
            variance = (gain - zero) ** 2 * variance + (spread - zero) ** 2
        moments.append((mean, np.sqrt(variance)))
    return moments


@pytest.mark.parametrize("name", RULES)
def test_the_exact_denoiser_of_a_gaussian_gives_it_back(name):
    moments = moments_at_the_end(RULES[name], [chain(n) for n in ("16", "64", "256", "1000")])
    errors = [abs(mean - MEAN) + abs(std - STD) for mean, std in moments]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]  # it falls with the steps
    assert errors[3] < 5e-3


@pytest.mark.parametrize("name", ["ddim 0", "ddim 1", "learned_range"])
def test_drawn_samples_have_the_moments_that_the_steps_imply(name):
    short, count = chain("16"), 4000
    run = jax.jit(functools.partial(
        sample, exact_denoiser(MEAN, STD, var_frac=0.0), schedule=short, step=RULES[name]
    ))  # fmt: skip
    x_0 = np.float64(run(jax.random.normal(jax.random.key(1), (count, 1)), keys=keys(count)))
    [(mean, std)] = moments_at_the_end(RULES[name], [short])
    assert x_0.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(count))
    assert x_0.std() == pytest.approx(std, rel=4 / np.sqrt(2 * count))


def test_the_exact_reverse_variance_as_a_table_needs_few_steps():
    # q(x_s | x_t) of a Gaussian is Gaussian: with its true variance even 4 steps are exact
    short = chain("4")
    gain = short.alpha_bar * STD**2 + 1 - short.alpha_bar
    uncertainty = STD**2 * (1 - short.alpha_bar) / gain  # Var(x_0 | x_t)
    table = short.beta_tilde + short.posterior_x_0**2 * uncertainty
    inputs = step_inputs(short, variance_table=table)
    denoise = exact_denoiser(MEAN, STD)
    mean, variance = 0.0, 1.0
    for k in range(4):
        at = jax.tree.map(lambda value, k=k: value[k], inputs)
        x_t, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])
        got = ancestral("table")(x_t, denoise(x_t, jnp.full(3, at.t)), at, noise)[:, 0]
        zero, slope, spread = np.float64(got)
        mean, variance = (slope - zero) * mean + zero, (slope - zero) ** 2 * variance
        # the last step returns the mean of x_0, whose spread the model keeps to itself
        variance += (spread - zero) ** 2 if k < 3 else uncertainty[0]
    assert mean == pytest.approx(MEAN, abs=1e-4)
    assert np.sqrt(variance) == pytest.approx(STD, abs=1e-4)


@functools.cache
def compiled(rule: Callable, denoise: Callable, spec: str) -> Callable:
    return jax.jit(functools.partial(sample, denoise, schedule=chain(spec), step=rule))


def walk(rule: Callable, denoise: Callable, spec: str, seed: int = 0) -> jax.Array:
    x_T = jax.random.normal(jax.random.key(9), (3, 5))
    return compiled(rule, denoise, spec)(x_T, keys=keys(3, seed))


def bounded(x_t: jax.Array, t: jax.Array) -> Prediction:
    """Not affine, and another one for every example's x_t."""
    level = FULL.level(t, ndim=x_t.ndim)
    x_0 = jnp.tanh(x_t * (1 + level.signal))
    return Prediction(x_0, (x_t - level.signal * x_0) / level.noise, jnp.sin(x_t))


def test_ddim_without_noise_does_not_depend_on_the_seed():
    one, other = (walk(ddim(0.0), bounded, "ddim25", seed) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_ddim_with_noise_does():
    one, other = (walk(ddim(0.2), bounded, "ddim25", seed) for seed in (0, 1))
    assert np.all(one != other)


@pytest.mark.parametrize("spec", ["ddim25", "1000"])
def test_ddim_with_eta_1_is_ancestral_with_the_small_variance(spec):
    by_ddim = walk(ddim(1.0), bounded, spec)
    by_ancestral = walk(ancestral("small"), bounded, spec)
    np.testing.assert_allclose(by_ddim, by_ancestral, atol=2e-5)


@pytest.mark.parametrize("eta", [0.25, 0.6])
def test_the_noise_of_a_step_grows_linearly_with_eta_and_its_total_stays(eta):
    # DDIM equation 16; what is drawn and what eps carries add up to the noise level of s
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    inputs = jax.tree.map(lambda value: value[10], step_inputs(chain("ddim25")))

    def drawn(eta: float) -> float:
        return float(ddim(eta)(zero, Prediction(zero, zero), inputs, one)[0, 0])

    assert drawn(eta) == pytest.approx(eta * drawn(1.0), rel=1e-5)
    carried = float(ddim(eta)(zero, Prediction(zero, one), inputs, zero)[0, 0])
    assert drawn(eta) ** 2 + carried**2 == pytest.approx(float(inputs.noise_s) ** 2, rel=1e-5)


@pytest.mark.parametrize(("var_frac", "name"), [(1.0, "large"), (-1.0, "small")])
def test_the_ends_of_the_learned_range_are_the_fixed_variances(var_frac, name):
    def denoise(x_t, t):
        return bounded(x_t, t)._replace(var_frac=jnp.full_like(x_t, var_frac))

    learned = walk(ancestral("learned_range"), denoise, "ddim25")
    fixed = walk(ancestral(name), denoise, "ddim25")
    np.testing.assert_array_equal(learned, fixed)


@pytest.mark.parametrize("spec", ["64", "22@140"])
@pytest.mark.parametrize("name", RULES)
def test_the_last_step_returns_the_clean_sample_without_noise(name, spec):
    x_t = jnp.ones((2, 3))
    pred = Prediction(jnp.full((2, 3), 0.25), x_t, jnp.zeros((2, 3)))
    last = jax.tree.map(lambda value: value[-1], step_inputs(chain(spec)))
    assert float(last.noise_t) > (0.2 if "@" in spec else 0.0)  # and x_0 at once from there
    got = RULES[name](x_t, pred, last, 100.0 * jnp.ones((2, 3)))
    np.testing.assert_allclose(got, 0.25, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim 1", "learned_range"])
def test_an_example_does_not_depend_on_its_batch(name):
    x_T = jax.random.normal(jax.random.key(2), (4, 5))
    run = compiled(RULES[name], bounded, "ddim25")
    together = run(x_T, keys=keys(4))
    alone = run(x_T[2:3], keys=keys(4)[2:3])
    np.testing.assert_allclose(alone[0], together[2], atol=1e-6)
    turned = run(x_T[::-1], keys=keys(4)[::-1])
    np.testing.assert_array_equal(turned, together[::-1])


def test_many_seeds_are_one_trace_and_one_call_of_the_network():
    traces = []

    def denoise(x_t, t):
        traces.append(x_t.shape)
        return bounded(x_t, t)

    run = jax.jit(functools.partial(sample, denoise, schedule=chain("64"), step=ancestral("small")))
    x_T = jnp.zeros((3, 5))
    results = [run(x_T, keys=keys(3, seed)) for seed in range(3)]
    assert traces == [(3, 5)]
    assert np.all(results[0] != results[1]) and np.all(results[1] != results[2])


def test_the_network_is_given_original_timesteps_in_descending_order():
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: seen.append(int(t[0])), t, ordered=True)
        return bounded(x_t, t)

    walk(ddim(0.0), denoise, "fast27").block_until_ready()
    jax.effects_barrier()
    assert seen == chain("fast27").timesteps[::-1].tolist()


def test_steps_draw_different_noise():
    noises = []

    def spy(x_t, pred, at, noise):
        jax.debug.callback(lambda noise: noises.append(np.asarray(noise)), noise, ordered=True)
        return x_t

    x_T = jnp.zeros((2, 500))
    sample(bounded, x_T, schedule=chain("4"), step=spy, keys=keys(2)).block_until_ready()
    jax.effects_barrier()
    flat = np.stack(noises).reshape(8, 500)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(8), atol=4 / np.sqrt(500))


def test_step_inputs_keep_the_digits_of_float64():
    inputs = step_inputs(FULL)
    np.testing.assert_allclose(inputs.noise_t[::-1], FULL.noise, rtol=1e-7)
    np.testing.assert_allclose(jnp.exp(inputs.log_beta)[::-1], FULL.beta, rtol=2e-6)
    assert inputs.position.tolist() == list(range(999, -1, -1))
    assert float(inputs.signal_s[-1]) == 1.0 and float(inputs.noise_s[-1]) == 0.0


def test_a_noise_share_out_of_range_is_refused():
    with pytest.raises(UserError, match="eta is 1.5; it must lie in .0.0, 1.0."):
        ddim(1.5)


def test_an_unknown_variance_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown variance 'learned'. Did you mean 'learned_range'"):
        ancestral("learned")
    assert [ancestral(name).variance for name in samplers.VARIANCES]


def test_a_learned_variance_needs_a_model_that_has_one():
    with pytest.raises(UserError, match="'learned_range' needs a model with a learned variance"):
        walk(ancestral("learned_range"), exact_denoiser(0.0, 1.0), "4")


@pytest.mark.parametrize("table", [np.ones(3), np.array([1.0, 1.0, 0.0, 1.0])])
def test_a_table_that_does_not_fit_is_refused(table):
    match = f"has {len(table)} values, the least {table.min():g}, for a chain of 4 steps"
    with pytest.raises(UserError, match=match):
        step_inputs(chain("4"), variance_table=table)


def test_a_table_that_is_missing_is_refused():
    with pytest.raises(UserError, match="variance 'table' needs a variance_table, which is None"):
        walk(ancestral("table"), bounded, "4")


def test_one_eta_per_example_is_each_of_them_alone():
    keys = rng.per_example(jax.random.key(0), jnp.arange(3))
    x_T = rng.normal_each(keys, (4, 2))
    etas = (0.0, 0.5, 1.0)
    swept = samplers.sample(
        exact_denoiser(0.3, 0.5), x_T, schedule=FULL, step=samplers.Ddim(jnp.array(etas)), keys=keys
    )
    for i, eta in enumerate(etas):
        alone = samplers.sample(
            exact_denoiser(0.3, 0.5), x_T, schedule=FULL, step=samplers.ddim(eta), keys=keys
        )
        np.testing.assert_allclose(swept[i], alone[i], atol=1e-5)
