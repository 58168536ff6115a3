"""Errors of the HTTP API: a status and one line, always as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.requests import ClientDisconnect, Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]


class RequestError(Exception):
    """Raised to end a request with a status and a one-line message.

    Attributes:
        status: HTTP status code.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None):
        super().__init__(" ".join(message.split()))
        self.status, self.headers = status, dict(headers or {})


def json_response(
    content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a JSON response in ASCII, so that every text can be sent."""
    return Response(
        json.dumps(content), status, headers=dict(headers or {}), media_type="application/json"
    )


def error_response(error: RequestError) -> Response:
    """Returns `{"error": ...}` with the status of the error."""
    return json_response({"error": str(error)}, error.status, headers=error.headers)


def exception_handlers(advice: str) -> dict[Any, Any]:
    """Returns the exception handlers of an application, by class of the error.

    Args:
        advice: end of the message about a path that does not exist.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        """Answers routing errors as JSON: no such path, or another method."""
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            line = f"{request.method[:20]} is not possible here; use a method of the Allow header."
        elif error.status_code == 404:
            line = f"there is no {request.scope['path'][:60]!r}; {advice}"
        else:
            line = f"{error.detail}."
        return error_response(RequestError(error.status_code, line, headers=headers))

    return {
        RequestError: _reject,
        HTTPException: http_error,
        ClientDisconnect: _hung_up,
        Exception: _fail,
    }


async def _reject(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _hung_up(_: Request, __: Exception) -> Response:
    return error_response(RequestError(499, "the client has disconnected."))


async def _fail(_: Request, error: Exception) -> Response:
    """Answers an unexpected error, which `AccessMiddleware` logs."""
    return error_response(
        RequestError(500, f"the server failed ({type(error).__name__}); see its log.")
    )
