import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.float32_schedule import to_float32
from unclip_jax.diffusion.respace import listed, respace, strided, timesteps
from unclip_jax.diffusion.schedule import make_schedule

COSINE = make_schedule("cosine", num_timesteps=1000)
FAST_27 = (
    "0,22,44,66,88,111,133,155,177,199,200,222,244,266,288,311,333,355,377,399,400,500,599,600,"
    "799,800,997"
)


def grid(spec: str, num_timesteps: int = 1000) -> list[int]:
    return timesteps(spec, num_timesteps=num_timesteps).tolist()


@pytest.mark.parametrize(
    ("spec", "head", "tail"),
    [
        ("250", [0, 4, 8, 12], [991, 995, 999]),
        ("64", [0, 16, 32, 48], [967, 983, 999]),
        ("2", [0], [999]),
    ],
)
def test_fractional_strides_hold_both_ends(spec, head, tail):
    indices = grid(spec)
    assert len(indices) == int(spec)
    assert indices[: len(head)] == head
    assert indices[-len(tail) :] == tail


@pytest.mark.parametrize(
    ("count", "stride", "last"), [(27, 38, 988), (15, 67, 938), (250, 4, 996), (25, 40, 960)]
)
def test_integer_strides_start_at_0(count, stride, last):
    indices = grid(f"ddim{count}")
    assert indices == list(range(0, 1000, stride))
    assert len(indices) == count
    assert indices[-1] == last


@pytest.mark.parametrize("count", [2, 7, 21, 23, 25, 31, 35, 250, 1000])
def test_a_chain_in_single_precision_has_the_indices_of_its_scheduler(count):
    """numpy's even grid, rounded (half to even): what the class of diffusers visits."""
    indices = strided(to_float32(COSINE), steps=str(count)).timesteps
    np.testing.assert_array_equal(indices, np.linspace(0, 999, count).round())
    differs = {21, 23, 31, 35}
    assert np.array_equal(indices, strided(COSINE, steps=str(count)).timesteps) or count in differs


def test_glide_fast_27():
    assert grid("fast27") == [int(index) for index in FAST_27.split(",")]


def test_sections_are_their_own_fractional_strides():
    indices = grid("10,10,3,2,2")
    assert indices[:-1] == grid("fast27")[:-1]
    assert indices[-1] == 999


def test_sections_of_unequal_length_put_the_longer_first():
    # 10 = 4 + 3 + 3
    assert grid("2,2,3", 10) == [0, 3, 4, 6, 7, 8, 9]


def test_all_steps_are_the_whole_chain():
    assert grid("1000") == list(range(1000))


@pytest.mark.parametrize("spec", ["64", "250", "ddim25", "fast27", "1000"])
def test_a_short_chain_keeps_alpha_bar_and_the_original_timesteps(spec):
    indices = timesteps(spec, num_timesteps=1000)
    short = respace(COSINE, timesteps=indices)
    np.testing.assert_allclose(short.alpha_bar, COSINE.alpha_bar[indices], rtol=1e-9)
    np.testing.assert_array_equal(short.timesteps, indices)


def test_the_beta_of_a_stride_is_that_of_its_steps_in_a_row():
    short = respace(COSINE, timesteps=np.array([0, 10, 20]))
    assert short.beta[2] == pytest.approx(1 - np.prod(1 - COSINE.beta[11:21]), rel=1e-9)


def test_respacing_twice_is_respacing_once():
    once = respace(COSINE, timesteps=np.array([0, 500, 999]))
    between = respace(COSINE, timesteps=np.array([0, 250, 500, 999]))
    twice = respace(between, timesteps=np.array([0, 2, 3]))
    np.testing.assert_allclose(once.beta, twice.beta, rtol=1e-9)
    np.testing.assert_array_equal(once.timesteps, twice.timesteps)


@pytest.mark.parametrize("spec", ["22", "ddim20", "5,5,4"])
def test_a_grid_that_begins_later_is_that_of_a_shorter_chain(spec):
    indices = grid(f"{spec}@140")
    assert indices == [140 + k for k in grid(spec, 860)]
    assert indices[0] == 140 and (spec != "22" or indices[-1] == 999)
    assert grid(f"{spec}@0") == grid(spec)


