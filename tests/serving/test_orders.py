"""Requests carried out on an untrained cascade: the same pictures as from the command line."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import png
from unclip_jax import sample
from unclip_jax.core.checks import UserError
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.serving import forms
from unclip_jax.serving.job_queue import JobCancelled

SIZE = 16  # of the tiny decoder; its upsampler doubles it


def pictures(paths):
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


def ask(house, command, **given):
    job = house.ask(command, {"steps": "4", **given}, owner="me")
    assert job.wait(120)
    if job.error:
        raise UserError(job.error)
    return job.result


@pytest.fixture(scope="module")
def drawn(house):
    return ask(house, "text", captions=["a red circle", "-x"], seed=3, num=2)


def test_captions_give_the_pictures_of_the_command_line(drawn, run_dir, tmp_path):
    assert drawn.labels == ["a red circle"] * 2 + ["-x"] * 2
    assert drawn.record["models"]["path"] == run_dir.name  # and no more of the server's paths
    assert drawn.record["command"] == "text"
    out = tmp_path / "again.png"
    sample.main(["text", f"--models={run_dir}", f"--out={out}", *drawn.record["arguments"]])
    again = pictures(sorted(out.with_suffix("").glob("*.png")))
    assert again.shape == (4, 2 * SIZE, 2 * SIZE, 3)
    # in parts or as a whole, the compiler may round otherwise
    assert np.abs(pictures(drawn.images) - again).max() <= 1


def test_the_archive_holds_all_that_is_needed_to_draw_again(house):
    result = ask(house, "variations", picture=png(), etas=[0, 1], num=1)
    with zipfile.ZipFile(result.archive()) as archive:
        names = archive.namelist()
    singles = ["variations/0000.png", "variations/0001.png"]
    assert set(names) == {"picture.png", "variations.json", "variations.png", *singles}
    assert result.record["arguments"][-2:] == ["--", "picture.png"]


def test_a_path_and_its_moving_picture(house):
    given = {"pictures": [png(), png(seed=1)], "frames": 3, "animate": "gif"}
    result = ask(house, "interpolate", **given)
    assert len(result.images) == 3 and result.animation.suffix == ".gif"
    assert result.record["arguments"][-2:] == ["pictures-0.png", "pictures-1.png"]


def test_a_blend_of_pictures_and_captions(house):
    given = {"pictures": [png()], "texts": ["-x"], "text_weights": [0.5], "noise": "fresh"}
    result = ask(house, "blend", **given, num=2)
    assert result.labels == ["0.67 pictures.png + 0.33  -x"] * 2
    assert np.any(pictures(result.images)[0] != pictures(result.images)[1])
    with pytest.raises(UserError, match="a blend needs at least two things, not 1"):
        ask(house, "blend", texts=["a"])


def test_probing_uses_the_servers_embeddings_and_hides_where_they_are(house, tmp_path, monkeypatch):
    asked = {"pictures": [png()], "components": [2, 32]}
    with pytest.raises(UserError, match="this server has no embeddings .*--embeddings=DIR"):
        ask(house, "probe-pca", **asked)
    folder = tmp_path / "embeddings" / "train"
    writer = EmbeddingWriter(folder, info={"clip_id": house.studio.clip_id}, shard_size=40)
    z = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    writer.add([f"{i}" for i in range(40)], [""] * 40, z_img=z, z_txt=z)
    writer.finish()
    monkeypatch.setattr(house, "embeddings", folder)
    result = ask(house, "probe-pca", **asked)
    assert len(result.images) == 2
    assert "--embeddings=embeddings/train" in result.record["arguments"]
    stats = folder / "stats.json"
    stats.write_text(stats.read_text().replace(house.studio.clip_id, "f" * 64))
    with pytest.raises(UserError, match="^the embeddings in embeddings/train .* are of CLIP 'ffff"):
        ask(house, "probe-pca", **asked)


def test_progress_names_stages_and_steps_and_shows_pictures(house):
    seen = []
    request = house_request(house, captions=["x"])
    house.carry_out(request, seen.append)
    assert list(dict.fromkeys(now.stage for now in seen)) == ["prior", "decode", "upsample"]
    looks = [now for now in seen if now.images is not None]
    assert looks[-1].step == looks[-1].steps == 4 and looks[0].images.shape == (1, SIZE, SIZE, 3)
    assert [now.share for now in looks] == sorted(now.share for now in looks)
    assert house.studio.watch is None


def test_a_watcher_ends_the_work_and_the_next_request_is_as_ever(house, drawn):
    def leave(now):
        if now.images is not None:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        house.carry_out(house_request(house, captions=["x"]), leave)
    again = ask(house, "text", captions=["a red circle", "-x"], seed=3, num=2)
    np.testing.assert_array_equal(pictures(again.images), pictures(drawn.images))


def house_request(house, **given):
    return forms.read("text", {"steps": "4", **given}, limits=house.limits)


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("text", {"captions": ["x"], "steps": "ddim999"}, "ddim999"),
        ("text", {"captions": ["x"], "negative": "y"}, "no effect while --guidance is 1.0"),
        ("text", {"captions": ["x"], "guidance_schedule": "up"}, "unknown guidance schedule 'up'"),
        (
            "inpaint",
            {"picture": png(), "mask": png(30, 40)},
            "^picture.png has 40x30 pixels and mask.png has 30x40",
        ),
        ("variations", {"picture": png(8, 100)}, "absurd aspect ratio"),
    ],
)
def test_what_the_command_refuses_is_told(house, command, given, message):
    with pytest.raises(UserError, match=message):
        ask(house, command, **{"guidance": 1.0, **given})


def test_models_say_what_they_are(house, run_dir):
    told = house.models()
    assert told["name"] == run_dir.name and told["sizes"] == [SIZE, 2 * SIZE]
    assert {"clip", "prior", "decoder"} <= told["stages"].keys()
