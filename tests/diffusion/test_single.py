"""Float32 chains: tables bit for bit and single steps as diffusers' schedulers take them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.test_oracles import FULL, index, recorded  # noqa: F401 (a fixture)
from unclip_jax.diffusion import process
from unclip_jax.diffusion.process import Target
from unclip_jax.diffusion.samplers import ancestral, step_inputs
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.single import ONE, in_single

SINGLE = in_single(FULL["squaredcos_cap_v2"])
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned_range",
}
TARGETS = {"epsilon": Target.EPS, "sample": Target.X_0, "v_prediction": Target.V}


def test_tables_are_those_of_the_unclip_scheduler_bit_for_bit(recorded):  # noqa: F811
    case = recorded("sched_tables")
    np.testing.assert_array_equal(SINGLE.beta, case.arrays["out_unclip_betas"])
    np.testing.assert_array_equal(SINGLE.alpha_bar, case.arrays["out_unclip_alphas_cumprod"])


def test_every_table_is_float32():
    tables = ("alpha_bar", "alpha_bar_prev", "signal", "noise", "posterior_x_0", "posterior_x_t")
    short = SINGLE.keep(np.array([0, 1, 500, 999]))
    for chain in (SINGLE, short):
        assert {getattr(chain, name).dtype for name in tables} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(short.beta[:2], SINGLE.beta[:2])  # neighbours keep their beta
    np.testing.assert_array_equal(short.alpha_bar, SINGLE.alpha_bar[[0, 1, 500, 999]])


def test_the_last_step_loses_what_float32_loses():
    # 1 - alpha_bar_0 keeps three digits; exact tables give 1
    assert abs(float(SINGLE.posterior_x_0[0]) - 0.99947) < 1e-5
    assert FULL["squaredcos_cap_v2"].posterior_x_0[0] == 1.0


def at_pairs(pairs, keep):
    """Step inputs of (t, next) pairs, next -1 = the data, stacked to broadcast over images."""
    rows = []
    for t, s in pairs:
        chain = keep(np.array([s, t] if s >= 0 else [t]))
        rows.append(jax.tree.map(lambda table: table[0], step_inputs(chain)))
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(-1, 1, 1, 1, 1), *rows)


def step(case, at):
    """(x_s, clipped x_0) of the recorded inputs."""
    config = case.config
    out, x_t, noise = (
        jnp.asarray(case.images(f"in_{n}")) for n in ("model_output", "sample", "noise")
    )
    learned = config["variance_type"] == "learned_range"
    mean, frac = jnp.split(out, 2, axis=-1) if learned else (out, None)
    level = process.Level(at.signal_t, at.noise_t)
    target = TARGETS[config["prediction_type"]]
    pred = process.to_prediction(mean, x_t, target=target, alpha_bar=level, var_frac=frac)
    if config.get("clip_sample", True):
        x_0 = process.static_threshold(pred.x_0, limit=config["clip_sample_range"])
        pred = pred._replace(x_0=x_0)
    return ancestral(VARIANCES[config["variance_type"]])(x_t, pred, at, noise), pred.x_0


@pytest.mark.parametrize("clip", ["1.0", "5.0", "off"])
@pytest.mark.parametrize("predicted", ["epsilon", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range"])
def test_single_steps_of_the_unclip_scheduler(recorded, variance, predicted, clip):  # noqa: F811
    case = recorded(f"sched_unclip_{variance}_{predicted}_clip{clip}")
    times, nexts = case.arrays["in_t"], case.arrays["in_prev_t"]
    pairs = [(t, s if s >= 0 else t - 1) for t, s in zip(times, nexts, strict=True)]
    x_s, x_0 = step(case, at_pairs(pairs, SINGLE.keep))
    case.check("prev_sample", np.moveaxis(np.asarray(x_s), -1, 2))
    case.check("pred_original_sample", np.moveaxis(np.asarray(x_0), -1, 2))


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_single_steps_of_the_ddpm_scheduler(recorded, variance, schedule, predicted):  # noqa: F811
    case = recorded(f"sched_ddpm_{variance}_{schedule}_{predicted}")
    full = FULL[schedule]
    if schedule == "linear":
        ends = (case.config["beta_start"], case.config["beta_end"])
        full = Schedule(np.linspace(*ends, 1000), full.timesteps)
    stride = 1000 // len(case.arrays["in_timesteps"])
    pairs = [(t, t - stride) for t in case.arrays["in_t"]]
    single = in_single(full)

    def keep(positions):
        """As `single` does, but that this scheduler never takes beta itself, not even at t = 0."""
        chain = single.keep(positions)
        beta = ONE - chain.product / np.append(ONE, chain.product[:-1])
        return dataclasses.replace(chain, beta=beta)

    at = at_pairs(pairs, keep)
    case.check("prev_sample", np.moveaxis(np.asarray(step(case, at)[0]), -1, 2))
