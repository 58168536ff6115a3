"""Conversion of public weights to run directories, for `convert` and `sample`."""

import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unclip_jax.convert import (
    clip_text_encoder,
    dalle2_pytorch,
    deepfloyd,
    karlo,
    language_tensors,
    mindalle,
    nested_pipelines,
    openai_dvae,
    original,
    standalone_clip,
    taming_vqgan,
)
from unclip_jax.convert.converted_stage import ConvertedStage, Provenance, write_run
from unclip_jax.convert.model_card import import_card
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.config import as_dict, build, check_limits
from unclip_jax.core.files import write_atomically
from unclip_jax.handoff.load import read_manifest
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages.registry import stage_entry
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.weight_files.tensor_source import read_json

STAGES = (*karlo.STAGES, *(name for name in deepfloyd.STAGES if name not in karlo.STAGES))
WHOLE = ("dvae", "dalle", dalle2_pytorch.FOLDER)  # from sources that are converted as a whole
README = "README.md"
STAMP = "source.json"  # in a cache: the files from which it was converted


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """Settings of a conversion.

    Attributes:
        stages: stages to convert; default: all that the source has.
        dtype: type of parameters and computation, "float32" or "bfloat16".
        tokenizer: folder of a tokenizer, if the source has none.
        clip: export of the CLIP that the stages belong to, if the source has none.
        licence: terms of the weights, for the manifests; "" = those of the layout.
        context: tokens per caption of a text encoder; None = 128, or as many as it can read.
        pixels: range of a VQGAN's images, "signed" or "unit".
    """

    stages: tuple[str, ...] = STAGES
    dtype: str = "float32"
    tokenizer: pathlib.Path | None = None
    clip: pathlib.Path | None = None
    licence: str = ""
    context: int | None = None
    pixels: str | None = None


def convert(
    sources: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    options: ImportOptions = ImportOptions(),
    begin: Callable[[str], None] = lambda name: None,
    replace: bool = False,
) -> list[str]:
    """Converts public layouts to a run directory; returns the names of the stages written.

    Args:
        sources: folders or files, the first of which determines the layout; or one that holds IF.
        out: the run directory.
        options: settings of the conversion.
        begin: called with the name of every stage before it is read.
        replace: True replaces existing exports in `out`.

    Raises:
        UserError: sources do not fit, or stages exist in `out`; nothing has been written.
    """
    sources = _checked_sources(sources, options)
    licence = terms(sources[0], options.licence)
    if (theirs := dalle2_pytorch.read(sources[0])) is not None:
        if options.dtype != "float32":
            raise UserError(
                f"{sources[0]} is a prior of DALLE2-pytorch or MindEye2, which is stored in "
                f"float32; leave out --dtype={options.dtype}."
            )
        _check_whole(options, sources[0], names=[dalle2_pytorch.FOLDER])
        _check_alone(sources)
        begin(dalle2_pytorch.FOLDER)
        return [dalle2_pytorch.convert(theirs, out, licence=licence, replace=replace)]
    if (codes := _codes_in(sources, options)) is not None:
        return _convert_codes(codes, sources, out, options, replace=replace)
    parts, tokenizer_dir = _stages_in(sources, options)
    _check_choice(parts, sources, options)
    if not replace:
        _check_absent(parts, out)
    folder = options.tokenizer or tokenizer_dir
    if folder is None:
        raise UserError(
            f"{sources[0]} has no tokenizer beside it; give a folder that holds CLIP's with "
            "--tokenizer."
        )
    lower = deepfloyd.is_pipeline(sources[0])  # its pipelines lower-case captions
    own = lower or language_tensors.is_language_model(sources[0])  # not CLIP's tokenizer
    literal = () if own else caption_tokenizer.declared_padding(folder)
    tokenizer = caption_tokenizer.load(folder, literal=literal, lower=lower)
    parts = [_typed(part, options.dtype) for part in parts]
    _check_vocabulary(parts, tokenizer, folder)
    clip_id = _clip_of(options.clip, parts, tokenizer) if options.clip else None
    named = ", ".join(source.resolve().name for source in sources)
    origin = Provenance(data=f"converted from {named}", licence=licence)
    more = {"clip_id": clip_id, "dtype": options.dtype, "begin": begin}
    written = _write(parts, out, tokenizer=tokenizer, origin=origin, **more)
    if lower and (replace or not (out / README).exists()):
        write_atomically(out / README, import_card(written, source=named))
    if lower and (missing := deepfloyd.missing_stage(sources, list(written))):
        sys.stderr.write(f"note: {missing}\n")
    return list(written)


