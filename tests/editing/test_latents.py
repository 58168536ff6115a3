import dataclasses
import json
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import digests
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.editing import ddpm_latents, latents, upsampler_latents
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.editing.latents import Latent, LatentOrigin, UpsamplerLatentOrigin
from unclip_jax.inference import decoding
from unclip_jax.inference.cascade import Cascade
from unclip_jax.models.decoder import Decoder
from unclip_jax.stages import decoder
from unclip_jax.stages.distillation import DistillConfig, student_config

ORIGIN = LatentOrigin(
    clip_id="c" * 64, decoder_id="d" * 64, image_size=4, caption="a cat", name="x.png"
)


DETAILS = tuple(
    UpsamplerLatentOrigin(upsampler_id=name * 64, image_size=size, steps="8")
    for name, size in (("u", 8), ("v", 16))
)


def latent(count=1, sizes=()):
    rng = np.random.default_rng(0)

    def noise(*shape):
        return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)

    return Latent(noise(8), noise(4, 4, 3), tuple(noise(size, size, 3) for size in sizes))


def test_a_latent_comes_back_bit_for_bit_with_its_origin(tmp_path):
    path = tmp_path / "x.npz"
    latents.save(path, latent(), origin=ORIGIN)
    again, origin = latents.load(path)
    np.testing.assert_array_equal(again.z_img, latent().z_img)
    np.testing.assert_array_equal(again.x_T, latent().x_T)
    assert origin == ORIGIN
    assert path.stat().st_size < 4096


def test_the_file_is_arrays_and_json_for_anybody(tmp_path):
    path = tmp_path / "x.npz"
    latents.save(path, latent(), origin=ORIGIN)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"z_img", "x_T", "origin"}
        note = json.loads(bytes(file["origin"]))
    assert note["caption"] == "a cat" and note["steps"] == "ddim250"


def test_details_come_back_too_in_order(tmp_path):
    path, whole = tmp_path / "x.npz", latent(sizes=(8, 16))
    latents.save(path, whole, origin=dataclasses.replace(ORIGIN, details=DETAILS))
    again, origin = latents.load(path)
    assert origin.details == DETAILS and len(again.details) == 2
    for one, other in zip(again.details, whole.details, strict=True):
        np.testing.assert_array_equal(one, other)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"z_img", "x_T", "details_0", "details_1", "origin"}


def test_details_of_1024_pixels_are_not_too_large(tmp_path):
    path, whole = tmp_path / "x.npz", latent(sizes=(1024,))
    origin = UpsamplerLatentOrigin(upsampler_id="u" * 64, image_size=1024, steps="8")
    latents.save(path, whole, origin=dataclasses.replace(ORIGIN, details=(origin,)))
    assert path.stat().st_size > 12 * 2**20
    np.testing.assert_array_equal(latents.load(path)[0].details[0], whole.details[0])


def test_a_file_from_before_there_were_details_is_read(tmp_path):
    path = tmp_path / "old.npz"
    old = dataclasses.asdict(ORIGIN) | {"format_version": 1}
    del old["details"]
    write_file(path, origin=np.frombuffer(json.dumps(old).encode(), np.uint8))
    result, origin = latents.load(path)
    assert result.details == () and origin.details == () and origin.format_version == 1


def test_details_of_other_upsamplers_are_rejected_by_the_field():
    origin = dataclasses.replace(ORIGIN, details=DETAILS)
    latents.check_details_fit(origin, expected=DETAILS, where="x.npz")
    for changes, message in (
        ({"upsampler_id": "w" * 64}, "other upsamplers: upsampler_id .*'vvvvvvvvvvvv'.* 'wwww"),
        ({"image_size": 32}, r"other upsamplers: image_size \['8', '16'\], .* \['8', '32'\]"),
        ({"steps": "27"}, "details of upsampler_steps 8, 8, not 8, 27; .* details=fresh"),
    ):
        expected = (DETAILS[0], dataclasses.replace(DETAILS[1], **changes))
        with pytest.raises(UserError, match=message):
            latents.check_details_fit(origin, expected=expected, where="x.npz")
    with pytest.raises(UserError, match="of other upsamplers"):
        latents.check_details_fit(origin, expected=DETAILS[:1], where="x.npz")


def test_a_latent_of_other_models_is_rejected_by_the_field():
    latents.check_fits(ORIGIN, clip_id="c" * 64, decoder_id="d" * 64, where="x.npz")
    with pytest.raises(UserError, match="x.npz was made with other models: its decoder_id is 'dd"):
        latents.check_fits(ORIGIN, clip_id="c" * 64, decoder_id="e" * 64, where="x.npz")
    with pytest.raises(UserError, match="its clip_id is 'cc"):
        latents.check_fits(ORIGIN, clip_id="e" * 64, decoder_id="d" * 64, where="x.npz")


