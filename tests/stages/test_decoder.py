import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import rng, trees
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.stages import decoder
from unclip_jax.stages.decoder import Condition, InpaintTarget


@pytest.fixture(scope="module")
def case():
    cfg = tiny.experiment("decoder").model
    stage = decoder.make(cfg)
    params = tiny.random_params(stage)
    return cfg, params, jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))


@pytest.fixture(scope="module")
def run(case):
    cfg, params, _ = case
    traces = []

    @jax.jit
    def sample(keys, z_img, tokens, token_mask):
        traces.append(1)
        condition = Condition(z_img, TokenIds(tokens, token_mask))
        return decoder.sample(cfg, params, condition, keys=keys)

    sample.traces = traces
    return sample


def condition_of(batch):
    return Condition(batch["z_img"], TokenIds(batch["tokens"], batch["token_mask"]))


def arguments(batch):
    return batch["z_img"], batch["tokens"], batch["token_mask"]


def test_an_image_depends_on_its_key_and_condition_alone(case, run):
    _, _, batch = case
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    whole = run(keys, *arguments(batch))
    shuffled = run(keys[::-1], *(x[::-1] for x in arguments(batch)))
    np.testing.assert_allclose(shuffled[::-1], whole, atol=1e-5)
    other = jax.tree.map(lambda x: np.concatenate([x[:1], np.roll(x[1:], 1, 0)]), batch)
    np.testing.assert_allclose(run(keys, *arguments(other))[0], whole[0], atol=1e-5)


def test_many_seeds_and_prompts_are_one_trace(case, run):
    _, _, batch = case
    for seed in range(3):
        run(rng.per_example(jax.random.key(seed), jnp.arange(4)), *arguments(batch))
    assert len(run.traces) == 1


def test_the_norm_of_z_img_does_not_matter(case, run):
    _, _, batch = case
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    z_img, tokens, mask = arguments(batch)
    np.testing.assert_allclose(
        run(keys, z_img, tokens, mask), run(keys, 3 * z_img, tokens, mask), atol=1e-5
    )


def test_the_papers_decoder_learns_its_variance():
    cfg = tiny.experiment("decoder").model
    diffusion = dataclasses.replace(cfg.diffusion, learned_variance=True)
    with pytest.raises(UserError, match="out_channels is 3; .*learned_variance=True needs 6"):
        dataclasses.replace(cfg, diffusion=diffusion)


def test_images_that_the_levels_cannot_halve_are_rejected_at_the_door():
    cfg = tiny.experiment("decoder").model
    for size in (15, 17):
        odd = dataclasses.replace(cfg.model.unet, image_size=size)
        with pytest.raises(UserError, match=f"unet.image_size is {size}, which 2 does not divide"):
            dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, unet=odd))


def test_learned_range_sampling_needs_a_learned_variance(case):
    cfg, params, batch = case
    sampling = dataclasses.replace(cfg.sampling, variance="learned_range")
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    with pytest.raises(UserError, match="trained without a learned variance; use 'small'"):
        decoder.sample(cfg, params, condition_of(batch), keys=keys, sampling=sampling)


def test_conditions_are_dropped_45_45_5_5(case):
    # Ramesh et al. 2022, section 2.1; figure 8 says that 5 % see the caption alone
    cfg, count = case[0], 40_000
    masks = decoder.keep_masks(cfg, batch_size=count, key=jax.random.key(0))
    z, text = np.asarray(masks["keep_z"]), np.asarray(masks["keep_text"])
    shares = {"both": z & text, "z": z & ~text, "text": ~z & text, "nothing": ~z & ~text}
    for name, share in {"both": 0.45, "z": 0.45, "text": 0.05, "nothing": 0.05}.items():
        spread = np.sqrt(share * (1 - share) / count)
        assert shares[name].mean() == pytest.approx(share, abs=4 * spread), name


@pytest.mark.parametrize("name", ["drop_z", "drop_text"])
def test_guidance_of_a_decoder_that_was_trained_without_drops_is_rejected(case, name):
    cfg, params, batch = case
    plain = dataclasses.replace(cfg.sampling, guidance_scale=1.0)
    whole = dataclasses.replace(cfg, sampling=plain, **{name: 0.0})
    message = f"guidance_scale is 2.0, but config.model.{name} is 0: .* Use 1.0, or train"
    with pytest.raises(UserError, match=message):
        dataclasses.replace(whole, sampling=cfg.sampling)
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    with pytest.raises(UserError, match=message):
        decoder.sample(whole, params, condition_of(batch), keys=keys, sampling=cfg.sampling)


def test_the_manifest_states_the_scale_of_z_img(case):
    cfg = case[0]
    assert decoder.make(cfg).describe["z_scale_in"] == pytest.approx(np.sqrt(cfg.model.z_dim))
    scaled = dataclasses.replace(cfg, z_scale=17.2)
    assert decoder.make(scaled).describe["z_scale_in"] == 17.2


