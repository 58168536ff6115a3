"""The options that a plan recommends when a run does not fit."""

from tests.test_experiments import config
from unclip_jax.experiment.config import from_config
from unclip_jax.planning.program import memory_options


def message(name: str, size: str) -> tuple[str, ...]:
    experiment = from_config(config(name, size))
    return memory_options(experiment, experiment.build_stage())


def test_only_what_the_stage_can_do_is_advised():
    clip = message("clip", "paper")
    assert clip == ("--config.optim.sam_cached=True (one replica of SAM at a time)", "more chips")
    (accumulate, *rest) = message("clip", "tiny")
    assert accumulate == "--config.train.accumulate=2 or more"
    assert rest == ["the model's remat 'block'", "more chips"]
    (accumulate, *rest) = message("decoder", "paper")
    assert accumulate == "--config.train.accumulate=2 or more" and rest == ["more chips"]
