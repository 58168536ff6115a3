"""Sweeps over an untrained cascade, with images from a stand-in that counts."""

import csv
import json

import numpy as np
import pytest

from tests import cascades
from unclip_jax import evaluate
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import sweep_plots, sweep_points
from unclip_jax.handoff import export
from unclip_jax.inference import batch_sampling, load

SIZE = 16


class Draws:
    """Stands in for `batch_sampling.sample_images`: noise that depends on its arguments."""

    def __init__(self):
        self.calls = []

    def __call__(self, loaded, captions, *, seed, options, z_img, batch_size, name):
        sampling = options.decoder
        self.calls.append((sampling.guidance_scale, sampling.steps, sampling.sampler))
        self.z_img, self.captions = z_img, captions
        rng = np.random.default_rng(int(10 * sampling.guidance_scale) + seed)
        return rng.integers(0, 256, (len(captions), SIZE, SIZE, 3)).astype(np.uint8)


def run(run_dir, out, *more, draw=None):
    draw = draw or Draws()
    base = [f"--models={run_dir}", f"--data={run_dir}/data", f"--out={out}"]
    base += ["--num=4", "--images=2", "--guidance=1,2.5", "--steps=2,4", "--sampler=ddim"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_sampling, "sample_images", draw)
        evaluate.main(["sweep", *base, *more])
    return draw


@pytest.fixture(scope="module")
def swept(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run(run_dir, out, "--keep")


def test_every_combination_is_sampled_from_the_same_embeddings(swept):
    _, draw = swept
    assert draw.calls == [(g, s, "ddim") for g in (1.0, 2.5) for s in ("2", "4")]
    assert len(draw.captions) == 8
    assert draw.captions[0] == draw.captions[1] != draw.captions[2]
    z = draw.z_img
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-4)
    assert not np.allclose(z[0], z[1])  # two samples of the prior for one caption


def test_tables_hold_all_points_with_protocol_and_warnings(swept):
    out, _ = swept
    whole = json.loads((out / "sweep.json").read_text())
    assert [p["point"]["guidance"] for p in whole["points"]] == [1.0, 2.5, 1.0, 2.5]
    scored = whole["points"][0]["scores"]
    for name in ("frechet", "kid", "precision", "coverage", "clip_score", "diversity", "cmmd"):
        assert np.isfinite(scored[name]), name
    assert 0 <= scored["checker_joint"] <= 1
    assert whole["protocol"]["count"] == 8
    assert whole["protocol"]["real"]["count"] == 16
    assert any("too few for a covariance" in line for line in whole["warnings"])
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["frechet"]) for r in rows] == [p["scores"]["frechet"] for p in whole["points"]]
    assert "WARNING" in sweep_points.table(whole)
    assert (out / "sweep.png").stat().st_size > 10_000
    assert np.load(out / "points" / "guidance1_steps2_ddim.npz")["arr_0"].shape == (8, 16, 16, 3)


def test_existing_points_are_not_sampled_again(run_dir, swept):
    out, _ = swept
    (out / "points" / "guidance2.5_steps2_ddim.json").unlink()
    again = run(run_dir, out)
    assert again.calls == [(2.5, "2", "ddim")]
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 4


def test_another_protocol_is_rejected(run_dir, swept):
    with pytest.raises(UserError, match="another protocol: seed is 0 there and 1 here"):
        run(run_dir, swept[0], "--seed=1")


def test_true_embeddings_condition_every_image_of_a_caption(run_dir, tmp_path):
    few = ["--guidance=1", "--steps=2"]
    draw = run(run_dir, tmp_path, "--condition=z_img", "--images=3", *few)
    np.testing.assert_array_equal(draw.z_img[0], draw.z_img[2])
    assert len(draw.z_img) == 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guidance=1,x"], "--guidance is '1,x'; give numbers"),
        (["--guidance=-1"], "--guidance holds -1"),
        (["--guidance=nan"], "--guidance holds nan"),
        (["--condition=z_ing"], "unknown --condition 'z_ing'. Did you mean 'z_img'"),
        (["--sampler=ddmi"], "unknown --sampler 'ddmi'. Did you mean 'ddim'"),
        (["--threshold=dynamc"], "unknown --threshold 'dynamc'. Did you mean 'dynamic'"),
        (["--upsampler-guidance=1,x"], "--upsampler-guidance is '1,x'; give numbers"),
        (["--upsampler-guidance=-2"], "--upsampler-guidance holds -2"),
        (["--upsampler-level=2"], "--upsampler-level holds 2; give fractions of the chain, 0 to 1"),
        (["--upsampler-level=0.1"], "level is 0.1, but these models have no upsampler"),
        (["--guidance="], "--guidance is ''; give numbers"),
        (["--num=17"], "has 16 examples; --num=17"),
        (["--num=0"], "--num is 0"),
        (["--reference=99"], "has 16 examples; --reference=99"),
    ],
)
def test_mistakes_are_named_before_anything_is_sampled(run_dir, tmp_path, more, message):
    draw = Draws()
    with pytest.raises(UserError, match=message):
        run(run_dir, tmp_path, *more, draw=draw)
    assert not draw.calls


