"""Files that version 0.1.0 wrote still load: manifests, parameter trees and latents.

exports_0_1_0.json holds the manifest or config of each stage at its smallest size and in the form
of public weights, with the path and shape of every parameter; latent_0_1_0.npz is a latent that
`sample reconstruct` wrote.
"""

import json
import pathlib

import numpy as np
import pytest

from unclip_jax.core import trees
from unclip_jax.core.config import build
from unclip_jax.editing import latents
from unclip_jax.handoff import manifest
from unclip_jax.inference.load import abstract_params
from unclip_jax.stages.registry import stage_entry

FOLDER = pathlib.Path(__file__).parent
EXPORTS = json.loads((FOLDER / "exports_0_1_0.json").read_text())


@pytest.mark.parametrize("name", EXPORTS)
def test_a_released_export_has_the_parameters_of_its_stage(name):
    export = EXPORTS[name]
    stage, config = export.get("stage"), export.get("config")
    if "manifest" in export:
        card = manifest.from_json(json.dumps(export["manifest"]), where=name)
        stage, config = card.stage, card.config
    entry = stage_entry(stage)
    params = abstract_params(entry.make(build(entry.config, config, where=name)))
    shapes = {path: list(leaf.shape) for path, leaf in trees.flatten_paths(params).items()}
    assert shapes == export["params"]


def test_a_released_latent_loads():
    latent, origin = latents.load(FOLDER / "latent_0_1_0.npz")
    assert latent.z_img.shape == (1, 32) and latent.x_T.shape == (1, 16, 16, 3)
    assert [detail.shape for detail in latent.details] == [(1, 32, 32, 3)]
    assert (origin.steps, origin.image_size, origin.name) == ("4", 16, "input.png")
    assert origin.details[0].steps == "8"
    np.testing.assert_allclose(np.linalg.norm(latent.z_img), 1.0, rtol=1e-5)
