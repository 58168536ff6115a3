"""Errors of the HTTP API: a status and one line, always as JSON."""

import json
from collections.abc import Mapping
from typing import Any

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
