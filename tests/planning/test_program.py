"""The FLOPs that a plan counts for a train step."""

from tests.test_experiments import config
from unclip_jax.experiment.config import from_config
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.planning import program


def test_sam_needs_two_gradients():
    settings = config("clip", "tiny")
    mesh = make_mesh(MeshConfig())
    one = program.train(from_config(settings), mesh=mesh)
    settings.optim.sam = 0.1
    two = program.train(from_config(settings), mesh=mesh)
    assert two.model_flops == 2 * one.model_flops
    assert two.traced.flops == 2 * one.traced.flops
