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
    """Reads bodies of requests, within a memory budget for all that are not decoded yet."""

    def __init__(
        self, *, limit: int, budget: int | None = None, advice: str = "give smaller images."
    ):
        """Sets the limits.

        Args:
            limit: bytes of one body.
            budget: bytes of all bodies that are not decoded yet; None = four times `limit`.
            advice: end of the message about a body that is too long.
        """
        self._advice = advice
        self._limit, self._budget = limit, 4 * limit if budget is None else budget
        self._pending = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the body of a request, which is rejected as soon as it is too long.

        It counts towards the budget until the context ends.

        Raises:
            RequestError: its media type is not JSON, it is too long or too slow, or the budget is
                used up.
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
            line = f"the body took more than {READ_S} seconds to arrive; send a smaller one."
            raise RequestError(408, line) from None

    def _check(self, size: int) -> None:
        if size > self._limit:
            line = f"the request has more than {self._limit} bytes; {self._advice}"
            raise RequestError(413, line)
        if self._pending > self._budget:
            raise RequestError(
                503, "too many large requests arrive at the same time; try again in a minute."
            )


def is_json(content_types: list[str]) -> bool:
    """Returns True if a request has exactly one media type, which is JSON.

    Browsers let pages of any origin post "text/plain", with any parameters.
    """
    if len(content_types) != 1:
        return False
    essence = content_types[0].partition(";")[0].strip().lower()
    structured = essence.startswith("application/") and essence.endswith("+json")
    return essence == "application/json" or (structured and essence.count("/") == 1)


def read_json(body: bytes, fields: Mapping[str, RequestField]) -> dict[str, Any]:
    """Returns the values of a request; decodes images from base64, plain or as data URLs.

    Raises:
        RequestError: the body is not a JSON object, or an image is not base64.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise RequestError(400, "the body is not a JSON object; send one such as {}.")
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
    """Decodes a base64 text, which may have line breaks, or a data URL."""
    if not isinstance(value, str):
        raise RequestError(400, f"{name} is {str(value)[:40]!r}; give an image file as base64.")
    head, comma, encoded = value.partition(",")
    text = encoded if comma and head.strip().startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            400, f"{name} is not base64; encode the bytes of an image file, not its path or URL."
        ) from None
