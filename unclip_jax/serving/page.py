"""The page: a form per request, its progress and its result, built with Gradio.

A tab collects the values of one request; `InferenceService.submit` does the rest, as it does for
the HTTP API. Bounds and defaults come from the fields of the requests.
"""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image as PILImage

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.engine import request_fields
from unclip_jax.engine.request_base import MAX_SEED
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.inference.progress import Progress
from unclip_jax.serving import api, style
from unclip_jax.serving.job_queue import Job
from unclip_jax.serving.service import InferenceService, ServedResult

POLL_S = 0.25  # seconds between two reports of progress
PREVIEW = 192  # side to which smaller previews are enlarged
CACHE_S = 3600  # seconds that uploads and results stay on the server's disk
FILES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
READERS = 32  # pages that may be open at once

Values = dict[str, Any]  # field -> component


def app(service: InferenceService) -> Any:
    """The HTTP API with the page at /."""
    theme = gr.themes.Soft(primary_hue="indigo", font=style.FONT, font_mono=style.MONO)  # pyright: ignore[reportPrivateImportUsage]
    return gr.mount_gradio_app(
        api.app(service),
        blocks(service).queue(max_size=2 * READERS, default_concurrency_limit=READERS),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=service.limits.file,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        theme=theme,
        css=style.CSS,
    )


def blocks(service: InferenceService) -> gr.Blocks:
    """All tabs."""
    title = f"unclip_jax · {service.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, CACHE_S)) as page:
        gr.HTML(style.head(service.models()), elem_id="head")
        for name, command, form in (
            ("Text to image", "text", _text),
            ("Variations", "variations", _variations),
            ("Interpolation", "interpolate", _interpolation),
            ("Text diff", "text-diff", _text_diff),
        ):
            with gr.Tab(name):
                _tab(service, command, form)
        page.unload(_canceller(service))
    return page


def _tab(
    service: InferenceService, command: str, form: Callable[[InferenceService], Values]
) -> None:
    """The request on the left, its result on the right; on a phone below."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            values = form(service)
            with gr.Row():
                go = gr.Button(
                    "Generate", variant="primary", elem_id=f"go-{command}", min_width=120
                )
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
                elem_classes="images",
                buttons=["download", "fullscreen"],
                interactive=False,
            )
            download = gr.DownloadButton("Download all, with the JSON", interactive=False)
            with gr.Accordion("JSON that repeats this request", open=False):
                record = gr.Code(language="json", show_label=False, interactive=False)
    outputs = [status, gallery, download, record]
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    go.click(_submitter(service, command, values), set(values.values()), outputs, **hidden)
    stop.click(_canceller(service), None, None, queue=False, **hidden)


def _submitter(
    service: InferenceService, command: str, values: Values
) -> Callable[..., Iterator[Any]]:
    """The action of the button: submit, report progress, show the result."""

    def submit(inputs: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        collected = {name: _value(name, inputs[component]) for name, component in values.items()}
        began = time.monotonic()
        try:
            job = service.submit(command, _merged(collected), owner=str(request.session_hash))
        except UserError as error:
            yield style.problem(str(error)), *(gr.skip(),) * 3
            return
        cleared = (None, gr.DownloadButton(interactive=False), None)
        yield style.waiting(service.queue.ahead(job)), *cleared
        yield from _progress(service, job)
        if job.error is not None:
            yield style.problem(job.error), *(gr.skip(),) * 3
        elif job.result is None:
            yield style.stopped(), *(gr.skip(),) * 3
        else:
            with tempfile.TemporaryDirectory() as folder:  # Gradio serves copies of its files
                yield _outputs(job.result, time.monotonic() - began, pathlib.Path(folder))

    return submit


def _progress(service: InferenceService, job: Job[ServedResult]) -> Iterator[Any]:
    """The status and the predicted images, whenever they change."""
    previous = None
    while not job.wait(POLL_S):
        state = job.progress
        if state is None or state is not previous:
            yield *_status(service, job, state), gr.skip(), gr.skip()
        previous = state


def _status(
    service: InferenceService, job: Job[ServedResult], state: Progress | None
) -> tuple[Any, Any]:
    """The status, and the predicted images if there are any."""
    if state is None:
        return style.waiting(service.queue.ahead(job)), gr.skip()
    images = gr.skip() if state.images is None else [_enlarged(image) for image in state.images]
    return style.working(state), images


def _outputs(served: ServedResult, seconds: float, folder: pathlib.Path) -> tuple[Any, ...]:
    """The values of the components on the right."""
    result = served.result
    archive = folder / f"{result.record['command']}.zip"
    archive.write_bytes(served.archive())
    labelled: list[tuple[Any, str]] = list(zip(result.display, result.labels, strict=True))
    if (animation := result.animation()) is not None:
        path = folder / f"animation.{result.animate}"
        path.write_bytes(animation)
        labelled.insert(0, (str(path), "the whole path"))
    return (
        style.finished(len(result.display), seconds),
        labelled,
        gr.DownloadButton(value=str(archive), interactive=True),
        json.dumps(result.record, indent=2),
    )


def _canceller(service: InferenceService) -> Callable[[gr.Request], None]:
    """The action of *Stop* and of leaving the page."""

    def cancel(request: gr.Request) -> None:
        service.queue.cancel(str(request.session_hash))

    return cancel


def _value(name: str, value: Any) -> Any:
    """A component's value as a request takes it."""
    if name in ("image", "first", "last") and value is not None:
        return pathlib.Path(value).read_bytes()  # Gradio has checked that it was uploaded
    if name == "captions":
        return [line for line in (value or "").splitlines() if line.strip()] or [""]
    if name in ("seed", "num", "frames", "candidates") and value is not None:
        return int(value)
    return None if value == "" else value


