"""Outputs of `evaluate prompts` and comparisons of them, written without a model."""

import json
import pathlib

import numpy as np

from unclip_jax.evaluation import comparison
from unclip_jax.evaluation.comparison import ComparisonConfig
from unclip_jax.metrics import npz

ROWS = [  # category and text; unlike the captions of any world
    *(("Colors", f"a car, number {number}") for number in range(4)),
    *(("Counting", f"{number} dogs") for number in range(2, 5)),
    *(("Text | signs", f'a sign that says "{number}" & <b>') for number in range(2)),
]
IMAGES = 2


def pictures(count, *, seed, side=8):
    """Random images, all different."""
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write_samples(
    folder: pathlib.Path,
    *,
    model,
    rows=None,
    per_prompt=IMAGES,
    images=None,
    scores=None,
    part=3,
    **protocol,
):
    """An output of `evaluate prompts`, in parts that do not end with a prompt; returns `folder`."""
    rows = ROWS if rows is None else rows
    if images is None:
        images = pictures(len(rows) * per_prompt, seed=len(model))
    count = len(images)
    for start in range(0, count, part):
        chunk = images[start : start + part]
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        npz.write(folder / "pictures" / f"{start:06d}.npz", [chunk], count=len(chunk))
    base = {"clip": "c" * 16, "decoder": model, "seed": 0, "count": count, "part": part}
    facts = base | protocol
    (folder / "protocol.json").write_text(json.dumps(facts))
    scores = [None] * len(rows) if scores is None else scores
    prompts = [
        {"category": category, "text": text, "clip_score": score}
        for (category, text), score in zip(rows, scores, strict=True)
    ]
    content = {"images": per_prompt, "protocol": facts, "prompts": prompts}
    (folder / "prompts.json").write_text(json.dumps(content))
    return folder


def write_comparison(folder: pathlib.Path, *, seed=0, **options):
    """A comparison of the models "secret-one" and "secret-other"; returns its folder."""
    a = write_samples(folder / "secret-one", model="secret-one", **options)
    b = write_samples(folder / "secret-other", model="secret-other", **options)
    comparison.compare(ComparisonConfig(a, b, folder / "out", seed))
    return folder / "out"
