"""One untrained cascade for all tests of serving."""

import io

import numpy as np
import pytest
from PIL import Image

from tests import cascades
from unclip_jax import demo


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def service(run_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.importlib.util, "find_spec", lambda name: name)
        args = demo.parser().parse_args([f"--models={run_dir}", "--batch=2", "--max-images=6"])
        demo.check(args)
    return demo.open_service(args)


def png(width=40, height=30, *, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
