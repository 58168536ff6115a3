"""Defaults of requests: those that do not damage images; the paper's are a choice."""

import io

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.checks import UserError
from unclip_jax.engine import image_inputs, request_fields
from unclip_jax.engine.image_inputs import EncodedImage
from unclip_jax.engine.requests import (
    InterpolateRequest,
    ReconstructRequest,
    TextDiffRequest,
    TextRequest,
    VariationsRequest,
)
from unclip_jax.objectives.gaussian import SAMPLERS


@pytest.fixture(scope="module")
def image():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(file, "png")
    return image_inputs.read(file.getvalue())


@pytest.fixture(scope="module")
def latent():
    return EncodedImage(None, None, "one.npz")


def test_inversions_refine_few_steps(image):
    for request in (ReconstructRequest(images=(image,)), VariationsRequest(image=image)):
        assert (request.steps, request.refine) == ("50", 3)


def test_interpolations_share_one_noise(image):
    request = InterpolateRequest(images=(image, image))
    assert request.noise == "shared" and not request.inverts_details
    assert InterpolateRequest(images=(image, image), noise="inverted").inverts_details


def test_text_diffs_keep_the_noise_of_every_step_of_an_image(image, latent):
    request = TextDiffRequest(image=image, target="a ring")
    assert request.keeps_noise_maps and request.refine == 0 and not request.inverts_details
    assert TextDiffRequest(image=image, target="a ring", details="inverted").inverts_details
    of_the_paper = TextDiffRequest(image=image, target="a ring", inversion="ddim")
    assert not of_the_paper.keeps_noise_maps and of_the_paper.inverts_details


def test_text_diffs_of_latents_keep_x_T(latent):
    request = TextDiffRequest(image=latent, target="a ring")
    assert not request.keeps_noise_maps and request.inverts_details
    with pytest.raises(UserError, match="inversion=ddpm needs the image itself"):
        TextDiffRequest(image=latent, target="a ring", inversion="ddpm")


def test_help_names_every_sampler():
    """It is a literal, because --help imports no JAX; those for distilled models are left out."""
    help_text = request_fields.fields(TextRequest)["sampler"].option.help
    names = [name for name, solver in SAMPLERS.items() if not solver.endpoints]
    assert help_text.rpartition(": ")[2].split(", ") == names
