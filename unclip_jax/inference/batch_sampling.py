"""Sampling many captions in batches of one shape: one compiled function, any number of devices.

Image i depends on (seed, i) alone, not on batch size, devices or processes.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import offload, text_to_image
from unclip_jax.inference.cascade import Cascade, CascadeStage, plan, tokenise
from unclip_jax.inference.compiled_function import CompiledFunction
from unclip_jax.inference.load import CascadeFiles, LoadedCascade, load_tokenizers
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import sampling_mesh

# Samplers of the last cascades; these may contain arrays, so they cannot be hashed.
_samplers: collections.deque[tuple[Cascade, Mesh, CompiledFunction[jax.Array]]]
_samplers = collections.deque(maxlen=8)


def sample_images(
    loaded: LoadedCascade,
    captions: Sequence[str],
    *,
    seed: int,
    options: SampleOptions,
    z_img: np.ndarray | None = None,
    batch_size: int = 16,
    name: str = "sampling",
    sampler: Callable[..., jax.Array] | None = None,
    first_index: int = 0,
) -> UInt8[np.ndarray, " b h w c"]:
    """Samples one uint8 image per caption, in batches of one shape.

    Args:
        loaded: the cascade.
        captions: one per image.
        seed: image i depends on (seed, i) alone.
        options: overrides of the exported settings.
        z_img: one image embedding per caption, when `options.condition` is "z_img".
        batch_size: images per batch.
        name: label of the progress bar.
        sampler: `compile_sampler` of the same options, if compiled already.
        first_index: index of the first image, for a set that is sampled in parts.
    """
    mesh, batch_size = sampling_mesh(min(batch_size, len(captions)))
    sampler = sampler or compile_sampler(loaded.cascade, options, mesh=mesh)
    params = place.replicate(loaded.params, mesh)
    tokenizers = load_tokenizers(loaded.tokenizer_dirs)
    images = []
    bar = tqdm(total=len(captions), unit="image", desc=name, disable=jax.process_index() > 0)
    for start in range(0, len(captions), batch_size):
        indices = np.arange(start, start + batch_size)
        rows = np.minimum(indices, len(captions) - 1)  # one shape, one compilation
        tokens = tokenise(loaded.cascade, tokenizers, [captions[int(i)] for i in rows])
        embeddings = None if z_img is None else z_img[rows]
        keys = text_to_image.keys_for(seed, jnp.array(first_index + indices))
        batch = sampler(params, *place.spread((tokens, keys, embeddings), mesh))
        images.append(np.asarray(batch)[: len(captions) - start])
        bar.update(len(images[-1]))
    bar.close()
    return np.concatenate(images)


def sample_by_stage(
    files: CascadeFiles,
    captions: Sequence[str],
    *,
    seed: int,
    options: SampleOptions,
    batch_size: int,
) -> UInt8[np.ndarray, " b h w c"]:
    """Samples with one stage on the device at a time; equals `sample_images` up to rounding."""
    tokenizers, size = load_tokenizers(files.tokenizer_dirs), min(batch_size, len(captions))
    batches = []
    for start in range(0, len(captions), size):
        indices = np.arange(start, start + size)
        rows = np.minimum(indices, len(captions) - 1)
        tokens = tokenise(files.cascade, tokenizers, [captions[int(i)] for i in rows])
        batches.append(
            offload.SampleBatch(tokens, text_to_image.keys_for(seed, jnp.array(indices)))
        )
    steps = plan(files.cascade, condition=options.condition)
    with tqdm(total=len(steps), unit="stage", desc="sampling") as bar:

        def begin(name: str) -> None:
            bar.update(bool(bar.postfix))  # the previous stage is complete
            bar.set_postfix_str(name)

        images = offload.sample(files, batches, options=options, begin=begin)
        bar.update()
    return np.concatenate(images)[: len(captions)]


def compile_sampler(
    cascade: Cascade, options: SampleOptions, *, mesh: Mesh | None = None
) -> Callable[..., jax.Array]:
    """Returns the jit-compiled sampling function: (params, captions, keys, z_img) -> uint8 images.

    The devices are those of `mesh` (default: one, or all of several processes); every one receives
    all images. Samplers of one cascade share compiled programs, also across guidance scales.
    """
    mesh = mesh or sampling_mesh(1)[0]
    for own, devices, sampler in _samplers:
        if own is cascade and devices == mesh:
            return functools.partial(sampler, options=options)

    def run(params, captions, keys, z_img, *, options):
        output = text_to_image.sample(cascade, params, captions, keys, options=options, z_img=z_img)
        return to_uint8(output.images)

    sampler = CompiledFunction(run, static=("options",), mesh=mesh, compiling=lambda state: None)
    _samplers.append((cascade, mesh, sampler))
    return functools.partial(sampler, options=options)


def sample_options(
    cascade: Cascade, *, prior: dict[str, Any], decoder: dict[str, Any], **options: Any
) -> SampleOptions:
    """Returns the exported settings of a cascade with changes; None = as exported.

    Args:
        cascade: the stages.
        prior: settings of the prior by name.
        decoder: settings of the decoder by name; where it only decodes what the prior samples, as
            in DALL-E, its guidance is that of the prior.
        options: other fields of `SampleOptions`.

    Raises:
        UserError: a stage has no such setting, or settings conflict.
    """
    if cascade.decoder_sampling is None:
        guidance = decoder.pop("guidance_scale", None)
        if prior.get("guidance_scale") is None:
            prior = {**prior, "guidance_scale": guidance}
    changed = override(cascade.decoder_sampling, decoder, stage="decoder")
    if changed is not None:
        _check_effect(changed, decoder)
    result = SampleOptions(prior=prior_sampling(cascade, prior), decoder=changed, **options)
    _check_embeddings(cascade, result)
    return result


def _check_effect(sampling: Any, changes: dict[str, Any]) -> None:
    """Rejects changes of the decoder's sampling that other settings leave without effect.

    Raises:
        UserError: naming the first, and the setting that it needs.
    """
    ancestral = sampling.sampler.partition(":")[0] == "ancestral"
    conditions = {
        "cap": (sampling.threshold == "dynamic", "--threshold=dynamic"),
        "variance": (ancestral, "--sampler=ancestral"),
        "gamma": (ancestral and sampling.variance == "mix", "--sampler=ancestral --variance=mix"),
    }
    for name, (effective, needed) in conditions.items():
        if changes.get(name) is not None and not effective:
            raise UserError(
                f"--{name} is {changes[name]!r}, which has no effect without {needed}; add that, "
                "or leave it out."
            )


def _check_embeddings(cascade: Cascade, options: SampleOptions) -> None:
    """Rejects settings of embeddings that no stage of the chain reads or samples.

    Raises:
        UserError: naming the first.
    """
    if options.condition != "prior" and not cascade.decoder_reads_embedding:
        raise UserError(
            f"--condition is {options.condition!r}, but the {cascade.stage('decoder').name} reads "
            "no embedding; leave it out."
        )
    steps = plan(cascade, condition=options.condition)
    if options.num_candidates is not None and all(
        step.stage.entry.role != "prior" for step in steps
    ):
        raise UserError(
            f"--candidates is {options.num_candidates}, but no prior samples embeddings here; "
            "leave it out, or use --best-of."
        )


def upsampler_sampling(
    cascade: Cascade,
    *,
    guidance: float | None = None,
    steps: str | None = None,
    level: float | None = None,
    start: int = 0,
) -> SampleOptions:
    """Returns the exported settings of upsamplers with changes; None = as exported.

    Args:
        cascade: the stages.
        guidance: scale of all of them.
        steps: grid of all of them.
        level: noise on their low-res images, as a fraction of the chain.
        start: number of the first upsampler that runs.

    Raises:
        UserError: there are no upsamplers, or one was not trained for a setting.
    """
    stages = cascade.of_role("upsampler")
    changes = {"guidance": guidance, "steps": steps, "level": level}
    for name, value in changes.items():
        if value is not None and not stages[start:]:
            raise UserError(
                f"--upsampler-{name} is {value!r}, but these models have no upsampler; leave it "
                "out."
            )
    for stage in stages[start:]:
        _check_upsampler(stage, guidance=guidance, level=level)
    if guidance is None and steps is None:
        return SampleOptions(upsampler_level=level)
    values = {"guidance_scale": guidance, "steps": steps}
    samplings = [override(stage.config.sampling, values, stage="upsampler") for stage in stages]
    for stage, sampling in list(zip(stages, samplings, strict=True))[start:]:
        stage.config.check_guidance(sampling)
    return SampleOptions(upsamplers=tuple(samplings), upsampler_level=level)


def _check_upsampler(stage: CascadeStage, *, guidance: float | None, level: float | None) -> None:
    """Rejects settings that an upsampler was not trained for."""
    cfg = stage.config
    if guidance not in (None, 1.0) and cfg.model.text is None:
        raise UserError(
            f"--upsampler-guidance is {guidance:g}, but the {stage.name} reads no captions, from "
            "which it would be guided; leave it out."
        )
    most = cfg.augment.most
    if level is not None and level > most:
        learned, advice = "without noise", "leave it out"
        if most:
            learned, advice = f"with levels up to {most:g}", f"give at most {most:g}"
        raise UserError(
            f"--upsampler-level is {level:g}, but the {stage.name} was trained {learned} on its "
            f"low-res images; {advice}."
        )


def prior_sampling(cascade: Cascade, changes: dict[str, Any]) -> Any:
    """Returns the prior's exported settings with `changes`; None for a cascade without a prior.

    Raises:
        UserError: the prior has no such setting, or the cascade no prior.
    """
    if cascade.has("prior"):
        return override(cascade.prior.sampling, changes, stage="prior")
    for name, value in changes.items():
        if value is not None:
            raise UserError(
                f"--prior-{name.replace('_', '-')} is {value!r}, but these models have no prior; "
                "leave it out."
            )
    return None


def override(sampling: Any, changes: dict[str, Any], *, stage: str) -> Any:
    """Returns the sampling settings of a stage with the values of `changes` that are not None.

    Raises:
        UserError: the settings have no such field.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    fields = {f.name for f in dataclasses.fields(sampling)} if sampling is not None else set()
    for name in sorted(changes.keys() - fields):
        flag = f"--{'prior-' if stage == 'prior' else ''}{name.replace('_', '-')}"
        other = "the other --prior" if stage == "prior" else "another --chain"
        raise UserError(
            f"{flag} is {changes[name]!r}, but this {stage} has no such setting; leave it out or "
            f"choose {other}."
        )
    return None if sampling is None else dataclasses.replace(sampling, **changes)