def _checked_sources(
    sources: Sequence[pathlib.Path], options: ImportOptions
) -> Sequence[pathlib.Path]:
    """Returns the sources, or the stages of DeepFloyd IF in the only one, which stderr names.

    Raises:
        UserError: a name is unknown, a source does not exist, or it holds other pipelines.
    """
    for stage in options.stages:
        one_of("stage in --stages", stage, (*STAGES, *WHOLE))
    for source in sources:
        if not source.exists():
            raise UserError(f"there is no {source}; give a folder or file of weights.")
    if options.context is not None and not language_tensors.is_language_model(sources[0]):
        raise UserError(
            f"--context is {options.context}, the caption length of a T5 or BERT, but {sources[0]} "
            "is another kind of source, whose own length is kept; leave it out."
        )
    inside = nested_pipelines.sources_of(sources[0]) if len(sources) == 1 else [*sources]
    if inside != [*sources]:
        sys.stderr.write(f"{sources[0]} holds {' and '.join(path.name for path in inside)}\n")
    return inside


def _check_alone(sources: Sequence[pathlib.Path]) -> None:
    """Raises a UserError if there are sources beside one that is converted alone."""
    if len(sources) > 1:
        others = ", ".join(str(source) for source in sources[1:])
        raise UserError(
            f"{sources[0]} is converted alone, but {others} was given too; convert one source at a "
            "time, each to a run of its own."
        )


def _check_absent(parts: Sequence[ConvertedStage], out: pathlib.Path) -> None:
    """Raises a UserError if a run already has some of the stages."""
    existing = [part.name for part in parts if (out / part.name).exists()]
    if existing:
        raise UserError(
            f"{out} has {', '.join(existing)} already, on which other stages may depend; give "
            "another --out, or remove the stages to replace."
        )


def _check_choice(
    parts: Sequence[ConvertedStage], sources: Sequence[pathlib.Path], options: ImportOptions
) -> None:
    """Rejects stages of --stages that the sources do not have.

    Raises:
        UserError: names the first, and the stages that exist.
    """
    if options.stages == STAGES:
        return
    names = [part.name for part in parts]
    for stage in options.stages:
        if stage not in names:
            every, _ = _stages_in(sources, dataclasses.replace(options, stages=STAGES))
            have = ", ".join(part.name for part in every)
            raise UserError(f"{sources[0]} has no {stage}, which --stages names; it has {have}.")


def _check_whole(options: ImportOptions, source: pathlib.Path, *, names: Sequence[str]) -> None:
    """Raises a UserError if --stages is set for a source that is converted as a whole."""
    if options.stages != STAGES and not {*names} <= {*options.stages}:
        raise UserError(
            f"--stages={','.join(options.stages)} chooses among the stages of a pipeline, but "
            f"{source} is converted as a whole ({', '.join(names)}); leave it out."
        )


class _Codes(NamedTuple):
    """A discrete VAE, possibly with a transformer; their licence and the tokenizer's folder."""

    parts: list[ConvertedStage]
    licence: str
    tokenizer_dir: pathlib.Path | None = None


def _codes_in(sources: Sequence[pathlib.Path], options: ImportOptions) -> _Codes | None:
    """Returns the stages of DALL-E's chain in sources; None if there are none.

    Raises:
        UserError: stages do not fit, the pixel range of a VQGAN is missing, or the source is DALL-E
            mini.
    """
    settings = sources[0] / "config.json"
    if settings.is_file() and read_json(settings).get("model_type") == "dallebart":
        raise UserError(
            f"{sources[0]} is DALL-E mini, a BART with cross-attention, which is another network "
            "than DALL-E; give minDALL-E, OpenAI's discrete VAE or a VQGAN."
        )
    if mindalle.is_mindalle(sources[0]):
        _check_alone(sources)
        folder = options.tokenizer or mindalle.tokenizer_dir(sources[0])
        return _Codes(mindalle.stages(sources[0], folder), mindalle.LICENCE, folder)
    if published := openai_dvae.files(sources):
        return _Codes([openai_dvae.stage(published)], openai_dvae.LICENCE)
    if (tensors := taming_vqgan.open_vqgan(sources)) is not None:
        part = taming_vqgan.stage(tensors, pixels=options.pixels)
        return _Codes([part], taming_vqgan.LICENCE)
    return None


