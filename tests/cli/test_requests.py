"""The commands of `sample` as a user calls them, on one untrained cascade compiled once."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests import cascades
from unclip_jax import sample
from unclip_jax.cli import request_command, request_flags
from unclip_jax.core.checks import UserError
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.editing import latents as latent_files
from unclip_jax.engine import image_inputs
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import REQUESTS, TextRequest
from unclip_jax.inference import decoding, progress

SIZE = 16  # of the tiny decoder; its upsampler doubles it
STEPS = "--steps=4"
FRESH = ("--details=fresh",)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def traces():
    """Records the arguments of each trace of `decoding.decode`; a compiled program adds none."""
    options, original = [], decoding.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            decoding, "decode", lambda *a, **k: (options.append(k["options"]), original(*a, **k))[1]
        )
        yield options


@pytest.fixture(scope="module")
def engine(run_dir, traces):
    return InferenceEngine.open(run_dir, batch=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two pictures, a mask and a folder of unusable files."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for name, shape in (("one.png", (40, 30, 3)), ("other.png", (20, 64))):
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    mask = np.zeros((40, 30), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.new("L", (30, 40)).save(folder / "dark.png")
    Image.new("L", (31, 40)).save(folder / "wide.png")
    (folder / "words.png").write_text("not a picture")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return folder


@pytest.fixture
def call(monkeypatch, engine, run_dir, tmp_path, capsys):
    """Run a command on the compiled engine: its record and its images."""
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: engine)

    def run(name, *arguments, out="out.png"):
        out = tmp_path / out
        sample.main([name, *map(str, arguments), f"--models={run_dir}", f"--out={out}"])
        assert f"wrote {out}" in capsys.readouterr().out
        record = json.loads(out.with_suffix(".json").read_text())
        images = np.stack([read(tmp_path / single) for single in record["images"]])
        assert record["command"] == name and record["models"]["clip_id"] == engine.clip_id
        assert read(out).shape[0] > images.shape[1]  # the labelled grid
        return record, images

    return run


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def reconstruction(engine, run_dir, inputs, tmp_path_factory):
    """Reconstructions of both pictures, and where their latents are."""
    out = tmp_path_factory.mktemp("latents") / "out.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InferenceEngine, "open", lambda path, **options: engine)
        paths = [str(inputs / name) for name in ("one.png", "other.png")]
        paper = (STEPS, "--refine=0")
        sample.main(["reconstruct", *paths, *paper, f"--models={run_dir}", f"--out={out}"])
    record = json.loads(out.with_suffix(".json").read_text())
    images = np.stack([read(out.parent / single) for single in record["images"]])
    return record, images, [out.with_suffix("") / f"{i:04d}.npz" for i in (0, 1)]


def test_reconstruct_shows_each_image_beside_itself_and_saves_its_latent(reconstruction, inputs):
    record, images, latents = reconstruction
    assert images.shape == (4, 2 * SIZE, 2 * SIZE, 3) and len(record["psnr_db"]) == 2
    original = image_inputs.square(image_inputs.read(inputs / "one.png"), 2 * SIZE)
    np.testing.assert_array_equal(images[0], original)
    assert [entry["name"] for entry in record["inputs"]] == ["one.png", "other.png"]
    assert record["inputs"][0]["source"] == image_inputs.read(inputs / "one.png").sha256
    assert all(path.stat().st_size < 20_000 for path in latents)


def test_latents_give_the_same_images_as_the_images_did(call, reconstruction):
    _, images, latents = reconstruction
    _, again = call("reconstruct", *latents, STEPS)
    np.testing.assert_array_equal(again, images[1::2])


def test_the_ends_of_an_interpolation_are_the_reconstructions(call, reconstruction, tmp_path):
    _, images, latents = reconstruction
    _, ends = call("interpolate", *latents, STEPS, "--frames=2", "--noise=inverted")
    np.testing.assert_array_equal(ends, images[1::2])
    arguments = ("interpolate", *latents, STEPS, "--frames=3")
    record, path = call(*arguments, "--noise=inverted", "--animate=gif")
    np.testing.assert_array_equal(path[0], ends[0])
    assert record["labels"] == ["0.00", "0.50", "1.00"]
    with Image.open(tmp_path / "out.gif") as animation:
        assert animation.n_frames == 3
    _, other = call(*arguments, "--seed=1")
    assert np.any(other[0] != path[0])


def test_details_are_what_the_upsampler_adds(call, reconstruction, engine):
    record, images, latents = reconstruction
    (details,) = record["inputs"][0]["details"]
    assert details["image_size"] == 2 * SIZE and details["steps"] == "8"  # as it was exported
    assert record["details_left_out"] == ""
    same, seeds = ("reconstruct", *latents, STEPS), ("--seed=1", "--seed=2")
    exact, fresh = ([call(*same, *how, seed)[1] for seed in seeds] for how in ((), FRESH))
    np.testing.assert_array_equal(exact[0], images[1::2])
    np.testing.assert_array_equal(exact[1], images[1::2])
    assert np.any(fresh[0] != fresh[1]) and np.any(fresh[0] != exact[0])
    record, small = call(*same, "--no-upsample")
    assert record["inputs"][0]["details"] == [] and small.shape[1] == SIZE


def test_details_of_other_upsamplers_or_steps_are_rejected(call, reconstruction, inputs, tmp_path):
    _, _, paths = reconstruction
    result, origin = latent_files.load(paths[0])
    other = dataclasses.replace(origin.details[0], upsampler_id="f" * 64)
    strange, bare = tmp_path / "strange.npz", tmp_path / "bare.npz"
    latent_files.save(strange, result, origin=dataclasses.replace(origin, details=(other,)))
    no_details = dataclasses.replace(origin, details=())
    latent_files.save(bare, result._replace(details=()), origin=no_details)
    with pytest.raises(UserError, match="strange.npz holds details of other upsamplers: upsampler"):
        call("variations", strange, STEPS)
    with pytest.raises(UserError, match="details of upsampler_steps 8, not 4; give the same"):
        call("variations", paths[0], STEPS, "--upsampler-steps=4")
    for pair in ((bare, paths[0]), (inputs / "one.png", bare)):
        with pytest.raises(UserError, match="bare.npz has no details for the upsamplers, but"):
            call("interpolate", *pair, STEPS, "--frames=2", "--noise=inverted")
    for arguments in ((strange, *FRESH), (bare,), (bare, "--upsampler-steps=4")):
        call("variations", *arguments, STEPS, "--etas", 0, "--num=2")
    call("interpolate", bare, paths[0], STEPS, "--frames=2", "--noise=inverted", *FRESH)
    call("interpolate", bare, paths[0], STEPS, "--frames=2")


def test_an_upsampler_that_cannot_be_inverted_is_named(call, engine, inputs, monkeypatch):
    (last,) = engine.cascade.upsamplers
    upsampler = dataclasses.replace(last, last_step=True)
    cascade = engine.cascade.replace(upsampler_256=upsampler)
    monkeypatch.setattr(engine, "cascade", cascade)
    record, _ = call("variations", inputs / "one.png", STEPS, "--etas", 0, "--num=2")
    assert "to 32 px takes its last step with another network" in record["details_left_out"]
    assert record["inputs"][0]["details"] == []


def test_a_text_diff_starts_at_the_reconstruction_with_and_without_a_source(call, reconstruction):
    _, images, latents = reconstruction
    arguments = (latents[0], "a blue square", STEPS, "--frames=2", "--animate=webp")
    _, plain = call("text-diff", *arguments)
    _, against = call("text-diff", *arguments, "--source=a red circle")
    np.testing.assert_array_equal(plain[0], images[1])
    np.testing.assert_array_equal(against[0], images[1])
    assert np.any(plain[1] != plain[0]) and np.any(against[1] != plain[1])


def test_a_text_diff_by_ddpm_starts_at_the_image_itself(call, inputs):
    arguments = (inputs / "one.png", "a blue square", STEPS, "--frames=2", "--inversion=ddpm")
    original = image_inputs.square(image_inputs.read(inputs / "one.png"), SIZE)
    for more in ((), ("--guidance=2", "--caption=a ring", "--eta=1", "--strength=1")):
        record, path = call("text-diff", *arguments, *more, "--no-upsample")
        assert np.abs(path[0].astype(int) - original).max() <= 1
        assert np.any(path[1] != path[0])
    again = call("text-diff", *arguments, *more, "--no-upsample", "--seed=1")[1]
    assert np.abs(again[0].astype(int) - original).max() <= 1 and np.any(again[1] != path[1])
    assert record["inputs"] == [{"name": "one.png", "sha256": record["inputs"][0]["sha256"]}]
    seeds = ("--seed=0", "--seed=1")
    for how, same in (
        (("--details=inverted", "--refine=1"), True),
        ((), False),
    ):  # details are those of the picture
        one, other = (call("text-diff", *arguments, *how, seed)[1][0] for seed in seeds)
        assert (np.abs(one.astype(int) - other).max() <= 2) == same


def test_variations_leave_the_image_as_eta_grows(call, reconstruction):
    _, images, latents = reconstruction
    arguments = ("variations", latents[0], STEPS, "--etas", 0, 1, "--num=2")
    record, variations = call(*arguments)
    assert record["labels"] == ["eta 0"] * 2 + ["eta 1"] * 2
    _, small = call(*arguments, "--no-upsample")
    for pictures_of, first in ((variations, images[1]), (small, small[0])):
        apart = np.abs(pictures_of.astype(int) - first).max(axis=(1, 2, 3))
        assert (apart[:2] <= 1).all() and (apart[2:] > 10).all()
        assert np.any(pictures_of[2] != pictures_of[3])


def test_a_blend_of_one_heavy_image_is_its_reconstruction(call, reconstruction):
    _, images, latents = reconstruction
    weights = ("--image", latents[0], 1, "--image", latents[1], 0)
    _, one = call("blend", *weights, STEPS)
    assert np.abs(one[0].astype(int) - images[1]).max() <= 1
    record, mixed = call(
        "blend", *weights, "--text", "a red circle", 0.5, "--noise=fresh", "--num=2", STEPS
    )
    assert record["labels"][0].startswith("0.67 ") and "0.33 a red circle" in record["labels"][0]
    assert np.any(mixed[0] != mixed[1])
    call("blend", "--text", "", "--text", "a red circle", STEPS)  # a caption may be empty


def test_inpainting_keeps_known_pixels_exactly_and_draws_the_rest(call, inputs):
    hole = (inputs / "one.png", inputs / "mask.png", "--num=2", "--repeats=2", "--jump=2")
    _, results = call("inpaint", *hole, "--caption=a red circle", STEPS)
    original = image_inputs.square(image_inputs.read(inputs / "one.png"), 2 * SIZE)
    mask = image_inputs.mask_square(image_inputs.read(inputs / "mask.png"), 2 * SIZE) == 1
    assert 0.3 < mask.mean() < 0.7
    for image in results:
        np.testing.assert_array_equal(image[mask], original[mask])
        assert np.mean(image[~mask] != original[~mask]) > 0.5
    assert np.any(results[0] != results[1])


def test_probing_ends_in_the_embedding_itself(call, engine, inputs, tmp_path, run_dir):
    rng = np.random.default_rng(0)
    writer = EmbeddingWriter(
        tmp_path / "embedded", info={"clip_id": engine.clip_id}, shard_size=100
    )
    z = rng.normal(size=(100, 32)).astype(np.float32)
    writer.add([f"{i}" for i in range(100)], [""] * 100, z_img=z, z_txt=z)
    writer.finish()
    paths = (inputs / "one.png", inputs / "other.png", f"--embeddings={tmp_path / 'embedded'}")
    record, images = call("probe-pca", *paths, "--components", 2, 32, STEPS)
    assert len(images) == 4 and record["variance_kept"]["32"] == pytest.approx(1.0)
    assert np.any(images[0] != images[1])
    with pytest.raises(UserError, match=r"components is 33; it must lie in \[0, 32\]"):
        call("probe-pca", *paths, "--components", 33, STEPS)
    stats = tmp_path / "embedded" / "stats.json"
    content = json.loads(stats.read_text())
    del content["digest"]  # as version 0.1.0
    stats.write_text(json.dumps({**content, "info": {"clip_id": "f" * 64}}))
    with pytest.raises(UserError, match="are of CLIP 'ffff"):
        call("probe-pca", *paths, STEPS)


def test_upscale_begins_at_the_size_that_fits(call, inputs):
    record, images = call("upscale", inputs / "one.png", inputs / "other.png")
    assert record["from_size"] == SIZE and images.shape == (4, 2 * SIZE, 2 * SIZE, 3)
    with pytest.raises(UserError, match="from_size is 20, but these upsamplers take 16 px"):
        call("upscale", inputs / "one.png", "--from-size=20")
    with pytest.raises(UserError, match="caption is 'a dog', but these upsamplers read images al"):
        call("upscale", inputs / "one.png", "--caption=a dog")


def test_text_with_previews_draws_what_text_alone_draws(engine, run_dir, tmp_path, monkeypatch):
    words, shared = cascades.CAPTIONS[:2], [f"--models={run_dir}", STEPS, "--seed=4"]
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: engine)
    sample.main(["text", *words, *shared, f"--out={tmp_path / 'plain.png'}"])
    sample.main([*words, *shared, "--previews=2", f"--out={tmp_path / 'shown.png'}"])
    plain, with_previews = (
        json.loads((tmp_path / name).read_text()) for name in ("plain.json", "shown.json")
    )
    assert len(with_previews["images"]) == 6 and len(plain["images"]) == 2
    for index in range(2):
        one = read(tmp_path / plain["images"][index]).astype(int)
        other = read(tmp_path / with_previews["images"][3 * index + 2]).astype(int)
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize(
    "sampler", ["dpmpp_2m", pytest.param("edm:s_churn=4", marks=pytest.mark.nightly)]
)
def test_samplers_with_memory_are_previewed_and_watched(engine, sampler):
    request = TextRequest(captions=tuple(cascades.CAPTIONS[:2]), steps="8", sampler=sampler)
    plain, reports = engine.run(request).images, []
    with_previews = engine.run(dataclasses.replace(request, previews=2)).images
    with_progress = engine.run(request, progress=reports.append).images
    for images in (with_previews, with_progress):
        assert np.abs(images.astype(int) - plain).max() <= 1
    steps = [report.step for report in reports if report.images is not None]
    rows = 8 if sampler == "dpmpp_2m" else 15
    assert steps == sorted(steps) and steps[-1] == rows and len(steps) >= 6


@pytest.mark.parametrize(
    ("count", "num", "columns"), [(2, 3, 3), (2, 1, None), (1, 4, None), (2, 9, None)]
)
def test_every_caption_has_a_row_of_the_grid(engine, count, num, columns):
    captions = tuple(cascades.CAPTIONS[:count])
    result = engine.run(TextRequest(captions=captions, num=num, steps="2", prior_steps="2"))
    assert result.columns == columns
    assert result.labels == tuple(caption for caption in captions for _ in range(num))


@pytest.mark.parametrize(("steps", "parts"), [(250, 10), (50, 10), (27, 9), (4, 4), (1000, 10)])
def test_a_watched_chain_is_cut_into_equal_parts(steps, parts):
    assert progress.preview_count(steps) == parts and steps % parts == 0


def test_a_negative_caption_and_a_schedule_change_guided_images(engine):
    options = {"steps": "4", "guidance": 3.0, "guidance_schedule": "rising", "best_of": 2}
    images = [
        engine.sample(cascades.CAPTIONS[:2], **options, negative=negative).images
        for negative in ("a green star", "three pink rings")
    ]
    assert len(images[0]) == len(images[1]) == 2 and np.any(images[0] != images[1])


def test_one_program_serves_every_command_seed_and_caption(traces, reconstruction, call):
    """The commands above, in whatever order, compiled decoding once per kind of decoding."""
    before = len(traces)
    _, _, latents = reconstruction
    for seed, words in enumerate(("a red circle", "", "x" * 9998)):
        call("interpolate", *latents, STEPS, "--frames=4", "--noise=shared", f"--seed={seed}")
        call("text-diff", latents[1], f"{words} x", STEPS, "--frames=4", f"--seed={seed}")
    assert len(traces) == before


def test_a_record_repeats_its_request(call, reconstruction, run_dir, tmp_path, engine):
    record, first = call("interpolate", *reconstruction[2], STEPS, "--frames=2", "--seed=3")
    assert record["request"]["seed"] == 3 and record["request"]["steps"] == "4"
    again = tmp_path / "again.png"
    how = [f"--models={run_dir}", f"--out={again}"]
    sample.main(["repeat", str(tmp_path / "out.json"), *how])
    repeated = json.loads(again.with_suffix(".json").read_text())
    assert repeated["request"] == record["request"]
    images = np.stack([read(tmp_path / single) for single in repeated["images"]])
    np.testing.assert_array_equal(images, first)


@pytest.mark.parametrize("key", ["sha256", "source"])  # of an image, of an inverted image
def test_a_record_is_repeated_with_the_images_of_its_request(tmp_path, key):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    digest = image_inputs.read(tmp_path / "one.png").sha256
    record = {"command": "upscale", "request": {"images": ["one.png"]}, "inputs": [{key: digest}]}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert request_flags.from_result(path).request.images[0].sha256 == digest
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"one.png is not the image that .*record.json was made"):
        request_flags.from_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*no.json: No such file"),
        ("{", "no.json is not the JSON of a result"),
        ('{"command": "text"}', "no.json is not the JSON of a result"),
        ('{"command": "text", "request": {"sed": 1}}', "text has no 'sed'. Did you mean 'seed'"),
    ],
)
def test_files_that_are_no_records_are_rejected(run_dir, tmp_path, content, message):
    path = tmp_path / "no.json"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        sample.main(["repeat", str(path), f"--models={run_dir}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolat", "one.png"], "unknown command 'interpolat'. Did you mean 'interpolate'"),
        (["varitions"], "Did you mean 'variations'.* write `text` before it"),
        (["diff", "one.png"], "Did you mean 'text-diff'"),
        (["blended"], "Did you mean 'blend'"),
    ],
)
def test_a_misspelt_command_is_an_error_with_a_suggestion(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        sample.main([*arguments, f"--models={run_dir}"])


@pytest.mark.parametrize("caption", ["a blend of colors", "cat", "circle", "interpolate two cats"])
def test_captions_are_not_taken_for_commands(caption):
    assert request_command.choose([caption, "one"]) == ("text", [caption, "one"])
    assert request_command.choose(["text", "blend"]) == ("text", ["blend"])
    assert request_command.choose(["text_diff", "a", "b"]) == ("text-diff", ["a", "b"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("text", "a ring", "a star", "--previews=2", "--animate=gif"),
        ("text", "a ring", "", "--negative=a star", "--guidance=3", "--guidance-schedule=rising"),
        ("variations", "{}/one.png", "--etas", "0", "--num=2"),
        ("reconstruct", "{}/one.png"),
    ],
)
def test_only_the_first_of_several_processes_writes(
    monkeypatch, engine, run_dir, inputs, tmp_path, capsys, arguments
):
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: engine)
    argv = [part.format(inputs) for part in arguments]
    for index, files in ((1, 0), (0, 3)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        sample.main([*argv, STEPS, f"--models={run_dir}", f"--out={tmp_path / 'out.png'}"])
        assert len(list(tmp_path.iterdir())) >= files and (
            index == 0 or not any(tmp_path.iterdir())
        )
        assert bool(capsys.readouterr().out) == (index == 0)


def test_the_help_lists_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    output = capsys.readouterr().out
    for name in (*REQUESTS, "repeat"):
        assert name in output


LONG = "x" * 10_001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("reconstruct nowhere.png", "there is no image nowhere.png"),
        ("reconstruct {}/words.png", "words.png: not an image: 13 bytes of no known format; give"),
        ("reconstruct {}/drawing.svg", "drawing.svg: unsupported format SVG: convert it to PNG"),
        ("reconstruct {}/one.png --refine=40", r"refine is 40; it must lie in \[0, 32\]"),
        ("reconstruct {}/one.png --batch=0", "--batch is 0"),
        ("reconstruct {}/one.png --out=a.jpg", "out is 'a.jpg'; give a name that ends in .png"),
        (f"reconstruct {{}}/one.png --caption={LONG}", "caption has 10001 characters"),
        ("reconstruct {}/one.png --steps=ddim999", "no integer stride gives 999"),
        ("reconstruct {}/one.png --guidance=-1", "guidance is -1.0; it must lie in"),
        ("reconstruct {}/one.png --negative=cats", "negative has no effect while guidance is"),
        ("reconstruct {}/one.png --guidance-schedule=up", "unknown guidance schedule 'up'"),
        ("variations {}/one.png --etas 0 1.5", r"etas is 1.5; it must lie in \[0, 1\]"),
        ("variations {}/one.png --num=0", r"num is 0; it must lie in \[1, 4096\]"),
        ("variations {}/one.png --num=4000", "number of images is 20000"),
        ("interpolate {}/one.png", r"number of images is 1; it must lie in \[2, 4096\]"),
        ("interpolate {0}/one.png {0}/other.png --frames=1", "frames is 1"),
        ("text-diff {}/one.png blue --theta=1.5", r"theta is 1.5; it must lie in \[0, 1\]"),
        ("text-diff {}/one.png blue --frames=1", "frames is 1"),
        ("text-diff {}/one.png blue --inversion=ddim --eta=0.5", "eta belongs to inversion=ddpm"),
        (
            "text-diff {}/one.png blue --inversion=ddim --strength=0",
            "strength belongs to inversion=ddpm",
        ),
        ("text-diff {}/one.png blue --inversion=ddpm --refine=1", "refine is 1, but"),
        ("text-diff {}/one.png blue --inversion=ddpm --upsampler-steps=4", "but details are fresh"),
        ("text-diff {}/one.png blue --inversion=ddpm --eta=2", r"eta is 2.0; it must lie in"),
        ("text-diff {}/one.png blue --inversion=ddpm --strength=2", "strength is 2.0; it must"),
        ("text-diff {}/one.png ", "target is empty; say what"),
        (f"text-diff {{}}/one.png {LONG}", "target has 10001 characters"),
        ("blend --image {}/one.png", "a blend needs at least two images or texts, not 1"),
        ("blend --text a --text b x", "--text b x: give one weight, a number such as 0.5"),
        ("blend --text a --text b 1 2", "--text b 1 2: give one weight"),
        ("blend --text a --text b -1", "text_weights is -1.0; it must lie in"),
        ("blend --image {0}/one.png --text a --num=2", "images differ only with noise=fresh"),
        ("inpaint {0}/one.png {0}/wide.png", "has 30x40 pixels and .* has 31x40; give a mask"),
        ("inpaint {0}/one.png {0}/dark.png", "is dark everywhere; paint white"),
        ("inpaint {0}/one.png {0}/mask.png --repeats=0", r"repeats is 0; it must lie in"),
        ("inpaint {0}/one.png {0}/mask.png --eta=2", "eta is 2.0; it must lie in"),
        ("upscale {}/one.png --no-upsample", "unknown flag '--no-upsample'"),
        ("variations {}/one.png --etas x", "etas is 'x'; give a number"),
        ("variations {}/one.png --num=1.5", "num is '1.5'; give a whole number"),
        ("variations {}/one.png --etaz 1", "unknown flag '--etaz'. Did you mean '--etas'"),
        ("interpolate {0}/one.png {0}/other.png --noise=own", "unknown noise 'own'. Known: inv"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, engine, run_dir, inputs, arguments, message):
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: engine)
    argv = [part.format(inputs) for part in arguments.split(" ")]
    with pytest.raises(UserError, match=message):
        sample.main([*argv, f"--models={run_dir}"])


def test_a_latent_of_another_chain_or_caption_is_rejected(call, reconstruction, inputs, tmp_path):
    latents = reconstruction[2]
    with pytest.raises(UserError, match=r"was inverted with steps 4, not 50"):
        call("variations", latents[0])
    with pytest.raises(UserError, match="0000.npz holds an x_T; inversion=ddpm needs the image"):
        call("text-diff", latents[0], "blue", "--inversion=ddpm", STEPS)


def test_models_without_upsamplers_stop_at_the_decoders_size(
    run_dir, engine, monkeypatch, inputs, tmp_path, reconstruction
):
    bare = InferenceEngine.__new__(InferenceEngine)
    bare.__dict__.update(engine.__dict__)
    bare.cascade = engine.cascade.without_upsamplers()
    monkeypatch.setattr(InferenceEngine, "open", lambda path, **options: bare)
    with pytest.raises(UserError, match="these models have no upsampler, which upscale needs"):
        sample.main(["upscale", str(inputs / "one.png"), f"--models={run_dir}"])
    out = tmp_path / "out.png"
    latents = map(str, reconstruction[2])
    sample.main(["reconstruct", *latents, STEPS, f"--models={run_dir}", f"--out={out}"])
    assert read(out.with_suffix("") / "0000.png").shape == (SIZE, SIZE, 3)


def test_images_of_any_mode_and_size_become_squares(tmp_path):
    for mode, size in (("1", (9, 40)), ("P", (300, 200)), ("RGBA", (8, 8)), ("I;16", (50, 20))):
        path = tmp_path / f"{mode.replace(';', '')}.png"
        Image.new(mode, size).save(path)
        assert image_inputs.square(image_inputs.read(path), 16).shape == (16, 16, 3)
    Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="small.png: too small: 4x4 pixels"):
        image_inputs.read(tmp_path / "small.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"huge.png: decompression bomb: .*pixels"):
        image_inputs.read(tmp_path / "huge.png")
