"""Requests over HTTP: the limits of a server, reading values, and the schema of every request.

Everything is derived from the fields of the requests in `engine/requests.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.data import image_codec
from unclip_jax.engine import image_inputs, request_fields
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.request_fields import RequestField
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.version import __version__

# Set by the server, not by clients.
OF_SERVER = {"embeddings"}
MAX_NAME = 60  # characters of a field's name
_JSON_TYPES = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "text": {"type": "string"},
    "image": {"type": "string", "contentEncoding": "base64"},
}
_CONTENT = {"content": {"application/json": {}}}
_MODEL = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Name of the models; default: the first of `names` in GET /api/models.",
}
_OTHER_PATHS = (
    ("models", "get", "The models."),
    ("queue", "get", "The length of the queue."),
    ("jobs/{job}", "get", "The state of a job."),
    ("jobs/{job}", "delete", "Cancel a job and forget it."),
    ("jobs/{job}/result", "get", "The images of a job that is done."),
    ("jobs/{job}/archive", "get", "A ZIP of the images, the uploads and the JSON of the result."),
)


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """Limits of one request.

    Attributes:
        images: number of images that a request generates.
        captions: characters per caption.
        uploads: number of images that a request uploads.
        pixels: pixels of one upload, checked before decoding.
        file: bytes of one upload.
        body: bytes of one HTTP request.
        waiting: requests in the queue behind the running one.
        seconds: longest running time of a request.
        steps: greatest number of steps of a chain.
        values: greatest values of fields that cost time, where the request itself allows more.
    """

    images: int = 16
    captions: int = 1000
    uploads: int = 6
    pixels: int = 25_000_000
    file: int = 16 * 2**20
    body: int = 48 * 2**20
    waiting: int = 8
    seconds: float = 3600.0
    steps: int = 250
    values: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"candidates": 8, "refine": 5, "repeats": 10, "previews": 8}
    )


class Submission(NamedTuple):
    """A checked request and its uploaded files.

    Attributes:
        request: the request.
        files: uploads by the names under which the result refers to them.
    """

    request: Request
    files: dict[str, bytes]


def served_fields(name: str) -> dict[str, RequestField]:
    """Returns the fields of a request that clients may set."""
    declared = request_fields.fields(REQUESTS[name])
    return {key: field for key, field in declared.items() if key not in OF_SERVER}


def read(
    name: str,
    values: Mapping[str, Any],
    *,
    limits: RequestLimits | None = None,
    of_server: Mapping[str, Any] | None = None,
) -> Submission:
    """Reads a request; images are the bytes of files, and paths are never opened.

    Args:
        name: one of `REQUESTS`.
        values: by field; None = not set.
        limits: limits of this server.
        of_server: values of fields that the server sets.

    Raises:
        UserError: naming the value that is wrong.
    """
    cls, limits = REQUESTS[one_of("command", name, REQUESTS)], limits or RequestLimits()
    declared = served_fields(name)
    for key in values:
        if len(key) > MAX_NAME:
            raise UserError(f"{name} has no {key[:MAX_NAME]!r}...; see GET /api.")
    files: dict[str, bytes] = {}
    checked = {
        key: _read(declared[key], value, limits, files) if key in declared else value
        for key, value in values.items()
        if value is not None
    }
    for key in checked.keys() & OF_SERVER:
        raise UserError(f"{name} has no {key!r}; leave it out.")
    request = request_fields.build(cls, {**checked, **(of_server or {})}, name=name)
    if request.image_count > limits.images:
        raise UserError(
            f"that would be {request.image_count} images; this server generates at most "
            f"{limits.images} at once."
        )
    return Submission(request, files)


def describe(limits: RequestLimits) -> dict[str, Any]:
    """Returns all requests with their fields, JSON-ready, for API clients and the page."""
    return {
        name: {
            "does": request.summary,
            "fields": {
                key: _described(field, limits) for key, field in served_fields(name).items()
            },
        }
        for name, request in REQUESTS.items()
    }


def describe_limits(limits: RequestLimits) -> dict[str, Any]:
    """Returns the limits of a request, JSON-ready."""
    names = ("images", "captions", "uploads", "pixels", "file", "body", "waiting", "seconds")
    return {name: getattr(limits, name) for name in names}


def openapi(limits: RequestLimits, *, root_path: str = "") -> dict[str, Any]:
    """Returns the OpenAPI document of the API below `root_path`."""
    result = {
        "description": "The images.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Result"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    paths: dict[str, Any] = {
        f"/api/{name}": {"post": _operation(name, request.summary, {"200": result})}
        for name, request in REQUESTS.items()
    }
    paths |= {
        f"/api/jobs/{name}": {
            "post": _operation(
                name, f"{request.summary} Returns a job immediately.", {"202": _CONTENT}
            )
        }
        for name, request in REQUESTS.items()
    }
    for path, method, summary in _OTHER_PATHS:
        operation = {
            "operationId": f"{method}-{path.replace('/', '-')}",
            "summary": summary,
            "responses": {"200": {"description": summary, **_CONTENT}},
        }
        if "{job}" in path:
            schema = {"type": "string"}
            operation["parameters"] = [
                {"name": "job", "in": "path", "required": True, "schema": schema}
            ]
        if path == "models":
            operation["parameters"] = [_MODEL]
        paths.setdefault(f"/api/{path}", {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "unclip_jax", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(limits)},
    }


def _operation(name: str, summary: str, responses: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the POST operation of a request."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    error = {
        "description": "The reason, in one line.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return {
        "operationId": name if "200" in responses else f"job-{name}",
        "summary": summary,
        "parameters": [_MODEL],
        "requestBody": {"required": True, "content": content},
        "responses": {
            **{status: {"description": summary, **each} for status, each in responses.items()},
            **dict.fromkeys(("400", "401", "413", "415", "429"), error),
        },
    }


def _schemas(limits: RequestLimits) -> dict[str, Any]:
    """Returns the JSON schemas of all requests, of the result, and of an error."""
    text, image = _JSON_TYPES["text"], _JSON_TYPES["image"]
    schemas: dict[str, Any] = {
        name: {
            "type": "object",
            "additionalProperties": False,
            "required": [key for key, field in served_fields(name).items() if field.required],
            "properties": {
                key: _schema(field, limits) for key, field in served_fields(name).items()
            },
        }
        for name in REQUESTS
    }
    schemas["Error"] = {"type": "object", "properties": {"error": text}, "required": ["error"]}
    schemas["Result"] = {
        "type": "object",
        "properties": {
            "images": {"type": "array", "items": image},
            "labels": {"type": "array", "items": text},
            "grid": image,
            "record": {"type": "object"},
            "animation": image,
        },
        "required": ["images", "labels", "grid", "record"],
    }
    return schemas


def _schema(field: RequestField, limits: RequestLimits) -> dict[str, Any]:
    """Returns the JSON schema of a field."""
    option = field.option
    schema: dict[str, Any] = dict(_JSON_TYPES[field.scalar])
    if option.low is not None:
        schema["minimum"] = option.low
    if option.high is not None:
        schema["maximum"] = _greatest(field, limits)
    if option.choices:
        schema["enum"] = list(option.choices)
    if field.scalar == "text" and not option.choices:
        schema["maxLength"] = limits.captions
    if field.many:
        low, high = _count(field, limits)
        schema = {"type": "array", "items": schema, "minItems": low, "maxItems": high}
    if field.default not in (None, ()):
        schema["default"] = list(field.default) if field.many else field.default
    return {**schema, "description": option.help}


def _greatest(field: RequestField, limits: RequestLimits) -> Any:
    """Returns the greatest value of a number on this server; None = unbounded."""
    high = field.option.high
    counts = dict.fromkeys(("num", "frames", "best_of"), limits.images)
    most = {**counts, **limits.values}.get(field.name, high)
    return high if high is None or most is None else min(high, most)


def _described(field: RequestField, limits: RequestLimits) -> dict[str, Any]:
    """Returns a field as `GET /api` shows it."""
    option = field.option
    kind = f"list of {field.scalar}" if field.many else field.scalar
    described: dict[str, Any] = {"type": kind, "help": option.help, "required": field.required}
    if field.default not in (None, ()):
        described["default"] = list(field.default) if field.many else field.default
    if option.low is not None:
        described["range"] = [option.low, _greatest(field, limits)]
    if option.choices:
        described["choices"] = list(option.choices)
    if field.many:
        described["count"] = list(_count(field, limits))
    return described


def _count(field: RequestField, limits: RequestLimits) -> tuple[int, int]:
    """Returns the least and the greatest number of items of a list."""
    low, high = field.option.count
    return low, min(high, limits.uploads if field.scalar == "image" else 64)


def _read(field: RequestField, value: Any, limits: RequestLimits, files: dict[str, bytes]) -> Any:
    """Checks a value against the limits of a server; decodes images, whose bytes go to `files`.

    Raises:
        UserError: the value has another type, or exceeds a limit.
    """
    name = field.name
    if field.many:
        if not isinstance(value, list):
            return request_fields.checked(field, value)  # which rejects it
        in_range(f"number of {name}", len(value), *_count(field, limits))
    if field.scalar == "image":
        if not field.many:
            return _image(name, name, value, limits, files)
        numbered = (f"-{index}" if len(value) > 1 else "" for index in range(len(value)))
        return [
            _image(f"{name}[{index}]", f"{name}{number}", item, limits, files)
            for index, (number, item) in enumerate(zip(numbered, value, strict=True))
        ]
    for item in value if field.many else [value]:
        if isinstance(item, str):  # before a long text is compared with anything
            _check_text(field, item, limits)
    value = request_fields.checked(field, value)
    for item in value if field.many else [value]:
        if name in limits.values:
            in_range(name, item, field.option.low, limits.values[name])
    return value


def _check_text(field: RequestField, text: str, limits: RequestLimits) -> None:
    if len(text) > limits.captions:
        raise UserError(f"{field.name} has {len(text)} characters; give at most {limits.captions}.")
    if field.many and not text.strip():
        raise UserError(f"{field.name} is empty; say what the image should show.")


def _image(
    where: str, stem: str, data: Any, limits: RequestLimits, files: dict[str, bytes]
) -> image_inputs.InputImage:
    """Decodes an upload within the limits.

    Raises:
        UserError: it is not the bytes of an image file, or too large.
    """
    if not isinstance(data, bytes):
        raise UserError(f"{where} is {str(data)[:40]!r}; give an image file.")
    if len(data) > limits.file:
        raise UserError(f"{where} has {len(data)} bytes; give a file of at most {limits.file}.")
    most = image_codec.ImageLimits(max_pixels=limits.pixels)
    image = image_inputs.from_bytes(data, name=stem, where=where, limits=most)
    name = f"{stem}.{image_codec.format_of(data)}"
    files[name] = data
    return image._replace(name=name, path=name)
