"""Scores of a cascade on held-out examples: retrieval by CLIP, enlargement, and the exact checker.

In procedural worlds the checker scores images for three sources of z_img: the prior, z_txt used as
if it were z_img, and the true embedding; in a chain without z_img, images of the caption alone. A
discrete VAE is scored by its reconstructions of true images, an upper bound for its chain.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as PILImage

from unclip_jax.core import rng
from unclip_jax.core.checks import check_seed, in_range, positive
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec, sources
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.data.degrade import area_downsample
from unclip_jax.discrete import relaxation
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.cascade import Captions, tokenise
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import CONDITIONS, SampleOptions
from unclip_jax.metrics import worlds
from unclip_jax.metrics.intervals import Rate
from unclip_jax.metrics.psnr import psnr
from unclip_jax.parallel.mesh import sampling_mesh
from unclip_jax.stages import dvae, upsampler

RETRIEVAL = 256  # candidates of retrieval by CLIP
ENLARGED = 64  # images that the upsampler enlarges
BATCH = 50  # captions per batch

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """An evaluation of a cascade on a held-out split.

    Attributes:
        models: run directory.
        data: data set with images and captions.
        prior: name of the prior.
        split: split of the data set.
        keys: names of image and caption in a data set of another format.
        num: captions to sample.
        seed: image i depends on (seed, i) and its caption alone.
        best_of: images per caption, of which CLIP selects the nearest to it.
    """

    models: pathlib.Path
    data: str
    prior: str = "prior"
    split: str = "validation"
    keys: FeatureKeys = dataclasses.field(default_factory=FeatureKeys)
    num: int = 200
    seed: int = 0
    best_of: int = 1

    def __post_init__(self):
        """Checks the bounds."""
        positive("--num", self.num)
        check_seed("--seed", self.seed)
        in_range("--best-of", self.best_of, 1, text_to_image.MAX_BEST_OF)


def evaluate_cascade(config: CascadeConfig) -> dict[str, Any]:
    """Computes all scores of a cascade; JSON-ready.

    Raises:
        UserError: the models or the data cannot be used.
    """
    loaded = load.load_cascade(config.models, prior_name=config.prior)
    source = sources.open_source(config.data, split=config.split, keys=config.keys)
    records = [source[i] for i in range(min(max(config.num, RETRIEVAL), len(source)))]
    result: dict[str, Any] = {
        name: getattr(config, name) for name in ("split", "num", "seed", "prior", "best_of")
    }
    if loaded.cascade.has("clip"):
        result["retrieval"] = retrieval(loaded, records[:RETRIEVAL])
    if loaded.cascade.has("dvae"):
        result["reconstruction"] = reconstruction(loaded, records[: config.num])
    if loaded.cascade.upsamplers:
        result["upsampler_psnr"] = enlargement(loaded, records[:ENLARGED], seed=config.seed)
    if all(record["scene"] for record in records[: config.num]):
        rates = follow_captions(
            loaded, records[: config.num], seed=config.seed, best_of=config.best_of
        )
        result["checker"] = {name: worlds.as_json(rate) for name, rate in rates.items()}
    return result


def retrieval(loaded: LoadedCascade, records: Sequence[Record]) -> dict[str, int | float]:
    """Computes retrieval@1 of CLIP among all pairs, in both directions."""
    z_img, z_txt = true_embeddings(loaded, records), text_embeddings(loaded, records)
    scores, own = z_img @ z_txt.T, np.arange(len(records))
    return {
        "pairs": len(records),
        "image_to_text@1": float(np.mean(scores.argmax(1) == own)),
        "text_to_image@1": float(np.mean(scores.argmax(0) == own)),
    }


def true_embeddings(loaded: LoadedCascade, records: Sequence[Record]) -> np.ndarray:
    """Computes the CLIP embeddings [b z] of the records' own images."""
    images = image_codec.to_float(_squares(records, loaded.cascade.clip.model.image_size))
    run = jax.jit(
        lambda params, images: text_to_image.image_embedding(loaded.cascade, params, images=images)
    )
    return np.asarray(run(loaded.params, images))


