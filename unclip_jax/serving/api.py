"""The HTTP API: JSON in, JSON or PNG out. docs/page.md describes it for its users.

GET  /api               the commands and their fields
GET  /api/openapi.json  the same as an OpenAPI document, from which clients can be generated
GET  /api/models        the models
GET  /api/queue         the length of the queue
POST /api/COMMAND       one request; answered when it is done, cancelled when the caller hangs up
"""

import asyncio
import base64
import binascii
import json
import uuid
from collections.abc import Mapping
from typing import Any

import fastapi  # pyright: ignore[reportMissingImports]
from fastapi import responses  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.engine.request_fields import Field
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.engine.result import Result
from unclip_jax.serving import schemas
from unclip_jax.serving.job_queue import Job, QueueFull
from unclip_jax.serving.service import InferenceService, ServedResult
from unclip_jax.version import __version__

RETRY_S = 30  # seconds after which a refused caller may try again
POLL_S = 0.2  # seconds between two checks that the caller is still connected
# Nothing that this server sends may make a browser ask another host.
HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Refused(Exception):
    """A request that ends with a status and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def app(service: InferenceService) -> Any:
    """The API as a FastAPI application."""
    application = fastapi.FastAPI(
        title="unclip_jax", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )

    application.add_middleware(_WithHeaders)

    @application.exception_handler(Refused)
    async def _refuse(_: fastapi.Request, refusal: Refused) -> Any:
        headers = {"Retry-After": str(RETRY_S)} if refusal.status == 429 else None
        body = {"error": str(refusal)}
        return responses.JSONResponse(body, refusal.status, headers=headers)

    @application.get("/api")
    async def _describe() -> dict[str, Any]:
        return {"version": __version__, "commands": schemas.describe()}

    @application.get("/api/openapi.json")
    async def _openapi() -> dict[str, Any]:
        return schemas.openapi(service.limits)

    @application.get("/api/models")
    async def _models() -> dict[str, Any]:
        return service.models()

    @application.get("/api/queue")
    async def _queue() -> dict[str, int]:
        return service.queue.state()

    @application.post("/api/{command}")
    async def _run(command: str, request: fastapi.Request) -> Any:
        if command not in REQUESTS:
            raise Refused(404, f"there is no {command!r}; GET /api lists the commands.")
        body = await _body(request, service.limits.body)
        job = submit(service, command, read_json(body, schemas.served_fields(command)))
        result = (await _finished(job, request)).result
        if "image/png" in request.headers.get("accept", ""):
            single = len(result.display) == 1
            content = image_codec.encode_png(result.display[0]) if single else result.png()
            return responses.Response(content, media_type="image/png")
        return responses.JSONResponse(as_json(result))

    return application


class _WithHeaders:
    """Adds `HEADERS` to every answer, the page's too."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def adding(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self._app(scope, receive, adding)


def submit(service: InferenceService, command: str, values: Mapping[str, Any]) -> Job[ServedResult]:
    """Queues a request.

    Raises:
        Refused: 429 when the queue is full, 400 for any other mistake.
    """
    try:
        return service.submit(command, values, owner=uuid.uuid4().hex)
    except UserError as error:
        status = 429 if isinstance(error, QueueFull) else 400
        raise Refused(status, " ".join(str(error).split())) from None


def read_json(body: bytes, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of a request; images come as base64, plain or as data URLs.

    Raises:
        Refused: it is no JSON object, or an image is no base64.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise Refused(400, "the body is no JSON object; give one such as {}.")
    for field in fields.values():
        value = values.get(field.name)
        if field.scalar != "image" or value is None:
            continue
        if not field.many:
            values[field.name] = _bytes_of(field.name, value)
        elif isinstance(value, list):
            values[field.name] = [_bytes_of(field.name, item) for item in value]
    return values


def as_json(result: Result) -> dict[str, Any]:
    """A result with its images as base64."""
    answer: dict[str, Any] = {
        "images": [_base64(image_codec.encode_png(image)) for image in result.display],
        "labels": list(result.labels),
        "grid": _base64(result.png()),
        "record": result.record,
    }
    if (animation := result.animation()) is not None:
        answer["animation"] = _base64(animation)
    return answer


async def _body(request: fastapi.Request, limit: int) -> bytes:
    """The body of a request, refused as soon as it is too long."""
    if "json" not in request.headers.get("content-type", ""):
        raise Refused(415, "give JSON, with Content-Type: application/json.")
    body = bytearray()
    stated = request.headers.get("content-length", "0")
    size = int(stated) if stated.isdecimal() else 0
    if size <= limit:
        async for chunk in request.stream():
            body += chunk
            size = len(body)
            if size > limit:
                break
    if size > limit:
        raise Refused(413, f"the request has more than {limit} bytes; give smaller images.")
    return bytes(body)


async def _finished(job: Job[ServedResult], request: fastapi.Request) -> ServedResult:
    """Waits for a job; cancels it when its caller has gone."""
    try:
        while not job.done:
            await asyncio.sleep(POLL_S)
            if await request.is_disconnected():
                job.cancel()
    except asyncio.CancelledError:
        job.cancel()
        raise
    if job.error is not None:
        raise Refused(500 if job.bug else 400, job.error)
    if job.result is None:
        raise Refused(499, "cancelled.")
    return job.result


def _bytes_of(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise Refused(400, f"{name} is {str(value)[:40]!r}; give an image file as base64.")
    head, comma, encoded = value.partition(",")
    text = encoded if comma and head.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name} is no base64; give the bytes of an image file so.") from None


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
