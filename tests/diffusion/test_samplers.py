import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiler import THOROUGH
from tests.diffusion.gaussians import FULL, exact_denoiser
from tests.diffusion.solvers import STOCHASTIC, VARIANTS
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.respace import respace, timesteps
from unclip_jax.diffusion.samplers import Ancestral, Ddim, Solver, StepTable, sample, step_table
from unclip_jax.diffusion.schedule import Schedule

MEAN, STD = 0.4, 0.5


def chain(spec: str) -> Schedule:
    return respace(FULL, timesteps=timesteps(spec, num_timesteps=1000))


def keys(count: int, seed: int = 0) -> jax.Array:
    return rng.per_example(jax.random.key(seed), jnp.arange(count))


def moments_at_the_end(solver: Solver, steps: str) -> tuple[float, float]:
    """Mean and standard deviation of x_0 when x_T has the data's distribution with noise.

    With an affine denoiser x_0 is affine in x_T and in the noise of every row. One example with
    x_T = 1 and one per row with unit noise, beside one of zeros, read off all the factors; moments
    follow without random numbers.
    """
    table = solver.plan(FULL, steps=steps)
    rows = len(table.t)
    # the best variance of a Gaussian lies between the bounds, wherever var_frac is
    denoise = exact_denoiser(MEAN, STD, var_frac=0.0)
    x_T = jnp.zeros((rows + 2, 1)).at[1].set(1.0)
    noise = jnp.eye(rows, rows + 2, k=2)[..., None]

    def run(x, noise):
        options = {"table": table, "solver": solver, "keys": keys(rows + 2)}
        return samplers.run(denoise, x, noise=noise, **options).x

    x_0 = np.float64(jax.jit(run)(x_T, noise)[:, 0])
    offset, gain, spread = x_0[0], x_0[1] - x_0[0], x_0[2:] - x_0[0]
    signal, level = table.signal_t[0], table.noise_t[0]
    variance = gain**2 * (STD**2 * signal**2 + level**2) + np.sum(spread**2)
    return offset + gain * signal * MEAN, np.sqrt(variance)


@pytest.mark.parametrize("name", VARIANTS)
def test_exact_denoiser_of_a_gaussian_gives_it_back(name):
    solver, errors = VARIANTS[name], []
    for steps in ("16", "64", "256", "1000")[: 4 if solver.order == 1 else 3]:
        mean, std = moments_at_the_end(solver, steps)
        errors.append(abs(mean - MEAN) + abs(std - STD))
    # the error falls with the steps, down to what float32 leaves of a sum over them
    falls = [b < a / 2**solver.order or b < 1e-4 for a, b in itertools.pairwise(errors)]
    assert all(falls) and errors[-1] < 5e-3


@pytest.mark.parametrize("name", ["ddim", *STOCHASTIC])
def test_samples_have_the_moments_that_the_steps_imply(name):
    solver, count = VARIANTS[name], 4000
    table = solver.plan(FULL, steps="16")
    run = jax.jit(functools.partial(
        samplers.run, exact_denoiser(MEAN, STD, var_frac=0.0), table=table, solver=solver
    ))  # fmt: skip
    x_T = jax.random.normal(jax.random.key(1), (count, 1))
    spread = np.sqrt(STD**2 * table.signal_t[0] ** 2 + table.noise_t[0] ** 2)
    x_0 = np.float64(run(table.signal_t[0] * MEAN + spread * x_T, keys=keys(count)).x)
    mean, std = moments_at_the_end(solver, "16")
    assert x_0.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(count))
    assert x_0.std() == pytest.approx(std, rel=4 / np.sqrt(2 * count))


def test_the_exact_reverse_variance_as_a_table_needs_few_steps():
    # q(x_s | x_t) of a Gaussian is Gaussian: with its true variance even 4 steps are exact
    short = chain("4")
    gain = short.alpha_bar * STD**2 + 1 - short.alpha_bar
    uncertainty = STD**2 * (1 - short.alpha_bar) / gain  # Var(x_0 | x_t)
    table = short.beta_tilde + short.posterior_x_0**2 * uncertainty
    solver = Ancestral("table", tuple(table.tolist()))
    rows = samplers.on_device(solver.plan(short))
    denoise = exact_denoiser(MEAN, STD)
    mean, variance = 0.0, 1.0
    for k in range(4):
        at = samplers.take(rows, k)
        x_t, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])
        x_s = advance(solver, x_t, denoise(x_t, jnp.full(3, at.t)), at, noise)
        zero, slope, spread = np.float64(x_s[:, 0])
        mean, variance = (slope - zero) * mean + zero, (slope - zero) ** 2 * variance
        # the last step returns the mean of x_0, whose spread the model keeps to itself
        variance += (spread - zero) ** 2 if k < 3 else uncertainty[0]
    assert mean == pytest.approx(MEAN, abs=1e-4)
    assert np.sqrt(variance) == pytest.approx(STD, abs=1e-4)


