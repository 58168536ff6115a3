"""Preparation of archives in object stores: the data set of the same archives in a folder."""

import json
import pathlib
import re
import tempfile

import pytest

from tests import object_stores
from tests.preparation.test_prepare import run
from tests.preparation.test_shards import BY_FILE, content
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.data import dataset_manifest
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation import remote_archives


@pytest.fixture(scope="module")
def folder(samples, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three tars of four pairs, one image of which is damaged, and other files."""
    folder = tmp_path_factory.mktemp("tars") / "in"
    for i in range(3):
        members = samples.pairs(range(4 * i, 4 * i + 4))
        if i == 1:
            members[0] = (members[0][0], b"no image")
        samples.write_tar(folder / f"{i:05d}.tar", members)
        (folder / f"{i:05d}_stats.json").write_text("{}")
        (folder / f"{i:05d}.parquet").write_text("beside a tar")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with object_stores.google():
        place = Url(f"gs://{object_stores.BUCKET}/laion/in")
        object_stores.upload(folder, place)
        yield place


@pytest.fixture(scope="module")
def whole(folder: pathlib.Path) -> pathlib.Path:
    """The data set of the folder."""
    run(folder / "{00000..00002}.tar", f"--out={folder.parent}/whole", *BY_FILE)
    return folder.parent / "whole"


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def shards(folder: pathlib.Path) -> dict[str, str]:
    return {name: digest for name, digest in content(folder).items() if "array_record" in name}


@pytest.mark.parametrize("inputs", ["", "/{00000..00002}.tar", "/*.tar", "/0000[0-2].tar"])
def test_the_data_set_is_that_of_the_folder(url, whole, tmp_path, temporary, inputs):
    run(f"{url}{inputs}", f"--out={tmp_path}/out", *BY_FILE)
    assert shards(tmp_path / "out") == shards(whole)
    split = dataset_manifest.read(tmp_path / "out").split("train")
    assert split.plan == dataset_manifest.read(whole).split("train").plan
    assert list(split.sources) == [f"{url}{inputs}"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert (report["read"], report["named"]) == (12, {"not an image": ["k0004"]})
    assert not list(temporary.iterdir())  # nothing is left behind


def test_indices_name_the_objects(url, whole, tmp_path, temporary):
    run(url, f"--out={tmp_path}/out", "--index", *BY_FILE)
    source, copy = (open_split(p, split="train") for p in (tmp_path / "out", whole))
    assert [source[i] for i in range(11)] == [copy[i] for i in range(11)]
    line = next((tmp_path / "out").glob("*.tar_index")).read_bytes().partition(b"\n")[0]
    assert str(url).encode() in line


@pytest.mark.parametrize("store", [object_stores.google, object_stores.amazon])
def test_the_same_command_reads_nothing_again_unless_an_object_changed(
    store, folder, tmp_path, monkeypatch
):
    place = Url(f"{'gs' if store is object_stores.google else 's3'}://{object_stores.BUCKET}/in")
    with store():
        check_changes(place, folder, tmp_path, monkeypatch)


def check_changes(place, folder, tmp_path, monkeypatch):
    """The same command reads nothing, and names the record that differs afterwards."""
    object_stores.upload(folder, place)
    run(place, f"--out={tmp_path}/out", *BY_FILE)
    with monkeypatch.context() as patch:
        patch.setattr(remote_archives.RemotePlan, "__init__", None)
        run(place, f"--out={tmp_path}/out", *BY_FILE)
    content = (folder / "00002.tar").read_bytes().replace(b"picture number 9", b"drawing number 9")
    (place / "00002.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"have changed since \(an image or caption of k0008"):
        run(place, f"--out={tmp_path}/out", *BY_FILE)


def test_a_damaged_object_is_named_by_its_url(url, samples, tmp_path, temporary):
    place = url.parent / tmp_path.name
    (place / "a.tar").write_bytes(b"no tar" * 1000)
    samples.write_tar(tmp_path / "b.tar", samples.pairs(range(4)))
    (place / "b.tar").upload(tmp_path / "b.tar")
    run(place, f"--out={tmp_path}/out", *BY_FILE)
    report = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert report["named"] == {"input that cannot be read": [f"{place}/a.tar"]}


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["URL/9*.tar"], (), r"URL/9\*.tar matches no tar or Parquet file; other files"),
        (["URL/{00000..00003}.tar"], (), "URL/00003.tar matches no tar"),
        (["URL/images"], (), "URL/images matches no tar"),
        (["URL", "FOLDER"], (), "one split has the URL gs://.* and local inputs"),
        (["URL"], ("--shards=2",), "--shards is for local inputs"),
        (["gs://no-such-bucket/x"], (), "no such object or bucket"),
        (["hf://me/x.tar"], (), "of another kind than gs:// and s3://"),
    ],
)
def test_inputs_that_cannot_be_used(url, folder, tmp_path, inputs, options, message):
    def fill(text: str) -> str:
        return re.sub(r"\bURL/", f"{url}/", text).replace("FOLDER", str(folder))

    sources = [str(url) if text == "URL" else fill(text) for text in inputs]
    with pytest.raises(UserError, match=fill(message)):
        run(*sources, f"--out={tmp_path}/out", *options)
