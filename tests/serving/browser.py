"""A headless Chromium, driven over its debugging protocol with nothing but the standard library."""

import base64
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.request

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*"),
]


def program():
    """Returns the path of Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One tab of one browser."""

    def __init__(self, profile: pathlib.Path, *, width=1200, height=900, phone=False):
        self._log = (profile.parent / f"{profile.name}.log").open("w+")
        command = [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=self._log, stdout=subprocess.DEVNULL)
        port = self._port()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            page = next(each for each in json.load(answer) if each["type"] == "page")
        self._socket = _connect(port, page["webSocketDebuggerUrl"].split(str(port))[1])
        self._number, self.requests = 0, []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")
        scale = 2 if phone else 1
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    def close(self):
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def send(self, method, **params):
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        _write(self._socket, json.dumps(message).encode())
        while True:
            answer = json.loads(_read(self._socket))
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression."""
        result = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script, *, seconds=60):
        """Wait until a JavaScript expression is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"{script} never came true; the page says {self.text()[-2000:]!r}")

    def text(self):
        return self.run("document.body.innerText")

    def open(self, url):
        self.send("Page.navigate", url=url)

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector, words):
        """Focus a field and type into it."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=words)

    def upload(self, selector, path):
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path):
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _port(self):
        for _ in range(300):
            self._log.seek(0)
            if actual := re.search(r"ws://127\.0\.0\.1:(\d+)/", self._log.read()):
                return int(actual[1])
            time.sleep(0.1)
        raise AssertionError("Chromium did not start")


def _connect(port, path):
    """A WebSocket (RFC 6455), as a client that sends text and reads it."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert b" 101 " in head, head
    return sock


def _write(sock, data):
    mask, size = os.urandom(4), len(data)
    if size < 126:
        head = struct.pack("!BB", 0x81, 0x80 | size)
    elif size < 2**16:
        head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x81, 0x80 | 127, size)
    sock.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))


def _read(sock):
    message = b""
    while True:
        first, second = _exactly(sock, 2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", _exactly(sock, 2))
        elif size == 127:
            (size,) = struct.unpack("!Q", _exactly(sock, 8))
        data = _exactly(sock, size)
        if first & 0x0F in (0, 1):
            message += data
            if first & 0x80:
                return message


def _exactly(sock, count):
    data = b""
    while len(data) < count:
        got = sock.recv(count - len(data))
        assert got, "the browser has gone"
        data += got
    return data
