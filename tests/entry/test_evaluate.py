"""The table of `evaluate`."""

import pytest

from unclip_jax import evaluate
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import cascade


def test_the_table_names_every_condition_and_leaves_out_unasked_attributes():
    cell = {"hits": 9, "total": 10, "value": 0.9, "low": 0.6, "high": 0.98}
    actual = {"count": cell, "joint": cell}
    result = {
        "num": 10,
        "best_of": 4,
        "retrieval": {"pairs": 256, "image_to_text@1": 0.5, "text_to_image@1": 0.25},
        "upsampler_psnr": {"upsampler": 33.0, "bicubic": 31.5},
        "checker": {"prior": actual, "z_txt": actual, "z_img": {**actual, "binding": cell}},
    }
    text = cascade.table(result)
    assert "image to text 0.500, text to image 0.250" in text
    assert "(+1.50)" in text
    assert "10 captions, best of 4, exact checker" in text
    assert "best of" not in cascade.table({**result, "best_of": 1})
    assert "0.90 [0.60, 0.98]" in text
    assert "binding" not in text


def test_a_misspelt_subcommand_is_an_error_with_a_suggestion():
    with pytest.raises(UserError, match="unknown subcommand 'imagse'. Did you mean 'images'"):
        evaluate.main(["imagse", "--real=a"])
