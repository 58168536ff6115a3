"""The comparison of guidances: its arms, the guide's own score, and all of it once."""

import json

import numpy as np
import pytest

from studies import evaluation_set, gradient_guidance, statistics
from studies.gradient_guidance import ARMS, Arm
from tests import cascades
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.inference import guided_sampling


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """GLIDE with a classifier and a noise-aware CLIP beside it, a clean CLIP, a small world."""
    root = tmp_path_factory.mktemp("guidance")
    files = {"decoder": "glide"}
    glide = cascades.write(root / "glide", names=("decoder", "classifier"), files=files)
    cascades.write_guide(glide)
    clean = cascades.write(root / "clean", names=("clip",))
    inputs = ["shapes:train=64,validation=16", f"--out={root}/data"]
    prepare.main([*inputs, f"--tokenizer={clean}/tokenizer"])
    return root


def command(folders, out, *more):
    words = [f"--models={folders}/glide", f"--scoring-clip={folders}/clean/clip/export"]
    words += [f"--data={folders}/data", f"--out={out}", "--num=2"]
    words += [f"--clip={folders}/glide/guide/export"]
    return [*words, f"--classifier={folders}/glide/classifier/export", *more]


def test_arms_change_one_guidance_at_a_time():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        assert (arm.guidance not in (0, 1)) + (arm.clip > 0) + (arm.classifier > 0) <= 1
    assert Arm("no guidance") in ARMS


def test_the_score_of_the_guide_is_a_cosine_of_its_own_embeddings(folders):
    guide = guided_sampling.load_guide(folders / "glide" / "guide" / "export")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    captions = ["a red circle", "a red circle", "a blue square above a green star"]
    scores = gradient_guidance.guide_scores(guide, images, captions)
    again = gradient_guidance.guide_scores(guide, images[[0, 0]], captions[1:])
    assert np.all(np.abs(scores) <= 1) and len(set(scores.round(6))) == 3
    assert again[0] == pytest.approx(scores[0], abs=1e-6) and again[1] != pytest.approx(scores[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--images=1"], r"--images is 1; it must lie in \[2, 64\]"),
        (["--out=x.txt"], "give a name that ends in .md"),
    ],
)
def test_mistakes_are_reported_first(folders, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        gradient_guidance.main(command(folders, tmp_path / "x.md", *more))


@pytest.mark.nightly
def test_every_arm_has_a_row(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(evaluation_set, "FRECHET_RESAMPLES", 10)
    arms = (Arm("no guidance"), Arm("clip", clip=2.0), Arm("classes", guidance=0.0, classifier=2.0))
    monkeypatch.setattr(gradient_guidance, "ARMS", arms)
    out = tmp_path / "page.md"
    gradient_guidance.main(command(folders, out))
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["name"] for row in rows] == [arm.name for arm in arms]
    assert "| classes | " in out.read_text()
