"""The HTTP API: JSON in, JSON or PNG out. docs/page.md describes it for its users.

GET    /api                    the commands and their fields
GET    /api/openapi.json       the same as an OpenAPI document, from which clients can be generated
GET    /api/models             the models; with ?model=NAME other ones, whose names it lists
GET    /api/queue              the length of the queue
POST   /api/COMMAND            one request; answered when it is done, cancelled if the client
                               disconnects; with ?model=NAME for other models
POST   /api/jobs/COMMAND       one request; answered immediately with the identifier of its job
GET    /api/jobs/ID            the state of a job; with ?revision=N it waits for a later one
GET    /api/jobs/ID/result     its images
GET    /api/jobs/ID/archive    a ZIP of everything
DELETE /api/jobs/ID            cancels and removes it

All other paths except those of the page (page.py) are answered with 404. The server opens no file
and no address that a request names.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread  # pyright: ignore[reportMissingImports]
from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]
from starlette.routing import BaseRoute, Route  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.serving import page, responses, schemas
from unclip_jax.serving.access import Access, AccessMiddleware
from unclip_jax.serving.bodies import BodyReader, read_json
from unclip_jax.serving.errors import RequestError, exception_handlers, json_response
from unclip_jax.serving.job_queue import Job, QueueFull
from unclip_jax.serving.job_store import LEASE_S, JobStore, StoredJob
from unclip_jax.serving.service import InferenceService, ServedResult
from unclip_jax.version import __version__

RETRY_S = 30  # seconds after which a rejected client may try again
POLL_S = 0.1  # seconds between two checks of a job
NEWS_S = 15  # longest time that a query of a job waits for a change


def app(services: Sequence[InferenceService], access: Access | None = None) -> Any:
    """Returns the API and the page as an ASGI application.

    Args:
        services: the models, with distinct names; the first are the default. They share one queue,
            and their limits are equal.
        access: who may use it; None = everyone.
    """
    access = access or Access()
    inner = Starlette(
        routes=[*Api(services, access).routes(), *page.routes(access.root_path)],
        exception_handlers=exception_handlers("GET /api lists the commands."),
    )
    inner.router.redirect_slashes = False
    return AccessMiddleware(inner, access)


class Api:
    """The handlers of the API."""

    def __init__(self, services: Sequence[InferenceService], access: Access):
        self._services = {service.name: service for service in services}
        self._queue, self._limits = services[0].queue, services[0].limits
        self._access = access
        self._jobs = JobStore()
        self._bodies = BodyReader(limit=self._limits.body)
        self._decoding = anyio.CapacityLimiter(1)  # uploads of one request at a time

    def routes(self) -> list[BaseRoute]:
        """Returns every path with its method and its handler."""
        return [
            Route(path, handler, methods=[method])
            for method, path, handler in (
                ("GET", "/api", self.describe),
                ("GET", "/api/openapi.json", self.openapi),
                ("GET", "/api/models", self.models),
                ("GET", "/api/queue", self.queue),
                ("POST", "/api/jobs/{command}", self.start),
                ("GET", "/api/jobs/{job}", self.state),
                ("GET", "/api/jobs/{job}/result", self.result),
                ("GET", "/api/jobs/{job}/archive", self.archive),
                ("DELETE", "/api/jobs/{job}", self.cancel),
                ("POST", "/api/{command}", self.run),
            )
        ]

    async def describe(self, _: Request) -> Response:
        """The commands, their fields, and the limits of this server."""
        return json_response(
            {
                "version": __version__,
                "commands": schemas.describe(self._limits),
                "limits": schemas.describe_limits(self._limits),
            }
        )

    async def openapi(self, _: Request) -> Response:
        """The OpenAPI document."""
        document = schemas.openapi(self._limits, root_path=self._access.root_path)
        return json_response(document)

    async def models(self, request: Request) -> Response:
        """The models, and the names of all that this server has."""
        models = await anyio.to_thread.run_sync(self._service(request).models)  # hashes parameters
        return json_response({**models, "names": list(self._services)})

    async def queue(self, _: Request) -> Response:
        """The length of the queue."""
        return json_response(self._queue.state())

    async def run(self, request: Request) -> Response:
        """Runs a request and answers with its images."""
        job = await self._submit(request, lease_s=None)
        result = (await _finished(job, request)).result
        if "image/png" in request.headers.get("accept", ""):
            single = len(result.display) == 1
            encode = (lambda: image_codec.encode_png(result.display[0])) if single else result.png
            return Response(await anyio.to_thread.run_sync(encode), media_type="image/png")
        return json_response(await anyio.to_thread.run_sync(responses.of_result, result))

    async def start(self, request: Request) -> Response:
        """Queues a request and answers with the identifier of its job."""
        job = await self._submit(request, lease_s=LEASE_S)
        return json_response({"job": self._jobs.add(job)}, 202)

    async def state(self, request: Request) -> Response:
        """Answers with the state of a job, as soon as it is newer than the client's."""
        stored = self._stored(request)
        job, text = stored.job, request.query_params.get("revision", "-1")
        revision = int(text) if text.isdecimal() and len(text) < 10 else -1
        for _ in range(int(NEWS_S / POLL_S) if revision >= 0 else 0):
            if job.done or job.cancelled or job.revision != revision:
                break
            if await request.is_disconnected():
                break
            await asyncio.sleep(POLL_S)
        job.renew()
        state = await anyio.to_thread.run_sync(
            lambda: responses.of_job(job, self._queue, revision=revision)
        )
        return json_response(state)

    async def result(self, request: Request) -> Response:
        """The images of a job that is done."""
        stored = self._finished(request)
        return json_response(await anyio.to_thread.run_sync(lambda: stored.response))

    async def archive(self, request: Request) -> Response:
        """A ZIP of the images, the uploads and the JSON of the result."""
        stored = self._finished(request)
        content = await anyio.to_thread.run_sync(lambda: stored.archive)
        return Response(content, media_type="application/zip")

    async def cancel(self, request: Request) -> Response:
        """Cancels and removes a job."""
        if not self._jobs.remove(request.path_params["job"]):
            raise _no_job()
        return json_response({"state": "cancelled"})

    async def _submit(self, request: Request, *, lease_s: int | float | None) -> Job[ServedResult]:
        """Reads, checks and queues a request; decoding its images does not block others."""
        command = request.path_params["command"]
        if command not in REQUESTS:
            raise RequestError(404, f"there is no {command[:40]!r}; GET /api lists the commands.")
        service = self._service(request)
        async with self._bodies.read(request) as body:
            return await anyio.to_thread.run_sync(
                lambda: submit(service, command, body, lease_s=lease_s),
                limiter=self._decoding,
            )

    def _service(self, request: Request) -> InferenceService:
        """Returns the models that a request names; the first without a name."""
        name = request.query_params.get("model")
        if name is None:
            return next(iter(self._services.values()))
        if name not in self._services:
            names = ", ".join(self._services)
            raise RequestError(404, f"there are no models {name[:40]!r}; this server has {names}.")
        return self._services[name]

    def _stored(self, request: Request) -> StoredJob:
        stored = self._jobs.get(request.path_params["job"])
        if stored is None:
            raise _no_job()
        return stored

    def _finished(self, request: Request) -> StoredJob:
        stored = self._stored(request)
        if stored.job.error is not None:
            raise RequestError(500 if stored.job.bug else 400, stored.job.error)
        if stored.job.result is None:
            raise RequestError(409, "the job has no result; query its state.")
        return stored


def submit(
    service: InferenceService, command: str, body: bytes, *, lease_s: int | float | None
) -> Job[ServedResult]:
    """Queues a request.

    Raises:
        RequestError: 429 if the queue is full, 400 for any other error.
    """
    values: Mapping[str, Any] = read_json(body, schemas.served_fields(command))
    try:
        return service.submit(command, values, lease_s=lease_s)
    except QueueFull as error:
        raise RequestError(429, str(error), headers={"Retry-After": str(RETRY_S)}) from None
    except UserError as error:
        raise RequestError(400, str(error)) from None


async def _finished(job: Job[ServedResult], request: Request) -> ServedResult:
    """Waits for a job; cancels it when its client has disconnected."""
    try:
        while not job.done:
            await asyncio.sleep(POLL_S)
            if await request.is_disconnected():
                job.cancel()
    except asyncio.CancelledError:
        job.cancel()
        raise
    if job.error is not None:
        raise RequestError(500 if job.bug else 400, job.error)
    if job.result is None:
        raise RequestError(499, "cancelled.")
    return job.result


def _no_job() -> RequestError:
    return RequestError(404, "there is no such job; results are kept for an hour at most.")
