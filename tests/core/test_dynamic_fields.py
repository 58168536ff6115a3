"""Settings whose numbers are arguments of compiled functions."""

import dataclasses

import pytest

from unclip_jax.core.dynamic_fields import dynamic, is_static, join, split
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.objectives.gaussian import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: str = "4"
    scale: float = dataclasses.field(default=1.0, metadata=dynamic(off=1.0))


def test_settings_that_differ_in_a_dynamic_number_are_one_static_value():
    (static, numbers), (other, others) = split(Settings(scale=2.0)), split(Settings(scale=7.5))
    assert static == other and hash(static) == hash(other)
    assert (numbers, others) == ((2.0,), (7.5,))
    assert split(Settings("8", 2.0))[0] != static


def test_the_value_that_turns_a_number_off_stays_static():
    static, numbers = split(Settings(scale=1.0))
    assert numbers == () and static == Settings(scale=1.0)
    assert static != split(Settings(scale=2.0))[0]


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        (SamplingConfig(sampler="ddim", eta=0.5, guidance_scale=3.0), (0.5, 3.0)),
        (DecodeOptions(SamplingConfig(), GuidanceSchedule(4.0, "rising")), (4.0,)),
        (
            SampleOptions(
                prior=SamplingConfig(guidance_scale=2.0),
                upsamplers=(SamplingConfig(), SamplingConfig(guidance_scale=5.0)),
            ),
            (2.0, 5.0),
        ),
        ("no settings", ()),
        (None, ()),
    ],
)
def test_numbers_return_to_their_fields(settings, numbers):
    static, own = split(settings)
    assert own == numbers
    assert join(static, own) == settings
    if numbers:
        doubled = join(static, [2 * number for number in numbers])
        assert doubled != settings and split(doubled) == (static, tuple(2 * n for n in numbers))


def test_a_number_is_static_only_as_a_number_of_python():
    import jax

    assert is_static(1, 1.0) and not is_static(2.0, 1.0)
    results = []
    jax.make_jaxpr(lambda scale: results.append(is_static(scale, 1.0)))(1.0)
    assert results == [False]
