"""Outputs and seeds of commands are checked before anything is loaded."""

import pathlib
import subprocess
import sys
import time

import pytest

from unclip_jax import bundle, evaluate, plan, prepare
from unclip_jax.core.checks import MAX_SEED, UserError
from unclip_jax.evaluation.cascade import CascadeConfig
from unclip_jax.evaluation.sampled_set import SampledSetConfig
from unclip_jax.evaluation.sweep import SweepConfig
from unclip_jax.metrics.score_options import ScoreOptions
from unclip_jax.training.config import TrainConfig

SETS = ["--real=nowhere", "--fake=nowhere", "--features=clip:nowhere"]
PATH = pathlib.Path("a")
SAMPLED = ["--models=nowhere"]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["images", *SETS]),
        (evaluate.main, ["statistics", "--images=nowhere", "--features=clip:nowhere"]),
        (evaluate.main, ["pack", "--images=nowhere"]),
        (evaluate.main, ["sweep", *SAMPLED, "--data=nowhere"]),
        (evaluate.main, ["plot", "nowhere"]),
        (evaluate.main, ["coco", *SAMPLED, "--captions=no", "--real=no", "--features=clip:no"]),
        (evaluate.main, ["prompts", "no.csv", *SAMPLED]),
        (evaluate.main, ["compare", "nowhere", "no"]),
        (bundle.main, SAMPLED),
        (plan.main, ["--config=prior:paper"]),
    ],
)
def test_an_output_below_a_file_is_rejected_first(main, arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*give another --out"):
        main([*arguments, f"--out={tmp_path}/file/x.npz"])


@pytest.mark.parametrize("name", ["x.npy", "x"])
def test_sets_are_written_as_npz(name, tmp_path):
    with pytest.raises(UserError, match=r"give a name that ends in .npz"):
        evaluate.main(["pack", "--images=nowhere", f"--out={tmp_path / name}"])


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**40])
@pytest.mark.parametrize(
    "use",
    [
        lambda seed: CascadeConfig(PATH, "b", seed=seed),
        lambda seed: SampledSetConfig(PATH, PATH, seed=seed),
        lambda seed: SweepConfig(PATH, "b", PATH, seed=seed),
        lambda seed: ScoreOptions(seed=seed),
        lambda seed: TrainConfig(steps=1, batch_size=1, seed=seed),
        lambda seed: prepare.main(["shapes:train=1", "--out=nowhere/x", f"--seed={seed}"]),
    ],
)
def test_seeds_have_one_range(seed, use, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"seed is {seed}; it must lie in \[0, 2147483647\]"):
        use(seed)


def test_help_of_an_evaluation_needs_no_jax():
    body = "import sys; from unclip_jax import evaluate as e; e.images_parser().format_help()"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", f"{body}; assert 'jax' not in sys.modules"], check=True)
    assert time.monotonic() - begin < 10  # under load; alone it takes half a second
