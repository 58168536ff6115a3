"""One stage on the device at a time: the same pictures, and nothing that lingers."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import batch_sampling, load, offload, text_to_image
from unclip_jax.inference.cascade import tokenise
from unclip_jax.inference.text_to_image import SampleOptions


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


def batches(cascade, z_img=None):
    """Two batches of one caption each, as images 0 and 1 of a seed."""
    words = cascades.tokenizers(cascade)
    message = [tokenise(cascade, words, [caption]) for caption in cascades.CAPTIONS[:2]]
    keys = text_to_image.keys_for(3, jnp.arange(2))
    return [offload.SampleBatch(t, keys[i : i + 1], z_img) for i, t in enumerate(message)]


STAGES = {
    "prior": ["clip", "prior", "decoder", "upsampler_256"],
    "z_txt": ["clip", "decoder"],
    "z_img": ["decoder"],
}


@pytest.mark.parametrize("condition", text_to_image.CONDITIONS)
def test_images_are_those_of_the_whole_cascade_and_no_stage_lingers(run_dir, condition):
    loaded, result = load.load_cascade(run_dir), load.find_cascade(run_dir)
    if condition != "prior":  # the upsampler does not differ
        bare = result.cascade.without_upsamplers()
        loaded, result = loaded._replace(cascade=bare), result._replace(cascade=bare)
    options = SampleOptions(condition=condition)
    z_img = jnp.ones((1, loaded.cascade.decoder.model.z_dim)) if condition == "z_img" else None
    message = batches(loaded.cascade, z_img)
    results, stages = sample_watched(result, message, options)
    assert stages == STAGES[condition]
    assert not np.array_equal(*results)
    whole = jax.jit(functools.partial(text_to_image.sample, loaded.cascade, options=options))
    for images, (captions, keys, embedding) in zip(results, message, strict=True):
        output = whole(loaded.params, captions, keys, z_img=embedding)
        expected = np.asarray(to_uint8(output.images))
        assert images.shape == expected.shape == (1, *[loaded.cascade.image_size] * 2, 3)
        assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_the_last_batch_is_filled_up_and_cut_again(run_dir, monkeypatch):
    """Three captions in batches of two: all programs have one size, and captions their order."""
    result, calls = load.find_cascade(run_dir), []

    def sample(files, batches, *, options, begin):
        calls.extend(batches)
        return [np.arange(2 * i, 2 * i + 2, dtype=np.uint8)[:, None, None, None] for i in range(2)]

    monkeypatch.setattr(batch_sampling.offload, "sample", sample)
    captions = [*cascades.CAPTIONS[:3]]
    settings = {"seed": 5, "options": SampleOptions(), "batch_size": 2}
    images = batch_sampling.sample_by_stage(result, captions, **settings)
    assert images.ravel().tolist() == [0, 1, 2]
    ids = [np.asarray(batch.captions["clip"].tokens) for batch in calls]
    assert [len(each) for each in ids] == [2, 2]
    np.testing.assert_array_equal(ids[1][0], ids[1][1])  # the last caption fills the batch
    assert np.any(ids[0][0] != ids[0][1])
    keys = np.concatenate([jax.random.key_data(batch.keys) for batch in calls])
    np.testing.assert_array_equal(
        keys, jax.random.key_data(text_to_image.keys_for(5, jnp.arange(4)))
    )


def sample_watched(result, message, options):
    """Images, and the stages in the order in which they began; each is freed before the next."""
    references, stages = {}, []

    def watch_reader(name, read):
        def reading():
            gc.collect()
            assert not [
                n for n, leaves in references.items() for leaf in leaves if leaf() is not None
            ]
            params = read()
            references[name] = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
            assert references[name] and all(leaf() is not None for leaf in references[name])
            return params

        return reading

    watch = {name: watch_reader(name, read) for name, read in result.readers.items()}
    result = result._replace(readers=watch)
    images = offload.sample(result, message, options=options, begin=stages.append)
    assert stages == list(references)
    return images, stages