@pytest.fixture(scope="module")
def imagen(run_dir, tmp_path_factory):
    """A text encoder, Imagen's base model and its upsampler, with the data of the other run."""
    folder = tmp_path_factory.mktemp("imagen")
    files = {"upsampler_256": "imagen_sr256"}
    cascades.write(folder, names=("text_encoder", "imagen_base", "upsampler_256"), files=files)
    (folder / "data").symlink_to(run_dir / "data")
    return folder


def test_a_chain_without_a_clip_is_swept_by_features_of_another(run_dir, imagen, tmp_path):
    out = tmp_path / "out"
    draw = run(imagen, out, f"--features=clip:{run_dir}/clip/export", "--steps=2")
    assert draw.calls == [(1.0, "2", "ddim"), (2.5, "2", "ddim")]
    assert draw.z_img is None and len(draw.captions) == 8
    whole = json.loads((out / "sweep.json").read_text())
    assert np.isfinite(whole["points"][0]["scores"]["frechet"])
    assert "clip_score" not in whole["points"][0]["scores"]
    protocol = whole["protocol"]
    assert protocol["clip"] is None and protocol["prior"] is None
    loaded = load.load_cascade(imagen)
    assert protocol["decoder"] == export.params_id(loaded.params["imagen_base"])[:16]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "has no clip, of whose features the distances would be; give --features=clip:EXPORT"),
        (["--condition=z_txt"], "--condition is 'z_txt', but the imagen_base reads no embedding"),
        (["--condition=z_img"], "--condition is 'z_img', but the imagen_base reads no embedding"),
    ],
)
def test_what_a_chain_without_a_clip_cannot_do_is_named(imagen, tmp_path, more, message):
    draw = Draws()
    with pytest.raises(UserError, match=message):
        run(imagen, tmp_path, *more, draw=draw)
    assert not draw.calls


class UpsamplingDraws(Draws):
    """Also records the settings of the upsamplers."""

    def __call__(self, loaded, captions, *, options, **others):
        scales = tuple(sampling.guidance_scale for sampling in options.upsamplers)
        settings = (options.decoder.threshold, scales, options.upsampler_level)
        images = super().__call__(loaded, captions, options=options, **others)
        self.calls[-1] = settings
        return images


def test_thresholds_and_settings_of_upsamplers_are_swept(run_dir, imagen, tmp_path):
    axes = ["--threshold=none,dynamic", "--upsampler-guidance=1,3", "--upsampler-level=0,0.1,0.2"]
    base = [f"--features=clip:{run_dir}/clip/export", "--steps=2", "--guidance=1", *axes]
    draw = run(imagen, tmp_path / "out", *base, draw=UpsamplingDraws())
    levels = (0.0, 0.1, 0.2)
    expected = [(t, (w,), a) for t in ("none", "dynamic") for w in (1.0, 3.0) for a in levels]
    assert draw.calls == expected
    whole = json.loads((tmp_path / "out" / "sweep.json").read_text())
    points = [entry["point"] for entry in whole["points"]]
    assert [p["upsampler_level"] for p in points] == [*levels] * 4  # the fastest axis of the table
    assert {p["threshold"] for p in points[:6]} == {"dynamic"}
    names = {path.stem for path in (tmp_path / "out" / "points").glob("*.json")}
    assert len(names) == 12
    assert "guidance1_steps2_ddim_threshold-none_upsampler-guidance3_upsampler-level0.2" in names
    assert sweep_plots.axis_of([("", whole)]) == "upsampler_level"
    curves = sweep_plots.lines(whole, "upsampler_level")
    assert next(iter(curves)) == "ddim 2 steps threshold dynamic guidance 1 upsampler guidance 1"
    assert [len(points) for points in curves.values()] == [3] * 4
    for points in curves.values():
        assert [point["upsampler_level"] for point in points] == [*levels]
    again = run(imagen, tmp_path / "out", *base, draw=UpsamplingDraws())
    assert not again.calls


def test_points_of_sweeps_without_these_settings_are_read(swept):
    whole = json.loads((swept[0] / "sweep.json").read_text())
    for entry in whole["points"]:
        for name in ("threshold", "upsampler_guidance", "upsampler_level"):
            assert entry["point"].pop(name) is None
    assert sweep_plots.axis_of([("", whole)]) == "guidance"
    curves = sweep_plots.lines(whole)
    assert list(curves) == ["ddim 2 steps", "ddim 4 steps"]
    assert [[p["guidance"] for p in points] for points in curves.values()] == [[1.0, 2.5]] * 2
    assert "guidance1_steps2_ddim" in sweep_points.table(whole)


def plot(one, other, where):
    evaluate.main(["plot", str(one), str(other), f"--out={where}/both.png"])


def test_only_comparable_sweeps_are_plotted_together(swept, tmp_path):
    out, _ = swept
    plot(out, out, tmp_path)
    assert (tmp_path / "both.png").stat().st_size > 10_000
    whole = json.loads((out / "sweep.json").read_text())
    whole["protocol"]["weights"] = "another"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="protocols are mixed: weights is .* in out and 'another'"):
        plot(out, tmp_path / "other", tmp_path)
    with pytest.raises(UserError, match=r"holds no sweep.json"):
        plot(tmp_path, tmp_path, tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        plot(tmp_path, tmp_path, tmp_path)
