"""Access: the token, host names, pages of other origins, the base path, and closed files.

Requests are sent as written: paths with dots and escapes are not tidied up on the way.
"""

import itertools
import json
import re
import socket

import pytest

from tests.serving.conftest import serving, to_base64
from unclip_jax.core.checks import UserError

pytest.importorskip("starlette", reason="needs the extra demo")
from unclip_jax.serving import page, server
from unclip_jax.serving.access import HEADERS, LOCAL_HOSTS, Access

SECRET = b"the secret of this server"
TOKEN = "s3cret!"
# Everything that the server answers; a new path is added here with a reason to be public.
PUBLIC = {
    *("/", "/api", "/api/models", "/api/openapi.json", "/api/queue"),
    *("/icon.svg", "/page.css"),
    *(f"/{name}.js" for name in ("client", "dom", "forms", "images", "page", "results", "theme")),
}


@pytest.fixture
def secret(tmp_path):
    """A file of the server, and a link to it with the name of an image."""
    path = tmp_path / "secret.png"
    path.write_bytes(SECRET)
    (tmp_path / "link.png").symlink_to(path)
    return path


@pytest.fixture(scope="module")
def token_client(service):
    access = Access(token=TOKEN, hosts=(*LOCAL_HOSTS, "images.example"), root_path="/unclip")
    with serving(service, access=access) as connection:
        yield connection


