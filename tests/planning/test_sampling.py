import pytest

from unclip_jax import configs
from unclip_jax.core.checks import UserError
from unclip_jax.planning import sampling


@pytest.mark.parametrize("condition", ["z_img", "z_txt"])
def test_a_decoder_draws_from_either_embedding_under_one_name(condition):
    override = f"--config.model.condition={condition}"
    config = configs.read("experiments/decoder.py:tiny", overrides=[override]).model
    _, inputs = sampling.function("decoder", config, batch_size=2)
    assert inputs.keys() == {"tokens", "token_mask", "z_img", "keys"}
    assert inputs["z_img"].shape == (2, config.model.z_dim)


def test_a_stage_that_draws_nothing_is_refused():
    with pytest.raises(UserError, match="does not apply to stage 'clip', which draws nothing"):
        sampling.function("clip", None, batch_size=2)
