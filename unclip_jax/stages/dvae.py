"""Stage `dvae`: image -> a grid of codes -> image, the first half of DALL-E (arXiv 2102.12092).

Three quantizers: "gumbel" (the paper's: categorical codes, relaxed while training, with a uniform
prior), "fsq" (rounded channels: no schedule, no dead codes) and "vq" (a learned codebook). Codes
are hard outside training; only the loss uses the relaxation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError, in_range, one_of, positive
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Image, Key, Keys, Metrics, Params
from unclip_jax.discrete import pixels, relaxation, vq
from unclip_jax.discrete.fsq import Levels
from unclip_jax.discrete.relaxation import CodeGrid
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.dvae import Dvae, DvaeConfig, Maps
from unclip_jax.stages.entry import StageEntry

RECONSTRUCTIONS = {"logit_laplace": 6, "l2": 3, "l1": 3}  # and the output maps of the decoder


@dataclasses.dataclass(frozen=True)
class GumbelConfig:
    """The schedules of "gumbel", each half a cosine and then constant (DALL-E, appendix A.2).

    Attributes:
        kl_weight: final weight of the KL divergence per code; the loss is per subpixel.
        kl_steps: steps in which the weight rises from 0.
        temperature: final temperature of the relaxation.
        temperature_start: initial temperature.
        temperature_steps: steps between the two.
    """

    kl_weight: float = 6.6
    kl_steps: int = 5000
    temperature: float = 1 / 16
    temperature_start: float = 1.0
    temperature_steps: int = 150_000

    def __post_init__(self):
        where = "config.model.gumbel"
        in_range(f"{where}.kl_weight", self.kl_weight, 0.0, 1e6)
        positive(f"{where}.temperature", self.temperature)
        if self.temperature > self.temperature_start:
            raise UserError(
                f"{where}.temperature is {self.temperature}, above temperature_start = "
                f"{self.temperature_start}; set it lower, as relaxed codes approach hard ones when "
                "the temperature falls."
            )

    def at(self, step: Int[Array, ""] | int) -> dict[str, Float[Array, ""]]:
        """Returns the weight and the temperature at a step."""
        start, end = self.temperature_start, self.temperature
        tau = relaxation.annealed(step, start=start, end=end, steps=self.temperature_steps)
        weight = relaxation.annealed(step, start=0.0, end=self.kl_weight, steps=self.kl_steps)
        return {"temperature": tau, "kl_weight": weight}


@dataclasses.dataclass(frozen=True)
class DvaeStageConfig:
    """A discrete VAE and the settings of its training.

    Attributes:
        model: encoder, decoder and quantizer.
        reconstruction: "logit_laplace" (the paper's), "l2" or "l1".
        least_log_scale: lower bound of ln b of "logit_laplace". The paper has none, but where
            images are exactly predictable the density has no bound; -5 is half the step of a byte
            at mid-grey.
        gumbel: schedules of "gumbel".
        commitment: weight beta of the commitment loss of "vq".
        entropy: weight of the entropy loss of "vq".
    """

    model: DvaeConfig
    reconstruction: str = "logit_laplace"
    least_log_scale: float = -5.0
    gumbel: GumbelConfig = GumbelConfig()
    commitment: float = 0.25
    entropy: float = 0.1

    def __post_init__(self):
        maps = RECONSTRUCTIONS[
            one_of("config.model.reconstruction", self.reconstruction, RECONSTRUCTIONS)
        ]
        if self.model.out_channels != maps:
            raise UserError(
                f"config.model.reconstruction {self.reconstruction!r} needs {maps} maps, but "
                f"config.model.model.out_channels is {self.model.out_channels}; set it to {maps}."
            )
        if self.model.quantizer == "fsq":
            Levels(self.model.levels)
        if self.model.vqgan is not None and self.reconstruction == "logit_laplace":
            raise UserError(
                "config.model.reconstruction is 'logit_laplace', whose pixels VQGAN's networks do "
                "not read; take 'l1' or 'l2'."
            )


class EncodedGrid(NamedTuple):
    """An encoded batch.

    Attributes:
        values: input of the decoder.
        codes: the hard codes.
        penalty: term of the quantizer in the loss of each example.
        kl: KL divergence per code of "gumbel"; 0 for the others.
    """

    values: Array
    codes: CodeGrid
    penalty: Float[Array, " b"]
    kl: Float[Array, " b"]


def make(cfg: DvaeStageConfig) -> Stage:
    """Builds the `Stage` of a discrete VAE."""
    module = Dvae(cfg.model)
    spec = {"image": batches.image_field(cfg.model.image_size)}
    relaxes = cfg.model.quantizer == "gumbel"

    def init(key: Key) -> Params:
        return module.init(key, one_example(spec)["image"])["params"]

    def loss(params: Params, batch: Batch, key: Key):
        latent = _encoded(cfg, params, batch, key=rng.fold(key, "gumbel") if relaxes else None)
        metrics, _ = _measured(cfg, params, batch, latent)
        return metrics["loss"], metrics

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        latent = _encoded(cfg, params, batch, key=None)
        metrics, images = _measured(cfg, params, batch, latent)
        error = jnp.mean(((images - batch["image"]) / 2.0) ** 2, axis=(1, 2, 3))
        metrics["psnr"] = jnp.mean(-10.0 * jnp.log10(error + 1e-10))
        if relaxes:
            relaxed = _encoded(cfg, params, batch, key=rng.fold(key, "gumbel"))
            gap = _measured(cfg, params, batch, relaxed)[0]["loss"] - metrics["loss"]
            metrics["relax_gap"] = gap
        return metrics

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        images = decode(cfg, params, encode(cfg, params, batch["image"]))
        return jnp.concatenate([batch["image"], images], axis=2)

    return Stage(
        name="dvae",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=preview,
        splittable=True,
        annealed=cfg.gumbel.at if relaxes else None,
        describe={
            "config": as_dict(cfg),
            "image_size": cfg.model.image_size,
            "grid": cfg.model.grid,
            "code_count": cfg.model.code_count,
        },
    )


def encode(cfg: DvaeStageConfig, params: Params, images: Image) -> CodeGrid:
    """Returns the codes of images in [-1, 1]."""
    return _encoded(cfg, params, {"image": images}, key=None).codes


def decode(cfg: DvaeStageConfig, params: Params, codes: CodeGrid) -> Image:
    """Returns the images of codes, in [-1, 1]."""
    values = codes
    if cfg.model.quantizer == "fsq":
        values = Levels(cfg.model.levels).values(codes)
    elif cfg.model.quantizer == "vq":
        values = params["codebook"][codes]
    return _images(cfg, apply(Dvae(cfg.model), params, values, method=Dvae.decode))


def _encoded(cfg: DvaeStageConfig, params: Params, batch: Batch, *, key: Key | None) -> EncodedGrid:
    """Encodes images; with a key "gumbel" codes are relaxed, else hard.

    The temperature and the weight of the KL divergence are fields of a training batch (one value
    per example), and those of the end of training elsewhere.
    """
    images, none = batch["image"], jnp.zeros(len(batch["image"]))
    inputs = images if cfg.model.vqgan else pixels.to_open(images)
    features = apply(Dvae(cfg.model), params, inputs, method=Dvae.encode)
    if cfg.model.quantizer == "fsq":
        levels = Levels(cfg.model.levels)
        values = levels.quantise(features)
        return EncodedGrid(values, levels.codes(values), none, none)
    if cfg.model.quantizer == "vq":
        result = vq.quantise(features, params["codebook"])
        penalty = result.codebook_loss + cfg.commitment * result.commitment_loss
        penalty = penalty + cfg.entropy * result.entropy_loss
        return EncodedGrid(result.values, result.codes, none + penalty, none)
    end, codes = cfg.gumbel, jnp.argmax(features, axis=-1)
    kl = relaxation.kl_to_uniform(features)
    weight, count = batch.get("kl_weight", end.kl_weight), images[0].size
    values = codes
    if key is not None:
        temperature = batch.get("temperature", end.temperature)
        values = relaxation.gumbel_softmax(features, key, temperature=temperature)
    penalty = weight * jnp.sum(kl, axis=(1, 2)) / count
    return EncodedGrid(values, codes, penalty, jnp.mean(kl, axis=(1, 2)))


def _measured(
    cfg: DvaeStageConfig, params: Params, batch: Batch, latent: EncodedGrid
) -> tuple[Metrics, Image]:
    """Returns the metrics of an encoded batch, including "loss", and its reconstructions."""
    maps = apply(Dvae(cfg.model), params, latent.values, method=Dvae.decode)
    error = jnp.mean(_errors(cfg, maps, batch["image"]), axis=(1, 2, 3))
    metrics = {"loss": jnp.mean(error + latent.penalty), cfg.reconstruction: jnp.mean(error)}
    if cfg.model.quantizer == "gumbel":
        metrics["kl"] = jnp.mean(latent.kl)
    statistics = relaxation.code_statistics(latent.codes, count=cfg.model.code_count)
    return {**metrics, **statistics}, _images(cfg, maps)


def _errors(cfg: DvaeStageConfig, maps: Maps, images: Image) -> Image:
    """Computes the error of every subpixel: nats, squares or absolute differences."""
    if cfg.reconstruction == "logit_laplace":
        mean, log_scale = jnp.split(maps, 2, axis=-1)
        log_scale = jnp.maximum(log_scale, cfg.least_log_scale)
        return pixels.logit_laplace_nats(pixels.to_open(images), mean, log_scale)
    difference = maps - images
    return difference**2 if cfg.reconstruction == "l2" else jnp.abs(difference)


def _images(cfg: DvaeStageConfig, maps: Maps) -> Image:
    """Returns the images in the output maps; scales are ignored (appendix A.3)."""
    if cfg.reconstruction != "logit_laplace":
        return jnp.clip(maps, -1.0, 1.0)
    return pixels.from_open(jax.nn.sigmoid(maps[..., :3]))


def sample_in_chain(
    cfg: DvaeStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: None = None,
) -> dict[str, Any]:
    """Decodes codes to images; deterministic (`entry.ChainSampler`)."""
    grid = cfg.model.grid
    return {"image": decode(cfg, params, conditions["codes"].reshape(-1, grid, grid))}


def code_fields(grid: int, code_count: int) -> dict[str, Field]:
    """Returns the batch field of a grid of codes, in raster order."""
    return {"codes": Field((grid * grid,), "int32", 0, code_count - 1)}


ENTRY = StageEntry(
    name="dvae",
    role="decoder",
    config=DvaeStageConfig,
    make=make,
    reads=lambda cfg: ("codes",),
    yields=("image",),
    sample=sample_in_chain,
    sample_fields=lambda cfg: code_fields(cfg.model.grid, cfg.model.code_count),
    requires=("image_size",),
    identity="dvae_id",
    chain="dalle",
)
