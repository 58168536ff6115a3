"""One stage on the device at a time: the same pictures, and nothing that lingers."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import load, offload, text_to_image
from unclip_jax.inference.cascade import tokenise
from unclip_jax.inference.text_to_image import SampleOptions


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


def batches(cascade, z_img=None):
    """Two batches of one caption each, as images 0 and 1 of a seed."""
    words = cascades.tokenizers(cascade)
    told = [tokenise(cascade, words, [caption]) for caption in cascades.CAPTIONS[:2]]
    keys = text_to_image.keys_for(3, jnp.arange(2))
    return [offload.Batch(t, keys[i : i + 1], z_img) for i, t in enumerate(told)]


@pytest.mark.parametrize("condition", text_to_image.CONDITIONS)
def test_pictures_are_those_of_the_whole_cascade(run_dir, condition):
    loaded, found = load.load_cascade(run_dir), load.find_cascade(run_dir)
    options = SampleOptions(condition=condition)
    z_img = jnp.ones((1, loaded.cascade.decoder.model.z_dim)) if condition == "z_img" else None
    told = batches(loaded.cascade, z_img)
    drawn = offload.sample(found, told, options=options)
    assert not np.array_equal(*drawn)
    for images, (captions, keys, given) in zip(drawn, told, strict=True):
        whole = text_to_image.sample(
            loaded.cascade, loaded.params, captions, keys, options=options, z_img=given
        )
        wanted = np.asarray(to_uint8(whole.images))
        assert images.shape == wanted.shape == (1, 32, 32, 3)
        assert np.abs(images.astype(int) - wanted.astype(int)).max() <= 1


def test_a_stage_is_gone_before_the_next_is_read(run_dir):
    found, seen, begun = load.find_cascade(run_dir), {}, []

    def watched(name, read):
        def reading():
            gc.collect()
            assert not [n for n, leaves in seen.items() for leaf in leaves if leaf() is not None]
            params = read()
            seen[name] = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
            assert seen[name] and all(leaf() is not None for leaf in seen[name])
            return params

        return reading

    watch = {name: watched(name, read) for name, read in found.readers.items()}
    offload.sample(
        found._replace(readers=watch),
        batches(found.cascade),
        options=SampleOptions(),
        begin=begun.append,
    )
    assert begun == list(seen) == ["clip", "prior", "decoder", "upsampler_256"]
