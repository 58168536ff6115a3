"""Bodies of requests: JSON objects, read within limits, with images as base64."""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request  # pyright: ignore[reportMissingImports]

from unclip_jax.engine.request_fields import RequestField
from unclip_jax.serving.errors import RequestError

READ_S = 60  # longest time that a body may take to arrive


class BodyReader:
    """Reads bodies, together within a budget of memory until they are decoded."""

    def __init__(
        self, *, limit: int, budget: int | None = None, advice: str = "give smaller images."
    ):
        """Sets the limits.

        Args:
            limit: bytes of one body.
            budget: bytes of all bodies that are not decoded yet; None = four times `limit`.
            advice: ends the answer to a body that is too long.
        """
        self._advice = advice
        self._limit, self._budget = limit, 4 * limit if budget is None else budget
        self._pending = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, rejected as soon as it is too long.

        It counts towards the budget until the context ends.

        Raises:
            Rejected: it is not JSON by its media type, too long, too slow, or one too many.
        """
        if not is_json(request.headers.getlist("content-type")):
            raise RequestError(415, "give JSON, with Content-Type: application/json.")
        stated = request.headers.get("content-length", "0")
        self._check(int(stated) if stated.isdecimal() and len(stated) < 20 else 0)
        body = bytearray()
        try:
            await self._receive(request, body)
            yield bytes(body)
        finally:
            self._pending -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in request.stream():
                    body += chunk
                    self._pending += len(chunk)
                    self._check(len(body))
        except TimeoutError:
            line = f"the body took more than {READ_S} seconds to arrive; send it faster."
            raise RequestError(408, line) from None

    def _check(self, size: int) -> None:
        if size > self._limit:
            line = f"the request has more than {self._limit} bytes; {self._advice}"
            raise RequestError(413, line)
        if self._pending > self._budget:
            raise RequestError(
                503, "too many large requests arrive at once; try again in a minute."
            )


def is_json(content_types: list[str]) -> bool:
    """True if a request says, exactly and once, that it is JSON.

    Browsers let a page of any origin post "text/plain", whatever its parameters say.
    """
    if len(content_types) != 1:
        return False
    essence = content_types[0].partition(";")[0].strip().lower()
    structured = essence.startswith("application/") and essence.endswith("+json")
    return essence == "application/json" or (structured and essence.count("/") == 1)


def read_json(body: bytes, fields: Mapping[str, RequestField]) -> dict[str, Any]:
    """The values of a request; images come as base64, plain or as data URLs.

    Raises:
        Rejected: it is no JSON object, or an image is no base64.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise RequestError(400, "the body is no JSON object; give one such as {}.")
    for field in fields.values():
        value = values.get(field.name)
        if field.scalar != "image" or value is None:
            continue
        if not field.many:
            values[field.name] = _bytes_of(field.name, value)
        elif isinstance(value, list):
            values[field.name] = [
                _bytes_of(f"{field.name}[{index}]", item) for index, item in enumerate(value)
            ]
    return values


def _bytes_of(name: str, value: Any) -> bytes:
    """The bytes of a base64 text, in which line breaks may stand, or of a data URL."""
    if not isinstance(value, str):
        raise RequestError(400, f"{name} is {str(value)[:40]!r}; give an image file as base64.")
    head, comma, encoded = value.partition(",")
    text = encoded if comma and head.strip().startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            400, f"{name} is no base64; give the bytes of an image file so, not its path or URL."
        ) from None
