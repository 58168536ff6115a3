"""The subcommands images, statistics and pack, with the image tower of an untrained CLIP."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics.test_inception_weights import TINY
from unclip_jax import evaluate
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import feature_extraction, image_sets
from unclip_jax.metrics import extractors, kernels, neighbours, npz
from unclip_jax.metrics import inception_weights as weights
from unclip_jax.metrics.frechet import moments, squared_distance
from unclip_jax.metrics.report import compare
from unclip_jax.weight_files.tensor_table import nested


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A real and a fake batch of 40 pictures of 24 pixels."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, top in (("real", 256), ("fake", 128)):
        images = rng.integers(0, top, (40, 24, 24, 3)).astype(np.uint8)
        npz.write(folder / f"{name}.npz", [images], count=40)
    return folder


@pytest.fixture(scope="module")
def clip(run_dir):
    return f"--features=clip:{run_dir}/clip/export"


def run(capsys, *argv):
    evaluate.main([str(word) for word in argv])
    return capsys.readouterr().out


def run_comparison(capsys, sets, clip, *more, real="real.npz", out="scores.json"):
    where = [f"--real={sets}/{real}", f"--fake={sets}/fake.npz", f"--out={sets}/{out}"]
    text = run(capsys, "images", *where, clip, *more)
    return json.loads((sets / out).read_text()), text


def test_scores_are_those_of_the_features(capsys, sets, clip):
    result, text = run_comparison(capsys, sets, clip, "--batch=16", "--kid-subsets=3", "--seed=5")
    extractor = feature_extraction.open_extractor(clip.removeprefix("--features="))
    pools = []
    for name in ("real", "fake"):
        images = np.load(sets / f"{name}.npz")["arr_0"]
        ready = jnp.asarray(extractor.prepare(images))
        pools.append(np.asarray(extractor.apply(extractor.params, ready)["pool"]))
    np.testing.assert_allclose(np.linalg.norm(pools[0], axis=1), 1, rtol=1e-5)
    expected = {
        "frechet": squared_distance(moments(pools[0]), moments(pools[1])),
        "kid": kernels.kid(*pools, subsets=3, seed=5).value,
        "cmmd": kernels.cmmd(*pools),
        **neighbours.overlap(*pools)._asdict(),
    }
    for name, value in expected.items():
        assert result["scores"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        assert name in text
    assert result["protocol"]["real"]["count"] == result["protocol"]["fake"]["count"] == 40
    assert result["protocol"]["kid"] == "3 subsets of 40, seed 5"
    assert "L2-normalised" in text
    assert "WARNING: real has 40 pictures, too few" not in text or result["warnings"]


def test_batches_change_nothing(capsys, sets, clip):
    one, _ = run_comparison(capsys, sets, clip, "--batch=16", "--kid-subsets=3", "--seed=5")
    other, _ = run_comparison(capsys, sets, clip, "--batch=7", "--kid-subsets=3", "--seed=5")
    for name, value in one["scores"].items():
        assert other["scores"][name] == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_statistics_stand_for_a_set(capsys, sets, clip):
    output = run(
        *(capsys, "statistics", f"--images={sets}/real.npz", clip, f"--out={sets}/stats.npz")
    )
    assert "40 images" in output
    direct, _ = run_comparison(capsys, sets, clip)
    result, _ = run_comparison(capsys, sets, clip, real="stats.npz")
    assert result["scores"]["frechet"] == pytest.approx(direct["scores"]["frechet"], rel=1e-9)
    assert result["protocol"]["real"] == direct["protocol"]["real"]
    assert result["warnings"] == direct["warnings"]


def test_statistics_without_images_cannot_be_blurred(capsys, sets, clip):
    with pytest.raises(UserError, match="--blur is 2, but .*stats.npz holds statistics without"):
        run_comparison(capsys, sets, f"{clip}", "--blur=2", real="stats.npz")


def test_a_reference_batch_gives_its_statistics_and_its_images(capsys, sets, clip):
    with np.load(sets / "real.npz") as batch, np.load(sets / "stats.npz") as stats:
        np.savez(sets / "both.npz", arr_0=batch["arr_0"][:20], **stats)
    result, _ = run_comparison(capsys, sets, clip, real="both.npz")
    direct, _ = run_comparison(capsys, sets, clip)
    assert result["scores"]["frechet"] == pytest.approx(direct["scores"]["frechet"], rel=1e-9)
    assert result["protocol"]["kid"].startswith("100 subsets of 20")


def test_statistics_of_other_weights_are_rejected(capsys, sets, clip):
    stats = npz.read_statistics(sets / "stats.npz")
    other = {**stats.protocol, "weights": "another"}
    npz.write_statistics(sets / "other.npz", npz.Statistics(stats.pool, None, other))
    with pytest.raises(UserError, match="protocols are mixed: weights is 'another' for real"):
        run_comparison(capsys, sets, clip, real="other.npz")


def test_pack_writes_what_others_read(capsys, sets):
    run(capsys, "pack", f"--images={sets}/real.npz", f"--out={sets}/small.npz", "--size=8")
    assert np.load(sets / "small.npz")["arr_0"].shape == (40, 8, 8, 3)
    with pytest.raises(UserError, match=r"ends in .npz"):
        run(capsys, "pack", f"--images={sets}/real.npz", "--out=small.zip")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("inception", "write inception:FILE"),
        ("dino:x", "write inception:FILE"),
        ("inception:none.safetensors", "there is no file none.safetensors"),
        ("inception:weights.pkl", "there is no file weights.pkl"),
        ("clip:nowhere", "nowhere"),
    ],
)
def test_extractors_that_are_not_there_are_named(capsys, sets, features, message):
    with pytest.raises(UserError, match=message):
        run_comparison(capsys, sets, f"--features={features}")


def test_an_unknown_resize_is_rejected(capsys, sets, clip):
    with pytest.raises(UserError, match="unknown --resize 'bicubic'"):
        run_comparison(capsys, sets, clip, "--resize=bicubic")


def test_preprocess_are_cropped_and_scaled():
    image = np.zeros((1, 8, 16, 3), np.uint8)
    image[:, :, 4:12] = 255
    np.testing.assert_array_equal(extractors._preprocess(image, 8), 1.0)
    assert extractors._preprocess(image[:, :, :8], 4).shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(extractors._preprocess(image[:, :, :4], 4), -1.0)


def test_inception_goes_from_images_to_all_scores():
    rng = np.random.default_rng(0)
    shapes = trees.flatten_paths(weights.abstract(TINY))
    params = nested(
        {p: np.float32(rng.normal(1 if "bn" in p else 0, 0.1, s.shape)) for p, s in shapes.items()}
    )
    extractor = extractors.inception(params, weights="random", cfg=TINY, side=75)
    sets = [
        image_sets.in_memory(rng.integers(0, top, (12, 20, 20, 3)).astype(np.uint8), where=str(top))
        for top in (256, 100)
    ]
    real, fake = (feature_extraction.collect(extractor, each, batch_size=5) for each in sets)
    report = compare(real, fake, kind="inception")
    assert {"fid", "sfid", "kid", "precision", "inception_score"} <= set(report.scores)
    assert "too few for a covariance of 128 dimensions" in str(report)
    assert "tf1: bilinear" in report.protocol["resize"]