def text_embeddings(loaded: LoadedCascade, records: Sequence[Record]) -> np.ndarray:
    """Computes the CLIP embeddings [b z] of the records' captions."""
    run = jax.jit(
        lambda params, captions: text_to_image.text_embedding(
            loaded.cascade, params, captions=captions
        )
    )
    return np.asarray(run(loaded.params, _tokenise(loaded, records)))


def sampled_embeddings(
    loaded: LoadedCascade, records: Sequence[Record], *, seed: int
) -> np.ndarray:
    """Samples an image embedding [b z] per caption from the prior."""
    keys = text_to_image.keys_for(seed, jnp.arange(len(records)))
    run = jax.jit(
        lambda params, captions, keys: text_to_image.sample_z_img(
            loaded.cascade, params, captions, keys
        )
    )
    return np.asarray(run(loaded.params, _tokenise(loaded, records), keys))


def embeddings_from(
    condition: str, loaded: LoadedCascade, records: Sequence[Record], *, seed: int
) -> np.ndarray:
    """Returns the image embeddings [b z] of one of `CONDITIONS`."""
    if condition == "z_img":
        return true_embeddings(loaded, records)
    if condition == "z_txt":
        return text_embeddings(loaded, records)
    return sampled_embeddings(loaded, records, seed=seed)


def follow_captions(
    loaded: LoadedCascade, records: Sequence[Record], *, seed: int, best_of: int = 1
) -> dict[str, dict[str, Rate]]:
    """Computes the checker's scores of sampled images for each of `CONDITIONS`, or for "caption".

    A cascade whose decoder reads no embedding has one source, the caption. Image i starts from the
    same noise under every condition. Of `best_of` images of the same z_img and caption, the nearest
    to the caption by the cascade's CLIP is scored.
    """
    captions = [record["caption"] for record in records]
    if not any("z_img" in stage.reads for stage in loaded.cascade.stages):
        options = SampleOptions(best_of=best_of)
        images = batch_sampling.sample_images(
            loaded, captions, seed=seed, options=options, batch_size=BATCH
        )
        return {"caption": worlds.check(images, captions)}
    rates_of = caption_rates(loaded, captions, seed=seed, best_of=best_of)
    return {
        condition: rates_of(embeddings_from(condition, loaded, records, seed=seed), condition)
        for condition in CONDITIONS
    }


def caption_rates(
    loaded: LoadedCascade,
    captions: Sequence[str],
    *,
    seed: int,
    best_of: int = 1,
    batch_size: int = BATCH,
) -> Callable[[np.ndarray, str], dict[str, Rate]]:
    """Returns a function from z_img [b z] and a label to the checker's scores of their images.

    All calls share one compiled sampler, and image i starts from the same noise in each.
    """
    options = SampleOptions(condition="z_img", best_of=best_of)
    mesh, batch_size = sampling_mesh(batch_size)
    sampler = batch_sampling.compile_sampler(loaded.cascade, options, mesh=mesh)

    def rates(z_img: np.ndarray, label: str) -> dict[str, Rate]:
        images = batch_sampling.sample_images(
            loaded,
            captions,
            seed=seed,
            options=options,
            z_img=z_img,
            batch_size=batch_size,
            name=f"sample from {label}",
            sampler=sampler,
        )
        return worlds.check(images, captions)

    return rates


def reconstruction(loaded: LoadedCascade, records: Sequence[Record]) -> dict[str, Any]:
    """Computes PSNR, code usage and the checker's scores of reconstructions."""
    cfg = loaded.cascade.stage("dvae").config
    true = _squares(records, cfg.model.image_size)

    @jax.jit
    def through(params, images):
        codes = dvae.encode(cfg, params, images)
        return codes, to_uint8(dvae.decode(cfg, params, codes))

    parts = [
        through(loaded.params["dvae"], image_codec.to_float(true[i : i + BATCH]))
        for i in range(0, len(true), BATCH)
    ]
    codes, images = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))
    statistics = relaxation.code_statistics(jnp.asarray(codes), count=cfg.model.code_count)
    rates = worlds.check(images, [record["caption"] for record in records])
    return {
        "psnr": float(np.mean(psnr(images, true))),
        **{name: float(value) for name, value in statistics.items()},
        "checker": worlds.as_json(rates),
    }


