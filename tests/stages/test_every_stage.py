"""Properties of every stage of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.stages import registry

GROUPS = ("codec", "fitted")  # of parameters that are fitted, not learned
FITTED = tuple(f"['{name}']" for name in GROUPS)


@pytest.fixture(scope="module", params=registry.run_folders())
def case(request):
    stage = tiny.experiment(request.param).build_stage()
    params = tiny.random_params(stage)
    return stage, params, jax.tree.map(jnp.asarray, tiny.random_batch(stage, 8))


def test_the_random_batch_satisfies_the_spec(case):
    stage, _, batch = case
    batches.check(stage.batch_spec, jax.tree.map(np.asarray, batch))


def test_batches_are_split_but_for_losses_over_pairs(case):
    """A contrastive loss compares all examples: parts of a batch have another one."""
    assert case[0].splittable == (case[0].name != "clip")


@pytest.fixture(scope="module")
def step(case):
    return loss_and_gradient(case)


def loss_and_gradient(case):
    """Loss and gradient as a function of the key."""
    stage, params, batch = case
    step = jax.jit(jax.value_and_grad(lambda params, key: stage.loss(params, batch, key)[0]))
    return lambda key: step(params, key)


def test_the_loss_is_a_function_of_its_key(case, step):
    stage, _, _ = case
    one, again, other = (float(step(jax.random.key(s))[0]) for s in (0, 0, 1))
    assert one == again
    assert np.isfinite(one)
    assert stage.name in ("clip", "dvae") or one != other  # which draw nothing


def test_every_parameter_gets_a_gradient(case, step):
    stage, params, _ = case
    keys = jax.random.split(jax.random.key(0), 6)  # some of them drop conditions
    alive = [jax.tree.map(lambda x: bool(np.any(x)), step(key)[1]) for key in keys]
    flat, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(lambda *x: any(x), *alive))
    dead = [jax.tree_util.keystr(path) for path, any_gradient in flat if not any_gradient]
    # a key bias shifts every score of a query alike, which softmax cannot see
    dead = [name for name in dead if "key" not in name.lower() or "bias" not in name]
    fitted_names = [name for name in dead if stage.fit and name.startswith(FITTED)]
    assert dead == fitted_names
    assert len(fitted_names) == sum(len(jax.tree.leaves(params.get(name, ()))) for name in GROUPS)


def test_evaluation_has_no_dropout_and_no_drops(case):
    stage, params, batch = case
    run = jax.jit(lambda key: stage.evaluate(params, batch, key)["loss"])
    assert float(run(jax.random.key(3))) == float(run(jax.random.key(3)))


def test_the_description_is_what_the_registry_builds_from(case):
    from unclip_jax.core.config import build

    stage, _, _ = case
    entry = registry.stage_entry(stage.name)
    rebuilt = entry.make(build(entry.config, stage.describe["config"], where="config"))
    assert rebuilt.batch_spec == stage.batch_spec
    assert rebuilt.describe == stage.describe


def test_preview_shows_the_original_beside_the_sample(case):
    stage, params, batch = case
    if stage.preview is None:
        pytest.skip(f"{stage.name} draws no pictures")
    few = jax.tree.map(lambda x: x[:2], batch)
    preview = jax.jit(stage.preview)(params, few, jax.random.key(0))
    side = few["image"].shape[1]
    assert preview.shape[1] == side and preview.shape[2] % side == 0
    np.testing.assert_allclose(preview[:, :, :side], few["image"], atol=1e-6)
    assert jnp.abs(preview).max() <= 1.0


def test_an_unknown_stage_is_rejected():
    with pytest.raises(UserError, match="unknown stage 'decodr'. Did you mean 'decoder'"):
        registry.stage_entry("decodr")