def _convert_codes(
    codes: _Codes,
    sources: Sequence[pathlib.Path],
    out: pathlib.Path,
    options: ImportOptions,
    *,
    replace: bool,
) -> list[str]:
    """Writes a discrete VAE, which reads no captions, and possibly a transformer, which does."""
    parts, licence, tokenizer_dir = codes
    _check_whole(options, sources[0], names=[part.name for part in parts])
    if not replace:
        _check_absent(parts, out)
    named = ", ".join(source.resolve().name for source in sources)
    tokenizer = caption_tokenizer.load(tokenizer_dir) if tokenizer_dir else None
    parts = [_typed(part, options.dtype) for part in parts]
    if tokenizer_dir and tokenizer:
        _check_vocabulary(parts, tokenizer, tokenizer_dir)
    origin = Provenance(data=f"converted from {named}", licence=options.licence or licence)
    return [*_write(parts, out, tokenizer=tokenizer, origin=origin, dtype=options.dtype)]


def _write(
    parts: Sequence[ConvertedStage],
    out: pathlib.Path,
    *,
    tokenizer: caption_tokenizer.Tokenizer | None,
    **options: Any,
) -> dict[str, Manifest]:
    """Writes stages, with the tokenizer that they read; `options` are those of `write_run`."""
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer is not None:
            tokenizer.save(scratch)
        options["tokenizer_hash"] = tokenizer.hash if tokenizer else ""
        return write_run(parts, out, tokenizer_dir=pathlib.Path(scratch), **options)


def _check_vocabulary(
    parts: Sequence[ConvertedStage], tokenizer: caption_tokenizer.Tokenizer, folder: pathlib.Path
) -> None:
    """Rejects a tokenizer whose ids exceed the embeddings of an encoder."""
    for part in parts:
        readers = {"clip": "CLIP", "text_encoder": "text encoder", "dalle": "transformer"}
        name = readers.get(part.stage)
        rows = part.config["model"].get("vocab_size") if name else None
        if rows and tokenizer.vocab_size > rows:
            raise UserError(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} entries, the {name} "
                f"embeddings of {rows}; give the tokenizer that it was trained with (--tokenizer)."
            )


def terms(source: pathlib.Path, licence: str) -> str:
    """Returns the terms of the weights in a layout, for manifests.

    Args:
        source: folder or file of the weights.
        licence: name given by the user; "" = that of the layout.
    """
    if deepfloyd.is_pipeline(source):
        return f"{licence or deepfloyd.LICENCE}; {deepfloyd.SAFETY}"
    own = language_tensors if language_tensors.is_language_model(source) else karlo
    return licence or own.LICENCE


def report_stage(name: str) -> None:
    """Writes a line on a stage to stderr, because large stages take minutes."""
    sys.stderr.write(f"converting {name} ...\n")


# Exceptions when files do not have the form that their names suggest.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def _stages_in(
    sources: Sequence[pathlib.Path], options: ImportOptions
) -> tuple[list[ConvertedStage], pathlib.Path | None]:
    """Calls `find_stages`, and reports malformed files as user errors.

    Raises:
        UserError: see `find_stages`; or configs and tensors are malformed.
    """
    try:
        if deepfloyd.is_pipeline(sources[0]):
            return deepfloyd.read_stages(sources, stages=options.stages)
        if language_tensors.is_language_model(sources[0]):
            _check_whole(options, sources[0], names=["text_encoder"])
            _check_alone(sources)
            return [language_tensors.stage(sources[0], context=options.context)], sources[0]
        if options.stages == ("text_encoder",) and not karlo.is_pipeline(sources[0]):
            (clip,) = standalone_clip.clip_from(sources[0])
            part = clip_text_encoder.stage(clip, context=options.context)
            return [part], standalone_clip.tokenizer_beside(sources[0])
        return find_stages(sources, stages=options.stages)
    except UserError:
        raise
    except MALFORMED as error:
        raise UserError(
            f"{sources[0]} is not of the form that its files suggest ({error!r}); copy its configs "
            "and weights again."
        ) from error


