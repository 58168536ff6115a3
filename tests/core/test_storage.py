"""URLs of object stores, against stores on loopback."""

import pathlib

import pytest

from tests import object_stores
from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import LocalFile, Url, location


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    store = {"gs": object_stores.google, "s3": object_stores.amazon}[request.param]
    with store():
        yield Url(f"{request.param}://{object_stores.BUCKET}")


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(storage, "PAUSE", 0.0)


@pytest.mark.parametrize("text", ["a/b", "/a", "", "C:/x", "tfds:coco", pathlib.Path("x")])
def test_other_text_is_a_local_path(text):
    assert location(text) == pathlib.Path(text)


def test_urls_are_objects_in_stores():
    url = location("gs://bucket/run/")
    assert url == Url("gs://bucket/run") and str(url / "clip") == "gs://bucket/run/clip"
    assert (url.scheme, url.name, url.parent) == ("gs", "run", Url("gs://bucket"))


@pytest.mark.parametrize("text", ["hf://me/run", "file:///x", "https://x/y", "abfs://a"])
def test_other_schemes_are_rejected(text):
    with pytest.raises(UserError, match=r"of another kind than gs:// and s3://"):
        location(text)


def test_a_url_needs_a_bucket():
    with pytest.raises(UserError, match="names no bucket; give gs://BUCKET/NAME"):
        location("gs://")


def test_objects_are_written_and_read(bucket, tmp_path):
    url = bucket / "objects" / "a.bin"
    assert not url.exists() and (bucket / "objects").names() == []
    url.write_bytes(bytes(range(100)))
    (bucket / "objects" / "b" / "c.bin").write_bytes(b"123")
    assert url.exists() and url.size() == 100
    assert url.read_bytes() == bytes(range(100))
    assert url.read_range(10, 13) == bytes([10, 11, 12])
    assert url.read_range(5, 5) == b""
    url.download(tmp_path / "new" / "a.bin")
    assert (tmp_path / "new" / "a.bin").read_bytes() == bytes(range(100))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.bin"]
    assert (bucket / "objects").names() == ["a.bin", "b"]
    (bucket / "objects" / "b" / "c.bin").upload(tmp_path / "new" / "a.bin")
    assert (bucket / "objects").files() == {"a.bin": 100, "b/c.bin": 100}
    url.unlink()
    url.unlink()
    assert (bucket / "objects").files() == {"b/c.bin": 100}
    (bucket / "objects").move(bucket / "moved" / "here")
    assert (bucket / "objects").files() == {}
    assert (bucket / "moved").files() == {"here/b/c.bin": 100}


def test_an_object_is_created_once(bucket):
    (bucket / "once").create(b"first")
    (bucket / "once").create(b"second")
    assert (bucket / "once").read_bytes() == b"first"


def test_an_object_cut_short_is_an_error(bucket):
    (bucket / "short").write_bytes(b"12345")
    with pytest.raises(UserError, match=r"/short ends before byte 9: it was cut short"):
        (bucket / "short").read_range(2, 9)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_copies_stay_in_their_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv(storage.CACHE, str(tmp_path))
    with pytest.raises(UserError, match="a file list of gs://b/c leads out of it"):
        storage.local_copy(Url("gs://b/c"), [name], key="k")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_one_line(bucket):
    missing = Url(f"{bucket.scheme}://no-such-bucket/x")
    for call in (missing.read_bytes, missing.names, missing.files, (bucket / "none").read_bytes):
        with pytest.raises(UserError, match=r"^cannot \w+ .*no such object or bucket") as error:
            call()
        assert "\n" not in str(error.value)


def test_failures_that_pass_are_repeated(bucket, monkeypatch, patient):
    (bucket / "data").write_bytes(b"0123456789")
    faults = object_stores.fail_some_reads(monkeypatch, bucket.scheme, every=3)
    parts = [(bucket / "data").read_range(i, i + 1) for i in range(10)]
    assert b"".join(parts) == b"0123456789" and faults.failed == 4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), "permission denied"),
        (OSError("Forbidden: https://x\nno access"), "permission denied"),
        (ImportError("gcsfs"), r"pip install 'unclip_jax\[gcs\]'"),
        (type("NoCredentialsError", (Exception,), {})(), "no valid credentials.*gcloud auth"),
        (type("HttpError", (Exception,), {"code": 401})(), "no valid credentials.*gcloud auth"),
        (type("HttpError", (Exception,), {"code": 403})(), "permission denied"),
        (type("HttpError", (Exception,), {"code": 429})("x"), "too many requests"),
        (ConnectionResetError("reset"), r"reset \(3 tries\)"),
    ],
)
def test_failures_are_one_line(monkeypatch, patient, error, message):
    calls = []

    class Store:
        def cat_file(self, path):
            calls.append(path)
            raise error

    monkeypatch.setattr(storage, "_store", lambda scheme: Store())
    with pytest.raises(UserError, match=f"^cannot read gs://b/x: .*{message}") as raised:
        Url("gs://b/x").read_bytes()
    assert "\n" not in str(raised.value)
    assert len(calls) == (3 if "tries" in message or "many" in message else 1)


def test_local_files_are_read_by_ranges(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    file = LocalFile(tmp_path / "x")
    assert file.size() == 10 and file.read_range(3, 5) == b"34"
