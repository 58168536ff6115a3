"""Responses of the HTTP API: results and states of jobs as JSON, images as base64 PNGs."""

import base64
from typing import Any

import numpy as np

from unclip_jax.data import image_codec
from unclip_jax.engine.result import Result
from unclip_jax.serving.job_queue import Job, JobQueue


def of_result(result: Result) -> dict[str, Any]:
    """Returns a result with its images."""
    response: dict[str, Any] = {
        "images": _pngs(result.display),
        "labels": list(result.labels),
        "columns": result.columns,
        "grid": _base64(result.png()),
        "record": result.record,
    }
    if result.note:
        response["note"] = result.note
    if (animation := result.animation()) is not None:
        response["animation"] = _base64(animation)
    return response


def of_job(job: Job[Any], queue: JobQueue, *, revision: int) -> dict[str, Any]:
    """Returns the state of a job.

    Args:
        job: a job of `queue`.
        queue: where it waits or runs.
        revision: revision that the client has; previews are sent only with a later one.
    """
    response: dict[str, Any] = {"state": _state(job), "revision": job.revision}
    response["seconds"] = round(job.seconds, 2)
    if job.error is not None:
        response["error"] = job.error
    if response["state"] not in ("waiting", "running"):
        return response
    response["ahead"] = queue.ahead(job)
    remaining = queue.remaining_s(job)
    response["remaining_s"] = None if remaining is None else round(remaining, 1)
    if (progress := job.progress) is not None:
        names = ("stage", "done", "total", "step", "steps", "share", "compiling")
        response["progress"] = {name: getattr(progress, name) for name in names}
        if progress.images is not None and job.revision != revision:
            response["previews"] = _pngs(progress.images)
    return response


def _state(job: Job[Any]) -> str:
    if job.cancelled and job.result is None:
        return "cancelled"
    if not job.done:
        return "waiting" if job.progress is None else "running"
    if job.error is not None:
        return "failed"
    return "done"


def _pngs(images: np.ndarray) -> list[str]:
    return [_base64(image_codec.encode_png(image)) for image in images]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