def test_a_decoder_of_captions_alone_is_blind_to_the_embedding(case):
    cfg, params, batch = case
    model = dataclasses.replace(cfg.model, reads_z=False)
    blind = dataclasses.replace(cfg, model=model, drop_z=0.0)
    key = jax.random.key(0)
    seeing = jax.jit(decoder.make(cfg).evaluate)(params, batch, key)
    stage = decoder.make(blind)
    assert "z_img" not in stage.batch_spec and "embed_dim" not in stage.describe
    fields = {name: batch[name] for name in stage.batch_spec}
    losses = [
        jax.jit(stage.evaluate)(params, {**fields, **others}, key)
        for others in ({}, {"z_img": batch["z_img"]}, {"z_img": -batch["z_img"]})
    ]
    assert losses[0] == losses[1] == losses[2] and losses[0].keys() == {"loss"}
    assert abs(seeing["loss"] / seeing["loss_wrong_z"] - 1) > 1e-4
    blind.check_guidance(dataclasses.replace(cfg.sampling, guidance_scale=3.0))  # no drop of z


def test_a_decoder_of_caption_embeddings_reads_them_in_the_place_of_z_img(case):
    cfg, params, batch = case
    stage = decoder.make(dataclasses.replace(cfg, condition="z_txt"))
    assert "z_img" not in stage.batch_spec
    other = {"z_txt" if name == "z_img" else name: value for name, value in batch.items()}
    key = jax.random.key(0)
    expected = jax.jit(decoder.make(cfg).evaluate)(params, batch, key)
    result = jax.jit(stage.evaluate)(params, other, key)
    assert result["loss"] == expected["loss"] != result["loss_wrong_z"] == expected["loss_wrong_z"]


def test_an_unknown_condition_is_rejected(case):
    with pytest.raises(UserError, match="unknown config.model.condition 'z'"):
        dataclasses.replace(case[0], condition="z")


@pytest.fixture(scope="module")
def inpainter(case):
    """The decoder with channels for the known pixels, all its weights perturbed."""
    cfg = dataclasses.replace(case[0], model=dataclasses.replace(case[0].model, inpaints=True))
    stage = decoder.make(cfg)
    return cfg, stage, tiny.random_params(stage)


def test_the_new_channels_join_the_stem_and_nothing_else(case, inpainter):
    _, stage, params = inpainter
    old, new = (trees.flatten_paths(each) for each in (case[1], params))
    paths = {path for path in new if old[path].shape != new[path].shape}
    assert old.keys() == new.keys()
    assert paths == {"unet/stem/kernel"} == set(stage.grows)
    num_channels = new["unet/stem/kernel"].shape[2] - old["unet/stem/kernel"].shape[2]
    assert num_channels == 4 * stage.grows["unet/stem/kernel"]
    assert not decoder.make(case[0]).grows


def test_with_weights_of_zero_it_is_the_decoder_that_it_was(case, inpainter):
    """GLIDE, section 4.3: the new channels begin at zero, so that nothing is forgotten."""
    cfg, params, batch = case
    wider = inpainter[0]
    stem = params["unet"]["stem"]
    kernel = jnp.pad(stem["kernel"], [(0, 0), (0, 0), (0, 4), (0, 0)])
    grown = {**params, "unet": {**params["unet"], "stem": {**stem, "kernel": kernel}}}
    key = jax.random.key(0)
    expected = jax.jit(decoder.make(cfg).loss)(params, batch, key)[0]
    result = jax.jit(decoder.make(wider).loss)(grown, batch, key)[0]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_it_learns_from_what_is_known(inpainter):
    _, stage, params = inpainter
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))
    slope = jax.jit(jax.grad(lambda p: stage.loss(p, batch, jax.random.key(0))[0]))(params)
    assert float(jnp.abs(slope["unet"]["stem"]["kernel"][:, :, -4:]).min()) > 0.0


def test_a_hole_is_filled_by_a_decoder_that_sees_around_it(inpainter):
    """The prediction depends on pixels outside of the hole, and on nothing behind it."""
    cfg, stage, params = inpainter
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 2))
    condition = condition_of(batch)
    side = cfg.model.unet.image_size
    mask = jnp.ones((2, side, side, 1)).at[:, 4:8, 4:8].set(0.0)
    x_t, t = jax.random.normal(jax.random.key(1), batch["image"].shape), jnp.full(2, 500)
    for schedule in (GuidanceSchedule(), GuidanceSchedule(scale=3.0)):

        @jax.jit
        def predict(inpaint, schedule=schedule):
            options = {"schedule": schedule, "inpaint": inpaint}
            return decoder.denoiser(cfg, params, condition, **options)(x_t, t).x_0

        blind = predict(None)
        seeing = predict(InpaintTarget(batch["image"], mask))
        around = jnp.where(mask > 0, 0.5, batch["image"])
        behind = jnp.where(mask > 0, batch["image"], 0.5)
        assert float(jnp.abs(seeing - blind).max()) > 1e-3
        assert float(jnp.abs(predict(InpaintTarget(around, mask)) - seeing).max()) > 1e-3
        same = predict(InpaintTarget(behind, mask))
        np.testing.assert_array_equal(same, seeing)
