"""Requests to the service, on an untrained cascade: the same images as from the command line."""

import dataclasses
import functools
import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import cascades
from tests.serving.conftest import png
from unclip_jax import sample
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.inference import text_to_image
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.serving.job_queue import JobCancelled
from unclip_jax.serving.service import InferenceService

SIZE = 16  # of the tiny decoder; its upsampler doubles it


def pixels(response):
    return response.result.display.astype(int)


def ask(service, command, **fields):
    job = service.submit(command, {"steps": "4", **fields})
    assert job.wait(120)
    if job.error:
        raise UserError(job.error)
    return job.result


@pytest.fixture(scope="module")
def text_result(service):
    return ask(service, "text", captions=["a red circle", "-x"], seed=3, num=2)


def test_captions_give_the_images_of_the_command_line(text_result, run_dir, tmp_path):
    result = text_result.result
    assert result.labels == ("a red circle",) * 2 + ("-x",) * 2
    assert result.record["models"]["path"] == run_dir.name  # and no more of the server's paths
    assert result.record["command"] == "text"
    with zipfile.ZipFile(io.BytesIO(text_result.archive())) as archive:
        archive.extractall(tmp_path)
    out = tmp_path / "again.png"
    sample.main(["repeat", str(tmp_path / "text.json"), f"--models={run_dir}", f"--out={out}"])
    paths = sorted(out.with_suffix("").glob("*.png"))
    again = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)
    assert again.shape == (4, 2 * SIZE, 2 * SIZE, 3)
    # in parts or as a whole, the compiler may round otherwise
    assert np.abs(pixels(text_result) - again).max() <= 1


def test_the_archive_holds_all_that_is_needed_to_repeat_the_request(service, run_dir, tmp_path):
    response = ask(service, "variations", image=png(), etas=[0, 1], num=1)
    with zipfile.ZipFile(io.BytesIO(response.archive())) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    singles = ["variations/0000.png", "variations/0001.png"]
    assert set(names) == {"image.png", "variations.json", "variations.png", *singles}
    out = tmp_path / "again.png"
    record = str(tmp_path / "variations.json")
    sample.main(["repeat", record, f"--models={run_dir}", f"--out={out}"])
    again = np.stack([np.asarray(Image.open(tmp_path / f"again/000{i}.png")) for i in (0, 1)])
    assert np.abs(again.astype(int) - pixels(response)).max() <= 1


def test_a_path_and_its_animation(service):
    response = ask(service, "interpolate", images=[png(), png(seed=1)], frames=3, animate="gif")
    assert len(response.result.images) == 3 and response.result.animation().startswith(b"GIF89a")
    assert response.result.record["request"]["images"] == ["images-0.png", "images-1.png"]


def test_a_blend_of_images_and_captions(service):
    values = {"images": [png()], "texts": ["-x"], "text_weights": [0.5], "noise": "fresh"}
    response = ask(service, "blend", **values, num=2)
    assert response.result.labels == ("0.67 images.png + 0.33 -x",) * 2
    assert np.any(pixels(response)[0] != pixels(response)[1])
    with pytest.raises(UserError, match="a blend needs at least two images or texts, not 1"):
        ask(service, "blend", texts=["a"])


def test_probing_uses_the_servers_embeddings_and_hides_where_they_are(
    service, tmp_path, monkeypatch
):
    values = {"images": [png()], "components": [2, 32]}
    with pytest.raises(UserError, match="this server has no embeddings .*--embeddings=DIR"):
        ask(service, "probe-pca", **values)
    assert "probe-pca" not in service.models()["commands"]
    folder = tmp_path / "embeddings" / "train"
    writer = EmbeddingWriter(folder, info={"clip_id": service.engine.clip_id}, shard_size=40)
    z = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    writer.add([f"{i}" for i in range(40)], [""] * 40, z_img=z, z_txt=z)
    writer.finish()
    monkeypatch.setattr(service, "embeddings", folder)
    assert "probe-pca" in service.models()["commands"]
    result = ask(service, "probe-pca", **values).result
    assert len(result.images) == 2
    assert result.record["request"]["embeddings"] == "embeddings/train"
    stats = folder / "stats.json"
    content = json.loads(stats.read_text())
    del content["digest"]  # as version 0.1.0
    stats.write_text(json.dumps({**content, "info": {"clip_id": "f" * 64}}))
    with pytest.raises(UserError, match="^the embeddings in embeddings/train .* are of CLIP 'ffff"):
        ask(service, "probe-pca", **values)


