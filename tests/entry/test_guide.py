"""`sample --guide`: a decoder guided by a noise-aware CLIP, which is no CLIP of a cascade."""

import json

import numpy as np
import pytest
from PIL import Image

from tests import cascades
from tests.stages import tiny
from unclip_jax import sample
from unclip_jax.core.checks import UserError
from unclip_jax.experiment.config import from_config
from unclip_jax.experiment.files import get_config
from unclip_jax.inference import load

DECODER = tiny.experiment("decoder").model


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A cascade, and beside it a noise-aware CLIP and a classifier of the decoder's chain."""
    names = ("clip", "prior", "decoder", "classifier")
    folder = cascades.write(tmp_path_factory.mktemp("run"), names=names)
    cascades.write_guide(folder)
    return folder


def images(run_dir, out, *flags, caption="a red circle"):
    chain = ["--steps=2", "--sampler=ddim", "--guidance=1"]
    sample.main([caption, f"--models={run_dir}", f"--out={out}", *chain, *flags])
    return np.asarray(Image.open(out.with_suffix("") / "0000.png"), int)


def test_the_gradient_changes_images_and_is_recorded(run_dir, tmp_path):
    guide = f"--guide={run_dir}/guide/export"
    plain = images(run_dir, tmp_path / "plain.png")
    guided = images(run_dir, tmp_path / "guided.png", guide, "--clip-scale=1000")
    assert np.any(guided != plain)
    record = json.loads((tmp_path / "guided.json").read_text())
    assert record["request"]["clip_scale"] == 1000


def test_a_classifier_guides_to_the_class_that_the_caption_names_first(run_dir, tmp_path):
    guide = [f"--guide={run_dir}/classifier/export", "--classifier-scale=1000", "--guidance=0"]
    circle = images(run_dir, tmp_path / "a.png", *guide, caption="a red circle")
    star = images(run_dir, tmp_path / "b.png", *guide, caption="a red star")
    assert np.any(circle != star)
    with pytest.raises(UserError, match="'nothing' names no class of the classifier .circle, squa"):
        images(run_dir, tmp_path / "c.png", *guide, caption="nothing")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip-scale=2"], "clip_scale is 2, but no noise-aware CLIP is loaded; give its export"),
        (["--guide={run}/clip/export", "--clip-scale=2"], "was trained on clean images"),
        (
            ["--guide={run}/guide/export"],
            "has no effect while --clip-scale and --classifier-scale are 0",
        ),
        (
            ["--guide={run}/guide/export", "--clip-scale=2", "--best-of=2"],
            "clip_scale excludes negative, guidance_schedule, previews and best_of",
        ),
        (["--classifier-scale=2"], "classifier_scale is 2, but no classifier is loaded"),
        (
            ["--guide={run}/guide/export", "--classifier-scale=2"],
            "classifier_scale is 2, but no classifier is loaded; give its export",
        ),
        (
            ["--guide={run}/classifier/export", "--clip-scale=2"],
            "clip_scale is 2, but no noise-aware CLIP is loaded",
        ),
        (
            ["--guide={run}/classifier/export", "--clip-scale=2", "--classifier-scale=2"],
            "clip_scale is 2 and classifier_scale is 2, but only one guide can be loaded",
        ),
        (["--guide={run}/prior/export", "--clip-scale=2"], "is a prior; give the export of a CLIP"),
    ],
)
def test_a_scale_without_its_model_is_rejected(run_dir, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        images(run_dir, tmp_path / "x.png", *(flag.format(run=run_dir) for flag in flags))


def test_a_noise_aware_clip_is_none_of_a_cascade(run_dir, tmp_path):
    (tmp_path / "clip").symlink_to(run_dir / "guide")
    for name in ("prior", "decoder"):
        (tmp_path / name).symlink_to(run_dir / name)
    with pytest.raises(UserError, match="was trained on noised images, for guidance alone|clip_id"):
        load.find_cascade(tmp_path)


def test_its_experiment_fits_the_decoder_and_a_clean_run_is_what_it_was():
    noised, clean = (
        from_config(get_config(f"clip:{size}")) for size in ("shapes_noised", "shapes")
    )
    decoder = from_config(get_config("decoder:shapes")).model
    assert noised.model.model.image_size == decoder.model.unet.image_size
    assert noised.model.diffusion.schedule == decoder.diffusion.schedule
    assert noised.identity()["model"]["diffusion"]["num_timesteps"] == 1000
    facts = clean.identity()["model"]
    assert "diffusion" not in facts and "reads_time" not in facts["model"]
