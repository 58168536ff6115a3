"""Images for many captions, sampled in parts: an interrupted run continues where it stopped.

OUT/pictures/ has one guided-diffusion batch per part, which other evaluators read too. A folder
belongs to one protocol: models, captions, settings and seed.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from unclip_jax.core.checks import UserError, check_seed, one_of, positive
from unclip_jax.core.config import as_dict
from unclip_jax.evaluation import image_sets, protocol_folder
from unclip_jax.evaluation.image_sets import ImageSet
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import batch_sampling, load
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import npz

FOLDER = "pictures"
CONDITIONS = ("prior", "z_txt")


@dataclasses.dataclass(frozen=True)
class SampledSetConfig:
    """A set of images to sample from a cascade.

    Attributes:
        models: run directory.
        out: folder to write.
        prior: name of the prior.
        condition: source of z_img, one of `CONDITIONS`.
        guidance: scale of the decoder; None = as exported.
        steps: grid of the decoder; None = as exported.
        sampler: sampler of the decoder; None = as exported.
        seed: image i depends on (seed, i) and its caption alone.
        batch: images per batch.
        part: images per file.
    """

    models: pathlib.Path
    out: pathlib.Path
    prior: str = "prior"
    condition: str = "prior"
    guidance: float | None = None
    steps: str | None = None
    sampler: str | None = None
    seed: int = 0
    batch: int = 50
    part: int = 500

    def __post_init__(self):
        """Checks the sizes, the condition, and that `out` can be a folder."""
        positive("--batch", self.batch)
        positive("--part", self.part)
        check_seed("--seed", self.seed)
        one_of("--condition", self.condition, CONDITIONS)
        if self.out.is_file():
            raise UserError(f"--out is {str(self.out)!r}, which is a file; give a folder.")

    def load(self) -> LoadedCascade:
        """Loads the cascade.

        Raises:
            UserError: see `load.load_cascade`.
        """
        return load.load_cascade(self.models, prior_name=self.prior)


def sample_options(
    loaded: LoadedCascade,
    *,
    condition: str,
    guidance: float | None,
    steps: str | None,
    sampler: str | None,
    threshold: str | None = None,
    upsampler_guidance: float | None = None,
    upsampler_level: float | None = None,
) -> SampleOptions:
    """Returns the exported settings of a cascade with overrides; None = as exported.

    Raises:
        UserError: settings that are invalid or do not go together.
    """
    overrides = {"steps": steps, "sampler": sampler, "threshold": threshold}
    cascade = loaded.cascade
    upsampling = batch_sampling.upsampler_sampling(
        cascade, guidance=upsampler_guidance, level=upsampler_level
    )
    options = batch_sampling.sample_options(
        cascade,
        prior={},
        decoder={"guidance_scale": guidance, **overrides},
        condition=condition,
        upsamplers=upsampling.upsamplers,
        upsampler_level=upsampling.upsampler_level,
    )
    if options.decoder is not None:
        cascade.decoder.check_guidance(options.decoder)
    return options


def sample_all(
    config: SampledSetConfig, loaded: LoadedCascade, captions: Sequence[str]
) -> ImageSet:
    """Samples one image per caption, in those parts that are missing.

    Args:
        config: settings and folder.
        loaded: the cascade of `config`.
        captions: in order; image i depends on (seed, i) and its caption alone.

    Raises:
        UserError: the folder holds images of another protocol.
    """
    options = sample_options(
        loaded,
        condition=config.condition,
        guidance=config.guidance,
        steps=config.steps,
        sampler=config.sampler,
    )
    first = jax.process_index() == 0
    protocol = protocol_of(config, loaded, captions, options=options)
    protocol_folder.claim(config.out, protocol, first=first, contents="images", folder=FOLDER)
    starts = range(0, len(captions), config.part)
    paths = [config.out / FOLDER / f"{start:06d}.npz" for start in starts]
    for number, (start, path) in enumerate(zip(starts, paths, strict=True), 1):
        if path.is_file():
            continue
        images = batch_sampling.sample_images(
            loaded,
            list(captions[start : start + config.part]),
            seed=config.seed,
            options=options,
            batch_size=config.batch,
            name=f"part {number} of {len(paths)}",
            first_index=start,
        )
        if first:
            npz.write(path, [images], count=len(images))
    if first:
        sys.stderr.write(f"{len(captions)} images in {config.out / FOLDER}\n")
    return image_sets.from_parts(paths)


def protocol_of(
    config: SampledSetConfig,
    loaded: LoadedCascade,
    captions: Sequence[str],
    *,
    options: SampleOptions,
) -> dict[str, Any]:
    """Returns what must be equal for parts to belong together; JSON-ready."""
    text = json.dumps(list(captions), ensure_ascii=False)
    params, cascade = loaded.params, loaded.cascade
    roles = [role for role in ("clip", "prior", "decoder") if cascade.has(role)]
    return {
        **{role: params_id(params[cascade.stage(role).name])[:16] for role in roles},
        "upsamplers": [params_id(tree)[:16] for tree in cascade.upsampler_params(params)],
        "decoding": json.loads(json.dumps(as_dict(options.decoder or options.prior))),
        "condition": config.condition,
        "captions": hashlib.sha256(text.encode()).hexdigest()[:16],
        "count": len(captions),
        "seed": config.seed,
        "part": config.part,
    }