def _merged(collected: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request, some of which the page spreads over several components."""
    values = dict(collected)
    if "first" in values:
        pair = [values.pop("first"), values.pop("last")]
        if None in pair:
            raise UserError("an interpolation needs two images; upload both.")
        values["images"] = pair
    if "eta" in values:
        most = values.pop("eta")
        values["etas"] = sorted({0.0, round(most / 2, 3), float(most)})
    if values.get("guidance") == 1:
        values.pop("guidance_schedule", None)
    return values


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Small previews by whole pixels, so that they look as small as they are."""
    factor = max(1, PREVIEW // image.shape[0])
    side = image.shape[0] * factor
    return np.asarray(PILImage.fromarray(image).resize((side, side), PILImage.Resampling.NEAREST))


# The forms of the tabs: name of a field -> component.


def _text(service: InferenceService) -> Values:
    sampling, most = service.engine.cascade.decoder.sampling, min(8, service.limits.images)
    values: Values = {
        "captions": gr.Textbox(
            label="Captions, one per line",
            placeholder="a red circle above a blue square",
            lines=2,
            max_lines=8,
            max_length=service.limits.captions * service.limits.images,
            elem_id="captions",
        ),
        "num": gr.Slider(1, most, min(2, most), step=1, label="Images per caption"),
        "guidance": _guidance(sampling.guidance_scale),
        "seed": _seed(),
    }
    with gr.Accordion("More", open=False):
        values["steps"] = _steps(service, sampling.steps)
        values |= _steering()
        values["candidates"] = gr.Slider(
            1, service.limits.values["candidates"], 2, step=1, label="Embeddings to choose from"
        )
    return values


def _variations(service: InferenceService) -> Values:
    most = max(1, min(5, service.limits.images // 3))  # three rows
    return {
        "image": _upload("Image", "variations-image"),
        "eta": gr.Slider(0, 1, 1, step=0.05, label="Freedom (eta): rows at 0, half of it, and it"),
        "num": gr.Slider(
            1, most, min(_default("variations", "num"), most), step=1, label="Images per row"
        ),
        **_editing(service),
    }


def _interpolation(service: InferenceService) -> Values:
    with gr.Row():
        pair = {
            "first": _upload("From", "interpolate-from", width=140),
            "last": _upload("To", "interpolate-to", width=140),
        }
    return {
        **pair,
        "frames": _frames(service),
        "noise": gr.Radio(
            [("from the images", "inverted"), ("one for all", "shared")],
            value="inverted",
            label="Noise",
        ),
        "animate": _animation(),
        **_editing(service),
    }


def _text_diff(service: InferenceService) -> Values:
    return {
        "image": _upload("Image", "diff-image"),
        "target": gr.Textbox(label="It should become", placeholder="a blue circle"),
        "source": gr.Textbox(label="It is (may be left out)", placeholder="a red circle"),
        "theta": gr.Slider(
            0,
            1,
            _default("text-diff", "theta"),
            step=0.05,
            label="How far (theta), usually 0.25 to 0.5",
        ),
        "inversion": gr.Radio(
            [("most (DDPM inversion)", "ddpm"), ("as in the paper (x_T)", "ddim")],
            value="ddpm",
            label="How much of the image stays",
        ),
        "frames": _frames(service),
        "animate": _animation(),
        **_editing(service),
    }


def _editing(service: InferenceService) -> Values:
    values: Values = {"seed": _seed()}
    with gr.Accordion("More", open=False):
        steps = min(100, service.engine.cascade.decoder.diffusion.num_timesteps)
        values["steps"] = _steps(service, str(steps))
        values["guidance"] = _guidance(1.0)
        values |= _steering()
        values["caption"] = gr.Textbox(label="Caption of the image, if any")
    return values


def _steering() -> Values:
    kinds = ["constant", "rising", "falling", "interval:0.2:0.8"]
    return {
        "guidance_schedule": gr.Dropdown(
            kinds, value="constant", allow_custom_value=True, label="Guidance schedule"
        ),
        "negative": gr.Textbox(label="Away from (needs guidance above 1)"),
    }


def _upload(label: str, name: str, *, width: int = 240) -> gr.Image:
    """An upload that is passed on as a file: `schemas.read` checks it before it is decoded."""
    upload = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=220,
        min_width=width,
        elem_id=name,
    )
    # not a subclass: Gradio writes a stub file beside the module of every class of components
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload


def _default(command: str, name: str) -> Any:
    """The default of a field."""
    return request_fields.fields(REQUESTS[command])[name].default


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)


def _guidance(value: float) -> gr.Slider:
    return gr.Slider(1, 10, max(1.0, value), step=0.25, label="Guidance, 1 = off")


def _frames(service: InferenceService) -> gr.Slider:
    most, label = max(2, min(16, service.limits.images)), "Images of the path"
    return gr.Slider(2, most, min(_default("interpolate", "frames"), most), step=1, label=label)


def _animation() -> gr.Radio:
    return gr.Radio(
        [("no", ""), ("GIF", "gif"), ("WebP", "webp")], value="", label="Also as an animation"
    )


def _steps(service: InferenceService, value: str) -> gr.Dropdown:
    most = service.engine.cascade.decoder.diffusion.num_timesteps
    counts = [str(count) for count in (10, 25, 50, 100, 250) if count <= most]
    return gr.Dropdown(
        list(dict.fromkeys([value, *counts])),
        value=value,
        allow_custom_value=True,
        label="Steps of the decoder",
    )