def advance(solver: Solver, x_t, pred: Prediction, at: StepTable, noise) -> jax.Array:
    """x after one row of a solver without memory."""
    return solver.advance(x_t, (), pred=pred, at=at, noise=noise)[0]


@functools.cache
def compile_sampler(solver: Solver, denoise: Callable, spec: str) -> Callable:
    return jax.jit(functools.partial(sample, denoise, schedule=chain(spec), solver=solver))


def walk(solver: Solver, denoise: Callable, spec: str, seed: int = 0) -> jax.Array:
    x_T = jax.random.normal(jax.random.key(9), (3, 5))
    return compile_sampler(solver, denoise, spec)(x_T, keys=keys(3, seed))


def bounded(x_t: jax.Array, t: jax.Array) -> Prediction:
    """Not affine, and another one for every example's x_t."""
    level = FULL.level(t, ndim=x_t.ndim)
    x_0 = jnp.tanh(x_t * (1 + level.signal))
    return Prediction(x_0, (x_t - level.signal * x_0) / level.noise, jnp.sin(x_t))


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_depend_on_the_seed_if_the_solver_is_stochastic(name):
    one, other = (walk(VARIANTS[name], bounded, "ddim25", seed) for seed in (0, 1))
    assert np.all(one != other) if VARIANTS[name].stochastic else np.all(one == other)


@pytest.mark.parametrize("spec", ["ddim25", "1000"])
def test_ddim_with_eta_1_is_ancestral_with_the_small_variance(spec):
    by_ddim = walk(Ddim(1.0), bounded, spec)
    by_ancestral = walk(Ancestral("small"), bounded, spec)
    np.testing.assert_allclose(by_ddim, by_ancestral, atol=2e-5)


@pytest.mark.parametrize("eta", [0.25, 0.6])
def test_the_noise_of_a_step_grows_linearly_with_eta_and_its_total_stays(eta):
    # DDIM equation 16; what is drawn and what eps carries add up to the noise level of s
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    at = samplers.take(samplers.on_device(Ddim().plan(chain("ddim25"))), 10)

    def added_noise(eta: float) -> float:
        return float(advance(Ddim(eta), zero, Prediction(zero, zero), at, one)[0, 0])

    assert added_noise(eta) == pytest.approx(eta * added_noise(1.0), rel=1e-5)
    carried_noise = float(advance(Ddim(eta), zero, Prediction(zero, one), at, zero)[0, 0])
    assert added_noise(eta) ** 2 + carried_noise**2 == pytest.approx(
        float(at.noise_s) ** 2, rel=1e-5
    )


@pytest.mark.parametrize(("var_frac", "name"), [(1.0, "large"), (-1.0, "small")])
def test_the_ends_of_the_learned_range_are_the_fixed_variances(var_frac, name):
    def denoise(x_t, t):
        return bounded(x_t, t)._replace(var_frac=jnp.full_like(x_t, var_frac))

    learned_range = walk(Ancestral("learned_range"), denoise, "ddim25")
    fixed = walk(Ancestral(name), denoise, "ddim25")
    np.testing.assert_array_equal(learned_range, fixed)


