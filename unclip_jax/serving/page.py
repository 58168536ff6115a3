"""The page: a form per command, what is going on, and what came of it. Gradio draws it.

Nothing is decided here: a tab gathers the values of one request, `House.ask` does the rest, the
same as for the HTTP API.
"""

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image as PILImage

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported; nobody is told

import gradio as gr  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress
from unclip_jax.serving import api, style
from unclip_jax.serving.job_queue import Job
from unclip_jax.serving.service import InferenceService, Result

LOOK_S = 0.25  # how often the page is told of progress
SHOWN = 192  # side to which smaller previews are enlarged
KEPT_S = 3600  # how long uploads and results stay on the server's disk
FILES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
READERS = 32  # pages that may look on at once

Values = dict[str, Any]  # field -> component


def app(house: InferenceService) -> Any:
    """The HTTP API with the page at /."""
    theme = gr.themes.Soft(primary_hue="indigo", font=style.FONT, font_mono=style.MONO)
    return gr.mount_gradio_app(
        api.app(house),
        blocks(house).queue(max_size=2 * READERS, default_concurrency_limit=READERS),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=house.limits.file,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        theme=theme,
        css=style.CSS,
    )


def blocks(house: InferenceService) -> gr.Blocks:
    """All tabs."""
    title = f"unclip_jax · {house.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, KEPT_S)) as made:
        gr.HTML(style.head(house.models()), elem_id="head")
        for name, command, fields in (
            ("Text to image", "text", _text),
            ("Variations", "variations", _variations),
            ("Interpolation", "interpolate", _interpolation),
            ("Text diff", "text-diff", _text_diff),
        ):
            with gr.Tab(name):
                _tab(house, command, fields)
        made.unload(_canceller(house))
    return made


def _tab(
    house: InferenceService, command: str, fields: Callable[[InferenceService], Values]
) -> None:
    """What to ask for on the left, what comes of it on the right; on a phone below."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            values = fields(house)
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id=f"go-{command}", min_width=120)
                stop = gr.Button("Stop", elem_id=f"stop-{command}", min_width=80)
        with gr.Column(scale=3, min_width=300):
            status = gr.HTML(style.idle(), elem_id=f"status-{command}")
            gallery = gr.Gallery(
                show_label=False,
                columns=4,
                object_fit="contain",
                format="png",
                height="auto",
                elem_id=f"gallery-{command}",
                elem_classes="pictures",
                buttons=["download", "fullscreen"],
                interactive=False,
            )
            download = gr.DownloadButton("Download all, with the JSON", interactive=False)
            with gr.Accordion("JSON that draws these again", open=False):
                record = gr.Code(language="json", show_label=False, interactive=False)
    outputs = [status, gallery, download, record]
    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    go.click(_asker(house, command, values), set(values.values()), outputs, **hidden)
    stop.click(_canceller(house), None, None, queue=False, **hidden)


def _asker(house: InferenceService, command: str, values: Values) -> Callable[..., Iterator[Any]]:
    """What the button does: ask, tell how it goes, show what came of it."""

    def ask(filled: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        given = {name: _given(name, filled[component]) for name, component in values.items()}
        began = time.monotonic()
        try:
            given = _gathered(given)
            job = house.ask(command, given, owner=str(request.session_hash))
        except UserError as error:
            yield style.problem(str(error)), *(gr.skip(),) * 3
            return
        cleared = (None, gr.DownloadButton(interactive=False), None)
        yield style.waiting(house.desk.ahead(job)), *cleared
        yield from _progress(house, job)
        if job.error is not None:
            yield style.problem(job.error), *(gr.skip(),) * 3
        elif job.result is None:
            yield style.stopped(), *(gr.skip(),) * 3
        else:
            yield _shown(job.result, time.monotonic() - began)

    return ask


def _progress(house: InferenceService, job: Job[Result]) -> Iterator[Any]:
    """A line per look, with the pictures as they are by now."""
    seen = None
    while not job.wait(LOOK_S):
        now = job.progress
        if now is None or now is not seen:
            yield *_look(house, job, now), gr.skip(), gr.skip()
        seen = now


def _look(house: InferenceService, job: Job[Result], now: Progress | None) -> tuple[Any, Any]:
    """The line, and the pictures if there are any."""
    if now is None:
        return style.waiting(house.desk.ahead(job)), gr.skip()
    pictures = gr.skip() if now.images is None else [_enlarged(image) for image in now.images]
    return style.working(now), pictures


def _shown(result: Result, seconds: float) -> tuple[Any, ...]:
    labelled = [
        (str(path), label) for path, label in zip(result.images, result.labels, strict=True)
    ]
    if result.animation is not None:
        labelled.insert(0, (str(result.animation), "the whole path"))
    return (
        style.finished(len(result.images), seconds),
        labelled,
        gr.DownloadButton(value=str(result.archive()), interactive=True),
        json.dumps(result.record, indent=2),
    )


def _canceller(house: InferenceService) -> Callable[[gr.Request], None]:
    """What *Stop* does, and leaving the page."""

    def cancel(request: gr.Request) -> None:
        house.desk.cancel(str(request.session_hash))

    return cancel


def _given(name: str, value: Any) -> Any:
    """A component's value as a request has it."""
    if name.startswith("picture") and value is not None:
        return pathlib.Path(value).read_bytes()  # Gradio has checked that it was uploaded
    if name == "captions":
        return [line for line in (value or "").splitlines() if line.strip()] or [""]
    if name in ("seed", "num", "frames", "candidates") and value is not None:
        return int(value)
    return None if value == "" else value