def _clip_of(
    export: pathlib.Path, parts: Sequence[ConvertedStage], tokenizer: caption_tokenizer.Tokenizer
) -> str | None:
    """Returns the identity of the CLIP in `export`, after checking that the stages match it."""
    card = read_manifest(export)
    if card.stage != "clip":
        raise UserError(f"--clip={export} is a {card.stage}; give the export of a CLIP.")
    for part in parts:
        size = part.facts.get("embed_dim", card.embed_dim)
        if size != card.embed_dim:
            raise UserError(
                f"the {part.name} takes embeddings of {size} numbers, the CLIP in {export} gives "
                f"{card.embed_dim}; give the export of the CLIP that it was trained on."
            )
    if tokenizer.hash != card.tokenizer_hash:
        raise UserError(
            f"the CLIP in {export} reads with another tokenizer than the one beside the weights; "
            "give the export of the CLIP that they were trained on."
        )
    return card.clip_id


def _typed(part: ConvertedStage, dtype: str) -> ConvertedStage:
    """Returns the stage with its complete and checked config, which computes in `dtype`."""
    config = as_dict(part.config)
    network = config["model"].get("unet", config["model"])
    network["dtype"] = dtype
    entry = stage_entry(part.stage)
    cfg = check_limits(build(entry.config, config, where=part.name), where=part.name)
    facts = {"requires": entry.required_fields(cfg), "identity": entry.identity}
    return dataclasses.replace(part, config=as_dict(cfg), **facts)


def find_stages(
    sources: Sequence[pathlib.Path], *, stages: Sequence[str] = karlo.STAGES
) -> tuple[list[ConvertedStage], pathlib.Path | None]:
    """Finds the stages in `sources`, and the folder of their tokenizer if there is one.

    Raises:
        UserError: the layout is unknown, or its files do not fit.
    """
    own = [stage for stage in stages if stage in karlo.STAGES]
    if karlo.is_pipeline(sources[0]):
        folders = karlo.components(sources)
        return karlo.read_stages(folders, stages=own), folders.get("tokenizer")
    _check_alone(sources)
    if original.is_original(sources[0]):
        return original.read_stages(sources[0], stages=own), standalone_clip.tokenizer_beside(
            sources[0]
        )
    return standalone_clip.clip_from(sources[0]), standalone_clip.tokenizer_beside(sources[0])


def run_directory(models: pathlib.Path) -> pathlib.Path:
    """Returns the run directory for `models`: itself, or a cached conversion of public weights.

    The cache DIR.unclip_jax is converted again when files of DIR have changed. DeepFloyd IF's stage
    I is converted in bfloat16, in which its T5-XXL takes 9 GiB, together with a stage II beside it;
    a folder that holds both stands for stage I.

    Raises:
        UserError: the pipeline cannot be converted, the cache cannot be written, or the folder
            holds other pipelines.
    """
    models = nested_pipelines.sources_of(models)[0]
    if not (karlo.is_pipeline(models) or original.is_original(models)):
        return models
    models = models.resolve()
    cache = models.with_name(f"{models.name}.unclip_jax")
    sources, options, kind = [models], ImportOptions(), ""
    if deepfloyd.is_pipeline(models):
        sources, options = deepfloyd.chain_of(models), ImportOptions(dtype="bfloat16")
        kind = "in bfloat16, "
    stamp = kind + "\n".join(map(_stamp, sources))
    if (cache / STAMP).is_file() and (cache / STAMP).read_text(encoding="utf-8") == stamp:
        return cache
    (cache / STAMP).unlink(missing_ok=True)
    named = " with ".join(map(str, sources))
    sys.stderr.write(f"{named} is converted once, {kind}into {cache}\n")
    written = convert(sources, cache, options=options, begin=report_stage, replace=True)
    for old in {path.parent.name for path in cache.glob("*/export")} - {*written}:
        shutil.rmtree(cache / old)  # from a source that no longer exists
    (cache / STAMP).write_text(stamp, encoding="utf-8")
    return cache


def _stamp(folder: pathlib.Path) -> str:
    """Returns the names, sizes and times of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {str(p.relative_to(folder)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    return json.dumps(facts, indent=1)
