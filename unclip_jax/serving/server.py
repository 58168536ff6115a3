"""The server: binds an address before models are loaded, then runs the loop that answers there."""

import contextlib
import ipaddress
import json
import socket
from typing import Any

import h11  # pyright: ignore[reportMissingImports]
import uvicorn  # pyright: ignore[reportMissingImports]
from uvicorn.protocols.http import h11_impl  # pyright: ignore[reportMissingImports]

from unclip_jax.core.checks import UserError

BACKLOG = 128  # connections that may wait to be accepted
IDLE_S = 30  # seconds for which an idle connection stays open
CLOSING_S = 5  # seconds that running requests get when the server stops


def take_address(host: str, port: int) -> socket.socket:
    """Binds a socket, so that nobody else takes the address while models are loaded.

    Raises:
        UserError: there is no such host, or the port is in use or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise UserError(
            f"--host is {host!r}, which is no name or address of this machine; try 127.0.0.1."
        ) from None
    server = socket.socket(family, kind, protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        _check_free(family, kind, address)
        server.bind(address)
    except OSError as error:
        server.close()
        raise UserError(
            f"cannot listen on port {port} of {host}: {error.strerror}; give another --port, or "
            "another --host."
        ) from None
    return server


def _check_free(family: int, kind: int, address: Any) -> None:
    """Listens for a moment, because a bound port that nobody listens on looks free.

    Raises:
        OSError: the port is in use.
    """
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def url(host: str, port: int, root_path: str = "") -> str:
    """Returns the address for a browser."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        version = 4
    name = f"[{host}]" if version == 6 else host
    return f"http://{name}:{port}{root_path}"


def is_local(host: str) -> bool:
    """Returns True if only this machine can reach a server on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class JsonProtocol(h11_impl.H11Protocol):
    """HTTP/1.1, with JSON answers also to requests that are not valid HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Answers and closes the connection."""
        body = json.dumps({"error": "the request is not valid HTTP."}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()


def serve(app: Any, listener: socket.socket) -> None:
    """Serves an ASGI application on a bound socket until ctrl-C.

    Raises:
        UserError: another process listens there by now.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise UserError(f"cannot listen: {error.strerror}; give another --port.") from None
    with contextlib.suppress(KeyboardInterrupt):
        build(app).run(sockets=[listener])


def build(app: Any) -> uvicorn.Server:
    """Returns the server of an ASGI application, not yet running."""
    config = uvicorn.Config(
        app,
        http=JsonProtocol,
        log_level="warning",
        proxy_headers=False,  # nothing here depends on the caller's address
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=CLOSING_S,
        lifespan="off",
        ws="none",
    )
    return uvicorn.Server(config)
