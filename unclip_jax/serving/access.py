"""Access to the server: host names, the token, pages of other origins, and the base path."""

import dataclasses
import hmac
import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.serving.errors import RequestError, error_response

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# Browsers run only the scripts of this server and connect to no other host.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclasses.dataclass(frozen=True)
class Access:
    """Rules for clients.

    Attributes:
        token: token that requests to the API must contain; "" = none.
        hosts: permitted host names; () = any. IP addresses are always permitted.
        root_path: path below which a proxy serves it, such as "/unclip"; "" = the root.
    """

    token: str = ""
    hosts: tuple[str, ...] = ()
    root_path: str = ""

    def __post_init__(self):
        """Checks the values.

        Raises:
            UserError: a token or a path that cannot be part of an HTTP request.
        """
        if self.token and not _TOKEN.fullmatch(self.token):
            raise UserError("the token has spaces or characters outside ASCII; give another one.")
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise UserError(
                f"--root-path is {self.root_path!r}; give a path such as /unclip, without a slash "
                "at its end."
            )

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Checks a request.

        Args:
            method: HTTP method.
            path: without the base path.
            headers: by lower-case name.

        Raises:
            RequestError: 403 for an unknown host or a page of another origin, 401 without the
                token.
        """
        host = _host_name(headers.get("host", ""))
        if self.hosts and host and host not in self.hosts and not _is_address(host):
            raise RequestError(
                403,
                f"this server does not accept the host name {host[:80]!r}; "
                f"start it with --allow-host={host[:80]}.",
            )
        # Browsers state the origin of a request; pages of other origins may not post.
        site = headers.get("sec-fetch-site", "none")
        if method not in ("GET", "HEAD") and site not in ("none", "same-origin"):
            raise RequestError(403, "pages of other origins may not send requests to this server.")
        if self.token and path.startswith("/api"):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(token.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not same:
                raise RequestError(
                    401,
                    "this server requires its token; send it as Authorization: Bearer TOKEN.",
                    headers={"WWW-Authenticate": "Bearer"},
                )


class AccessMiddleware:
    """The outermost application: checks access, removes the base path, adds `HEADERS`.

    Unexpected errors are answered as JSON, without details of the server.
    """

    def __init__(self, app: Any, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Runs one request (the ASGI interface)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # start-up and shutdown of the server
            return
        begun = False

        async def send_with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                names = {name.lower() for name, _ in message.get("headers", [])}
                added = [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in names
                ]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        try:
            scope = self._without_root_path(scope)
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in scope["headers"]
            }
            self._access.check(scope["method"], scope["path"], headers)
            await self._app(scope, receive, send_with_headers)
        except RequestError as error:
            await error_response(error)(scope, receive, send_with_headers)
        except Exception as error:
            logging.exception("a request failed")
            if not begun:
                line = f"the server failed ({type(error).__name__}); see its log."
                await error_response(RequestError(500, line))(scope, receive, send_with_headers)

    def _without_root_path(self, scope: Any) -> Any:
        """Removes the prefix `root_path` from a request, if no proxy has done so."""
        path, root = scope["path"], self._access.root_path
        if root and (path == root or path.startswith(f"{root}/")):
            path = path[len(root) :] or "/"
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": ""}


def _host_name(host: str) -> str:
    """Returns the name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
