"""The record of a stage: its functions of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.batch import image_field
from unclip_jax.core.stage import PairwiseLoss, Stage

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
FLOATS = PIXELS / np.float32(127.5) - np.float32(1)
PARAMS, KEY = {}, jax.random.key(0)


def images(params, batch, key):
    return batch["image"]


def share(axes):
    return lambda embedded: (jnp.mean(embedded), {"images": embedded})


def stage(**fields) -> Stage:
    return Stage(
        name="s",
        batch_spec={"image": image_field(4)},
        init=lambda key: {},
        loss=lambda params, batch, key: (batch["image"], {}),
        evaluate=images,
        splittable=True,
        describe={},
        **{"preview": images, "pairwise": PairwiseLoss(images, share)} | fields,
    )


FUNCTIONS = {
    "loss": lambda s: lambda *inputs: s.loss(*inputs)[0],
    "evaluate": lambda s: s.evaluate,
    "preview": lambda s: s.preview,
    "embed": lambda s: s.pairwise.embed,
    "pairwise": lambda s: lambda *inputs: s.pairwise.loss(*inputs)[1]["images"],
    "replica": lambda s: lambda *inputs: s.pairwise.replica_loss(("data",))(*inputs)[1]["images"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("image", [PIXELS, FLOATS], ids=["bytes", "floats"])
def test_functions_of_a_batch_see_floats(name, image):
    """As compiled programs call them."""
    function = jax.jit(FUNCTIONS[name](stage()))
    np.testing.assert_array_equal(function(PARAMS, {"image": jnp.asarray(image)}, KEY), FLOATS)


def test_stages_without_images_have_no_such_functions():
    plain = stage(preview=None, pairwise=None)
    assert plain.preview is None and plain.pairwise is None
