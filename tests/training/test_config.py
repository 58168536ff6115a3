"""Settings of a run that nobody gave."""

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.training.config import TrainConfig

PLAIN = TrainConfig(steps=1000, batch_size=16)


def test_checkpoints_validation_and_samples_are_of_the_same_steps():
    """Every 500, each of which ends a record of the metrics, of 50 steps."""
    assert PLAIN.save_every == PLAIN.eval_every == PLAIN.sample_every == 500
    assert PLAIN.log_every == 50


def test_what_costs_time_or_space_is_off():
    for name in ("save_minutes", "keep_every", "stall_minutes", "profile_steps"):
        assert getattr(PLAIN, name) == 0, name
    assert PLAIN.wandb == "" and not PLAIN.single_replica_restore
    assert PLAIN.check_memory  # which costs nothing
    assert (PLAIN.accumulate, PLAIN.seed) == (1, 0)


def test_sizes_and_limits_are_as_documented():
    """The average is unCLIP's (table 3); a grid is a square, and three checkpoints are kept."""
    assert PLAIN.ema_decay == 0.9999
    assert (PLAIN.num_samples, PLAIN.keep) == (4 * 4, 3)
    assert (PLAIN.eval_batches, PLAIN.max_bad_steps) == (8, 20)
    assert PLAIN.profile_start == 10  # steps from which on times are steady


@pytest.mark.parametrize(
    "name",
    [
        *("steps", "batch_size", "accumulate", "log_every", "eval_batches", "num_samples"),
        *("save_every", "keep", "max_bad_steps"),
    ],
)
def test_counts_are_positive(name):
    assert getattr(TrainConfig(**{"steps": 5, "batch_size": 4, name: 1}), name) == 1
    with pytest.raises(UserError, match=f"config.train.{name} is 0; it must be greater than 0"):
        TrainConfig(**{"steps": 5, "batch_size": 4, name: 0})


@pytest.mark.parametrize(
    "name",
    [
        *("eval_every", "sample_every", "keep_every", "profile_start", "profile_steps"),
        *("save_minutes", "stall_minutes"),
    ],
)
def test_intervals_may_be_0_for_never(name):
    kind = type(getattr(PLAIN, name))  # minutes are floating point numbers
    assert getattr(TrainConfig(steps=5, batch_size=4, **{name: kind(0)}), name) == 0
    with pytest.raises(UserError, match=f"config.train.{name} is -1(.0)?; it must lie in "):
        TrainConfig(steps=5, batch_size=4, **{name: kind(-1)})
