"""The models in unclip_jax/weights: complete, small, described, and nobody's paths in them."""

import json
import math

import pytest

from unclip_jax.handoff import load, shipped
from unclip_jax.inference.load import find_cascade

NAMES = shipped.names()
MOST = 60 * 2**20  # bytes of all together
FILES = [path for path in shipped.WEIGHTS.rglob("*") if path.is_file()]

pytestmark = pytest.mark.skipif(not NAMES, reason="no trained models in this checkout")


def test_they_are_small_and_the_default_is_among_them():
    assert sum(path.stat().st_size for path in FILES) < MOST
    assert shipped.DEFAULT in NAMES
    assert shipped.run_directory() == shipped.WEIGHTS / shipped.DEFAULT


def test_they_hold_tensors_and_text_alone():
    assert {path.suffix for path in FILES} <= {".safetensors", ".json", ".md", ".png"}
    for path in FILES:
        if path.suffix in (".json", ".md"):
            text = path.read_text("utf-8")
            assert "/tmp/" not in text and "/home/" not in text and "/work" not in text, path


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_fits_and_has_its_digests(name):
    run = shipped.WEIGHTS / name
    files = find_cascade(run)
    assert list(files.readers) == ["clip", "prior", "decoder", "upsampler_256"]
    for stage, read in files.readers.items():
        assert files.manifests[stage].licence == "Apache-2.0"
        assert files.manifests[stage].size == f"{name}_long"
        assert load.file_digests_of(run / stage / "export")
        read()  # compares the digests


@pytest.mark.parametrize("name", NAMES)
def test_their_card_states_what_the_checker_sees(name):
    evaluation = json.loads((shipped.WEIGHTS / name / "evaluation.json").read_text())
    card = (shipped.WEIGHTS / name / "README.md").read_text("utf-8")
    assert evaluation["num"] >= 50
    for source in ("prior", "z_txt", "z_img"):
        rate = evaluation["checker"][source]["joint"]
        assert math.isclose(rate["value"], rate["hits"] / rate["total"])
        *_, row = [line for line in card.splitlines() if line.startswith(f"| {source} |")]
        assert row.endswith(f"| {rate['value']:.2f} |")