@pytest.mark.parametrize("spec", ["22@", "22@x", "22@-1", "22@999"])
def test_a_grid_that_begins_nowhere_is_rejected(spec):
    with pytest.raises(UserError, match=f"'{spec}' not understood; after '@' .* 0 to 998"):
        grid(spec)


def test_the_prior_s_64_steps_have_no_integer_stride():
    with pytest.raises(UserError, match="'ddim64': no integer stride gives 64 of 1000.*rule '64'"):
        grid("ddim64")


@pytest.mark.parametrize("spec", ["", "many", "ddim", "ddimX", "10,", "2.5"])
def test_nonsense_is_rejected(spec):
    with pytest.raises(UserError, match=f"sampling steps '{spec}' not understood; give a number"):
        grid(spec)


@pytest.mark.parametrize("spec", ["0", "-3", "1001", "10,0", "10,501"])
def test_counts_that_do_not_fit_their_section_are_rejected(spec):
    with pytest.raises(UserError, match=r"ask for -?\d+ of \d+ levels; they must ask for 1 to \d+"):
        grid(spec)


def test_one_step_is_rejected():
    with pytest.raises(UserError, match="'1' would keep index 0 only; give at least 2"):
        grid("1")


@pytest.mark.parametrize("indices", [[3, 2], [2, 2], [-1, 5], [0, 1000], []])
def test_a_grid_that_does_not_ascend_within_the_chain_is_rejected(indices):
    with pytest.raises(UserError, match=r"must ascend strictly within \[0, 999\]"):
        respace(COSINE, timesteps=np.array(indices, np.int32))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_an_even_grid_in_log_snr_is_even_where_indices_are_dense(name):
    full = make_schedule(name, num_timesteps=1000)
    indices = strided(full, steps="logsnr30").timesteps
    assert (len(indices), indices[0], indices[-1]) == (30, 0, 999)
    log_snr = np.log(full.signal / full.noise)
    dense = (indices > 50) & (indices < 980)  # elsewhere neighbours lie farther apart than the grid
    lengths = np.diff(log_snr[indices[dense]])
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.15)


@pytest.mark.parametrize("count", [2, 3, 500, 1000])
def test_an_even_grid_has_as_many_steps_as_asked(count):
    indices = strided(COSINE, steps=f"logsnr{count}").timesteps
    assert len(np.unique(indices)) == count and indices[0] == 0 and indices[-1] == 999


@pytest.mark.parametrize("spec", ["logsnr", "logsnr1", "logsnr1001", "logsnr-3"])
def test_an_even_grid_that_cannot_be_is_rejected(spec):
    with pytest.raises(UserError, match=f"'{spec}' not understood; give a number from 2 to 1000"):
        strided(COSINE, steps=spec)


def test_other_specs_are_those_of_timesteps():
    np.testing.assert_array_equal(
        strided(COSINE, steps="fast27").timesteps, timesteps("fast27", num_timesteps=1000)
    )


def test_an_integer_stride_may_be_1():
    np.testing.assert_array_equal(grid("ddim1000"), np.arange(1000))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("trailing4", [249, 499, 749, 999]), ("trailing1", [999]), ("trailing3", [332, 666, 999])],
)
def test_grids_of_distilled_models_end_at_pure_noise(spec, expected):
    assert grid(spec) == expected


@pytest.mark.parametrize("spec", ["trailing", "trailing0", "trailing1001", "trailing2.5"])
def test_such_grids_that_cannot_be_are_rejected(spec):
    with pytest.raises(UserError, match=f"'{spec}' not understood; give a number from 1 to 1000"):
        grid(spec)


@pytest.mark.parametrize("indices", [[999], [0, 999], [120, 480, 700]])
def test_indices_can_be_listed(indices):
    spec = "at:" + "-".join(map(str, indices))
    assert listed(np.array(indices)) == spec and grid(spec) == indices
    np.testing.assert_array_equal(strided(COSINE, steps=spec).timesteps, indices)


@pytest.mark.parametrize(
    "spec", ["at:", "at:0", "at:5-5", "at:9-3", "at:-1-3", "at:1-1000", "at:1-x", "at:1--3"]
)
def test_lists_that_cannot_be_are_rejected(spec):
    with pytest.raises(
        UserError, match=f"'{spec}' not understood; after 'at:' give indices from 0"
    ):
        grid(spec)
