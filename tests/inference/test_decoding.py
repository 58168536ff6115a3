"""Decoding agrees with sampling for every kind of condition, and works with every sampler."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.solvers import SOLVERS
from tests.stages import tiny
from tests.stages.test_captions import KARLO_DECODER
from unclip_jax.conditioning.captions import ClipText, TokenIds
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, Solver, StepTable
from unclip_jax.inference import decoding
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import decoder
from unclip_jax.stages.decoder import NULL, Condition, DecoderStageConfig, InpaintTarget

OWN = dataclasses.replace(
    KARLO_DECODER, caption="own", clip_text_width=None, text_depth=1, text_heads=2
)
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) * 3.0
IDS = TokenIds(
    jnp.asarray(RNG.integers(0, 20, (3, 6)), jnp.int32),
    jnp.arange(6)[None] < jnp.array([[3, 5, 6]]).T,
)
NO_CAPTION = TokenIds(IDS.tokens, jnp.zeros_like(IDS.mask))
TEXT = ClipText(Z[::-1], jnp.asarray(RNG.normal(size=(3, 6, 5)), jnp.float32), IDS.mask)
EMPTY = jax.tree.map(lambda x: x[:1], TEXT)
CAPTIONS = {"own": IDS, "none": NO_CAPTION, "clip_sequence": TEXT}
KEYS = rng.per_example(jax.random.key(0), jnp.arange(3))


@functools.cache
def case(embedding: str, reads: str) -> tuple[DecoderStageConfig, dict]:
    """A small decoder with random weights and its config."""
    model = KARLO_DECODER if reads == "clip_sequence" else OWN
    cfg = DecoderStageConfig(
        model,
        gaussian.DiffusionConfig(learned_variance=True),
        SamplingConfig(steps="3", variance="learned_range", threshold="static"),
        embedding=embedding,
        drop_text=0.0 if reads == "clip_sequence" else 0.5,
    )
    return cfg, tiny.random_params(decoder.make(cfg))


@functools.cache
def sampler(cfg, scale):
    """`stages.decoder.sample`, compiled once per guidance scale."""
    sampling = dataclasses.replace(cfg.sampling, guidance_scale=scale)

    def run(params, condition, keys, negative):
        folded = rng.fold_each(keys, "decoder")
        options = {"keys": folded, "sampling": sampling, "negative": negative}
        return decoder.sample(cfg, params, condition, **options)

    return jax.jit(run)


@functools.cache
def decode(cfg, scale):
    """`decoding.decode` from the same noise, compiled once per guidance scale."""
    options = DecodeOptions(cfg.sampling, GuidanceSchedule(scale))

    def run(params, condition, keys, negative, x_T):
        arguments = {"condition": condition, "keys": keys, "negative": negative}
        return decoding.decode(cfg, params, x_T, options=options, **arguments).images

    return jax.jit(run)


def sample_images(cfg, params, condition, keys, *, scale: float, negative=NULL):
    """Images of `stages.decoder.sample`."""
    return sampler(cfg, scale)(params, condition, keys, negative)


def decode_images(cfg, params, condition, keys, *, scale: float, negative=NULL):
    """Images of `decoding.decode` from the same noise."""
    x_T = jax.jit(lambda k: decoding.fresh_noise(cfg, k))(keys)
    return decode(cfg, scale)(params, condition, keys, negative, x_T)


@pytest.mark.parametrize(
    ("embedding", "caption", "scale"),
    [  # every pair of values
        ("unit", "own", 1.0),
        ("unit", "own", 3.0),
        ("unit", "none", 1.0),
        ("unit", "none", 3.0),
        ("unit", "clip_sequence", 1.0),
        ("raw", "own", 1.0),
        ("raw", "none", 1.0),
        ("raw", "clip_sequence", 1.0),
        ("raw", "clip_sequence", 3.0),
    ],
)
def test_decoding_and_sampling_agree_bit_for_bit(embedding, caption, scale):
    cfg, params = case(embedding, caption)
    condition = Condition(Z, CAPTIONS[caption])
    negative = Condition(None, EMPTY) if caption == "clip_sequence" else NULL
    options = {"scale": scale, "negative": negative}
    images = sample_images(cfg, params, condition, KEYS, **options)
    again = decode_images(cfg, params, condition, KEYS, **options)
    np.testing.assert_array_equal(again, images)
    assert np.std(images) > 0.01


@pytest.mark.parametrize("run", [sample_images, decode_images])
@pytest.mark.parametrize("reads", ["own", "clip_sequence"])
def test_raw_embeddings_enter_with_their_norm_and_others_without(reads, run):
    for embedding, same in (("raw", False), ("unit", True)):
        cfg, params = case(embedding, reads)
        plain, scaled = (
            run(cfg, params, Condition(z, CAPTIONS[reads]), KEYS, scale=1.0)
            for z in (unit(Z), 5.0 * unit(Z))
        )
        assert (np.abs(plain - scaled).max() < 1e-4) == same


@pytest.mark.parametrize("reads", ["own", "clip_sequence"])
def test_guidance_leads_away_from_the_negative_condition(reads):
    cfg, params = case("raw", reads)
    condition = Condition(Z, CAPTIONS[reads])
    negative = jax.tree.map(lambda x: x[::-1], condition)
    x_t, t = jax.random.normal(jax.random.key(1), (3, 8, 8, 3)), jnp.full(3, 600)

    @functools.partial(jax.jit, static_argnames="schedule")
    def predict(condition, **options):
        return decoder.denoiser(cfg, params, condition, **options)(x_t, t).eps

    with_it, without = predict(condition), predict(negative)
    guided = predict(condition, negative=negative, schedule=GuidanceSchedule(2.5))
    np.testing.assert_allclose(guided, without + 2.5 * (with_it - without), atol=1e-5)
    assert np.abs(with_it - without).max() > 1e-3
    # a schedule is 1 at pure noise and largest at the end
    rising = GuidanceSchedule(2.5, "rising")
    middle = predict(condition, negative=negative, schedule=rising)
    scale = 1 + 1.5 * (1 - 600 / 999)
    np.testing.assert_allclose(middle, without + scale * (with_it - without), atol=1e-5)


def test_one_row_of_a_negative_condition_stands_for_all():
    cfg, params = case("raw", "clip_sequence")
    options = {"schedule": GuidanceSchedule(2.0)}
    x_t, t = jax.random.normal(jax.random.key(1), (3, 8, 8, 3)), jnp.full(3, 600)
    each = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), EMPTY)

    @jax.jit
    def predict(caption):
        negative = Condition(None, caption)
        denoise = decoder.denoiser(cfg, params, Condition(Z, TEXT), negative=negative, **options)
        return denoise(x_t, t).x_0

    one, all_rows = predict(EMPTY), predict(each)
    np.testing.assert_array_equal(one, all_rows)


@dataclasses.dataclass(frozen=True)
class Toy(Solver):
    """A sampler added by one class: Euler steps in sigma on levels of its own.

    Attributes:
        power: crowds the levels.
    """

    order: ClassVar[int] = 1
    power: float = 2.0

    def plan(self, schedule, *, steps=None) -> StepTable:
        count = int(steps or 16)
        low, high = np.exp(schedule.log_sigma[0]), 60.0
        sigma = np.linspace(high ** (1 / self.power), low ** (1 / self.power), count) ** self.power
        ends = np.append(sigma[1:], 0.0)
        return StepTable(
            t=schedule.timesteps_at(sigma),
            position=np.arange(count, dtype=np.int32)[::-1],
            signal_t=1 / np.sqrt(1 + sigma**2),
            noise_t=sigma / np.sqrt(1 + sigma**2),
            signal_s=1 / np.sqrt(1 + ends**2),
            noise_s=ends / np.sqrt(1 + ends**2),
            begins=np.ones(count, bool),
        )

    def advance(self, x, memory, *, pred, at, noise):
        return Ddim().advance(x, memory, pred=pred, at=at, noise=noise)


@pytest.fixture(params=[*SOLVERS, "edm:s_churn=8", "toy:power=3"])
def sampling(request, monkeypatch):
    """Every sampler of the registry, and one that is added by one line."""
    monkeypatch.setitem(gaussian.SAMPLERS, "toy", Toy)
    return SamplingConfig(steps="6", sampler=request.param, threshold="static")


def smooth_denoiser(cfg, params, condition, **options):
    """A denoiser of one formula in place of the network, whose programs compile at once."""

    def predict(x_t, t):
        level = cfg.diffusion.chain().level(t, ndim=4)
        x_0 = jnp.tanh(level.signal * x_t + params["shift"])
        return Prediction(x_0, (x_t - level.signal * x_0) / level.noise)

    return predict


def test_every_sampler_works_with_previews_parts_and_inpainting(sampling, monkeypatch):
    monkeypatch.setattr(decoder, "denoiser", smooth_denoiser)
    cfg, params = case("unit", "own")[0], {"shift": jnp.float32(0.3)}
    condition, keys = Condition(Z, IDS), KEYS
    options = DecodeOptions(sampling, GuidanceSchedule(2.0), previews=3, repeats=2, jump=2)
    plain = dataclasses.replace(options, previews=0)
    x_T = decoding.fresh_noise(cfg, keys)
    arguments = {"condition": condition, "keys": keys}

    def whole(options, **more):
        run = functools.partial(decoding.decode, cfg, options=options, **arguments, **more)
        return jax.jit(run)(params, x_T)

    images = whole(plain).images
    output = whole(options)
    np.testing.assert_allclose(output.images, images, atol=1e-5)
    np.testing.assert_allclose(output.previews[-1], images, atol=1e-5)
    x_t, memory = x_T, decoding.initial_memory(cfg, plain, x_T)
    part_run = jax.jit(functools.partial(decoding.decode_part, cfg, options=plain, **arguments))
    for part in samplers.parts(decoding.plan(cfg, plain), 3):
        x_t, memory, _ = part_run(params, x_t, table=part, memory=memory)
    np.testing.assert_allclose(decoding.finish(x_t, None), images, atol=1e-5)
    target = InpaintTarget(jnp.full_like(x_T, 0.25), jnp.zeros((3, 8, 8, 1)).at[:, :4].set(1.0))
    inpainted = whole(options, inpaint=target)
    np.testing.assert_array_equal(inpainted.images[:, :4], 0.25)
    np.testing.assert_array_equal(inpainted.previews[:, :, :4], 0.25)
    np.testing.assert_allclose(inpainted.previews[-1], inpainted.images, atol=1e-5)
    assert np.abs(inpainted.images[:, 4:] - images[:, 4:]).max() > 1e-3


def test_options_of_a_sampler_follow_its_name():
    solver = SamplingConfig(sampler="edm:s_churn=40:s_noise=1.003").solver()
    assert (solver.s_churn, solver.s_noise, solver.rho) == (40.0, 1.003, 7.0)
    assert SamplingConfig(sampler="ddim", eta=0.5).solver() == Ddim(0.5)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("edm:s_chrun=1", "the sampler 'edm' has no option 's_chrun'. Did you mean 's_churn'"),
        ("edm:s_churn=much", "option 's_churn' of the sampler 'edm' is 'much'; give a number"),
        ("edm:s_churn", "option 's_churn' of the sampler 'edm' is ''; give a number"),
        ("edm:s_churn=-1", "s_churn is -1.0; it must lie in"),
        ("heun:rho=7", "the sampler 'heun' has no option 'rho'. It has no options of its own."),
        ("ddim:eta=0.5", "the sampler 'ddim' has no option 'eta'"),
        ("emd", "unknown sampler 'emd'. Did you mean 'edm'"),
    ],
)
def test_wrong_options_of_a_sampler_are_rejected(sampler, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(sampler=sampler)