def test_long_chains_are_rejected_however_they_are_named(service):
    for steps in ("251", "at:" + "-".join(map(str, range(251))), "logsnr251"):
        with pytest.raises(UserError, match="^steps asks for 251 steps; this server takes at most"):
            ask(service, "text", captions=["x"], steps=steps)
        with pytest.raises(UserError, match="^prior_steps asks for 251 steps"):
            ask(service, "text", captions=["x"], prior_steps=steps)
    with pytest.raises(UserError, match="^upsampler_steps asks for 300 steps"):
        ask(service, "reconstruct", images=[png()], upsampler_steps="300", steps="4")


def test_progress_names_stages_and_steps_and_shows_images(service):
    states = []
    service.run(submission(service, captions=["x"]), states.append)
    assert list(dict.fromkeys(state.stage for state in states)) == ["prior", "decode", "upsample"]
    previews = [state for state in states if state.images is not None]
    assert previews[-1].step == previews[-1].steps == 4
    assert previews[0].images.shape == (1, SIZE, SIZE, 3)
    assert [state.share for state in previews] == sorted(state.share for state in previews)
    assert not service.engine.watched


def test_a_watcher_ends_the_work_and_the_next_request_is_as_ever(service, text_result):
    def leave(state):
        if state.images is not None:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        service.run(submission(service, captions=["x"]), leave)
    again = ask(service, "text", captions=["a red circle", "-x"], seed=3, num=2)
    np.testing.assert_array_equal(pixels(again), pixels(text_result))


def submission(service, **fields):
    return service.read("text", {"steps": "4", **fields})


@pytest.mark.parametrize(
    ("command", "fields", "message"),
    [
        ("text", {"captions": ["x"], "steps": "ddim999"}, "ddim999"),
        ("text", {"captions": ["x"], "negative": "y"}, "no effect while guidance is 1.0"),
        ("text", {"captions": ["x"], "guidance_schedule": "up"}, "unknown guidance schedule 'up'"),
        (
            "inpaint",
            {"image": png(), "mask": png(30, 40)},
            "^image.png has 40x30 pixels and mask.png has 30x40",
        ),
        ("variations", {"image": png(8, 100)}, "absurd aspect ratio"),
    ],
)
def test_what_the_command_rejects_is_told(service, command, fields, message):
    with pytest.raises(UserError, match=message):
        ask(service, command, **{"guidance": 1.0, **fields})


def test_models_say_what_they_are(service, run_dir):
    description = service.models()
    assert description["name"] == run_dir.name and description["sizes"] == [SIZE, 2 * SIZE]
    assert {"clip", "prior", "decoder"} <= description["stages"].keys()
    assert set(description["commands"]) == REQUESTS.keys() - {"complete", "probe-pca"}


def test_a_chain_of_codes_offers_completion_and_no_edits(tmp_path):
    run = cascades.write(tmp_path, names=("clip", "dvae", "dalle"))
    dalle = InferenceService(InferenceEngine.open(run), name="dalle")
    assert dalle.models()["commands"] == ["text", "complete"]


def compilations(service, monkeypatch, **values):
    """The number of programs that a request of captions compiles, of those that it runs."""
    reports = []
    run = service.engine.run

    def recording_run(request, *, progress):
        def report(state):
            reports.append((state.stage, state.compiling))
            progress(state)

        return run(request, progress=report)

    monkeypatch.setattr(service.engine, "run", recording_run)
    response = ask(service, "text", captions=["a red circle"], **values)
    monkeypatch.undo()
    assert {stage for stage, _ in reports} >= {"prior", "decode", "upsample"}
    return sum(compiling for _, compiling in reports), response


def test_other_guidance_compiles_nothing_and_gives_the_images_of_a_program_of_its_own(
    service, monkeypatch
):
    options = {"seed": 5, "sampler": "dpmpp_2m"}
    first, _ = compilations(service, monkeypatch, guidance=2.0, **options)
    again, response = compilations(service, monkeypatch, guidance=3.5, **options)
    assert first > 0 and again == 0
    cascade = service.engine.cascade
    sampling = dataclasses.replace(
        cascade.decoder.sampling, steps="4", guidance_scale=3.5, sampler="dpmpp_2m"
    )
    keys = text_to_image.keys_for(5, jnp.arange(1))
    alone = jax.jit(functools.partial(text_to_image.sample, cascade), static_argnames="options")(
        service.engine.params,
        service.engine.tokens(["a red circle"]),
        keys,
        options=SampleOptions(decoder=sampling),
    )
    expected = to_uint8(np.asarray(alone.images)).astype(int)
    difference = np.abs(response.result.images.astype(int) - expected)
    assert difference.max() <= 1  # the compiler may round otherwise


def test_the_first_request_of_the_page_finds_its_programs_compiled(service, monkeypatch):
    job = service.warm_up()
    assert job.wait(120) and job.error is None
    count, _ = compilations(service, monkeypatch, steps=None, num=2)
    assert count == 0
