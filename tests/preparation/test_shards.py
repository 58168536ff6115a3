"""Preparation file by file: the same data set wherever, in whatever parts and order it runs."""

import hashlib
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.preparation.test_prepare import run
from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.data import dataset_manifest, sources, tar_index
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig, make_loader
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation import duplicates, engines, import_plans, merging, shard_tasks
from unclip_jax.preparation.importer import locked
from unclip_jax.preparation.plan_specs import FileSpec
from unclip_jax.preparation.shard_writer import ImportConfig

BY_FILE = ("--shard-mb=0.012", "--workers=0", "--max-bad=0.3")


@pytest.fixture(scope="module")
def tars(samples, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Five tars of six pairs; one image of the third is damaged."""
    folder = tmp_path_factory.mktemp("tars") / "in"
    for i in range(5):
        members = samples.pairs(range(6 * i, 6 * i + 6))
        if i == 2:
            members[0] = (members[0][0], b"no image")
        samples.write_tar(folder / f"{i:05d}.tar", members)
        (folder / f"{i:05d}_stats.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(tars: pathlib.Path) -> pathlib.Path:
    """The data set that one process prepares."""
    run(f"{tars}/{{00000..00004}}.tar", f"--out={tars.parent}/whole", *BY_FILE)
    return tars.parent / "whole"


def content(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all files but the report, which states times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "report.json")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def shards(folder: pathlib.Path) -> dict[str, str]:
    return {name: digest for name, digest in content(folder).items() if "array_record" in name}


def test_every_archive_becomes_a_shard(samples, whole: pathlib.Path):
    split = dataset_manifest.read(whole).split("train")
    assert [shard.count for shard in split.shards] == [6, 6, 5, 6, 6]
    source = open_split(whole, split="train")
    want = [samples.record(i) for i in range(30) if i != 12]
    assert [source[i] for i in range(29)] == want
    facts = json.loads((whole / "report.json").read_text())["train"]
    assert (facts["read"], facts["named"]) == (30, {"not an image": ["k0012"]})
    assert not (whole / ".prepare").exists()


def test_planning_reads_no_archive(tars: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_plans.FilePlan, "__init__", None)
    config = ImportConfig(shard_mb=0.012)
    plan = shard_tasks.split_tasks(FileSpec((str(tars),)), split="train", config=config)
    assert [task.spec for task in plan.tasks] == [
        FileSpec((str(tars / f"{i:05d}.tar"),), part=True) for i in range(5)
    ]
    assert plan.others == {".json": 5}
    config = ImportConfig(shard_mb=(tars / "00000.tar").stat().st_size * 2.5e-6)
    plan = shard_tasks.split_tasks(FileSpec((str(tars),)), split="train", config=config)
    assert [len(getattr(task.spec, "inputs", ())) for task in plan.tasks] == [2, 2, 1]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_merge_to_the_same_data_set(
    tars: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path, parts: int
):
    for part in reversed(range(parts)):
        run(tars / "{00000..00004}.tar", f"--out={tmp_path}", f"--shard={part}/{parts}", *BY_FILE)
    assert not (tmp_path / "manifest.json").exists()
    run("merge", f"--out={tmp_path}")
    assert content(tmp_path) == content(whole)


def test_a_merge_names_the_missing_shards(tars: pathlib.Path, tmp_path: pathlib.Path):
    run(tars, f"--out={tmp_path}", "--shard=1/2", *BY_FILE)
    with pytest.raises(
        UserError, match=r"3 of the 5 shards of split 'train' in .* are missing \(train-00000-of"
    ):
        run("merge", f"--out={tmp_path}")
    run(tars, f"--out={tmp_path}", "--shard=0/2", *BY_FILE)
    run("merge", f"--out={tmp_path}")
    assert len(open_split(tmp_path, split="train")) == 29


def test_nothing_to_merge(whole: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="holds no shards to merge; run `prepare"):
        run("merge", f"--out={whole}")
    with pytest.raises(UserError, match="is not a folder; give the one that the parts wrote to"):
        run("merge", f"--out={tmp_path}/nowhere")


def test_a_finished_shard_is_not_written_again(
    tars: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    run(tars, f"--out={tmp_path}", "--shard=0/1", *BY_FILE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.array_record")}
    (tmp_path / "train-00003-of-00005.array_record").unlink()
    archives = []
    init = import_plans.FilePlan.__init__
    monkeypatch.setattr(
        import_plans.FilePlan,
        "__init__",
        lambda plan, inputs, **options: archives.append(inputs) or init(plan, inputs, **options),
    )
    run(tars, f"--out={tmp_path}", *BY_FILE)
    assert archives == [(str(tars / "00003.tar"),)]
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.array_record")}
    assert [path.name for path in after if after[path] != before[path]] == [
        "train-00003-of-00005.array_record"
    ]


def test_parts_of_other_options_are_not_mixed(tars: pathlib.Path, tmp_path: pathlib.Path):
    run(tars, f"--out={tmp_path}", "--shard=0/2", *BY_FILE)
    with pytest.raises(UserError, match="unfinished split 'train' of other inputs or options"):
        run(tars, f"--out={tmp_path}", "--shard=1/2", "--max-side=8", *BY_FILE)


def test_the_same_archives_elsewhere_are_accepted_and_edited_ones_are_not(
    samples, tmp_path: pathlib.Path
):
    folder = tmp_path / "in"
    for i in range(2):
        samples.write_tar(folder / f"{i}.tar", samples.pairs(range(2 * i, 2 * i + 2)))
    run(folder, f"--out={tmp_path}/out", *BY_FILE)
    folder.rename(tmp_path / "moved")
    before = content(tmp_path / "out")
    run(tmp_path / "moved", f"--out={tmp_path}/out", *BY_FILE)
    assert shards(tmp_path / "out") == {k: v for k, v in before.items() if "array_record" in k}
    path = tmp_path / "moved" / "1.tar"
    path.write_bytes(path.read_bytes().replace(b"picture number 3", b"drawing number 3"))
    with pytest.raises(UserError, match=r"have changed since \(an image or caption of k0002"):
        run(tmp_path / "moved", f"--out={tmp_path}/out", *BY_FILE)


def test_two_preparations_of_one_folder(tars: pathlib.Path, tmp_path: pathlib.Path):
    with locked(Folder(tmp_path), part="0-of-2"):
        with locked(Folder(tmp_path), part="1-of-2"):
            pass
        for arguments in (["--shard=0/2"], []):
            with pytest.raises(UserError, match="another prepare is writing to"):
                run(tars, f"--out={tmp_path}", *arguments, *BY_FILE)


def test_a_damaged_archive_is_one_bad_record(samples, tmp_path: pathlib.Path):
    for i in range(3):
        samples.write_tar(tmp_path / "in" / f"{i}.tar", samples.pairs(range(4 * i, 4 * i + 4)))
    (tmp_path / "in" / "1.tar").write_bytes(b"no tar" * 1000)
    run(tmp_path / "in", f"--out={tmp_path}/out", *BY_FILE)
    split = dataset_manifest.read(tmp_path / "out").split("train")
    assert [shard.count for shard in split.shards] == [4, 0, 4]
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert facts["skipped"] == {"input that cannot be read": 1}


def test_too_many_bad_records(samples, tmp_path: pathlib.Path):
    for i in range(3):
        members = samples.pairs(range(4 * i, 4 * i + 4))
        members[0::4] = [(name, b"no image") for name, _ in members[0::4]]
        samples.write_tar(tmp_path / "in" / f"{i}.tar", members)
    with pytest.raises(UserError, match=r"stopped: 2 of the first 4 .*--max-bad=0.1 of 12"):
        run(tmp_path / "in", f"--out={tmp_path}/out", *BY_FILE[:2], "--max-bad=0.1")


# Duplicates.


def jpeg(number: int, side: int = 128, quality: int = 95) -> bytes:
    """An image with the spectrum of photographs, in some size and quality."""
    generator = np.random.default_rng(number)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.rfftfreq(128), indexing="ij"))
    frequency[0, 0] = 1
    phases = np.exp(2j * np.pi * generator.random(frequency.shape))
    grey = np.fft.irfft2(phases / frequency**1.5, s=(128, 128))
    grey = np.clip(128 + 50 * (grey - grey.mean()) / grey.std(), 0, 255)
    image = Image.fromarray(np.uint8(grey)).convert("RGB").resize((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_perceptual_hashes_survive_another_size_and_quality():
    def hashes(**options) -> list[int]:
        return [duplicates.image_hash(jpeg(i, **options), "perceptual") for i in range(40)]

    originals = hashes()
    assert len(set(originals)) == 40
    copies = hashes(side=256, quality=80)
    assert sum(a == b for a, b in zip(originals, copies, strict=True)) >= 32
    distances = [bin(a ^ b).count("1") for a, b in zip(originals, copies, strict=True)]
    assert max(distances) <= 4  # of 63 bits; unrelated images differ in half of them


def test_images_of_one_colour_are_distinguished(samples):
    hashes = {duplicates.image_hash(samples.png(i), "perceptual") for i in range(9)}
    assert len(hashes) == 9


@pytest.fixture
def copies(samples, tmp_path: pathlib.Path) -> pathlib.Path:
    """Three tars with equal keys, equal images, and images that look alike."""
    images = [[jpeg(0), jpeg(1)], [jpeg(2), jpeg(0)], [jpeg(3), jpeg(1, 192)]]
    keys = [["a", "b"], ["c", "d"], ["a", "e"]]
    for i in range(3):
        members = []
        for key, image in zip(keys[i], images[i], strict=True):
            members += [(f"{key}.jpg", image), (f"{key}.txt", f"caption {key} {i}".encode())]
        samples.write_tar(tmp_path / "in" / f"{i}.tar", members)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("dedup", "remaining"), [("none", "a b c d e"), ("exact", "a b c e"), ("perceptual", "a b c")]
)
def test_of_duplicates_in_other_archives_the_first_is_kept(
    copies: pathlib.Path, tmp_path: pathlib.Path, dedup: str, remaining: str
):
    run(copies, f"--out={tmp_path}/out", f"--dedup={dedup}", *BY_FILE)
    source = open_split(tmp_path / "out", split="train")
    records = [source[i] for i in range(len(source))]
    assert [record["key"] for record in records] == remaining.split()
    assert records[0]["caption"] == "caption a 0"
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert facts["named"]["duplicate key"] == ["a"]
    images = {"none": [], "exact": ["d"], "perceptual": ["d", "e"]}[dedup]
    assert facts["named"].get("duplicate image", []) == images
    assert facts["read"] == 6


def test_duplicates_are_looked_for_in_one_archive_too(copies: pathlib.Path, tmp_path: pathlib.Path):
    run(copies, f"--out={tmp_path}/out", "--dedup=exact", "--workers=0", "--max-bad=0.3")
    split = dataset_manifest.read(tmp_path / "out").split("train")
    assert [shard.count for shard in split.shards] == [4]


def test_hashes_are_compared_in_parts_of_their_range(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    values = np.random.default_rng(0).integers(1, 2**63, 1000, dtype=np.uint64)
    values[700:] = values[:300]
    files = [tmp_path / f"{i}.npy" for i in range(4)]
    for i, file in enumerate(files):
        part = values[250 * i : 250 * i + 250]
        duplicates.write_hashes(file, np.stack([part, 0 * part], axis=1))
    whole = sorted(merging._repeated(files, 0, {}))
    monkeypatch.setattr(merging, "_AT_ONCE", 100)
    assert sorted(merging._repeated(files, 0, {})) == whole
    assert whole == [(row // 250, row % 250) for row in range(700, 1000)]
    assert list(merging._repeated(files, 1, {})) == []


def test_an_interrupted_removal_is_made_good(
    copies: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = (copies, "--dedup=exact", *BY_FILE)
    run(*arguments, f"--out={tmp_path}/whole")
    write, calls = duplicates.write_hashes, []

    def fail(path, hashes):
        calls.append(path)
        if len(calls) == 4:  # three shards are written; one is written again
            raise KeyboardInterrupt
        write(path, hashes)

    monkeypatch.setattr(duplicates, "write_hashes", fail)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, f"--out={tmp_path}/out")
    monkeypatch.setattr(duplicates, "write_hashes", write)
    run(*arguments, f"--out={tmp_path}/out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_columns_of_a_condition_are_stored_with_the_record(samples, tmp_path: pathlib.Path):
    members = samples.pairs(range(2))
    facts = [{"similarity": 0.3, "url": "u"}, {"similarity": 0.2}]
    members += [(f"k{i:04d}.json", json.dumps(facts[i]).encode()) for i in range(2)]
    samples.write_tar(tmp_path / "a.tar", members)
    run(tmp_path / "a.tar", f"--out={tmp_path}/out", "--where=abs(similarity) > 0.25")
    source = open_split(tmp_path / "out", split="train")
    assert [source[i] for i in range(len(source))] == [
        {**samples.record(0), "facts": {"similarity": 0.3}}
    ]


# Indices of tars.


def test_an_index_gives_the_records_that_are_prepared(
    tars: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
):
    run(tars, f"--out={tmp_path}/out", "--index", *BY_FILE)
    copied, indexed = (dataset_manifest.read(p).split("train") for p in (whole, tmp_path / "out"))
    assert indexed.hash == copied.hash
    splits = [open_split(p, split="train") for p in (whole, tmp_path / "out")]
    assert [splits[1][i] for i in range(29)] == [splits[0][i] for i in range(29)]
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar_index")]
    assert len(sizes) == 5
    lines = [
        path.read_bytes().partition(b"\n")[0] for path in (tmp_path / "out").glob("*.tar_index")
    ]
    assert sum(sizes) - sum(len(line) + 1 for line in lines) == 24 * 29


def test_training_from_tars_reads_the_same_batches(
    tars: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
):
    """From an index that was written for a relative pattern, in another working directory."""
    monkeypatch.chdir(tars)
    pattern, folder = "{00000..00004}.tar", tmp_path / "index"
    with pytest.raises(
        UserError, match=r"is not an index of tars; write one with `python .* --index"
    ):
        sources.open_dataset(f"tars:{pattern}")
    run(pattern, f"--out={folder}", "--index", *BY_FILE)
    monkeypatch.chdir(tmp_path)
    example = ExampleConfig(fields=("image", "key", "caption"), image_size=8)
    config = LoaderConfig(batch_size=6, workers=2)
    loaders = []
    for path in (str(whole), f"tars:{folder}"):
        source = sources.open_source(path, split="train")
        parts = [
            make_loader(source, example=example, config=config, process_index=i, process_count=2)
            for i in range(2)
        ]
        for part in parts[1:]:
            part.set_state({**part.get_state(), "batches": 0})
        loaders.append(parts)
    for _ in range(7):  # beyond the end of an epoch
        for parts in zip(*loaders, strict=True):
            first, *others = [next(part) for part in parts]
            for other in others:
                np.testing.assert_array_equal(other["image"], first["image"])
                assert list(other["key"]) == list(first["key"])
    for parts in loaders:
        for part in parts:
            part.close()


def test_indexed_json_captions_and_columns(samples, tmp_path: pathlib.Path):
    members = []
    for i in range(4):
        facts = {"caption": [f"one {i}", f"two {i} "], "similarity": i / 10}
        members += [
            (f"deep/k{i}.png", samples.png(i)),
            (f"deep/k{i}.json", json.dumps(facts).encode()),
        ]
    samples.write_tar(tmp_path / "a.tar", members)
    options = ("--where=similarity > 0.15", "--prefix-keys", "--workers=0")
    for out, index in (("copied", ()), ("indexed", ("--index",))):
        run(tmp_path / "a.tar", f"--out={tmp_path}/{out}", *options, *index)
    one, other = (open_split(tmp_path / out, split="train") for out in ("copied", "indexed"))
    assert [other[i] for i in range(2)] == [one[i] for i in range(2)]
    assert other[0]["captions"] == ["one 2", "two 2"]
    assert (other[0]["key"], other[0]["facts"]) == ("a.tar/deep/k2", {"similarity": 0.2})


def test_samples_that_an_index_cannot_hold(samples, tmp_path: pathlib.Path):
    members = samples.pairs(range(4))
    members = [*members[:4], members[4], members[6], members[5], members[7]]  # 2 and 3 interleaved
    members += [("x.png", samples.png(7)), ("x.cls", b"a_fox")]
    members += [("y.png", samples.png(5)), ("y.PNG", samples.png(6)), ("y.txt", b"two images")]
    long = "long" * 40  # its name has a header of its own
    members += [(f"{long}.png", samples.png(8)), (f"{long}.txt", b"a long name")]
    samples.write_tar(tmp_path / "a.tar", members)
    run(tmp_path / "a.tar", f"--out={tmp_path}/out", "--index", "--workers=0", "--max-bad=0.9")
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert facts["named"] == {
        "members that are not side by side": ["k0002", "k0003"],
        "a form that --index cannot read": ["x", "y"],
        "duplicate key": ["y"],
    }
    source = open_split(tmp_path / "out", split="train")
    assert [source[i]["key"] for i in range(3)] == ["k0000", "k0001", long]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tar: tar.unlink(), "a.tar, which .* lists, cannot be read: .*No such file"),
        (lambda tar: tar.write_bytes(tar.read_bytes() + b"x"), "bytes, 10240 when it was indexed"),
        (
            lambda tar: tar.write_bytes(tar.read_bytes().replace(b"k0000.txt", b"other.txt")),
            "a.tar has changed since .* was written; prepare the index again",
        ),
        (
            lambda tar: tar.write_bytes(tar.read_bytes().replace(b"IEND", b"IENX")),
            "a.tar has changed since .* was written; prepare the index again",
        ),
    ],
)
def test_tars_that_change_under_their_index(samples, tmp_path: pathlib.Path, change, message):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    run(tmp_path / "a.tar", f"--out={tmp_path}/out", "--index", "--workers=0")
    tar_index._check_size.cache_clear()
    change(tmp_path / "a.tar")
    with pytest.raises(UserError, match=message):
        open_split(tmp_path / "out", split="train")[0]
    index = tmp_path / "out" / "train-00000-of-00001.tar_index"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not a readable index of tars"):
        open_split(tmp_path / "out", split="train")


def test_duplicates_are_left_out_of_an_index(copies: pathlib.Path, tmp_path: pathlib.Path):
    run(copies, f"--out={tmp_path}/out", "--dedup=exact", "--index", *BY_FILE)
    source = open_split(tmp_path / "out", split="train")
    assert [source[i]["key"] for i in range(len(source))] == ["a", "b", "c", "e"]


# Engines.


@pytest.mark.slow
def test_processes_write_the_same_shards(
    tars: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
):
    run(tars, f"--out={tmp_path}/out", *BY_FILE, "--workers=2")
    assert shards(tmp_path / "out") == shards(whole)


def _fails_on_two(number: int) -> int:
    if number == 2:
        raise UserError("two is not allowed; give another.")
    return number


@pytest.mark.nightly
def test_an_error_in_a_process_is_one_line():
    results = engines.run(_fails_on_two, [1, 2], engines.Engine(processes=2))
    with pytest.raises(UserError, match=r"^two is not allowed; give another\.$"):
        list(results)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("engine", "module", "options"),
    [
        ("ray", "ray", ()),
        (
            "beam",
            "apache_beam",
            (
                "--beam-option=--runner=DirectRunner",
                "--beam-option=--direct_num_workers=2",
                "--beam-option=--direct_running_mode=multi_processing",
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_engines_write_the_same_shards(
    tars: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path, engine, module, options
):
    pytest.importorskip(module, reason=f"{module} is not installed")
    arguments = (tars, f"--out={tmp_path}/out", *BY_FILE, f"--engine={engine}", *options)
    run(*arguments)
    assert shards(tmp_path / "out") == shards(whole)
    beam_options = [option.removeprefix("--beam-option=") for option in options[:1]]
    results = engines.run(_fails_on_two, [1, 2], engines.parse(engine, options=beam_options))
    with pytest.raises(UserError, match=r"^two is not allowed; give another\.$"):
        list(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine=spark"], "unknown --engine 'spark'. Known: beam, local, ray"),
        (["--engine=beam:x"], "--engine=beam:x has an address; only ray takes one"),
        (["--beam-option=--x"], "--beam-option is for --engine=beam; the engine is local"),
        (["--shard=3/3"], "--shard is '3/3'; give I/N with 0 <= I < N"),
        (["--shard=1"], "--shard is '1'; give I/N"),
        (["--dedup=fuzzy"], "fuzzy"),
        (["--tokenizer-sample=0"], "--tokenizer-sample is 0"),
        (["--vocab-size=-1"], "--vocab-size is -1; it must lie in [514, 1000000]"),
        (["--index", "--max-side=8"], "--index leaves images in their tars, as they are"),
        (["--shard-mb=0"], "--shard-mb is 0.0"),
    ],
)
def test_mistakes_are_named(tars: pathlib.Path, tmp_path: pathlib.Path, arguments, message):
    with pytest.raises(UserError) as error:
        run(tars, f"--out={tmp_path}", *arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tar.gz", "--index reads tars that are not compressed; .*a.tar.gz holds other files"),
        ("shapes:train=3", "--index is for tars; split 'train' has other inputs"),
    ],
)
def test_inputs_without_an_index(samples, tmp_path: pathlib.Path, name: str, message: str):
    samples.write_tar(tmp_path / "a.tar.gz", samples.pairs(range(2)), "w:gz")
    place = tmp_path / name if name.startswith("a") else name
    with pytest.raises(UserError, match=message):
        run(place, f"--out={tmp_path}/out", "--index")


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package ray; pip install 'unclip_jax\[ray\]'"):
        engines.parse("ray")


def test_the_tokenizer_reads_a_sample(tars: pathlib.Path, tmp_path: pathlib.Path, monkeypatch):
    from unclip_jax.preparation import pipeline

    captions = []
    train = pipeline.caption_tokenizer.train
    monkeypatch.setattr(
        pipeline.caption_tokenizer,
        "train",
        lambda texts, **options: train(captions.extend(texts) or captions, **options),
    )
    run(tars, f"--out={tmp_path}", "--tokenizer-sample=3", *BY_FILE)
    assert captions == [f"picture number {i}" for i in (0, 9, 20)]
