"""The HTTP API: JSON in, JSON or PNG out. docs/page.md describes it for its users.

GET  /api           the commands and what they take
GET  /api/models    which models these are
GET  /api/queue     how long the line is
POST /api/COMMAND   one request; answered when it is done, cancelled when the caller hangs up
"""

import asyncio
import base64
import binascii
import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import fastapi  # pyright: ignore[reportMissingImports]
from fastapi import responses  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.serving import catalogue
from unclip_jax.serving.job_queue import Job, QueueFull
from unclip_jax.serving.service import InferenceService, Result
from unclip_jax.version import __version__

RETRY_S = 30  # what a refused caller is told to wait
LOOK_S = 0.2  # how often a waiting request looks whether its caller is still there
# Nothing that this server sends may make a browser ask anybody else.
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


def app(house: InferenceService) -> Any:
    """The API as a FastAPI application."""
    made = fastapi.FastAPI(
        title="unclip_jax", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )

    made.add_middleware(_WithHeaders)

    @made.exception_handler(Refused)
    async def _refuse(_: fastapi.Request, refusal: Refused) -> Any:
        headers = {"Retry-After": str(RETRY_S)} if refusal.status == 429 else None
        body = {"error": str(refusal)}
        return responses.JSONResponse(body, refusal.status, headers=headers)

    @made.get("/api")
    async def _described() -> dict[str, Any]:
        return {"version": __version__, "commands": catalogue.described()}

    @made.get("/api/models")
    async def _models() -> dict[str, Any]:
        return house.models()

    @made.get("/api/queue")
    async def _queue() -> dict[str, int]:
        return house.desk.state()

    @made.post("/api/{command}")
    async def _draw(command: str, request: fastapi.Request) -> Any:
        if command not in catalogue.FORMS:
            raise Refused(404, f"there is no {command!r}; GET /api lists the commands.")
        given = read_json(await _body(request, house.limits.body), catalogue.FORMS[command])
        job = submit(house, command, given)
        result = await _finished(job, request)
        if "image/png" in request.headers.get("accept", ""):
            shown = result.images[0] if len(result.images) == 1 else result.grid
            return responses.Response(shown.read_bytes(), media_type="image/png")
        return responses.JSONResponse(as_json(result))

    return made


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


def submit(house: InferenceService, command: str, given: Mapping[str, Any]) -> Job[Result]:
    """Queue a request.

    Raises:
        Refused: 429 when the line is full, 400 for any other mistake.
    """
    try:
        return house.ask(command, given, owner=uuid.uuid4().hex)
    except UserError as error:
        status = 429 if isinstance(error, QueueFull) else 400
        raise Refused(status, " ".join(str(error).split())) from None


def read_json(body: bytes, form: catalogue.Form) -> dict[str, Any]:
    """The values of a request; pictures come as base64, plain or as data URLs.

    Raises:
        Refused: it is no JSON object, or a picture is no base64.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON ({type(error).__name__}).") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body is no JSON object; give one such as {}.")
    for field in form.fields:
        if field.kind == "picture" and given.get(field.name) is not None:
            given[field.name] = _bytes_of(field.name, given[field.name])
        elif field.kind == "pictures" and isinstance(given.get(field.name), list):
            given[field.name] = [_bytes_of(field.name, each) for each in given[field.name]]
    return given


def as_json(result: Result) -> dict[str, Any]:
    """A result with its pictures as base64."""
    made: dict[str, Any] = {
        "images": [_base64(path) for path in result.images],
        "labels": result.labels,
        "grid": _base64(result.grid),
        "record": result.record,
    }
    if result.animation is not None:
        made["animation"] = _base64(result.animation)
    return made


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
        raise Refused(413, f"the request has more than {limit} bytes; give smaller pictures.")
    return bytes(body)


async def _finished(job: Job[Result], request: fastapi.Request) -> Result:
    """Wait for a job; cancel it when its caller is gone."""
    try:
        while not job.done:
            await asyncio.sleep(LOOK_S)
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
        raise Refused(400, f"{name} is {str(value)[:40]!r}; give a picture file as base64.")
    head, comma, rest = value.partition(",")
    text = rest if comma and head.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name} is no base64; give the bytes of a picture file so.") from None


def _base64(path: pathlib.Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
