"""Images of both stages of DeepFloyd IF from one noise: by a run of ours, and by the pipelines.

Our chain runs as it does for users. The noise that it draws is recorded and given to the pipelines
of diffusers, which draw theirs in one place, `randn_tensor`.
"""

import collections
import contextlib
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.conditioning import low_res_noise
from unclip_jax.core import rng
from unclip_jax.diffusion import samplers
from unclip_jax.inference import load, text_to_image
from unclip_jax.inference.cascade import tokenise
from unclip_jax.objectives import gaussian

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
deepfloyd_if = pytest.importorskip("diffusers.pipelines.deepfloyd_if")
scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")

PURPOSES = {"x_T": gaussian, "low_res": low_res_noise, "step": samplers}
OPTIONS = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None}


class Images(NamedTuple):
    """Images of stage I and stage II in [-1, 1], channels last."""

    base: np.ndarray
    images: np.ndarray


class Noise(NamedTuple):
    """Noise of one stage: x_T, that on the low-res images (stage II), and that of every step."""

    x_T: np.ndarray
    low_res: list[np.ndarray]
    steps: list[np.ndarray]

    @property
    def every(self) -> np.ndarray:
        """All of them, one row each."""
        return np.stack([self.x_T, *self.low_res, *self.steps]).reshape(
            1 + len(self.low_res) + len(self.steps), -1
        )


@contextlib.contextmanager
def _recorded():
    """Yields the noise that our modules draw, in order, by purpose and number of values."""
    draws = collections.defaultdict(list)

    def module(purpose):
        def normal_each(keys, shape):
            noise = rng.normal_each(keys, shape)
            keep = lambda x: draws[purpose, x[0].size].append(np.array(x))  # noqa: E731
            jax.debug.callback(keep, noise, ordered=True)
            return noise

        return types.SimpleNamespace(**{**vars(rng), "normal_each": normal_each})

    with pytest.MonkeyPatch.context() as patch:
        for purpose, user in PURPOSES.items():
            patch.setattr(user, "rng", module(purpose))
        yield draws


def here(run, captions, options=text_to_image.EXPORTED) -> tuple[Images, list[Noise]]:
    """Returns the images that a run samples, and the noise of both stages."""
    ids = tokenise(run.cascade, load.load_tokenizers(run.tokenizer_dirs), captions)
    keys = text_to_image.keys_for(0, jnp.arange(len(captions)))
    with _recorded() as draws:
        sampled = jax.jit(
            lambda params: text_to_image.sample(run.cascade, params, ids, keys, options=options)
        )(run.params)
        jax.effects_barrier()
    result = Images(np.asarray(sampled.base), np.asarray(sampled.images))
    noise = []
    for image in result:
        x_T, low_res, steps = (draws[purpose, image[0].size] for purpose in PURPOSES)
        assert len(x_T) == 1
        noise.append(Noise(x_T[0], low_res, steps))
    return result, noise


def there(folders, captions, noise, *calls: dict[str, Any]) -> Images:
    """Returns the images of the pipelines, each from the noise of one stage.

    Args:
        folders: holds the pipeline directories I and II.
        captions: of the images.
        noise: of each stage.
        calls: further arguments of each pipeline.
    """
    pipelines = (diffusers.IFPipeline, diffusers.IFSuperResolutionPipeline)
    results, arguments = [], {}
    for cls, name, own, call in zip(pipelines, ("I", "II"), noise, calls, strict=True):
        pipe = cls.from_pretrained(folders / name, **OPTIONS)
        pipe.set_progress_bar_config(disable=True)
        queue = [own.x_T, *own.low_res, *own.steps[:-1]]  # the last step adds none

        def draw(shape, *, queue=queue, **unused):
            tensor = torch.from_numpy(np.moveaxis(queue.pop(0), -1, 1).copy())
            assert tensor.shape == tuple(shape)
            return tensor

        with pytest.MonkeyPatch.context() as patch:
            for module in (cls.__module__, scheduling.__name__):
                patch.setattr(f"{module}.randn_tensor", draw)
            more = {"output_type": "pt", "clean_caption": False}
            images = pipe(captions, **arguments, **call, **more).images
        assert not queue, "the pipeline draws less noise"
        arguments = {"image": images}
        results.append(images.permute(0, 2, 3, 1).numpy())
    return Images(*results)
