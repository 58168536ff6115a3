import pytest

from tests import cascades
from unclip_jax import prepare


@pytest.fixture(scope="package")
def run_dir(tmp_path_factory):
    """An untrained cascade without upsamplers, and a small shapes world with its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    cascades.write(folder, names=("clip", "prior", "decoder"))
    inputs = ["shapes:train=4,validation=16", f"--out={folder}/data"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder
