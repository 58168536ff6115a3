"""What `studies.manipulations` measures of pictures that are given back, varied and blended."""

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
from unclip_jax.inference import decoding, edits, image_files, latents, text_to_image
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.latents import Latent
from unclip_jax.inference.requests import DecodeRequest
from unclip_jax.metrics import intervals, shapes_checker
from unclip_jax.metrics.psnr import psnr

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FRAMES = 3  # of an interpolation; both ends and the middle
SHOWN = 4  # rows of the picture
PAPER = ("ddim250", 0)  # chain and refinements of unCLIP's reconstructions

Images = UInt8[np.ndarray, " n h w 3"]


class Chain(NamedTuple):
    """How pictures are inverted and decoded.

    Attributes:
        steps: grid of the decoder.
        refinements: fixed-point iterations of the inversion.
        upsampler_steps: grid of the upsamplers; None = as exported.
    """

    steps: str
    refinements: int
    upsampler_steps: str | None


class Known(NamedTuple):
    """Held-out examples."""

    pictures: list[InputImage]
    captions: list[str]
    scenes: list[str]


def take(source: Source, indices: Sequence[int]) -> Known:
    """Examples of a split.

    Raises:
        UserError: they are not of the shapes world.
    """
    records = [source[index] for index in indices]
    if not all(record["scene"] for record in records):
        raise UserError("this data set has no scenes to check pictures by; give one of shapes.")
    return Known(
        [image_files.from_bytes(r["image"], name=str(r["key"]), where=r["key"]) for r in records],
        [str(record["caption"]) for record in records],
        [str(record["scene"]) for record in records],
    )


class Encoded(NamedTuple):
    """Pictures as latents with details, and as the decoder gives them back in [-1, 1]."""

    latent: Latent
    base: Image


def encode(
    studio: InferenceEngine,
    given: Sequence[InputImage],
    chain: Chain,
    *,
    captions: Sequence[str | None] | None = None,
) -> Encoded:
    """Invert decoder and upsamplers; without captions unless they are given."""
    told, count = captions or [None] * len(given), chain.refinements
    latent = studio.encode(given, captions=told, steps=chain.steps, refinements=count)
    base = studio.decode(latent, captions=told, steps=chain.steps)
    found = studio.encode_details(base, given, steps=chain.upsampler_steps, refinements=count)
    return Encoded(latent._replace(details=found), base)


def draw(
    studio: InferenceEngine,
    latent: Latent,
    chain: Chain,
    *,
    captions: Sequence[str | None] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Images:
    """Pictures of latents at full size, or as `changes` of the order say."""
    count = latent.z_img.shape[0]
    order = DecodeRequest(
        latent=latent,
        captions=captions or [None] * count,
        indices=list(range(count)),
        seed=seed,
        options=DecodeOptions(decoding.faithful(chain.steps)),
        upsampler_steps=chain.upsampler_steps,
    )
    return studio.draw(dataclasses.replace(order, **changes)).images


def squares(given: Sequence[InputImage], size: int) -> Images:
    """Pictures at one size."""
    return np.stack([image_files.square(picture, size) for picture in given])


def reconstruction(
    studio: InferenceEngine, known: Known, encoded: Encoded, chain: Chain, *, seed: int, paper: bool
) -> list[dict[str, Any]]:
    """PSNR from whole latents, from parts of them, and from random noise; at both sizes.

    `paper`: whole latents by the paper's recipe too, ten times as slow.
    """
    given, count = known.pictures, len(known.pictures)
    noise = studio.fresh_noise(seed=seed, indices=range(count))
    random = Latent(encoded.latent.z_img, noise)
    lost = studio.decode(random, captions=[None] * count, steps=chain.steps)
    rows = [
        ("z_img, x_T and details", chain, encoded.base, encoded.latent.details),
        ("z_img and x_T", chain, encoded.base, ()),
        ("z_img and random noise", chain, lost, ()),
    ]
    if paper:
        slow = chain._replace(steps=PAPER[0], refinements=PAPER[1])
        again = encode(studio, given, slow)
        rows.append(("the first by the paper's recipe", slow, again.base, again.latent.details))
    keys = text_to_image.keys_for(seed, jnp.arange(count))
    made = []
    for name, how, base, held in rows:
        large = studio.enlarge(base, keys, held=held, steps=chain.upsampler_steps)
        found: dict[str, Any] = {"name": name, **how._asdict()}
        for size, drawn in (("base", base), ("full", large)):
            shown = to_uint8(np.asarray(drawn))
            error = psnr(shown, squares(given, shown.shape[1]))
            found[size] = intervals.bootstrap(error)._asdict() | {"px": shown.shape[1]}
        made.append(found)
    return made


class Varied(NamedTuple):
    """Rows of the table, and some pictures with their labels."""

    rows: list[dict[str, Any]]
    shown: list[tuple[str, np.ndarray]]


def variations(
    studio: InferenceEngine, known: Known, latent: Latent, chain: Chain, *, seed: int
) -> Varied:
    """How far pictures go from their originals as eta grows, and what of the captions stays."""
    originals = np.asarray(studio.image_embeddings(known.pictures))
    rows, made = [], []
    for eta in ETAS:
        images = draw(
            studio, latent, chain, seed=seed, eta=jnp.full(len(known.pictures), eta, jnp.float32)
        )
        again = [InputImage(image, "", "") for image in images]
        z_img = np.asarray(studio.image_embeddings(again))
        error = images.astype(np.float64) - squares(known.pictures, images.shape[1])
        pixels = np.sqrt(np.mean(error**2, axis=(1, 2, 3)))
        rates = shapes_checker.report(shapes_checker.check(images, known.captions))
        rows.append(
            {
                "eta": eta,
                "clip": intervals.bootstrap(1.0 - np.sum(z_img * originals, axis=1))._asdict(),
                "pixels": intervals.bootstrap(pixels)._asdict(),
                "checker": {name: rate._asdict() for name, rate in rates.items() if rate.total},
            }
        )
        made.append(images)
    truth = squares(known.pictures, made[0].shape[1])
    rates = shapes_checker.report(shapes_checker.check(truth, known.captions))
    rows.append({"checker": {name: rate._asdict() for name, rate in rates.items() if rate.total}})
    return Varied(rows, _shown(known, made))


def interpolation(studio: InferenceEngine, encoded: Encoded, chain: Chain) -> dict[str, Any]:
    """How far the ends of paths between neighbours are from the reconstructions, in levels."""
    latent, count = encoded.latent, encoded.base.shape[0] // 2 * 2
    back = draw(studio, latent, chain)
    ends = []
    for first in range(0, count, 2):
        path = edits.interpolate(latents.take(latent, [first, first + 1]), frames=FRAMES).latent
        ends.append(latents.take(path, [0, FRAMES - 1]))
    drawn = draw(studio, latents.join(ends), chain)
    apart = np.abs(drawn.astype(int) - back[:count]).max(axis=(1, 2, 3))
    return {"pairs": count // 2, "most": int(apart.max()), "equal": int(np.sum(apart == 0))}


def _shown(known: Known, varied: list[Images]) -> list[tuple[str, np.ndarray]]:
    """Originals and variations, picture by picture; eta = 0 is the reconstruction."""
    originals = squares(known.pictures, varied[0].shape[1])
    labelled = []
    for index in range(min(SHOWN, len(originals))):
        labelled.append(("original", originals[index]))
        labelled += [(f"eta {eta:g}", varied[at][index]) for at, eta in enumerate(ETAS)]
    return labelled
