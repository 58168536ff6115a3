"""Tables, grids and single steps of the original implementations, as recorded by running them.

`gd_*` cases come from the code released with ADM (arXiv 2105.05233), `sched_*` from diffusers.
The recordings lie in a folder of reference data beside the checkout; without it these tests skip.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.ddim_inversion import invert
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Target
from unclip_jax.diffusion.respace import respace, timesteps
from unclip_jax.diffusion.samplers import Ancestral, Ddim, Solver
from unclip_jax.diffusion.schedule import Schedule, make_schedule

NAMES = {"squaredcos_cap_v2": "cosine", "linear": "linear"}
VARIANCES = {
    "fixed_small": Ancestral("small"),
    "fixed_large": Ancestral("large"),
    "learned_range": Ancestral("learned_range"),
}
SPECS = ["25", "50", "7", "100", "250", "fast27", "ddim25", "ddim50", "10,10,3,2,2", "20,10,5"]
STEPS = [
    f"gd_{schedule}_{variance}_{mean}_{spec}"
    for schedule in NAMES
    for variance in VARIANCES
    for mean in ("eps", "x0")
    for spec in ("25", "fast27")
]
FULL = {name: make_schedule(ours, num_timesteps=1000) for name, ours in NAMES.items()}


class Case(NamedTuple):
    """One recording; images are NHWC here and NCHW in the file."""

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    outputs: dict[str, dict[str, Any]]

    def images(self, name: str) -> np.ndarray:
        """An array of images [steps b h w c] in float32."""
        return np.moveaxis(self.arrays[name].astype(np.float32), 2, -1)

    def check(self, name: str, got: Any) -> None:
        """Hold `got` to the recorded output and its tolerances (absolute: greatest and mean)."""
        expected, rule = self.arrays[f"out_{name}"], self.outputs[name]
        got = np.asarray(got)
        assert got.shape == expected.shape
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(got, expected)
            return
        scale = max(1.0, rule["rms"])
        error = np.abs(np.float64(got) - np.float64(expected))
        assert error.max() <= rule.get("atol", 2e-5 * scale)
        assert error.mean() <= rule.get("mean_atol", 4e-6 * scale)


@functools.cache
def index(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {case["id"]: case for case in json.loads((root / "index.json").read_text())["cases"]}


@pytest.fixture
def oracle(shared: pathlib.Path):
    root = shared / "oracles"
    if not (root / "index.json").is_file():
        pytest.skip(f"no recordings of the originals at {root}")

    def load(name: str) -> Case:
        entry = index(root)[name]
        with np.load(root / entry["npz"]) as file:
            arrays = dict(file)
        return Case(entry.get("config", {}), arrays, entry["outputs"])

    return load


def step(solver: Solver, x_t, pred, noise, *, chain: Schedule, positions: np.ndarray) -> np.ndarray:
    """x after the rows at positions of the chain, for [steps b h w c]; NCHW like the recordings."""
    rows = samplers.take(samplers.on_device(solver.plan(chain)), -1 - positions)
    at = jax.tree.map(lambda column: column.reshape(-1, 1, 1, 1, 1), rows)
    x_s, _ = solver.advance(x_t, (), pred=pred, at=at, noise=noise)
    return np.moveaxis(np.asarray(x_s), -1, 2)


def predictions(case: Case, full: Schedule) -> process.Prediction:
    """The prediction of recorded raw outputs, with x_0 clipped as the originals do by default."""
    out, x_t = case.images("in_model_output"), jnp.asarray(case.images("in_x"))
    mean, frac = out[..., :3], out[..., 3:] if out.shape[-1] == 6 else None
    target = {"eps": Target.EPS, "x0": Target.X_0}[case.config["mean"]]
    level = full.level(jnp.asarray(case.arrays["in_t"], jnp.int32), ndim=5)
    var_frac = None if frac is None else jnp.asarray(frac)
    pred = process.to_prediction(
        jnp.asarray(mean), x_t, target=target, alpha_bar=level, var_frac=var_frac
    )
    return process.with_x_0(pred, process.static_threshold(pred.x_0), x_t, alpha_bar=level)


@pytest.mark.parametrize("name", STEPS)
def test_single_steps_of_the_adm_code(oracle, name):
    case = oracle(name)
    full = FULL[case.config["schedule"]]
    grid = timesteps(case.config["respacing"], num_timesteps=1000)
    chain, positions = respace(full, timesteps=grid), case.arrays["in_index"]
    np.testing.assert_array_equal(chain.timesteps[positions], case.arrays["in_t"])

    pred = predictions(case, full)
    x_t, noise = jnp.asarray(case.images("in_x")), jnp.asarray(case.images("in_noise"))
    case.check("pred_xstart", np.moveaxis(np.asarray(pred.x_0), -1, 2))
    ancestral: Solver = VARIANCES[case.config["variance"]]
    x_s = step(ancestral, x_t, pred, noise, chain=chain, positions=positions)
    case.check("p_sample", x_s)
    chain = round_chain(chain)
    for output, ddim in {"ddim_eta0": Ddim(0.0), "ddim_eta0_6": Ddim(0.6)}.items():
        case.check(output, step(ddim, x_t, pred, noise, chain=chain, positions=positions))
    if case.config["variance"] == "fixed_small":  # the others repeat it with other numbers
        case.check("ddim_reverse", np.moveaxis(reversed_steps(case, pred, chain), -1, 2))


def round_chain(chain: Schedule) -> Schedule:
    """The chain whose alpha_bar are float32 numbers, as in the original's DDIM.

    The original forms 1 - alpha_bar in float32, which near the data leaves it three digits; ours
    come from float64 and differ from the recording there by more than its tolerance.
    """
    alpha_bar = chain.alpha_bar.astype(np.float32).astype(np.float64)
    return Schedule(1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1]), chain.timesteps)


def reversed_steps(case: Case, pred: process.Prediction, chain: Schedule) -> np.ndarray:
    """Every recorded step towards the noise, as an inversion of a chain that holds it alone."""
    results = []
    for k, position in enumerate(case.arrays["in_index"].tolist()):
        at_k = process.Prediction(pred.x_0[k], pred.eps[k])
        last = position == chain.num_timesteps - 1
        pair = np.arange(position, position + (1 if last else 2))
        x = jnp.asarray(case.images("in_x")[k])
        short = respace(chain, timesteps=pair)
        results.append(invert(knows(at_k), x, schedule=short, skip_last=not last))
    return np.stack(results)


def knows(pred: process.Prediction) -> Denoiser:
    return lambda x_t, t: pred


def test_grids_and_their_betas(oracle):
    case = oracle("respacing")
    for spec in SPECS:
        indices = timesteps(spec, num_timesteps=1000)
        label = spec.replace(",", "_")
        case.check(f"steps_{label}", indices)
        for name, full in FULL.items():
            case.check(f"betas64_{name}_{label}", respace(full, timesteps=indices).beta)


def test_noise_schedules_of_diffusers(oracle):
    case = oracle("sched_tables")
    case.check("unclip_betas", FULL["squaredcos_cap_v2"].beta)
    case.check("unclip_alphas_cumprod", FULL["squaredcos_cap_v2"].alpha_bar)
    case.check("linear_alphas_cumprod", FULL["linear"].alpha_bar)


# not 999, where 499.5 is rounded up there and down by the running sum of the ADM code, as here
@pytest.mark.parametrize("count", [2, 3, 5, 7, 10, 25, 27, 50, 100, 250, 1000])
def test_fractional_grids_are_those_of_the_unclip_scheduler(oracle, count):
    indices = timesteps(str(count), num_timesteps=1000)
    oracle("sched_tables").check(f"unclip_timesteps_{count}", indices[::-1])


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_single_steps_of_the_diffusers_ddim(oracle, eta):
    case = oracle(f"sched_ddim_eta{eta}")
    full = FULL["squaredcos_cap_v2"]
    chain = respace(full, timesteps=np.sort(case.arrays["in_timesteps"]))
    positions = np.searchsorted(chain.timesteps, case.arrays["in_t"])
    x_t, out, noise = (
        jnp.asarray(case.images(f"in_{name}")) for name in ("sample", "model_output", "noise")
    )
    level = chain.level(jnp.asarray(positions), ndim=5)
    pred = process.to_prediction(out, x_t, target=Target.EPS, alpha_bar=level)
    # x_0 is clipped there and eps, unlike ADM's, is left as it was
    clipped = process.Prediction(process.static_threshold(pred.x_0), pred.eps)
    x_s = step(Ddim(eta), x_t, clipped, noise, chain=chain, positions=positions)
    case.check("prev_sample", x_s)