def enlargement(loaded: LoadedCascade, records: Sequence[Record], *, seed: int) -> dict[str, float]:
    """Computes the mean PSNR in dB of the first upsampler and of bicubic enlargement.

    Both enlarge clean low-resolution images.
    """
    cascade = loaded.cascade
    cfg, name = cascade.upsamplers[0], cascade.of_role("upsampler")[0].name
    true = _squares(records, cfg.model.unet.image_size)
    low = np.stack([area_downsample(image, cfg.model.factor) for image in true])
    keys = text_to_image.keys_for(seed, jnp.arange(len(true)))

    @jax.jit
    def run(params, low, captions, keys):
        text = None
        if cfg.model.text is not None:
            text = text_to_image.text_features(cascade, params, captions, keys)
        options = {"keys": rng.fold_each(keys, "upsampler"), "text": text}
        return upsampler.sample(cfg, params[name], low_res=low, **options)

    inputs = (image_codec.to_float(low), _tokenise(loaded, records), keys)
    enlarged = to_uint8(np.asarray(run(loaded.params, *inputs)))
    side = true.shape[1]
    bicubic = np.stack(
        [
            np.asarray(PILImage.fromarray(x).resize((side, side), PILImage.Resampling.BICUBIC))
            for x in low
        ]
    )
    return {
        "upsampler": float(np.mean(psnr(enlarged, true))),
        "bicubic": float(np.mean(psnr(bicubic, true))),
    }


def table(result: dict[str, Any]) -> str:
    """Formats the result of `evaluate_cascade` as text."""
    lines = []
    if "retrieval" in result:
        retrieved = result["retrieval"]
        lines.append(
            f"CLIP retrieval@1 of {retrieved['pairs']} pairs: image to text "
            f"{retrieved['image_to_text@1']:.3f}, text to image {retrieved['text_to_image@1']:.3f}"
        )
    if "reconstruction" in result:
        facts = result["reconstruction"]
        joint = facts["checker"].get("joint")
        right = f", {joint['value']:.2f} of them correct" if joint else ""
        lines.append(
            f"reconstructions {facts['psnr']:.2f} dB{right}; {facts['usage']:.0%} of the codes "
            f"occur, perplexity {facts['perplexity']:.0f}"
        )
    if "upsampler_psnr" in result:
        ours, bicubic = (result["upsampler_psnr"][name] for name in ("upsampler", "bicubic"))
        lines.append(f"upsampler {ours:.2f} dB, bicubic {bicubic:.2f} dB ({ours - bicubic:+.2f})")
    if "checker" in result:
        selection = f", best of {result['best_of']}" if result["best_of"] > 1 else ""
        conditions = list(result["checker"])
        source = "z_img from:" if len(conditions) > 1 else "from the:"
        lines.append(f"\n{result['num']} captions{selection}, exact checker   {source}")
        lines.append(f"{'':15}" + "".join(f"{name:>22}" for name in conditions))
        for name in worlds.SUMMARY:
            if not all(name in result["checker"][condition] for condition in conditions):
                continue
            rates = [result["checker"][condition][name] for condition in conditions]
            cells = [f"{c['value']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in rates]
            lines.append(f"{name:15}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines) + "\n"


def _tokenise(loaded: LoadedCascade, records: Sequence[Record]) -> Captions:
    captions = [record["caption"] for record in records]
    return tokenise(loaded.cascade, load.load_tokenizers(loaded.tokenizer_dirs), captions)


def _squares(records: Sequence[Record], size: int) -> np.ndarray:
    """Decodes the records' images as uint8 squares."""
    decoded = [image_codec.decode(record["image"]) for record in records]
    resized = (image_codec.resize_short(image, size) for image in decoded)
    return np.stack([image_codec.center_crop(image, size) for image in resized])
