"""The commands of `sample` on an untrained cascade that reads CLIP's features, as Karlo does."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import cascades
from unclip_jax import sample
from unclip_jax.editing import edits
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import image_inputs
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import TextRequest
from unclip_jax.inference import text_to_image

SIZE, STEPS = 16, "--steps=4"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"), names=cascades.NAMES[:3], reads_clip=True)


@pytest.fixture(scope="module")
def engine(run_dir):
    return InferenceEngine.open(run_dir, batch=2)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)).save(folder / "a.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[: SIZE // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "a.png"


@pytest.fixture
def call(monkeypatch, engine, run_dir, tmp_path):
    """Runs a command on the compiled engine; returns its images."""
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: engine)

    def run(name, *arguments):
        out = tmp_path / "out.png"
        sample.main([name, *map(str, arguments), f"--models={run_dir}", f"--out={out}"])
        record = json.loads(out.with_suffix(".json").read_text())
        return np.stack([np.asarray(Image.open(tmp_path / one)) for one in record["images"]])

    return run


def apart(one, other) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_conditions_are_raw_embeddings_and_features_of_clip(engine):
    words = cascades.CAPTIONS[:2]
    clip_tokens = engine.tokens(words)["clip"]
    encode_text = jax.jit(functools.partial(text_to_image.clip_text, engine.cascade))
    expected = encode_text(engine.params, captions=clip_tokens)
    got = engine._captions(words)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    empty = engine._captions([None, ""])
    np.testing.assert_array_equal(empty.sequence[0], empty.sequence[1])
    z = engine.text_embeddings(words)
    np.testing.assert_allclose(z, expected.z_txt, atol=1e-5)
    assert np.abs(jnp.linalg.norm(z, axis=1) - 1).min() > 0.05


def test_images_are_reconstructed_and_varied(call, picture):
    again = call("reconstruct", picture, STEPS)
    assert again.shape == (2, SIZE, SIZE, 3)
    variations = call("variations", picture, STEPS, "--etas", 0, 1, "--num=1")
    assert apart(variations[0], again[1]) <= 1 < 10 < apart(variations[1], again[1])
    guided = call("variations", picture, STEPS, "--etas", 0, "--num=1", "--guidance=3")
    assert apart(guided[0], again[1]) > 1


def test_images_are_inpainted(call, picture):
    hole = (picture, picture.parent / "mask.png", "--num=1", "--repeats=2", "--jump=2")
    result = call("inpaint", *hole, "--caption=a red circle", STEPS, "--guidance=2")
    original = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(result[0, SIZE // 2 :], original[SIZE // 2 :])
    assert np.mean(result[0, : SIZE // 2] != original[: SIZE // 2]) > 0.5


@pytest.mark.parametrize("inversion", ["ddim", "ddpm"])
def test_text_diffs_begin_at_the_image(call, picture, inversion):
    arguments = (picture, "a blue square", STEPS, "--frames=2", f"--inversion={inversion}")
    path = call("text-diff", *arguments, "--source=a ring")
    start = call("reconstruct", picture, STEPS, "--refine=0")[1] if inversion == "ddim" else None
    original = np.asarray(Image.open(picture)) if start is None else start
    assert apart(path[0], original) <= 1 and np.any(path[1] != path[0])


def test_a_text_diff_keeps_the_norm_of_a_raw_embedding(engine, picture):
    z = engine.image_embeddings([image_inputs.read(picture)])
    target = engine.text_embeddings(["a blue square"])
    thetas = np.linspace(0, 1, 3, dtype=np.float32)
    latent = Latent(z, jnp.zeros((1, 2, 2, 3)))
    path = edits.text_diff(latent, z_target=target, z_source=None, thetas=thetas)
    norms = jnp.linalg.norm(path.latent.z_img, axis=1)
    np.testing.assert_allclose(norms, jnp.linalg.norm(z), rtol=1e-4)


def test_previews_negative_captions_and_schedules_of_guidance(engine):
    words = cascades.CAPTIONS[:2]
    plain = engine.sample(words, seed=0)
    request = TextRequest(captions=tuple(words), previews=2)
    output = engine.run(request)
    assert apart(output.images, plain.images) <= 1 and output.previews.shape[1] == 2
    assert engine.cascade.decoder.sampling.guidance_scale != 1.0
    other = engine.sample(words, seed=0, negative="a ring")
    assert apart(other.images, plain.images) > 1
