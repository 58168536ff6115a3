"""Images from embeddings that come from elsewhere."""

import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.checks import UserError
from unclip_jax.engine.embedding_images import decode_embeddings
from unclip_jax.engine.inference_engine import InferenceEngine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return InferenceEngine.open(cascades.write(tmp_path_factory.mktemp("run")), batch=2)


def test_an_image_depends_on_its_embedding_alone_and_not_on_its_norm(engine):
    size = engine.cascade.decoder.model.z_dim
    z = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    images = decode_embeddings(engine, z)
    assert images.shape == (2, engine.cascade.image_size, engine.cascade.image_size, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(decode_embeddings(engine, 3.0 * z), images)
    other = decode_embeddings(engine, np.stack([z[0], -z[1]]))
    np.testing.assert_array_equal(other[0], images[0])
    with pytest.raises(UserError, match=f"have 3 dimensions; this decoder takes {size}"):
        decode_embeddings(engine, z[:, :3])