def write_file(path, **changes):
    """A file of version 2, which had no digests."""
    arrays = {
        "z_img": np.zeros(8, np.float32),
        "x_T": np.zeros((4, 4, 3), np.float32),
        "origin": note(),
    }
    np.savez(path, **{**arrays, **changes})


def note(**changes):
    record = as_dict({**dataclasses.asdict(ORIGIN), "format_version": 2, **changes})
    return np.frombuffer(json.dumps(record).encode(), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_T": np.zeros((4, 5, 3))}, r"x_T \[4, 5, 3\]; expected finite values"),
        ({"z_img": np.full(8, np.nan)}, "expected finite values"),
        ({"origin": note(format_version=9)}, "format_version 9; this unclip_jax"),
        ({"origin": note(colour="red")}, "has no key 'colour'"),
        ({"origin": note(format_version=True)}, "format_version True"),
        ({"origin": note(image_size=10**9)}, r"image_size is 1000000000; it must lie in"),
        ({"origin": np.frombuffer(b"[]", np.uint8)}, "holds a list, not an object"),
        ({"origin": np.frombuffer(b"{", np.uint8)}, "cannot be read as JSON"),
        ({"origin": np.frombuffer(b"[" * 100_000, np.uint8)}, "too deeply|cannot be read"),
        ({"z_img": np.array(["x"], object)}, "is not a latent"),
        ({"origin": note(details=DETAILS)}, "is not a latent .*details_0"),
        ({"origin": note(details=[{"steps": "8"}])}, r"details\[0\].upsampler_id is missing"),
        (
            {
                "origin": note(details=DETAILS[:1]),
                "details_0": np.zeros((8, 9, 3), np.float32),
            },
            r"details_0 \[8, 9, 3\]; expected finite values, \[z\] and \[4, 4, 3\] and \[8, 8, 3\]",
        ),
    ],
)
def test_a_broken_file_is_rejected(tmp_path, changes, message):
    path = tmp_path / "x.npz"
    if changes.get("z_img", np.zeros(1)).dtype == object:
        np.savez(path, **{"x_T": np.zeros(1), "origin": note(), **changes})
    else:
        write_file(path, **changes)
    with pytest.raises(UserError, match=message):
        latents.load(path)


