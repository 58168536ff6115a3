import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiler
from tests.diffusion.gaussians import FULL, exact_denoiser
from tests.diffusion.solvers import SOLVERS, VARIANTS
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import inpainting, process, samplers
from unclip_jax.diffusion.respace import respace, timesteps

SHORT = respace(FULL, timesteps=timesteps("20", num_timesteps=1000))
ANCESTRAL = samplers.Ancestral("small")
RHO = 0.9


def keys(count):
    return rng.per_example(jax.random.key(0), jnp.arange(count))


def inpaint(denoise, x_T, *, image, mask, schedule, solver, keys, repeats, jump, steps=None):
    """x_0 that equals `image` where the mask is 1."""
    x_0 = samplers.run(
        denoise,
        x_T,
        table=inpainting.resampled(solver.plan(schedule, steps=steps), repeats=repeats, jump=jump),
        solver=solver,
        keys=keys,
        before=inpainting.keep_known(image, mask, solver=solver, keys=keys),
    ).x
    return inpainting.combine(x_0, image, mask=mask)


def correlated(x_t, t):
    """The exact denoiser of two standard normal pixels with correlation RHO."""
    level = FULL.level(t, ndim=2)
    # along (1, 1) and (1, -1) the pixels are independent, of variance 1 + RHO and 1 - RHO
    total, difference = x_t.sum(1, keepdims=True), x_t[:, :1] - x_t[:, 1:]
    gain_t, gain_d = (
        level.signal * v / (level.signal**2 * v + level.noise**2) for v in (1 + RHO, 1 - RHO)
    )
    x_0 = jnp.concatenate(
        [gain_t * total + gain_d * difference, gain_t * total - gain_d * difference], axis=1
    )
    return process.from_x_0(x_0 / 2, x_t, alpha_bar=level)


def fill(repeats, *, solver=ANCESTRAL, count=4096, value=1.0, steps="200", jump=10):
    x_T = rng.normal_each(keys(count), (2,))
    return inpaint(
        correlated,
        x_T,
        image=jnp.full((count, 2), value),
        mask=jnp.broadcast_to(jnp.array([[1.0, 0.0]]), (count, 2)),
        schedule=FULL,
        steps=steps,
        solver=solver,
        keys=keys(count),
        repeats=repeats,
        jump=jump,
    )


def test_resampling_leads_to_the_conditional_distribution():
    once, often = fill(1, count=1024), fill(10, count=1024)
    np.testing.assert_array_equal(often[:, 0], 1.0)
    # X_2 given X_1 = 1 is N(rho, 1 - rho^2); one walk alone falls far short of its mean
    assert float(often[:, 1].mean()) == pytest.approx(RHO, abs=0.05)
    assert float(often[:, 1].std()) == pytest.approx(np.sqrt(1 - RHO**2), abs=0.05)
    assert float(once[:, 1].mean()) < RHO - 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_fills_in_the_conditional_mean_better_with_resampling(name):
    """Restarting forgets what a solver remembers; otherwise multistep solvers go astray."""
    steps = "logsnr20" if name == "dpmpp_3m" else "20"  # extrapolation wants even steps
    options = {"solver": SOLVERS[name], "count": 256, "steps": steps, "jump": 4}
    once, often = (float(fill(repeats, **options)[:, 1].mean()) for repeats in (1, 10))
    assert abs(often - RHO) < abs(once - RHO) and abs(often - RHO) < 0.2


def test_known_pixels_are_kept_bit_for_bit():
    images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3), minval=-1.0)
    mask = jnp.zeros((2, 4, 4, 1)).at[0, :2].set(1.0).at[1, :, 1].set(1.0)
    result = inpaint(
        exact_denoiser(0.0, 0.5),
        rng.normal_each(keys(2), (4, 4, 3)),
        image=images,
        mask=mask,
        schedule=SHORT,
        solver=samplers.Ddim(0.0),
        keys=keys(2),
        repeats=2,
        jump=5,
    )
    inside = np.broadcast_to(mask > 0.5, images.shape)
    np.testing.assert_array_equal(np.asarray(result)[inside], np.asarray(images)[inside])
    assert np.abs(np.asarray(result - images)[~inside]).min() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_known_and_no_repeats_is_ordinary_sampling(name):
    solver = VARIANTS[name]
    x_T = rng.normal_each(keys(3), (4,))
    denoise = exact_denoiser(0.3, 0.5, var_frac=0.0)
    nothing = {"image": jnp.zeros((3, 4)), "mask": jnp.zeros((3, 4)), "schedule": SHORT}

    @functools.partial(jax.jit, compiler_options=compiler.THOROUGH)
    def both(x_T, keys):
        options = {"solver": solver, "keys": keys}
        result = inpaint(denoise, x_T, **nothing, **options, repeats=1, jump=7)
        return result, samplers.sample(denoise, x_T, schedule=SHORT, **options)

    result, plain = both(x_T, keys(3))
    np.testing.assert_allclose(result, plain, atol=1e-6)


@pytest.mark.parametrize(("repeats", "jump"), [(1, 1), (3, 7), (2, 20)])
@pytest.mark.parametrize("name", ["ancestral", "heun"])
def test_segments_are_resampled_and_noise_goes_back_to_their_level(name, repeats, jump):
    plain = VARIANTS[name].plan(SHORT)
    table = inpainting.resampled(plain, repeats=repeats, jump=jump)
    gain, spread, restarts = table.resampling
    visits = [np.sum(table.t[table.begins] == t) for t in SHORT.timesteps]
    assert visits == [repeats] * 20 and len(table.t) == repeats * len(plain.t)
    np.testing.assert_allclose(gain**2 + spread**2, 1.0, atol=1e-6)
    ups = np.flatnonzero(spread)
    assert len(ups) == (repeats - 1) * -(-20 // jump) and (restarts == (spread > 0)).all()
    # from the level that the row before ended at
    np.testing.assert_allclose(table.signal_s[ups - 1] * gain[ups], table.signal_t[ups], rtol=1e-6)
    steps = table.position[table.begins]
    assert len(set(steps)) == len(steps)  # no two passes share random numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0, "jump": 1}, r"repeats is 0; it must lie in \[1, 100\]"),
        ({"repeats": 1, "jump": 21}, r"jump is 21; it must lie in \[1, 20\]"),
    ],
)
def test_an_impossible_walk_is_rejected(options, message):
    with pytest.raises(UserError, match=message):
        inpainting.resampled(ANCESTRAL.plan(SHORT), **options)


def test_masks_to_learn_with_have_one_rectangle_or_nothing():
    masks = np.asarray(inpainting.random_known(jax.random.key(0), count=2000, side=16))[..., 0]
    assert set(np.unique(masks)) == {0.0, 1.0}
    nothing = (masks == 0).all(axis=(1, 2))
    spread = np.sqrt(inpainting.UNKNOWN_SHARE * (1 - inpainting.UNKNOWN_SHARE) / len(masks))
    assert nothing.mean() == pytest.approx(inpainting.UNKNOWN_SHARE, abs=4 * spread)
    for mask in masks[~nothing][:200]:
        rows, columns = ((mask == 0).any(axis=axis) for axis in (1, 0))
        np.testing.assert_array_equal(mask == 0, rows[:, None] & columns[None])
        for inside in (rows, columns):
            (places,) = np.nonzero(inside)
            assert len(places) == places[-1] - places[0] + 1 >= 4  # whole, and a quarter at least
