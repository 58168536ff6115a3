"""Initial parameters, layer by layer: which are 0, which are 1, and how wide the others are.

Transformers begin as in OpenAI's CLIP code, U-Nets as in ADM's: every branch ends in a layer of
zeros, so that a fresh U-Net is 0 and a fresh block the identity.
"""

import math
import re

import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import trees

DEPTHS = {  # of the tiny experiments' transformers, by path
    "clip": {"": 2},
    "prior": {"": 2},
    "prior_ar": {"latents": 2, "text_encoder": 1},
    "decoder": {"text_encoder": 2},
    "upsampler_256": {},
}
UNET_ZEROS = r"unet/(head|.*/residual/conv_2|.*/attention/out)/kernel"
ZEROS = {"decoder": UNET_ZEROS, "upsampler_256": UNET_ZEROS, "prior_ar": "network/out/kernel"}
FIXED = {  # initial deviations
    r".*/captions/(positions|padding)|captions/padding|(network/)?positions|query": 0.01,
    "text/positions": 0.01,
    r"(.*/)?tokens|network/(codes|dots)": 0.02,
    r"(network/)?null_(z|z_txt)": 0.02,
}


def deviation(name: str, path: str, shape: tuple[int, ...]) -> float:
    """The initial deviation of one parameter, by the rules of the sources."""
    for pattern, value in FIXED.items():
        if re.fullmatch(pattern, path):
            return value
    if name == "clip" and path.startswith("image/") and len(shape) in (1, 2, 4):
        return shape[-1 if "projection" not in path else 0] ** -0.5  # of the tower's width
    block = re.search(r"blocks/(attention|mlp)/(\w+)/kernel", path)
    if not block:
        return math.prod(shape[:-1]) ** -0.5
    depth = next(depth for part, depth in DEPTHS[name].items() if part in path)
    width = shape[1] if block[2] != "fc_2" else shape[2]
    if block[2] in ("out", "fc_2"):  # they end in the residual stream
        return width**-0.5 * (2 * depth) ** -0.5
    return (2 * width) ** -0.5 if block[2] == "fc_1" else width**-0.5


@pytest.mark.parametrize("name", DEPTHS)
def test_every_parameter_begins_as_its_layer_says(name):
    params = trees.flatten_paths(tiny.init(tiny.experiment(name).build_stage()))
    zeros = set()
    for path, value in params.items():
        x = np.asarray(value, np.float64)
        if path.startswith("codec/"):  # fitted, not random
            continue
        if path == "log_scale":
            assert x == pytest.approx(math.log(1 / 0.07), abs=1e-5)  # CLIP, section 2.5
        elif path.endswith("/bias") or re.fullmatch(ZEROS.get(name, ""), path):
            assert not x.any(), path
            zeros.add(path.rsplit("/", 1)[0])
        elif path.endswith("/scale"):
            assert (x == 1).all(), path
        else:
            expected = deviation(name, path, x.shape)
            spread = 5 / math.sqrt(2 * x.size)
            assert x.std() == pytest.approx(expected, rel=spread), path
            assert abs(x.mean()) < 5 * expected / math.sqrt(x.size), path
    if "unet" in ZEROS.get(name, ""):
        blocks = {path.split("/residual")[0] for path in params if "/residual" in path}
        assert {f"{block}/residual/conv_2" for block in blocks} <= zeros
