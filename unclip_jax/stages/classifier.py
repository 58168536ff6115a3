"""Stage `classifier`: the class of a noised image, for guidance by its gradient.

It is trained on images noised along the chain of the decoder that it is to guide (ADM, arXiv
2105.05233, section 4.3). Classes are words: the class of an image is the one that its caption names
first.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.unet_plan import plan
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Image, Key, Keys, Metrics, Params, PerExample, Steps
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig
from unclip_jax.stages.entry import StageEntry

NOISE_LEVELS = (0, 250, 500, 750)  # per mille of the chain, at which accuracy is reported


@dataclasses.dataclass(frozen=True)
class ClassifierStageConfig:
    """A classifier of noised images.

    Attributes:
        model: the network.
        classes: the words of each class, forms of one class separated by "|" ("star|stars").
        diffusion: chain along which images are noised: that of the decoder to guide.
    """

    model: ClassifierConfig
    classes: tuple[str, ...]
    diffusion: DiffusionConfig = DiffusionConfig()

    def __post_init__(self):
        plan(self.model.unet)  # rejects an image that its levels cannot halve
        count, outputs = len(self.classes), self.model.unet.out_channels
        if count != outputs:
            raise UserError(
                f"config.model.classes names {count} classes, but config.model.model.unet."
                f"out_channels is {outputs}; make them agree."
            )
        forms = [form for words in self.classes for form in words.split("|")]
        if len(set(forms)) < len(forms) or "" in forms:
            raise UserError("config.model.classes has empty or repeated words; give distinct ones.")

    def labels(self, captions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Returns the number of the class that each caption names first.

        Raises:
            UserError: a caption that names no class.
        """
        numbers = {form: i for i, words in enumerate(self.classes) for form in words.split("|")}
        longest = sorted(map(re.escape, numbers), key=len, reverse=True)
        pattern = re.compile(rf"\b({'|'.join(longest)})\b")
        labels = np.zeros(len(captions), np.int32)
        for i, caption in enumerate(captions):
            match = pattern.search(str(caption).lower())
            if match is None:
                words = ", ".join(words.split("|")[0] for words in self.classes[:8])
                raise UserError(
                    f"the caption {str(caption)!r} names no class of the classifier ({words}"
                    f"{', ...' if len(self.classes) > 8 else ''}); name one."
                )
            labels[i] = numbers[match[1]]
        return labels


def make(cfg: ClassifierStageConfig) -> Stage:
    """Builds the `Stage` of a classifier of noised images."""
    module, chain = Classifier(cfg.model), cfg.diffusion.chain()
    count = len(cfg.classes)
    spec = {
        "image": batches.image_field(cfg.model.unet.image_size),
        "label": Field((), "int32", 0, count - 1),
    }

    def init(key: Key) -> Params:
        return module.init(key, one_example(spec)["image"], jnp.zeros(1, jnp.int32))["params"]

    def nats(params: Params, batch: Batch, noised: gaussian.NoisedBatch) -> tuple[Any, Any]:
        """Computes the cross-entropy and the accuracy."""
        logits = apply(module, params, noised.x_t, noised.t)
        own = log_probabilities(logits, batch["label"])
        return -jnp.mean(own), jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        value, accuracy = nats(params, batch, noised)
        return value, {"loss": value, "accuracy": accuracy}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        metrics = {"loss": nats(params, batch, noised)[0]}
        for level in NOISE_LEVELS:
            t = jnp.full(len(batch["image"]), level * chain.num_timesteps // 1000, jnp.int32)
            noised = gaussian.noise_at(chain, batch["image"], t=t, key=rng.fold(key, "draw"))
            metrics[f"accuracy_t{level:03d}"] = nats(params, batch, noised)[1]
        return metrics

    return Stage(
        name="classifier",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        describe={"config": as_dict(cfg), "image_size": cfg.model.unet.image_size},
    )


def log_probabilities(logits: Float[Array, " b n"], labels: Int[Array, " b"]) -> PerExample:
    """Returns the log-probability of each row's label."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def log_probability(
    cfg: ClassifierStageConfig, params: Params, labels: Int[Array, " b"]
) -> Callable[[Image, Steps], PerExample]:
    """Returns the function (x_t, t) -> log p(label | x_t) of every row."""
    module = Classifier(cfg.model)
    return lambda x_t, t: log_probabilities(apply(module, params, x_t, t), labels)


def sample_in_chain(
    cfg: ClassifierStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: None = None,
) -> dict[str, Any]:
    """Returns nothing: a classifier guides a decoder and is in no chain (`entry.ChainSampler`)."""
    return {}


ENTRY = StageEntry(
    name="classifier",
    role="guide",
    config=ClassifierStageConfig,
    make=make,
    reads=lambda cfg: (),
    yields=(),
    sample=sample_in_chain,
    requires=("image_size",),
    chain="",
)
