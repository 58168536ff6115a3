"""Errors of the HTTP API: a status and one line, always as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.requests import ClientDisconnect, Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]


class Rejected(Exception):
    """A request that ends with a status and one line.

    Attributes:
        status: of HTTP.
        headers: of the answer, beside those of every answer.
    """

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None):
        super().__init__(" ".join(message.split()))
        self.status, self.headers = status, dict(headers or {})


def json_answer(
    content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer in ASCII, so that every text can be sent."""
    return Response(
        json.dumps(content), status, headers=dict(headers or {}), media_type="application/json"
    )


def error_answer(error: Rejected) -> Response:
    """`{"error": ...}` with the status of the error."""
    return json_answer({"error": str(error)}, error.status, headers=error.headers)


def exception_handlers(advice: str) -> dict[Any, Any]:
    """The handlers of an application, by the class of the error.

    Args:
        advice: ends the answer to a path that does not exist.
    """

    async def reject_http(request: Request, error: Exception) -> Response:
        """Errors of the routing, as JSON: no such path, or another method."""
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            line = f"{request.method[:20]} is not possible here; Allow says what is."
        elif error.status_code == 404:
            line = f"there is no {request.scope['path'][:60]!r}; {advice}"
        else:
            line = f"{error.detail}."
        return error_answer(Rejected(error.status_code, line, headers=headers))

    return {
        Rejected: _reject,
        HTTPException: reject_http,
        ClientDisconnect: _hung_up,
        Exception: _fail,
    }


async def _reject(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return error_answer(error)


async def _hung_up(_: Request, __: Exception) -> Response:
    return error_answer(Rejected(499, "the caller has gone."))


async def _fail(_: Request, error: Exception) -> Response:
    """A bug, which the gate logs."""
    return error_answer(Rejected(500, f"the server failed ({type(error).__name__}); see its log."))
