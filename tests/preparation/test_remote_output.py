"""Preparation into object stores: the data set of a folder, whatever interrupts it."""

import functools
import pathlib
import tempfile

import pytest

from tests import object_stores
from tests.preparation.test_prepare import run
from tests.preparation.test_shards import BY_FILE, content
from unclip_jax.core import object_lock
from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import Url
from unclip_jax.data import dataset_manifest, sources
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation import import_plans
from unclip_jax.preparation.importer import locked
from unclip_jax.preparation.shard_writer import LOGS
from unclip_jax.tokenization import caption_tokenizer

OPTIONS = (*BY_FILE, "--dedup=exact", "--tokenizer=none")


@pytest.fixture(scope="module")
def tars(samples, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three tars of four pairs; one image is damaged, one occurs twice."""
    folder = tmp_path_factory.mktemp("tars") / "in"
    for i in range(3):
        members = samples.pairs(range(4 * i, 4 * i + 4))
        if i == 1:
            members[0] = (members[0][0], b"no image")
        if i == 2:
            members[2] = (members[2][0], samples.png(1))
        samples.write_tar(folder / f"{i:05d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def whole(tars: pathlib.Path) -> pathlib.Path:
    """The data set in a local folder."""
    run(tars, f"--out={tars.parent}/whole", *OPTIONS)
    return tars.parent / "whole"


@pytest.fixture
def out(google_store, tmp_path, monkeypatch) -> Url:
    """A new place in the store; afterwards no temporary file is left on the disk."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield google_store / tmp_path.name / "out"
    assert not list((tmp_path / "temporary").iterdir())


def download(url: Url, folder: pathlib.Path) -> pathlib.Path:
    for name in url.files():
        (url / name).download(folder / name)
    return folder


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all objects that were written from files."""
    names: list[str] = []
    upload = Url.upload
    monkeypatch.setattr(Url, "upload", lambda u, path: (names.append(u.name), upload(u, path)))
    return names


@pytest.mark.parametrize("options", [OPTIONS, ("--index", *OPTIONS)], ids=["copied", "index"])
def test_the_data_set_is_that_of_a_folder(out, tars, whole, tmp_path, uploads, options):
    run(tars, f"--out={out}", *options)
    local = whole
    if "--index" in options:
        local = tmp_path / "local"
        run(tars, f"--out={local}", *options)
    assert content(download(out, tmp_path / "copy")) == content(local)
    scheme = "tars:" if "--index" in options else ""
    source = sources.open_source(f"{scheme}{out}", split="train")
    expected = open_split(whole, split="train")
    assert [source[i] for i in range(10)] == [expected[i] for i in range(10)]
    assert len(source) == len(expected) == 10
    uploads.clear()
    run(tars, f"--out={out}", *options)
    assert uploads == []


def test_stores_of_amazon_are_written_too(tars, whole, tmp_path):
    with object_stores.amazon():
        url = Url(f"s3://{object_stores.BUCKET}/out")
        run(tars, f"--out={url}", *OPTIONS)
        assert content(download(url, tmp_path / "copy")) == content(whole)
        with (
            locked(Folder(url)),
            pytest.raises(UserError, match="another prepare"),
            locked(Folder(url)),
        ):
            pass


def test_parts_are_merged_and_the_manifest_is_written_last(out, tars, whole, tmp_path, monkeypatch):
    for part in (2, 0):
        run(tars, f"--out={out}", f"--shard={part}/3", *OPTIONS)
    with pytest.raises(UserError, match=r"1 of the 3 shards .* are missing \(train-00001-of"):
        run("merge", f"--out={out}", "--tokenizer=none")
    run(tars, f"--out={out}", "--shard=1/3", *OPTIONS)
    assert dataset_manifest.FILE not in out.names()
    names: list[str] = []
    write = Folder.write
    monkeypatch.setattr(
        Folder, "write", lambda f, name, data: (names.append(name), write(f, name, data))
    )
    run("merge", f"--out={out}", "--tokenizer=none")
    assert names.index(dataset_manifest.FILE) == len(names) - 1
    assert content(download(out, tmp_path / "copy")) == content(whole)
    with pytest.raises(UserError, match="holds no shards to merge"):
        run("merge", f"--out={out}", "--tokenizer=none")


def test_shards_that_are_lost_or_cut_short_are_written_again(out, tars, whole, tmp_path, uploads):
    run(tars, f"--out={out}", "--shard=0/1", *OPTIONS)
    names = [f"train-0000{i}-of-00003.array_record" for i in range(3)]
    (out / names[0]).write_bytes((out / names[0]).read_bytes()[:1000])  # a copy that stopped
    (out / LOGS / f"{names[1]}.json").unlink()  # a process that was killed
    uploads.clear()
    run(tars, f"--out={out}", "--shard=0/1", *OPTIONS)
    assert [name for name in uploads if name in names] == names[:2]
    run("merge", f"--out={out}", "--tokenizer=none")
    assert content(download(out, tmp_path / "copy")) == content(whole)
    (out / names[2]).write_bytes((out / names[2]).read_bytes()[:-70000])
    run(tars, f"--out={out}", *OPTIONS)
    assert content(download(out, tmp_path / "again")) == content(whole)


def test_a_killed_upload_leaves_no_finished_shard(out, tars, whole, tmp_path, monkeypatch):
    upload = Url.upload

    def fail(url, path):
        if "00001" in url.name:
            raise KeyboardInterrupt
        upload(url, path)

    with monkeypatch.context() as patch:
        patch.setattr(Url, "upload", fail)
        with pytest.raises(KeyboardInterrupt):
            run(tars, f"--out={out}", *OPTIONS)
    assert "train-00001-of-00003.array_record.json" not in (out / LOGS).names()
    archives = []
    init = import_plans.FilePlan.__init__
    monkeypatch.setattr(
        import_plans.FilePlan,
        "__init__",
        lambda plan, inputs, **options: archives.append(inputs) or init(plan, inputs, **options),
    )
    run(tars, f"--out={out}", *OPTIONS)
    assert [pathlib.Path(path).name for (path,) in archives] == ["00001.tar", "00002.tar"]
    assert content(download(out, tmp_path / "copy")) == content(whole)


def test_folders_and_worlds_are_written_too(out, tmp_path):
    arguments = ("shapes:train=9", "--shards=2", "--workers=2")
    run(*arguments, f"--out={out}")
    run(*arguments, f"--out={tmp_path}/local")
    assert content(download(out, tmp_path / "copy")) == content(tmp_path / "local")
    assert (
        caption_tokenizer.load(tmp_path / "copy" / "tokenizer").hash
        == dataset_manifest.read(out).tokenizer
    )


def test_two_preparations_of_one_place(out, tars):
    with locked(Folder(out), part="0-of-2"):
        with locked(Folder(out), part="1-of-2"):
            pass
        for arguments in (["--shard=0/2"], []):
            with pytest.raises(UserError, match=r"another prepare is writing .*: process \d+ on"):
                run(tars, f"--out={out}", *arguments, *OPTIONS)
    with locked(Folder(out)), pytest.raises(UserError, match="another prepare is writing to"):
        run(tars, f"--out={out}", "--shard=0/2", *OPTIONS)
    run(tars, f"--out={out}", *OPTIONS)
    assert LOGS not in out.names()


def test_locks_of_other_hosts_are_waited_for(out, monkeypatch):
    monkeypatch.setattr(object_lock, "STALE", 0.3)
    for part in ("lock.0-of-2", "lock.1-of-2"):
        (out / LOGS / part).write_bytes(b'{"host": "elsewhere", "name": "there", "pid": 7}')
    with locked(Folder(out)):
        assert (out / LOGS).names() == ["lock"]
    beat = functools.partial((out / LOGS / "lock").write_bytes, b'{"host": "there", "pid": 8}')
    (out / LOGS / "lock").write_bytes(b'{"host": "there", "pid": 7}')
    monkeypatch.setattr(object_lock.time, "sleep", lambda _: beat())
    with pytest.raises(UserError, match="another prepare"), locked(Folder(out), part="0-of-2"):
        pass


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gs://no-such-bucket/x", "cannot write gs://no-such-bucket/x.*: no such object or bucket"),
        ("hf://me/x", "of another kind than gs:// and s3://"),
        ("gs://", "names no bucket"),
    ],
)
def test_places_that_cannot_be_written(google_store, tars, place, message):
    with pytest.raises(UserError, match=message) as error:
        run(tars, f"--out={place}", *OPTIONS)
    assert "\n" not in str(error.value)


def test_another_version_of_a_split(out, tars):
    run(tars, f"--out={out}", "--shard=0/2", *OPTIONS)
    with pytest.raises(UserError, match="unfinished split 'train' of other inputs or options"):
        run(tars, f"--out={out}", "--shard=1/2", "--max-side=8", *OPTIONS)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_write_the_same_objects(out, tars, whole, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    run(tars, f"--out={out}", *OPTIONS, f"--engine={engine}", "--workers=2")
    assert content(download(out, tmp_path / "copy")) == content(whole)