def rewrite(path, **entries):
    """Changes arrays or entries of the origin of a file that `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    origin = json.loads(bytes(arrays["origin"]))
    for name, value in entries.items():
        if name in arrays:
            arrays[name] = value
        elif value is None:
            del origin[name]
        else:
            origin[name] = value
    arrays["origin"] = np.frombuffer(json.dumps(origin).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"z_img": np.full(8, 0.5, np.float32)}, "a digest of its arrays"),
        ({"details_1": np.zeros((16, 16, 3), np.float32)}, "a digest of its arrays"),
        ({"caption": "a dog"}, "the digest of its origin"),
        ({"steps": "ddim50"}, "the digest of its origin"),
        ({"arrays": {}}, "the digest of its origin"),
        ({"digest": None}, "the digest of its origin"),
        ({"format_version": 2}, "the digest of its origin"),
    ],
)
def test_a_changed_file_is_rejected(tmp_path, monkeypatch, entries, message):
    path = tmp_path / "x.npz"
    origin = dataclasses.replace(ORIGIN, details=DETAILS)
    latents.save(path, latent(sizes=(8, 16)), origin=origin)
    rewrite(path)  # nothing
    assert latents.load(path)[1] == origin
    rewrite(path, **entries)
    with pytest.raises(UserError, match=f"x.npz is damaged or was changed: {message}; encode"):
        latents.load(path)
    monkeypatch.setenv(digests.SKIP, "1")
    latents.load(path)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(UserError, match="is a named pipe; expected a regular file"):
        latents.load(tmp_path / "x.npz")


def test_what_is_no_archive_or_too_large_is_rejected(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("hello")
    with pytest.raises(UserError, match="x.npz is not a latent"):
        latents.load(path)
    with pytest.raises(UserError, match="nowhere.npz is not a latent"):
        latents.load(tmp_path / "nowhere.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_T.npy", bytes(64 * 2**20 + 1))
    with pytest.raises(UserError, match="bytes in .* is 67108865; it must lie in"):
        latents.load(path)
    with pytest.raises(UserError, match="cannot write"):
        latents.save(tmp_path / "no" / "x.npz", latent(), origin=ORIGIN)


def test_taking_and_joining_are_inverse():
    both = latent(2, sizes=(8,))
    again = latents.join([latents.take(both, [i]) for i in (0, 1)])
    np.testing.assert_array_equal(again.x_T, both.x_T)
    np.testing.assert_array_equal(again.details[0], both.details[0])


@pytest.fixture(scope="module")
def cascade():
    stages = {name: tiny.experiment(name).model for name in ("clip", "prior", "decoder")}
    return Cascade.of(**stages)


STD = 0.3  # of the images about the gray of their condition, in the linear denoiser


@pytest.fixture
def linear(monkeypatch, cascade):
    """Networks that are exact: CLIP's embedding is e_0, or e_1 for dark images; the decoder is
    the denoiser of N(gray, STD^2), whose gray is 0.4 z_0 - 0.4 z_1, and 0.1 more with a caption."""
    chain, cfg = cascade.decoder.diffusion.chain(), cascade.decoder

    def embed(config, params, images):
        assert config == cascade.clip and params["of"] == "clip"
        dark = jnp.mean(images, axis=(1, 2, 3)) < 0
        return jnp.where(dark[:, None], *jnp.eye(2, cfg.model.z_dim)[::-1, None])

    def network(module, params, *inputs, method, **fixed):
        assert params["of"] == "decoder"
        if method is Decoder.encode_text:
            return fixed["keep_text"]
        x_t, t = inputs
        z = fixed["z_img"] / cfg.scale
        gray = 0.4 * z[:, 0] - 0.4 * z[:, 1] + 0.1 * fixed["text"]
        mean = (gray * fixed["keep_z"])[:, None, None, None]
        level = chain.level(t, ndim=4)
        share = STD**2 * level.signal / (STD**2 * level.signal**2 + level.noise**2)
        return mean + share * (x_t - level.signal * mean)

    monkeypatch.setattr(latents.text_to_image.clip, "encode_image", embed)
    monkeypatch.setattr(decoder, "apply", network)


PARAMS = {name: {"of": name} for name in ("clip", "decoder")}
CAPTION = TokenIds(jnp.ones((2, 24), jnp.int32), jnp.ones((2, 24), bool))


@pytest.mark.parametrize("caption", [None, CAPTION])
def test_an_image_is_its_embedding_and_the_noise_that_gives_it_back(cascade, linear, caption):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-0.8, 0.8, (2, 16, 16, 3)), jnp.float32)
    clip_images = jnp.asarray([0.5, -0.5], jnp.float32)[:, None, None, None] * jnp.ones(
        (2, 8, 8, 3)
    )
    how = {"caption": caption, "steps": "8"}
    result = latents.encode(
        cascade, PARAMS, images=images, clip_images=clip_images, refinements=16, **how
    )
    assert result.details == ()
    np.testing.assert_array_equal(result.z_img, np.eye(2, 32))
    again = latents.decode(cascade, PARAMS, result, **how)
    np.testing.assert_allclose(again, images, atol=1e-4)
    other_latent = result._replace(z_img=result.z_img[::-1])
    shift = latents.decode(cascade, PARAMS, other_latent, **how) - images
    assert float(shift[0].mean()) < -0.2 and float(shift[1].mean()) > 0.2
    rough = latents.encode(cascade, PARAMS, images=images, clip_images=clip_images, **how)
    plain = latents.encode(
        cascade, PARAMS, images=images, clip_images=clip_images, refinements=0, **how
    )
    np.testing.assert_array_equal(rough.x_T, plain.x_T)  # the paper's recipe
    apart = jnp.abs(latents.decode(cascade, PARAMS, rough, **how) - images).max()
    assert float(apart) > 1e-3  # eight steps of first order
    other = latents.decode(cascade, PARAMS, result, caption=None, steps="8")
    assert (float(jnp.abs(other - images).mean()) < 1e-4) == (caption is None)


def distilled(name):
    """The config of a tiny stage that was distilled to four steps."""
    return student_config(tiny.experiment(name).model, DistillConfig(steps=4))


def test_distilled_models_are_not_inverted():
    cfg = distilled("decoder")
    message = "distilled to 4 steps, which cannot be inverted"
    stages = {name: tiny.experiment(name).model for name in ("clip", "prior")}
    image = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(UserError, match=message):
        latents.encode(Cascade.of(**stages, decoder=cfg), {}, images=image, clip_images=image)
    with pytest.raises(UserError, match=message):
        ddpm_latents.plan(cfg, MapOptions())
    assert "cannot be inverted" in upsampler_latents.obstacle(distilled("upsampler_256"))


def test_distilled_decoders_keep_their_steps_with_any_eta():
    cfg = distilled("decoder")
    with pytest.raises(UserError, match="distilled to 4 steps; use 'trailing4'"):
        decoding._planned(cfg, decoding.DecodeOptions(decoding.faithful("50")), jnp.zeros(1))
    _, table = decoding._planned(
        cfg, decoding.DecodeOptions(decoding.faithful("trailing4")), jnp.zeros(1)
    )
    assert len(table.t) == 4
