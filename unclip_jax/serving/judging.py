"""The page on which raters compare two models, and its HTTP API.

GET    /                        the page, and its files
GET    /api                     the rater for whom the page is, "" if raters enter their names
GET    /api/session?rater=NAME  the questions of a rater, with the answers so far
POST   /api/answers             one answer: rater, prompt, question, answer
GET    /pictures/NAME           a picture

No response reveals the model of an image. An answer is on the disk before it is confirmed.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import anyio.to_thread  # pyright: ignore[reportMissingImports]
from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]
from starlette.routing import Route  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError
from unclip_jax.serving import page
from unclip_jax.serving.access import Access, AccessMiddleware
from unclip_jax.serving.bodies import BodyReader, read_json
from unclip_jax.serving.errors import RequestError, exception_handlers, json_response

FOLDER = page.STATIC / "judge"
SHARED = ("client.js", "dom.js", "icon.svg", "page.css", "theme.js")  # with the page of `demo`
MOST_BYTES = 4096  # of an answer


@runtime_checkable
class Questions(Protocol):
    """The interface of `evaluation.questionnaire.Questionnaire`: the sessions of raters.

    Attributes:
        rater: the only rater; "" = raters enter their names.
        pictures: path of every picture by its name.
    """

    rater: str
    pictures: Mapping[str, pathlib.Path]

    def session(self, rater: str) -> dict[str, Any]:
        """Returns the questions of a rater with the answers so far; JSON-ready.

        Raises:
            UserError: a name that cannot be used.
        """
        ...

    def store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stores one answer and returns its confirmation; JSON-ready.

        Raises:
            UserError: an answer that cannot be used.
        """
        ...


def app(questions: Questions, access: Access) -> Any:
    """Returns the page and its API as an ASGI application."""
    handlers = _Handlers(questions)
    files = [*FOLDER.iterdir(), *(page.STATIC / name for name in SHARED)]
    inner = Starlette(
        routes=[
            Route("/api", handlers.describe, methods=["GET"]),
            Route("/api/session", handlers.session, methods=["GET"]),
            Route("/api/answers", handlers.answer, methods=["POST"]),
            Route("/pictures/{name}", handlers.picture, methods=["GET"]),
            *page.routes(access.root_path, files),
        ],
        exception_handlers=exception_handlers("open / in a browser."),
    )
    inner.router.redirect_slashes = False
    return AccessMiddleware(inner, access)


class _Handlers:
    """The handlers of the API."""

    def __init__(self, questions: Questions):
        self._questions = questions
        self._bodies = BodyReader(limit=MOST_BYTES, budget=2**20, advice="send one answer only.")

    async def describe(self, _: Request) -> Response:
        """The rater for whom the page is."""
        return json_response({"rater": self._questions.rater})

    async def session(self, request: Request) -> Response:
        """The questions of a rater, with the answers so far."""
        rater = request.query_params.get("rater", "")
        return json_response(await _in_thread(lambda: self._questions.session(rater)))

    async def answer(self, request: Request) -> Response:
        """Stores an answer."""
        async with self._bodies.read(request) as body:
            values = read_json(body, {})
            return json_response(await _in_thread(lambda: self._questions.store(values)))

    async def picture(self, request: Request) -> Response:
        """Answers with a picture; only names of the comparison are accepted."""
        name = request.path_params["name"]
        path = self._questions.pictures.get(name)
        if path is None:
            raise RequestError(404, f"there is no picture {name[:40]!r}; load the page again.")
        return Response(await anyio.to_thread.run_sync(path.read_bytes), media_type="image/png")


async def _in_thread(work: Any) -> Any:
    """Runs `work` in a thread, and turns its errors into responses of the API."""
    try:
        return await anyio.to_thread.run_sync(work)
    except UserError as error:
        raise RequestError(400, str(error)) from None
