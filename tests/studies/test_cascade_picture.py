"""The picture of the stages, of models that have them, and mistakes in its command line."""

import sys

import pytest
from PIL import Image

from studies import cascade_picture
from tests import cascades
from unclip_jax.core.checks import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


def draw(monkeypatch, run, *arguments):
    monkeypatch.setattr(sys, "argv", ["cascade_picture", f"--models={run}", *arguments])
    cascade_picture.main()


def test_a_row_per_caption(monkeypatch, run, tmp_path):
    sizes = []
    for num in (1, 2):
        draw(monkeypatch, run, f"--num={num}", f"--out={tmp_path / 'x.png'}")
        with Image.open(tmp_path / "x.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] and 2 * sizes[0][1] == sizes[1][1]


@pytest.mark.parametrize("num", [0, -1, 7])
def test_a_number_of_captions_that_there_is_not(monkeypatch, run, tmp_path, num):
    with pytest.raises(UserError, match=rf"--num is {num}; it must lie in \[1, 6\]"):
        draw(monkeypatch, run, f"--num={num}", f"--out={tmp_path / 'x.png'}")
