"""Model cards (README with front matter) of exported weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import listed
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.version import __version__

# Public pipelines of this class moved within diffusers; its loader has to be told their module.
LOADING = """```python
import diffusers.pipelines as pipelines
import diffusers.pipelines.deprecated.unclip as unclip  # since 0.38; before, nothing is needed

pipelines.unclip = unclip
pipe = {pipeline_class}.from_pretrained("THIS_FOLDER")
```"""

IMAGEN_LOADING = """```python
from diffusers import IFPipeline, IFSuperResolutionPipeline

first = IFPipeline.from_pretrained("THIS_FOLDER/stage_1", safety_checker=None, watermarker=None)
text, nothing = first.encode_prompt("a photo of a red bicycle")
options = {{"prompt_embeds": text, "negative_prompt_embeds": nothing, "output_type": "pt"}}
images = first(**options, {}).images
"""
IMAGEN_ENLARGING = """second = IFSuperResolutionPipeline.from_pretrained(
    "THIS_FOLDER/stage_2", text_encoder=None, safety_checker=None, watermarker=None
)
images = second(image=images, **options, {}).images
"""

UNFILTERED = """## Safety

These folders hold no safety checker and no watermarker, and the code below loads the pipelines
without them: images are neither filtered nor marked. Where they are shown to others, filter them
first, as the licence of weights from DeepFloyd IF asks; its own checker and watermarker are
arguments of `from_pretrained`."""

IMPORTED = """## Safety

Of the pipelines of DeepFloyd IF, the components `safety_checker` and `watermarker` are not
converted and not applied: images that are sampled with this run are neither filtered nor marked.
Its licence, which came with the weights, asks for filters where images are shown to others."""


def model_card(cards: Mapping[str, Manifest], *, pipeline: str | None) -> str:
    """Returns the text of README.md.

    Args:
        cards: manifests of the written stages, by name.
        pipeline: class of the pipeline, or None for a single CLIP.
    """
    kind = "text-to-image" if pipeline == "UnCLIPPipeline" else "image-to-image"
    library, task = ("diffusers", kind) if pipeline else ("transformers", "feature-extraction")
    parts = _card(cards, title=pipeline or "CLIP", library=library, task=task)
    if pipeline:
        parts.append(LOADING.format(pipeline_class=f"unclip.{pipeline}"))
    return "\n\n".join(parts) + "\n"


def import_card(cards: Mapping[str, Manifest], *, source: str) -> str:
    """Returns the text of README.md in a run directory that was converted from DeepFloyd IF.

    Args:
        cards: manifests of the stages, by folder.
        source: names of the folders from which they were converted.
    """
    parts = _card(cards, title=source, library="unclip_jax", task="text-to-image")
    return "\n\n".join([*parts, IMPORTED]) + "\n"


def imagen_card(cards: Mapping[str, Manifest], *, calls: Sequence[tuple[int, float]]) -> str:
    """Returns the text of README.md beside pipelines of DeepFloyd IF.

    Args:
        cards: manifests of the written stages, by name.
        calls: number of steps and guidance scale of each pipeline.
    """
    parts = _card(cards, title="IFPipeline", library="diffusers", task="text-to-image")
    loading = IMAGEN_LOADING + (IMAGEN_ENLARGING if len(calls) > 1 else "") + "```"
    options = (f"num_inference_steps={n}, guidance_scale={scale}" for n, scale in calls)
    return "\n\n".join([*parts, UNFILTERED, loading.format(*options)]) + "\n"


def plain_card(cards: Mapping[str, Manifest]) -> str:
    """Returns the text of README.md beside plain tensors."""
    task = "text-to-image" if "decoder" in cards else "feature-extraction"
    parts = _card(cards, title="Stages", library="unclip_jax", task=task)
    note = "STAGE.safetensors has the parameters by their paths, STAGE.json the architecture."
    return "\n\n".join([*parts, note]) + "\n"


def run_card(cards: Mapping[str, Manifest], *, evaluation: Mapping[str, Any], dtype: str) -> str:
    """Returns the text of README.md in a run directory of single files.

    Args:
        cards: manifests by folder.
        evaluation: result of `evaluate` for the run; {} if there is none.
        dtype: type of the stored parameters.
    """
    sizes = listed(sorted({card.size for card in cards.values()}), separator=", ")
    parts = _card(cards, title=f"Models: {sizes}", library="unclip_jax", task="text-to-image")
    note = f"STAGE/export/params.safetensors has the parameters in {dtype}, by their paths."
    return "\n\n".join([*parts, note, *_scores(evaluation)]) + "\n"


def _scores(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns a table of the checker's scores in an evaluation, one row per source of z_img."""
    rows: Mapping[str, Any] = evaluation.get("checker") or {}
    if not rows:
        return []
    first, *others = rows.values()
    names = [name for name in first if all(name in scores for scores in others)]
    lines = [f"| z_img from | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for source, scores in rows.items():
        values = [f"{scores[name]['value']:.2f}" for name in names]
        lines.append(f"| {source} | {' | '.join(values)} |")
    protocol = (
        f"Share of images in which the checker sees what the caption names, on {evaluation['num']} "
        f"captions of the split {evaluation['split']!r}, seed {evaluation['seed']}:"
    )
    return [protocol, "\n".join(lines)]


def _card(cards: Mapping[str, Manifest], *, title: str, library: str, task: str) -> list[str]:
    """Returns front matter, title, licence and a table of the stages."""
    licences = sorted({card.licence for card in cards.values() if card.licence})
    terms = "; ".join(licences) or "not stated"
    front = {
        "license": "other",
        "library_name": library,
        "pipeline_tag": task,
        "tags": "[unclip, unclip_jax]",
    }
    rows = [
        f"| {name} | {card.parameters / 1e6:.1f} M | {card.step} | {card.data or 'not stated'} |"
        for name, card in cards.items()
    ]
    return [
        "---\n" + "\n".join(f"{key}: {value}" for key, value in front.items()) + "\n---",
        f"# {title} from unclip_jax",
        f"Written by unclip_jax {__version__}. Licence of the weights: {terms}.",
        "| stage | parameters | steps trained here | data |\n|---|---|---|---|\n" + "\n".join(rows),
    ]
