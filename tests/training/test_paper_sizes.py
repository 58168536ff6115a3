"""The stages at the paper's sizes, on shapes alone: they shard, and they know what they need."""

import importlib

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.experiment import config as experiments_config
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training import memory
from unclip_jax.training.loop import check_fit
from unclip_jax.training.train_program import make_train_program

CASES = [
    ("clip", "fsdp"),
    ("prior", "fsdp_tp"),
    ("prior_ar", "fsdp_tp"),
    ("decoder", "fsdp_tp"),
    ("upsampler_256", "fsdp"),
]
MESHES = {"fsdp": MeshConfig(fsdp=8), "fsdp_tp": MeshConfig(fsdp=4, tensor=2)}


def paper(name: str) -> experiments_config.Experiment:
    config = importlib.import_module(f"experiments.{name}").get_config("paper")
    return experiments_config.from_config(config)


@pytest.mark.parametrize(("name", "rules"), CASES)
def test_at_most_two_percent_of_a_state_is_replicated(name: str, rules: str):
    run = paper(name)
    program = make_train_program(
        run.build_stage(),
        optim=run.optim,
        mesh=make_mesh(MESHES[rules]),
        rules=rules,
        steps=run.train.steps,
        ema_decay=run.train.ema_decay,
    )
    report = place.measure_replication(program.abstract)
    assert report.share < 0.02, report.line()
    share = place.bytes_per_device(program.abstract) / report.total_bytes
    assert 1 / 8 <= share < (0.14 if rules == "fsdp" else 0.25)


@pytest.mark.parametrize("name", ["prior"])
def test_the_paper_s_sizes_are_rejected_on_24_gigabytes(name: str, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 24 * 10**9)
    run = paper(name)
    with pytest.raises(UserError, match=rf"{name}: \d\.\d+ billion .* It cannot fit: choose a"):
        check_fit(
            run.build_stage(),
            config=run.train,
            optim=run.optim,
            mesh=MeshConfig(fsdp=8),
            rules="fsdp",
        )