@pytest.mark.parametrize("spec", ["64", "22@140"])
@pytest.mark.parametrize("name", VARIANTS)
def test_last_row_returns_the_clean_sample_without_noise(name, spec):
    solver, x_t = VARIANTS[name], jnp.ones((2, 3))
    pred = Prediction(jnp.full((2, 3), 0.25), x_t, jnp.zeros((2, 3)))
    last = samplers.take(samplers.on_device(solver.plan(FULL, steps=spec)), -1)
    assert float(last.noise_t) > (0.2 if "@" in spec else 0.0)  # and x_0 at once from there
    noise = 100.0 * jnp.ones((2, 3))
    x_0, _ = solver.advance(x_t, solver.start(x_t), pred=pred, at=last, noise=noise)
    np.testing.assert_allclose(x_0, 0.25, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_begin_where_the_row_before_ends(name):
    table = VARIANTS[name].plan(FULL, steps="10")
    for entry, end in (("signal_t", "signal_s"), ("noise_t", "noise_s")):
        following = getattr(table, entry)[1:]
        np.testing.assert_allclose(getattr(table, end)[:-1], following, rtol=1e-12)
    level = FULL.level(jnp.asarray(table.t), ndim=1)
    np.testing.assert_allclose(level.signal, table.signal_t, rtol=1e-4)
    np.testing.assert_allclose(level.noise, table.noise_t, rtol=1e-4)
    assert table.begins.sum() == 10 and (np.diff(table.position) <= 0).all()


@pytest.mark.parametrize("name", ["ddim, eta 1", "ancestral, learned_range", "edm, churn"])
def test_an_example_does_not_depend_on_its_batch(name):
    x_T = jax.random.normal(jax.random.key(2), (4, 5))
    run = compile_sampler(VARIANTS[name], bounded, "ddim25")
    together = run(x_T, keys=keys(4))
    alone = run(x_T[2:3], keys=keys(4)[2:3])
    np.testing.assert_allclose(alone[0], together[2], atol=1e-6)
    reverse = run(x_T[::-1], keys=keys(4)[::-1])
    np.testing.assert_array_equal(reverse, together[::-1])


def test_many_seeds_are_one_trace_and_one_call_of_the_network():
    traces = []

    def denoise(x_t, t):
        traces.append(x_t.shape)
        return bounded(x_t, t)

    run = jax.jit(
        functools.partial(sample, denoise, schedule=chain("64"), solver=Ancestral("small"))
    )
    x_T = jnp.zeros((3, 5))
    results = [run(x_T, keys=keys(3, seed)) for seed in range(3)]
    assert traces == [(3, 5)]
    assert np.all(results[0] != results[1]) and np.all(results[1] != results[2])


def test_the_network_is_given_original_timesteps_in_descending_order():
    network_steps = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: network_steps.append(int(t[0])), t, ordered=True)
        return bounded(x_t, t)

    walk(Ddim(0.0), denoise, "fast27").block_until_ready()
    jax.effects_barrier()
    assert network_steps == chain("fast27").timesteps[::-1].tolist()


@dataclasses.dataclass(frozen=True)
class Recorder(Solver):
    """A solver that leaves x where it is and records the noise of every row."""

    noises: list

    def advance(self, x, memory, *, pred, at, noise):
        jax.debug.callback(lambda n: self.noises.append(np.asarray(n)), noise, ordered=True)
        return x, memory


def test_steps_draw_different_noise():
    recorder, x_T = Recorder([]), jnp.zeros((2, 500))
    sample(bounded, x_T, schedule=chain("4"), solver=recorder, keys=keys(2)).block_until_ready()
    jax.effects_barrier()
    flat = np.stack(recorder.noises).reshape(8, 500)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(8), atol=4 / np.sqrt(500))


def test_step_table_keeps_the_digits_of_float64():
    table = samplers.on_device(step_table(FULL, columns=Ddim().columns(FULL)))
    np.testing.assert_allclose(table.noise_t[::-1], FULL.noise, rtol=1e-7)
    np.testing.assert_allclose(jnp.exp(table.columns)[::-1], FULL.beta, rtol=2e-6)
    assert table.position.tolist() == list(range(999, -1, -1))
    assert float(table.signal_s[-1]) == 1.0 and float(table.noise_s[-1]) == 0.0


def test_a_noise_share_out_of_range_is_rejected():
    with pytest.raises(UserError, match="eta is 1.5; it must lie in .0.0, 1.0."):
        Ddim(1.5)


def test_an_unknown_variance_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown variance 'learned'. Did you mean 'learned_range'"):
        Ancestral("learned")
    assert [Ancestral(name).variance for name in samplers.VARIANCES]


def test_a_learned_variance_needs_a_model_that_has_one():
    with pytest.raises(UserError, match="'learned_range' needs a model with a learned variance"):
        walk(Ancestral("learned_range"), exact_denoiser(0.0, 1.0), "4")


@pytest.mark.parametrize("table", [np.ones(3), np.array([1.0, 1.0, 0.0, 1.0])])
def test_a_table_that_does_not_fit_is_rejected(table):
    match = f"has {len(table)} values, the least {table.min():g}, for a chain of 4 steps"
    with pytest.raises(UserError, match=match):
        Ancestral("table", tuple(table.tolist())).plan(chain("4"))


