"""Two priors in one run directory: either draws z_img for the same decoder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax import evaluate, sample
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import load, text_to_image
from unclip_jax.inference.cascade import tokenise
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.stages import prior_ar
from unclip_jax.stages.prior import PriorStageConfig
from unclip_jax.stages.prior_ar import PriorArStageConfig


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    names = ("clip", "prior", "prior_ar", "decoder")
    return cascades.write(tmp_path_factory.mktemp("run"), names=names)


@pytest.fixture(scope="module", autouse=True)
def engines():
    with pytest.MonkeyPatch.context() as patch:
        cascades.share_engines(patch)
        yield


@pytest.fixture(scope="module")
def loaded(run_dir):
    return load.load_cascade(run_dir, prior_name="prior_ar")


def test_one_prior_is_loaded_and_the_other_not_looked_at(run_dir, loaded):
    assert isinstance(loaded.cascade.prior, PriorArStageConfig)
    assert list(loaded.manifests) == ["clip", "prior_ar", "decoder"]
    path = run_dir / "prior_ar" / "export"
    card = handoff.read_manifest(path)
    right = (path / "manifest.json").read_text()
    replace_manifest(path, dataclasses.replace(card, clip_id="f" * 64))
    try:
        assert isinstance(load.load_cascade(run_dir).cascade.prior, PriorStageConfig)
        with pytest.raises(UserError, match="the clip and the prior_ar do not fit: clip_id"):
            load.load_cascade(run_dir, prior_name="prior_ar")
    finally:
        (path / "manifest.json").write_text(right)


def test_what_it_draws_is_what_the_decoder_sees(loaded):
    keys = text_to_image.keys_for(3, jnp.arange(3))
    words = tokenise(loaded.cascade, cascades.tokenizers(loaded.cascade), cascades.CAPTIONS)
    few = dataclasses.replace(loaded.cascade.decoder.sampling, steps="2")

    @jax.jit
    def run(params, words, keys):
        options = SampleOptions(decoder=few, num_candidates=2)
        output = text_to_image.sample(loaded.cascade, params, words, keys, options=options)
        alone = prior_ar.sample(
            loaded.cascade.prior,
            params["prior_ar"],
            tokens=words["prior_ar"].tokens,
            token_mask=words["prior_ar"].mask,
            z_txt=text_to_image.text_embedding(loaded.cascade, params, captions=words),
            keys=rng.fold_each(keys, "prior"),
            num_candidates=2,
        )
        return output, alone

    output, alone = run(loaded.params, words, keys)
    np.testing.assert_allclose(output.z_img, alone, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(output.z_img, axis=-1), 1.0, rtol=1e-5)
    assert output.images.shape == (3, 16, 16, 3)


def test_the_command_draws_with_it_and_says_so(run_dir, tmp_path):
    out = tmp_path / "grid.png"
    arguments = [f"--models={run_dir}", f"--out={out}", "--prior=prior_ar", "--steps=2"]
    sample.main(["a red circle", *arguments, "--prior-temperature=0.5", "--prior-top-p=0.9"])
    record = json.loads(out.with_suffix(".json").read_text())
    single = tmp_path / "grid" / "0000.png"
    assert record["prior"] == "prior_ar"
    assert record["options"]["prior"]["temperature"] == 0.5
    assert record["options"]["prior"]["top_p"] == 0.9
    again = tmp_path / "again.png"
    sample.main(["repeat", str(out.with_suffix(".json")), f"--models={run_dir}", f"--out={again}"])
    assert json.loads(again.with_suffix(".json").read_text())["prior"] == "prior_ar"
    assert (tmp_path / "again" / "0000.png").read_bytes() == single.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior=prior_ar", "--prior-steps=8"], "--prior-steps is '8', but this prior has no"),
        (
            ["--prior-temperature=0.5"],
            "--prior-temperature is 0.5, but this prior has no such setting",
        ),
        (["--prior-top-p=0.5"], "--prior-top-p is 0.5, but this prior"),
        (["--prior-dot-percentile=70"], "--prior-dot-percentile is 70.0, but this prior"),
        (["--prior=prior_ar", "--prior-top-p=0"], "sampling.top_p is 0, which leaves no code"),
    ],
)
def test_options_of_the_other_prior_are_rejected(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        sample.main([f"--models={run_dir}", "x", *arguments])


def test_a_prior_that_is_not_there_is_named(tmp_path):
    folder = tmp_path / "run"
    for name in ("clip", "prior", "decoder"):
        (folder / name / "export").mkdir(parents=True)
        (folder / name / "export" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no export of the prior_ar .*experiments/prior_ar.py"):
        evaluate.main([f"--models={folder}", f"--data={folder}", "--prior=prior_ar"])
