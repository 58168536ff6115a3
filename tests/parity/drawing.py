"""One picture from the same noise: drawn by a pipeline of diffusers, and by a run of ours."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import walks
from tests.convert.test_pipeline import draw, options
from tests.parity import originals
from tests.parity.originals import torch
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import load
from unclip_jax.objectives import gaussian
from unclip_jax.tokenization import caption_tokenizer

NAMES = ("prior", "decoder", "super_res")
STEPS, SCALES = (4, 5, 3), {"prior": 2.0, "decoder": 3.0}


class Reference(NamedTuple):
    """Pictures in [0, 1], channels last.

    Attributes:
        images: the pictures.
        starts: x_T of the three stages, ours in layout.
        noise: of every step, by the shape of a start.
        loose: elements of x_0 that the first step of an eps network left unclipped, or nearly so.
    """

    images: np.ndarray
    starts: list[np.ndarray]
    noise: dict[tuple[int, ...], Any]
    loose: int = 0


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def theirs(array):
    """An array as their tensor; images get their channels first."""
    array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.array(array))


def relative(got, expected):
    """Greatest difference over the greatest value."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    got = np.asarray(got)
    expected = np.moveaxis(expected, 1, -1) if got.shape != expected.shape else expected
    return np.abs(got - expected).max() / np.abs(expected).max()


def starts(pipe, count, seed):
    """x_T of the three stages, ours in layout."""
    sides = [pipe.decoder.config.sample_size, pipe.super_res_first.config.sample_size]
    images = [random(count, side, side, 3, seed=seed) for side in sides]
    return [random(count, pipe.prior.config.embedding_dim, seed=seed), *images]


def steady(pipe, captions):
    """The picture of `pipe` from the first starts at which rounding errors stay small.

    At t = 999 an eps network has x_0 = (x_T - eps) / 0.00005, nearly always clipped. An element
    that is not, or hardly, shows every rounding error of eps 20,000 times larger, in any
    implementation.
    """
    for seed in range(30):
        reference = there(pipe, captions, starts(pipe, len(captions), seed))
        if not reference.loose:
            return reference
    raise AssertionError("no start without an element that the first step leaves unclipped")


@contextlib.contextmanager
def count_unclipped(schedulers):
    """Counts elements of x_0 within twice the clip at each scheduler's first step."""
    result = []
    with pytest.MonkeyPatch.context() as patch:
        for scheduler in schedulers:

            def step(out, t, sample=None, *, original=scheduler.step, mine=scheduler, **more):
                if mine.config.prediction_type == "epsilon" and t == mine.timesteps[0]:
                    eps, alpha_bar = out[:, : sample.shape[1]], mine.alphas_cumprod[t]
                    x_0 = (sample - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
                    result.append(int((x_0.abs() < 2).sum()))
                return original(out, t, sample, **more)

            patch.setattr(scheduler, "step", step)
        yield result


def there(pipe, captions, starts):
    """The picture of `pipe` from these starts."""
    arguments = {f"{name}_latents": theirs(x) for name, x in zip(NAMES, starts, strict=True)}
    arguments |= {f"{n}_num_inference_steps": s for n, s in zip(NAMES, STEPS, strict=True)}
    arguments |= {f"{name}_guidance_scale": scale for name, scale in SCALES.items()}
    schedulers = (pipe.decoder_scheduler, pipe.super_res_scheduler)
    with originals.recorded_noise() as noise, count_unclipped(schedulers) as loose:
        images = pipe(captions, output_type="np", **arguments).images
    return Reference(images, starts, noise, sum(loose))


def here(run_dir, captions, reference):
    """The run's images from the starts and the noise of a picture of the pipeline."""

    def steps(start):
        noises = np.stack([n.numpy() for n in reference.noise[tuple(theirs(start).shape)]])
        return jnp.asarray(np.moveaxis(noises, 2, -1) if noises.ndim == 5 else noises)

    loaded = load.load_cascade(run_dir)
    length = loaded.cascade.clip.model.context
    words = caption_tokenizer.load(handoff.tokenizer_dir(run_dir / "clip" / "export"))
    ids = TokenIds(*map(jnp.asarray, words.encode(captions, length=length)))
    message = dict.fromkeys(("clip", "prior", "decoder"), ids)
    sample_options = options(loaded.cascade, STEPS, **SCALES)
    sample_options = dataclasses.replace(sample_options, num_candidates=1)
    replay = walks.Recorded(*((jnp.asarray(x), steps(x)) for x in reference.starts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian.samplers, "run", replay)
        images = np.asarray(draw(loaded, message, sample_options).images)
    return np.clip(images * 0.5 + 0.5, 0, 1)


def check_same(reference, images):
    """Hold our pictures to the limit of a whole pipeline."""
    assert reference.images.std() > 0.05, "a picture of one colour would prove nothing"
    assert relative(images, reference.images) <= 1e-3
