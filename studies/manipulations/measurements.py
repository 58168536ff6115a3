"""Measurements of images that are reconstructed, varied and interpolated."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Image
from unclip_jax.data.sources import Source
from unclip_jax.editing import edits, latents
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import image_inputs
from unclip_jax.engine.decode_batch import DecodeBatch
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference import decoding, text_to_image
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.metrics import intervals, worlds
from unclip_jax.metrics.psnr import psnr

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FRAMES = 3  # per interpolation: both ends and the middle
EXAMPLES = 4  # rows of example images
PAPER = ("ddim250", 0)  # steps and refinements of unCLIP's reconstructions

Images = UInt8[np.ndarray, " n h w 3"]
LabelledImages = list[tuple[str, np.ndarray]]


class InversionChain(NamedTuple):
    """Settings of the inversion and decoding of images.

    Attributes:
        steps: steps of the decoder.
        refinements: fixed-point iterations of the inversion.
        upsampler_steps: steps of the upsamplers; None = as exported.
    """

    steps: str
    refinements: int
    upsampler_steps: str | None


class Examples(NamedTuple):
    """Held-out examples."""

    images: list[InputImage]
    captions: list[str]
    scenes: list[str]


class EncodedImages(NamedTuple):
    """Latents of images with upsampler latents, and the images decoded from them in [-1, 1]."""

    latent: Latent
    base: Image


def read_examples(source: Source, indices: Sequence[int]) -> Examples:
    """Reads examples of a split.

    Raises:
        UserError: the examples are not of the shapes world.
    """
    records = [source[index] for index in indices]
    if not all(record["scene"] for record in records):
        raise UserError(
            "this data set has no scenes with which to check images; give a data set of shapes."
        )
    return Examples(
        [image_inputs.from_bytes(r["image"], name=str(r["key"]), where=r["key"]) for r in records],
        [str(record["caption"]) for record in records],
        [str(record["scene"]) for record in records],
    )


def encode(
    engine: InferenceEngine,
    images: Sequence[InputImage],
    chain: InversionChain,
    *,
    captions: Sequence[str | None] | None = None,
) -> EncodedImages:
    """Inverts decoder and upsamplers, by default without captions."""
    texts, refinements = captions or [None] * len(images), chain.refinements
    latent = engine.invert(images, captions=texts, steps=chain.steps, refinements=refinements)
    base = engine.decode_base(latent, captions=texts, steps=chain.steps)
    details = engine.invert_upsamplers(
        base, images, steps=chain.upsampler_steps, refinements=refinements
    )
    return EncodedImages(latent._replace(details=details), base)


def decode(
    engine: InferenceEngine,
    latent: Latent,
    chain: InversionChain,
    *,
    captions: Sequence[str | None] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Images:
    """Decodes latents at full size; `changes` are fields of the `DecodeBatch`."""
    count = latent.z_img.shape[0]
    request = DecodeBatch(
        latent=latent,
        captions=captions or [None] * count,
        indices=list(range(count)),
        seed=seed,
        options=DecodeOptions(decoding.faithful(chain.steps)),
        upsampler_steps=chain.upsampler_steps,
    )
    return engine.decode(dataclasses.replace(request, **changes)).images


def squares(images: Sequence[InputImage], size: int) -> Images:
    """Returns images as squares of one size."""
    return np.stack([image_inputs.square(image, size) for image in images])


def reconstruction(
    engine: InferenceEngine,
    examples: Examples,
    encoded: EncodedImages,
    chain: InversionChain,
    *,
    seed: int,
    paper: bool,
) -> list[dict[str, Any]]:
    """Computes the PSNR from whole latents, parts of them, and random noise, at both sizes.

    With `paper` also from whole latents by the paper's recipe, which is ten times as slow.
    """
    images, count = examples.images, len(examples.images)
    noise = engine.initial_noise(seed=seed, indices=range(count))
    random = Latent(encoded.latent.z_img, noise)
    unrelated = engine.decode_base(random, captions=[None] * count, steps=chain.steps)
    variants = [
        ("z_img, x_T and details", chain, encoded.base, encoded.latent.details),
        ("z_img and x_T", chain, encoded.base, ()),
        ("z_img and random noise", chain, unrelated, ()),
    ]
    if paper:
        slow = chain._replace(steps=PAPER[0], refinements=PAPER[1])
        again = encode(engine, images, slow)
        variants.append(("the first by the paper's recipe", slow, again.base, again.latent.details))
    keys = text_to_image.keys_for(seed, jnp.arange(count))
    rows = []
    for name, settings, base, details in variants:
        full = engine.upsample(base, keys, details=details, steps=chain.upsampler_steps)
        row: dict[str, Any] = {"name": name, **settings._asdict()}
        for size, decoded in (("base", base), ("full", full)):
            levels = to_uint8(np.asarray(decoded))
            ratios = psnr(levels, squares(images, levels.shape[1]))
            row[size] = intervals.bootstrap(ratios)._asdict() | {"px": levels.shape[1]}
        rows.append(row)
    return rows


class Variations(NamedTuple):
    """Rows of the table, and example images with their labels."""

    rows: list[dict[str, Any]]
    labelled: LabelledImages


def variations(
    engine: InferenceEngine,
    examples: Examples,
    latent: Latent,
    chain: InversionChain,
    *,
    seed: int,
) -> Variations:
    """Computes distances from the originals and the checker's rates for increasing eta."""
    originals = np.asarray(engine.image_embeddings(examples.images))
    rows, by_eta = [], []
    for eta in ETAS:
        images = decode(
            engine, latent, chain, seed=seed, eta=jnp.full(len(examples.images), eta, jnp.float32)
        )
        z_img = np.asarray(engine.image_embeddings([InputImage(image, "", "") for image in images]))
        error = images.astype(np.float64) - squares(examples.images, images.shape[1])
        pixels = np.sqrt(np.mean(error**2, axis=(1, 2, 3)))
        rows.append(
            {
                "eta": eta,
                "clip": intervals.bootstrap(1.0 - np.sum(z_img * originals, axis=1))._asdict(),
                "pixels": intervals.bootstrap(pixels)._asdict(),
                "checker": _rates(images, examples.captions),
            }
        )
        by_eta.append(images)
    true = squares(examples.images, by_eta[0].shape[1])
    rows.append({"checker": _rates(true, examples.captions)})
    return Variations(rows, _label(true, by_eta))