def _gathered(given: dict[str, Any]) -> dict[str, Any]:
    """Fields that the page spreads over several components."""
    made = dict(given)
    if "picture_a" in made:
        pair = [made.pop("picture_a"), made.pop("picture_b")]
        if None in pair:
            raise UserError("an interpolation needs two pictures; upload both.")
        made["pictures"] = pair
    if "eta" in made:
        most = made.pop("eta")
        made["etas"] = sorted({0.0, round(most / 2, 3), float(most)})
    if made.get("guidance") == 1:
        made.pop("guidance_schedule", None)
    return made


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Small previews by whole pixels, so that they look as small as they are."""
    factor = max(1, SHOWN // image.shape[0])
    side = image.shape[0] * factor
    return np.asarray(PILImage.fromarray(image).resize((side, side), PILImage.Resampling.NEAREST))


# The forms. Bounds follow `forms.FORMS`; what is left alone is not sent.


def _text(house: InferenceService) -> Values:
    sampling, most = house.studio.cascade.decoder.sampling, min(8, house.limits.images)
    values: Values = {
        "captions": gr.Textbox(
            label="Captions, one per line",
            placeholder="a red circle above a blue square",
            lines=2,
            max_lines=8,
            max_length=house.limits.captions * house.limits.images,
            elem_id="captions",
        ),
        "num": gr.Slider(1, most, min(2, most), step=1, label="Pictures per caption"),
        "guidance": _guidance(sampling.guidance_scale),
        "seed": _seed(),
    }
    with gr.Accordion("More", open=False):
        values["steps"] = _steps(house, sampling.steps)
        values |= _steering()
        values["candidates"] = gr.Slider(1, 8, 2, step=1, label="Embeddings to choose from")
    return values


def _variations(house: InferenceService) -> Values:
    most = max(1, min(5, house.limits.images // 3))  # three rows
    return {
        "picture": _upload("Picture", "variations-picture"),
        "eta": gr.Slider(0, 1, 1, step=0.05, label="Freedom (eta): rows at 0, half of it, and it"),
        "num": gr.Slider(1, most, min(3, most), step=1, label="Pictures per row"),
        **_editing(house),
    }


def _interpolation(house: InferenceService) -> Values:
    with gr.Row():
        pair = {
            "picture_a": _upload("From", "interpolate-from", width=140),
            "picture_b": _upload("To", "interpolate-to", width=140),
        }
    return {
        **pair,
        "frames": _frames(house),
        "noise": gr.Radio(
            [("from the pictures", "inverted"), ("one for all", "shared")],
            value="inverted",
            label="Noise",
        ),
        "animate": _animation(),
        **_editing(house),
    }


def _text_diff(house: InferenceService) -> Values:
    return {
        "picture": _upload("Picture", "diff-picture"),
        "target": gr.Textbox(label="It should become", placeholder="a blue circle"),
        "source": gr.Textbox(label="It is (may be left out)", placeholder="a red circle"),
        "theta": gr.Slider(0, 1, 0.5, step=0.05, label="How far (theta), usually 0.25 to 0.5"),
        "inversion": gr.Radio(
            [("most (DDPM inversion)", "ddpm"), ("as in the paper (x_T)", "ddim")],
            value="ddpm",
            label="How much of the picture stays",
        ),
        "frames": _frames(house),
        "animate": _animation(),
        **_editing(house),
    }


def _editing(house: InferenceService) -> Values:
    values: Values = {"seed": _seed()}
    with gr.Accordion("More", open=False):
        steps = min(100, house.studio.cascade.decoder.diffusion.num_timesteps)
        values["steps"] = _steps(house, str(steps))
        values["guidance"] = _guidance(1.0)
        values |= _steering()
        values["caption"] = gr.Textbox(label="Caption of the picture, if any")
    return values


def _steering() -> Values:
    kinds = ["constant", "rising", "falling", "interval:0.2:0.8"]
    return {
        "guidance_schedule": gr.Dropdown(
            kinds, value="constant", allow_custom_value=True, label="Guidance along the way"
        ),
        "negative": gr.Textbox(label="Away from (needs guidance above 1)"),
    }


def _upload(label: str, name: str, *, width: int = 240) -> gr.Image:
    """An upload that is handed on as it is: `forms.read` looks at it before anybody decodes it."""
    made = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=220,
        min_width=width,
        elem_id=name,
    )
    # not a subclass: Gradio writes a stub file beside the module of every class of components
    made.preprocess = lambda payload: None if payload is None else payload.path
    return made


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)


def _guidance(value: float) -> gr.Slider:
    return gr.Slider(1, 10, max(1.0, value), step=0.25, label="Guidance, 1 = off")


def _frames(house: InferenceService) -> gr.Slider:
    most = max(2, min(16, house.limits.images))
    return gr.Slider(2, most, min(7, most), step=1, label="Pictures on the way")


def _animation() -> gr.Radio:
    return gr.Radio(
        [("no", ""), ("GIF", "gif"), ("WebP", "webp")], value="", label="Also as a moving picture"
    )


def _steps(house: InferenceService, value: str) -> gr.Dropdown:
    most = house.studio.cascade.decoder.diffusion.num_timesteps
    known = [str(count) for count in (10, 25, 50, 100, 250) if count <= most]
    return gr.Dropdown(
        list(dict.fromkeys([value, *known])),
        value=value,
        allow_custom_value=True,
        label="Steps of the decoder",
    )
