"""Loss curves with the TPU kernel in interpret mode, and with plain attention."""

import jax
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.backbones import attention, tpu_attention
from unclip_jax.experiment import files
from unclip_jax.experiment.config import from_config
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.parallel.place import global_batch
from unclip_jax.training.train_program import make_train_program

STEPS = 6
ROUNDING = 1e-5, 1e-4  # of loss and norm of the gradient, relative


def curves(name):
    """Loss and norm of the gradient of every step on eight devices, without bfloat16's rounding."""
    config = files.get_config(f"{name}:tiny")
    config.model.model.dtype = "float32"
    config.optim.warmup_steps = 0
    experiment = from_config(config)
    stage, mesh = experiment.build_stage(), make_mesh(MeshConfig(data=2, fsdp=4))
    program = make_train_program(
        stage, optim=experiment.optim, mesh=mesh, rules="fsdp", steps=STEPS, ema_decay=0.9
    )
    state, key = program.create(jax.random.key(0)), jax.random.key(1)
    curve = []
    for index in range(STEPS):
        batch = global_batch(tiny.random_batch(stage, 16, seed=index % 3), mesh)
        state, metrics = program.step(state, batch, key)
        curve.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(curve)


@pytest.mark.parametrize("name", ["clip", "prior"])
def test_the_kernel_changes_no_loss_curve(monkeypatch, name):
    plain, calls, kernel = curves(name), [], tpu_attention.fused_attention

    def interpreted(*args, **options):
        calls.append(args)
        return kernel(*args, **options, interpret=True)

    monkeypatch.setattr(tpu_attention, "fused_attention", interpreted)

    def as_for_bfloat16(q, k, mask, choose=attention._implementation):
        return choose(q.astype("bfloat16"), k, mask)

    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    monkeypatch.setattr(attention, "_implementation", as_for_bfloat16)
    fused = curves(name)
    assert calls and plain[-1, 0] < plain[0, 0]
    for got, want, rounding in zip(fused.T, plain.T, ROUNDING, strict=True):
        np.testing.assert_allclose(got, want, rtol=rounding)