def interpolation(
    engine: InferenceEngine, encoded: EncodedImages, chain: InversionChain
) -> dict[str, Any]:
    """Compares the ends of paths between neighbours with the reconstructions, in levels."""
    latent, count = encoded.latent, encoded.base.shape[0] // 2 * 2
    reconstructed = decode(engine, latent, chain)
    ends = []
    for first in range(0, count, 2):
        path = edits.interpolate(latents.take(latent, [first, first + 1]), frames=FRAMES).latent
        ends.append(latents.take(path, [0, FRAMES - 1]))
    decoded = decode(engine, latents.join(ends), chain)
    difference = np.abs(decoded.astype(int) - reconstructed[:count]).max(axis=(1, 2, 3))
    return {
        "pairs": count // 2,
        "most": int(difference.max()),
        "equal": int(np.sum(difference == 0)),
    }


def _rates(images: Images, captions: Sequence[str]) -> dict[str, Any]:
    """Computes the checker's rates, JSON-ready."""
    return worlds.as_json(worlds.check(images, captions))


def _label(originals: Images, by_eta: Sequence[Images]) -> LabelledImages:
    """Labels originals and variations, image by image; eta = 0 is the reconstruction."""
    labelled = []
    for index in range(min(EXAMPLES, len(originals))):
        labelled.append(("original", originals[index]))
        labelled += [(f"eta {eta:g}", by_eta[at][index]) for at, eta in enumerate(ETAS)]
    return labelled
