"""The pages: a few files of HTML, CSS and JavaScript, which call an HTTP API.

They are read when the server starts and served under their names; paths in requests are not opened.
"""

import html
import pathlib
from collections.abc import Iterable

from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]
from starlette.routing import BaseRoute, Route  # pyright: ignore[reportMissingImports]

STATIC = pathlib.Path(__file__).parent / "static"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
BASE = '<base href="./">'  # of index.html


def routes(root_path: str, paths: Iterable[pathlib.Path] | None = None) -> list[BaseRoute]:
    """Returns a route per file; the page itself is at /.

    Args:
        root_path: path below which a proxy serves the page; "" = the root.
        paths: the files, one of them `INDEX`; None = those of the page of `demo`.
    """
    paths = STATIC.iterdir() if paths is None else paths
    files = {path.name: path for path in sorted(paths) if path.suffix in MEDIA_TYPES}
    return [
        _route("/" if name == INDEX else f"/{name}", _content(path, root_path), path.suffix)
        for name, path in files.items()
    ]


def _content(path: pathlib.Path, root_path: str) -> bytes:
    """Returns the content of a file; in the page, links are relative to `root_path`."""
    text = path.read_text("utf-8")
    if path.name == INDEX and root_path:
        assert BASE in text
        text = text.replace(BASE, f'<base href="{html.escape(root_path)}/">')
    return text.encode()


def _route(path: str, content: bytes, suffix: str) -> Route:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=MEDIA_TYPES[suffix])

    return Route(path, answer, methods=["GET"])