def test_a_table_that_is_missing_is_rejected():
    with pytest.raises(UserError, match="variance 'table' needs a variance table, which is None"):
        walk(Ancestral("table"), bounded, "4")


def test_one_eta_per_example_is_each_of_them_alone():
    keys = rng.per_example(jax.random.key(0), jnp.arange(3))
    x_T = rng.normal_each(keys, (4, 2))
    etas = (0.0, 0.5, 1.0)
    swept = samplers.sample(
        exact_denoiser(0.3, 0.5), x_T, schedule=FULL, solver=Ddim(jnp.array(etas)), keys=keys
    )
    for i, eta in enumerate(etas):
        alone = samplers.sample(
            exact_denoiser(0.3, 0.5), x_T, schedule=FULL, solver=Ddim(eta), keys=keys
        )
        np.testing.assert_allclose(swept[i], alone[i], atol=1e-5)


# one scan: previews, parts and stored noise, for every solver


@functools.cache
def whole(solver: Solver, *, steps: str = "10", **options) -> samplers.ChainState:
    table, x_T = solver.plan(FULL, steps=steps), jax.random.normal(jax.random.key(9), (3, 4))

    def run(x):
        return samplers.run(bounded, x, table=table, solver=solver, keys=keys(3), **options)

    return jax.jit(run)(x_T)


@pytest.mark.parametrize("name", VARIANTS)
def test_previews_change_no_sample_and_end_in_the_last_prediction(name):
    solver = VARIANTS[name]
    for count in (1, 3):
        output = whole(solver, previews=count)
        np.testing.assert_allclose(output.x, whole(solver).x, atol=1e-6)
        assert output.previews.shape == (count, 3, 4)
        np.testing.assert_allclose(output.previews[-1], output.x, atol=1e-6)  # no noise on the last


@pytest.mark.parametrize("name", ["ancestral", "heun"])
def test_previews_of_all_rows_are_the_predictions_of_the_denoiser(name):
    solver, predicted = VARIANTS[name], []
    table, x_T = solver.plan(FULL, steps="10"), jax.random.normal(jax.random.key(9), (3, 4))

    def denoise(x_t, t):
        pred = bounded(x_t, t)
        jax.debug.callback(lambda x_0: predicted.append(np.asarray(x_0)), pred.x_0, ordered=True)
        return pred

    def run(x):
        options = {"table": table, "solver": solver, "keys": keys(3), "previews": len(table.t)}
        return samplers.run(denoise, x, **options).previews

    previews = jax.block_until_ready(jax.jit(run, compiler_options=THOROUGH)(x_T))
    jax.effects_barrier()
    np.testing.assert_array_equal(previews, np.stack(predicted))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("count", [4, 7])
def test_parts_run_in_turn_are_the_whole(name, count):
    solver, x = VARIANTS[name], jax.random.normal(jax.random.key(9), (3, 4))
    table, memory = solver.plan(FULL, steps="10"), None
    parts = samplers.parts(table, count)
    lengths = np.bincount(samplers.preview_slots(len(table.t), count)).tolist()
    assert [len(part.t) for part in parts] == lengths
    part_run = jax.jit(functools.partial(samplers.run, bounded, solver=solver, keys=keys(3)))
    for part in parts:
        x, memory, _ = part_run(x, table=part, memory=memory)
    np.testing.assert_allclose(x, whole(solver).x, atol=1e-6)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stored_noise_takes_the_place_of_random_noise(name):
    solver = VARIANTS[name]
    positions = solver.plan(FULL, steps="10").position
    noise = jnp.stack(
        [rng.normal_each(rng.fold_each(keys(3), "step", int(at)), (4,)) for at in positions]
    )
    table, x_T = solver.plan(FULL, steps="10"), jax.random.normal(jax.random.key(9), (3, 4))

    @jax.jit
    def run_with(noise):
        options = {"table": table, "solver": solver, "keys": keys(3)}
        return samplers.run(bounded, x_T, noise=noise, **options).x

    np.testing.assert_allclose(run_with(noise), whole(solver).x, atol=1e-6)
    assert np.abs(run_with(-noise) - run_with(noise)).min() > 0


def test_more_previews_than_rows_are_rejected():
    with pytest.raises(UserError, match=r"number of previews is 11; it must lie in \[0, 10\]"):
        whole(Ddim(), previews=11)
