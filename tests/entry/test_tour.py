"""The tour: valid requests about renderings of its world, in order, on one engine."""

import types

import numpy as np
import pytest
from PIL import Image

from tests import cascades
from unclip_jax import tour
from unclip_jax.cli import request_command
from unclip_jax.core.checks import UserError
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.metrics import worlds


@pytest.fixture
def requests(monkeypatch):
    """The requests that are run, by name; nothing is sampled."""
    cascade = types.SimpleNamespace(image_size=64)
    card = types.SimpleNamespace(size="shapes")
    loaded = types.SimpleNamespace(manifests={"clip": card})
    engine = types.SimpleNamespace(cascade=cascade, loaded=loaded, card=card)
    calls = {"engine": engine}

    def run(request, setting, *, engine):
        assert engine is calls["engine"]
        calls[request.name] = request
        calls[f"{request.name} out"] = setting.out

    monkeypatch.setattr(InferenceEngine, "open", lambda path: engine)
    monkeypatch.setattr(request_command, "run", run)
    return calls


@pytest.mark.parametrize("name", tour.WORLDS)
def test_it_asks_for_captions_and_edits_of_renderings(name, requests, tmp_path, capsys):
    requests["engine"].card.size = name
    tour.main([f"--models={tmp_path}", f"--out={tmp_path / 'tour'}", "--seed=4", "--num=1"])
    world = tour.WORLDS[name]
    text, diff = requests["text"], requests["text-diff"]
    assert (text.captions, text.num, text.seed) == (world.captions, 1, 4)
    assert (diff.target, diff.source, diff.animate) == (world.target, world.one, "gif")
    assert requests["interpolate"].image_count == 7 and requests["inpaint"].caption == world.filled
    assert requests["inpaint out"] == tmp_path / "tour" / "inpainting.png"
    output = capsys.readouterr().out
    assert output.count("$ unclip sample ") == 4 and "--animate=gif" in output


@pytest.mark.parametrize("name", tour.WORLDS)
def test_the_renderings_are_of_their_captions(name, tmp_path):
    """The checker of the world reads the images as their captions."""
    files = tour.write_inputs(tmp_path, name, size=64)
    world = tour.WORLDS[name]
    images = np.stack([np.asarray(Image.open(files[key])) for key in ("one", "other")])
    captions = [world.one, world.other]
    assert worlds.world_of([*captions, *world.captions, world.target, world.filled]).name == name
    assert worlds.check(images, captions)["joint"].value == 1.0
    mask = np.asarray(Image.open(files["mask"]))
    assert 0.1 < (mask == 255).mean() < 0.5 and set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("shapes", "shapes"), ("shapes_long", "shapes"), ("portraits_long", "portraits")],
)
def test_captions_are_of_the_world_of_the_models(size, expected, requests, tmp_path):
    requests["engine"].card.size = size
    tour.main([f"--models={tmp_path}", f"--out={tmp_path / 'tour'}"])
    assert requests["text"].captions == tour.WORLDS[expected].captions


def test_models_of_another_world_are_rejected(requests, tmp_path):
    requests["engine"].card.size = "emoji"
    with pytest.raises(UserError, match="of the size 'emoji', and a tour has captions for portr"):
        tour.main([f"--models={tmp_path}", f"--out={tmp_path / 'tour'}"])
    with pytest.raises(UserError, match="unknown --world 'cats'"):
        tour.main([f"--models={tmp_path}", "--world=cats", f"--out={tmp_path / 'tour'}"])


@pytest.mark.nightly
def test_a_tour_of_untrained_models_writes_its_grids(tmp_path):
    run = cascades.write(tmp_path / "run")
    tour.main([f"--models={run}", f"--out={tmp_path / 'tour'}", "--num=1"])
    for name in ("captions", "text_diff", "interpolation", "inpainting"):
        assert (tmp_path / "tour" / f"{name}.png").is_file()
    assert (tmp_path / "tour" / "text_diff.gif").is_file()
