"""Float32 chains: tables bit for bit and single steps as diffusers' schedulers take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.test_oracles import FULL, index, oracle  # noqa: F401 (a fixture)
from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.float32_schedule import to_float32
from unclip_jax.diffusion.process import Target
from unclip_jax.diffusion.samplers import Ancestral
from unclip_jax.diffusion.schedule import Schedule

FLOAT32 = to_float32(FULL["squaredcos_cap_v2"])
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned_range",
}
TARGETS = {"epsilon": Target.EPS, "sample": Target.X_0, "v_prediction": Target.V}


def test_tables_are_those_of_the_unclip_scheduler_bit_for_bit(oracle):  # noqa: F811
    case = oracle("sched_tables")
    np.testing.assert_array_equal(FLOAT32.beta, case.arrays["out_unclip_betas"])
    np.testing.assert_array_equal(FLOAT32.alpha_bar, case.arrays["out_unclip_alphas_cumprod"])


def test_every_table_is_float32():
    tables = ("alpha_bar", "alpha_bar_prev", "signal", "noise", "posterior_x_0", "posterior_x_t")
    short = FLOAT32.keep(np.array([0, 1, 500, 999]))
    for chain in (FLOAT32, short):
        assert {getattr(chain, name).dtype for name in tables} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(short.beta[:2], FLOAT32.beta[:2])  # neighbours keep their beta
    np.testing.assert_array_equal(short.alpha_bar, FLOAT32.alpha_bar[[0, 1, 500, 999]])


def test_the_last_step_loses_what_float32_loses():
    # 1 - alpha_bar_0 keeps three digits; exact tables give 1
    assert abs(float(FLOAT32.posterior_x_0[0]) - 0.99947) < 1e-5
    assert FULL["squaredcos_cap_v2"].posterior_x_0[0] == 1.0


@pytest.mark.parametrize("last", [400, 800, 952])
def test_a_long_first_step_keeps_its_share_of_x_T(last):
    """Its weight in the posterior mean is the root of a ratio of 1e-8, which 1 - beta loses."""
    keep = (to_float32(FULL["squaredcos_cap_v2"], exact=True).keep, FULL["squaredcos_cap_v2"].keep)
    chains = [each(np.array([0, last, 999])) for each in keep]
    weights = [float(chain.posterior_x_t[-1]) for chain in chains]
    assert 1e-5 < weights[1] < 1e-3
    assert weights[0] == pytest.approx(weights[1], rel=1e-3)


def at_pairs(pairs, keep, solver):
    """The solver's rows of (t, next) pairs, -1 = the data, stacked to broadcast over images."""
    rows = []
    for t, s in pairs:
        chain = keep(np.array([s, t] if s >= 0 else [t]))
        rows.append(samplers.take(samplers.on_device(solver.plan(chain)), 0))
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(-1, 1, 1, 1, 1), *rows)


def step(case, pairs, keep):
    """(x_s, clipped x_0) of the recorded inputs."""
    config = case.config
    solver = Ancestral(VARIANCES[config["variance_type"]])
    at = at_pairs(pairs, keep, solver)
    out, x_t, noise = (
        jnp.asarray(case.images(f"in_{n}")) for n in ("model_output", "sample", "noise")
    )
    learned_variance = config["variance_type"] == "learned_range"
    mean, frac = jnp.split(out, 2, axis=-1) if learned_variance else (out, None)
    level = process.Level(at.signal_t, at.noise_t)
    target = TARGETS[config["prediction_type"]]
    pred = process.to_prediction(mean, x_t, target=target, alpha_bar=level, var_frac=frac)
    if config.get("clip_sample", True):
        x_0 = process.static_threshold(pred.x_0, limit=config["clip_sample_range"])
        pred = pred._replace(x_0=x_0)
    return solver.advance(x_t, (), pred=pred, at=at, noise=noise)[0], pred.x_0


@pytest.mark.parametrize("clip", ["1.0", "5.0", "off"])
@pytest.mark.parametrize("predicted", ["epsilon", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range"])
def test_single_steps_of_the_unclip_scheduler(oracle, variance, predicted, clip):  # noqa: F811
    case = oracle(f"sched_unclip_{variance}_{predicted}_clip{clip}")
    times, nexts = case.arrays["in_t"], case.arrays["in_prev_t"]
    pairs = [(t, s if s >= 0 else t - 1) for t, s in zip(times, nexts, strict=True)]
    x_s, x_0 = step(case, pairs, FLOAT32.keep)
    case.check("prev_sample", np.moveaxis(np.asarray(x_s), -1, 2))
    case.check("pred_original_sample", np.moveaxis(np.asarray(x_0), -1, 2))


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_single_steps_of_the_ddpm_scheduler(oracle, variance, schedule, predicted):  # noqa: F811
    case = oracle(f"sched_ddpm_{variance}_{schedule}_{predicted}")
    full = FULL[schedule]
    if schedule == "linear":
        ends = (case.config["beta_start"], case.config["beta_end"])
        full = Schedule(np.linspace(*ends, 1000), full.timesteps)
    stride = 1000 // len(case.arrays["in_timesteps"])
    pairs = [(t, t - stride) for t in case.arrays["in_t"]]
    keep = to_float32(full, exact=True).keep
    case.check("prev_sample", np.moveaxis(np.asarray(step(case, pairs, keep)[0]), -1, 2))