def references(path):
    """The ways in which callers have named a file to servers of image models."""
    name, link = str(path), str(path.parent / "link.png")
    url = path.as_uri()
    gradio = {"path": name, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    yield from (name, link, url, f"{url}#", f"data:image/png,{name}", f"data:{url},", [name])
    yield from (gradio, {**gradio, "url": url}, {"url": url}, {"file": name}, {"image": name})
    yield from ("http://127.0.0.1:{port}/api/models", "http://localhost:22/", "//127.0.0.1/x.png")
    yield from (name.encode().hex(), name.replace("/", "%2F"), f"file={name}", f"@{name}")
    yield from ("../../../../../../etc/passwd", "/proc/self/environ", "/dev/stdin", "~/.ssh/id_rsa")
    yield to_base64(name.encode())


def test_no_way_of_naming_a_file_opens_it(client, secret, monkeypatch):
    reads = []
    for command, field, many in (
        ("variations", "image", False),
        ("jobs/variations", "image", False),
        ("upscale", "images", True),
        ("inpaint", "mask", False),
    ):
        for value in references(secret):
            if isinstance(value, str):
                value = value.replace("{port}", str(client.port))
            values = {field: [value] if many else value}
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.read_bytes", lambda self: reads.append(self) or SECRET)
                status, answer = client.post(f"/api/{command}", values)
            assert status == 400 and SECRET.decode() not in answer["error"], value
            assert re.search("base64|not an image", answer["error"]), answer
    assert not reads


def test_latents_and_folders_of_the_server_cannot_be_named(client, secret):
    for values in (
        {"images": ["x.npz"]},
        {"images": [to_base64(b"PK\x03\x04 not a latent")]},
        {"images": [to_base64(SECRET)], "embeddings": str(secret.parent)},
        {"images": [], "out": str(secret)},
        {"images": [to_base64(SECRET)], "models": str(secret.parent)},
    ):
        for command in ("reconstruct", "interpolate", "probe-pca"):
            assert client.post(f"/api/{command}", values)[0] == 400


def paths(path):
    """Paths by which web servers and page frameworks have handed out files."""
    name = str(path).lstrip("/")
    up = "/".join([".."] * 12)
    escaped = "/".join(["%2e%2e"] * 12)
    prefixes = ("", "file=", "file/", "gradio_api/file=/", "gradio_api/file/", "static/", "assets/")
    prefixes += (
        "proxy=http://127.0.0.1:22/",
        "gradio_api/proxy=",
        "svelte/",
        "theme/",
        "page.css/",
    )
    prefixes += ("api/", "api/jobs/", "api/file=/", "@fs/", "files/", "download/", "unclip/")
    for prefix, middle in itertools.product(prefixes, ("", f"{up}/", f"{escaped}/", "%2f", "//")):
        yield f"/{prefix}{middle}{name}"
    yield f"/page.css?file=/{name}"
    yield f"//{name}"
    yield "/" + f"{up}/{name}".replace("/", "%252f")
    yield "/" + f"{up}/{name}".replace("/", "%5c")
    yield "/page.css%00.png"
    yield from ("/config", "/info", "/gradio_api/info", "/gradio_api/deep_link?session_hash=a")
    yield from ("/?deep_link=a", "/config?deep_link=a", "/gradio_api/startup-events", "/monitoring")
    yield from ("/gradio_api/queue/data?session_hash=a", "/docs", "/redoc", "/openapi.json")
    yield from (
        "/.git/config",
        "/page.py",
        "/../page.py",
        "/__init__.py",
        "/robots.txt",
        "/api/jobs",
    )


def test_no_path_hands_out_a_file(client, secret):
    pages = {client.call("GET", path)[2] for path in PUBLIC}
    for path in paths(secret):
        status, headers, content = client.call("GET", path)
        if status == 200:
            assert content in pages, path  # a page of ours, whatever the query
        else:
            assert headers["content-type"] == "application/json" and json.loads(content)["error"]
        assert SECRET not in content


def test_frameworks_uploads_and_queues_do_not_exist(client):
    for path in (
        *("/gradio_api/upload", "/upload", "/gradio_api/queue/join", "/queue/join", "/run/predict"),
        *("/gradio_api/call/text", "/gradio_api/run/text", "/api/predict", "/api/upload", "/login"),
        *("/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/stream/a", "/api/jobs"),
    ):
        status, answer = client.post(path, {"data": [{"path": "/etc/passwd"}], "fn_index": 0})
        assert status in (404, 405) and answer.keys() == {"error"}, path


def test_the_public_paths_are_those_that_are_listed(client, service):
    from unclip_jax.serving import api

    routes = [*api.Api([service], Access()).routes(), *page.routes("")]
    fixed = {route.path for route in routes if "{" not in route.path}
    assert fixed == PUBLIC
    for path in PUBLIC:
        status, headers, content = client.call("GET", path)
        assert status == 200 and content
        assert {name.lower() for name in HEADERS} <= headers.keys(), path
        assert headers["content-type"].split(";")[0] == _media_type(path)


def _media_type(path):
    suffix = path.rpartition(".")[2]
    kinds = {"svg": "image/svg+xml", "css": "text/css", "js": "text/javascript", "/": "text/html"}
    return kinds.get(suffix, "application/json")


def test_jobs_of_others_cannot_be_listed_or_guessed(client):
    for name in ("0", "1", "*", "..", "%2e%2e", "a" * 32, "%00", "%0a", "-" * 32):
        for suffix in ("", "/result", "/archive"):
            status, _, content = client.call("GET", f"/api/jobs/{name}{suffix}")
            assert status in (404, 405) and SECRET not in content


def test_no_answer_names_a_folder_of_the_server(client, service, run_dir, monkeypatch):
    def fail(*arguments, **options):
        raise UserError(f"cannot read {run_dir}/clip and {run_dir.resolve()}/prior.")

    monkeypatch.setattr(service.engine, "run", fail)
    status, answer = client.post("/api/text", {"captions": ["x"]})
    assert status == 400
    assert answer["error"] == f"cannot read {run_dir.name}/clip and {run_dir.name}/prior."
    for path in PUBLIC:
        assert str(run_dir.parent).encode() not in client.call("GET", path)[2]


def test_without_the_token_only_the_page_itself_is_served(token_client):
    for path in PUBLIC:
        status, headers, content = token_client.call("GET", path)
        if path.startswith("/api"):
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert "requires its token" in json.loads(content)["error"]
        else:
            assert status == 200
    for value in (
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer",
        "Bearer ä",
        "Bearer  ",
    ):
        status, _ = token_client.post("/api/text", {}, headers={"Authorization": value})
        assert status == 401, value
    for scheme in ("Bearer", "bearer"):
        status, _ = token_client.post(
            "/api/text", {}, headers={"Authorization": f"{scheme} {TOKEN}"}
        )
        assert status == 400


@pytest.mark.parametrize("prefix", ["", "/unclip"])  # proxies remove it or do not
def test_a_proxy_may_serve_it_below_a_path(token_client, prefix):
    bearer = {"Authorization": f"Bearer {TOKEN}", "Host": "images.example"}
    status, _, content = token_client.call("GET", f"{prefix}/", headers=bearer)
    assert status == 200 and b'<base href="/unclip/">' in content
    links = re.findall(rb'(?:href|src)="([^"]*)"', content)
    assert links and not [link for link in links if link.startswith(b"/") and link != b"/unclip/"]
    document = token_client.get(f"{prefix}/api/openapi.json", headers=bearer)
    assert document["servers"] == [{"url": "/unclip"}]
    assert token_client.get(f"{prefix}/api/queue", headers=bearer)["running"] == 0
    assert token_client.call("GET", f"{prefix}/unclipped/api", headers=bearer)[0] == 404


def test_without_a_base_path_the_page_has_relative_links_only(client):
    content = client.call("GET", "/")[2] + b"".join(
        client.call("GET", path)[2] for path in PUBLIC if path.endswith((".js", ".css"))
    )
    assert not re.search(rb"""(?:href|src|from|import|url)\s*[=(]?\s*["'](?:/|https?:)""", content)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:7860", 200),
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        ("192.168.0.7", 200),
        ("images.example", 200),
        ("rebound.example", 403),
        ("localhost.rebound.example", 403),
        ("127.0.0.1.rebound.example", 403),
    ],
)
def test_names_of_other_hosts_are_rejected(token_client, host, status):
    got, _, content = token_client.call("GET", "/", headers={"Host": host})
    assert got == status
    assert status == 200 or "--allow-host=" in json.loads(content)["error"]


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", 400), ("none", 400), ("cross-site", 403), ("same-site", 403)],
)
def test_pages_of_other_origins_cannot_post(client, site, status):
    got, answer = client.post("/api/text", {}, headers={"Sec-Fetch-Site": site})
    assert got == status and answer["error"]
    got, headers, _ = client.call("OPTIONS", "/api/text", headers={"Origin": "http://a.example"})
    assert got == 405 and not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["unclip", "/", "/unclip/", "//a", "/a b", '/a"', "/..", "/a/../b"]
)
def test_a_base_path_is_a_plain_path(path):
    with pytest.raises(UserError, match="--root-path is .* give a path such as /unclip"):
        Access(root_path=path)


@pytest.mark.parametrize("token", ["a b", "ä", "a\n"])
def test_a_token_is_ascii(token):
    with pytest.raises(UserError, match="the token has spaces or characters outside ASCII"):
        Access(token=token)


def test_an_address_in_use_is_rejected_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .* give another --port"):
            server.take_address("127.0.0.1", port)
    with server.take_address("127.0.0.1", port):
        pass
    for host in ("no.such.host.invalid", "a" * 70, "1.2.3"):
        with pytest.raises(UserError, match="--host|cannot listen"):
            server.take_address(host, port)


def test_addresses_are_written_as_browsers_take_them():
    assert server.url("::1", 80) == "http://[::1]:80"
    assert server.url("127.0.0.1", 80, "/a") == "http://127.0.0.1:80/a"
    assert [server.is_local(host) for host in ("::1", "localhost", "0.0.0.0", "127.1.2.3")] == [
        *(True, True, False, True)
    ]
