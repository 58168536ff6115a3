"""Tars and folders as users make them, and what is wrong with some."""

import gzip
import io
import json
import pathlib
import tarfile

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.preparation.import_plans import FilePlan, WorldPlan, world_counts
from unclip_jax.preparation.items import Blob, FileReader, Plan, RawExample, Skip
from unclip_jax.preparation.plan_specs import make_specs


def file_plan(*inputs: pathlib.Path, **options) -> FilePlan:
    return FilePlan([str(path) for path in inputs], **options)


def outcomes(plan: Plan) -> dict[str, RawExample | str]:
    """Everything in a plan: what was read, or why not."""
    result: dict[str, RawExample | str] = {}
    for index in range(len(plan)):
        try:
            result[plan.key(index)] = plan.read(index)
        except Skip as skip:
            result[plan.key(index)] = skip.reason
    plan.close()
    return result


def captions(plan: Plan) -> list[tuple[str, bytes | str]]:
    """Key and caption of everything in a plan, or why there is none."""
    result = []
    for index in range(len(plan)):
        try:
            result.append((plan.key(index), plan.read(index).caption))
        except Skip as skip:
            result.append((plan.key(index), skip.reason))
    plan.close()
    return result


def write(path: pathlib.Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# Tars.


@pytest.mark.parametrize(
    ("ending", "mode"),
    [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")],
)
def test_tars_are_read_whatever_packs_them(samples, tmp_path: pathlib.Path, ending: str, mode: str):
    samples.write_tar(tmp_path / f"a.{ending}", samples.pairs(range(5)), mode)
    result = outcomes(file_plan(tmp_path / f"a.{ending}"))
    want = {f"k{i:04d}": (samples.png(i), f"picture number {i}".encode()) for i in range(5)}
    assert {key: raw[:2] for key, raw in result.items()} == want


def test_members_of_a_sample_may_lie_apart_and_have_paths(samples, tmp_path: pathlib.Path):
    members = [("a/1.png", samples.png(1)), ("b/1.PNG", samples.png(2))]
    members += [("a/1.txt", b"one"), ("b/1.txt", b"two"), ("a/1.cls", b"7")]
    samples.write_tar(tmp_path / "x.tar", members)
    result = outcomes(file_plan(tmp_path / "x.tar"))
    assert result == {
        "a/1": RawExample(samples.png(1), b"one"),
        "b/1": RawExample(samples.png(2), b"two"),
    }


def test_captions_in_json_as_img2dataset_writes_them(samples, tmp_path: pathlib.Path):
    facts = json.dumps({"caption": "a fox", "alt": "ein Fuchs"}).encode()
    samples.write_tar(tmp_path / "x.tar", [("1.png", samples.png(1)), ("1.json", facts)])
    assert outcomes(file_plan(tmp_path / "x.tar"))["1"] == RawExample(samples.png(1), facts, "json")
    german = outcomes(file_plan(tmp_path / "x.tar", caption_field="alt"))["1"]
    assert isinstance(german, RawExample) and german.field == "alt"


def test_what_is_wrong_in_a_tar_is_distinguished(samples, tmp_path: pathlib.Path):
    members = [
        *(("good.png", samples.png(1)), ("good.txt", b"good")),
        ("no_caption.png", samples.png(1)),
        ("no_image.txt", b"words"),
        *(("good.png", samples.png(2)), ("._hidden.png", b"fork"), ("README", b"no suffix")),
        ("only.cls", b"3"),
    ]
    samples.write_tar(tmp_path / "x.tar", members)
    assert captions(file_plan(tmp_path / "x.tar")) == [
        ("good", b"good"),
        ("no_caption", "no caption"),
        ("no_image", "no image"),
        ("only", "no image"),
        ("good", "duplicate key"),
    ]


def test_a_cut_tar_gives_what_it_holds(samples, tmp_path: pathlib.Path):
    path = tmp_path / "x.tar"
    samples.write_tar(path, samples.pairs(range(5)))
    with tarfile.open(path) as tar:
        last = tar.getmember("k0003.png").offset_data
    path.write_bytes(path.read_bytes()[: last + 10])
    result = outcomes(file_plan(path))
    assert [isinstance(result[f"k{i:04d}"], RawExample) for i in range(3)] == [True] * 3
    assert "truncated tar" in result.values()


def test_a_cut_compressed_tar_gives_what_it_holds(samples, tmp_path: pathlib.Path):
    path = tmp_path / "x.tar.gz"
    samples.write_tar(tmp_path / "x.tar", samples.pairs(range(400)))
    packed = gzip.compress((tmp_path / "x.tar").read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    result = list(outcomes(file_plan(path)).values())
    assert sum(isinstance(each, RawExample) for each in result) > 50
    assert "truncated tar" in result


def test_members_cannot_reach_outside(samples, tmp_path: pathlib.Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(samples.png(9))
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"link{ord(kind)}.png")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        for name, data in (("../../up.png", samples.png(1)), ("../../up.txt", b"up")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    result = outcomes(file_plan(path))
    assert result.pop("../../up") == RawExample(
        samples.png(1), b"up"
    )  # a name, never a path to write to
    assert list(result.values()) == ["no file but a link or device"] * 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_too_great_is_not_read(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "x.tar", [("1.png", samples.png(1)), ("1.txt", b"a" * 2**21)])
    assert outcomes(file_plan(tmp_path / "x.tar")) == {"1": "too many bytes"}


def test_what_is_no_tar(tmp_path: pathlib.Path):
    write(tmp_path / "x.tar", b"<html>404 Not Found</html>" * 100)
    with pytest.raises(UserError, match="x.tar is not a tar that can be read"):
        file_plan(tmp_path / "x.tar")


# Folders.


def test_text_files_beside_images(samples, tmp_path: pathlib.Path):
    write(tmp_path / "b.png", samples.png(2))
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "sub" / "a.JPG", samples.png(1))
    write(tmp_path / "sub" / "a.txt", "one")
    write(tmp_path / "c.webp", samples.png(3))
    write(tmp_path / ".hidden.png", samples.png(3))
    result = outcomes(file_plan(tmp_path))
    assert result == {
        "b": RawExample(samples.png(2), b"two"),
        "c": "no caption",
        "sub/a": RawExample(samples.png(1), b"one"),
    }


def test_metadata_of_hugging_face(samples, tmp_path: pathlib.Path):
    lines = [{"file_name": f"img/{i}.png", "text": f"picture {i} ä"} for i in range(3)]
    for i in range(4):
        write(tmp_path / "train" / "img" / f"{i}.png", samples.png(i))
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    write(tmp_path / "train" / "metadata.jsonl", text + "\n\n")
    want = {f"train/img/{i}": RawExample(samples.png(i), (f"picture {i} ä",)) for i in range(3)}
    assert outcomes(file_plan(tmp_path)) == {**want, "train/img/3": "no caption"}
    alone = outcomes(file_plan(tmp_path / "train" / "metadata.jsonl"))
    assert list(alone) == ["img/0", "img/1", "img/2", "img/3"]


def test_metadata_fields(samples, tmp_path: pathlib.Path):
    for i in range(3):
        write(tmp_path / f"{i}.png", samples.png(i))
    lines = [
        {"file_name": "0.png", "caption": "usual", "de": "eins"},
        {"file_name": "1.png", "text": "text wins", "caption": "no"},
        {"file_name": "2.png", "text": 5},
    ]
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    result = outcomes(file_plan(tmp_path))
    assert [each[1] if isinstance(each, RawExample) else each for each in result.values()] == [
        ("usual",),
        ("text wins",),
        "no caption",
    ]
    german = outcomes(file_plan(tmp_path, caption_field="de"))
    assert german["0"] == RawExample(samples.png(0), ("eins",))
    assert german["1"] == "no caption"


def test_what_is_wrong_in_metadata_is_distinguished(samples, tmp_path: pathlib.Path):
    write(tmp_path / "data" / "0.png", samples.png(0))
    write(tmp_path / "secret.png", samples.png(1))
    lines = [
        b'{"file_name": "0.png", "text": "good"}',
        b'{"file_name": "0.png", "text": "again"}',
        b'{"file_name": "gone.png", "text": "x"}',
        b'{"file_name": "../secret.png", "text": "x"}',
        f'{{"file_name": "{tmp_path}/secret.png", "text": "x"}}'.encode(),
        b'{"file_name": "1.png", "text": ',
        b'["a list"]',
        b'{"text": "of nothing"}',
        b'{"file_name": "\xff.png"}',
    ]
    write(tmp_path / "data" / "metadata.jsonl", b"\n".join(lines))
    plan = file_plan(tmp_path / "data")
    assert [caption for _, caption in captions(plan)] == [
        ("good", "again"),
        "missing file",
        *["path outside the folder"] * 2,
        *["bad metadata line"] * 3,
        "bad UTF-8",
    ]
    assert plan.key(7) == "metadata.jsonl:9"


# Inputs.


def test_globs_and_single_images(samples, tmp_path: pathlib.Path):
    for i in range(3):
        write(tmp_path / f"{i}.png", samples.png(i))
        write(tmp_path / f"{i}.txt", f"{i}")
    everything = FilePlan([f"{tmp_path}/*", f"{tmp_path}/1.png"])
    assert [everything.key(i) for i in range(len(everything))] == ["0", "1", "2"]


def test_an_input_named_twice_is_read_once(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    (tmp_path / "link.tar").symlink_to(tmp_path / "a.tar")
    plan = FilePlan([f"{tmp_path}/a.tar", f"{tmp_path}/*.tar"])
    assert len(plan) == 2


def test_tars_that_reuse_keys(samples, tmp_path: pathlib.Path):
    for name in ("a.tar", "b.tar"):
        samples.write_tar(tmp_path / name, samples.pairs(range(2)))
    result = outcomes(FilePlan([f"{tmp_path}/*.tar"]))
    assert list(result.values()).count("duplicate key") == 2
    result = outcomes(FilePlan([f"{tmp_path}/*.tar"], prefix=True))
    assert list(result) == ["a.tar/k0000", "a.tar/k0001", "b.tar/k0000", "b.tar/k0001"]


def test_splits_are_named_before_inputs(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    samples.write_tar(tmp_path / "b=c.tar", samples.pairs(range(5)))
    plans = make_specs([f"val={tmp_path}/a.tar", f"{tmp_path}/b=c.tar"], split="train")
    assert {name: len(spec.open()) for name, spec in plans.items()} == {"val": 2, "train": 5}


def test_fingerprints_tell_inputs_apart(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    before = file_plan(tmp_path / "a.tar").fingerprint
    assert file_plan(tmp_path / "a.tar").fingerprint == before
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(3)))
    assert file_plan(tmp_path / "a.tar").fingerprint != before


def test_missing_input(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        file_plan(tmp_path / "nowhere")


def test_glob_without_matches(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"input .*\*.tar matches no file; check the pattern"):
        file_plan(tmp_path / "*.tar")


def test_input_of_an_unknown_kind(tmp_path: pathlib.Path):
    write(tmp_path / "data.csv", "a,b")
    with pytest.raises(UserError, match="data.csv is neither a folder nor a tar or Parquet"):
        file_plan(tmp_path / "data.csv")


def test_folder_without_images(tmp_path: pathlib.Path):
    write(tmp_path / "notes.txt", "words")
    with pytest.raises(UserError, match=r"no images in .*1 .txt \(notes.txt\).*; expected a"):
        file_plan(tmp_path)


def test_a_file_that_changes_under_us(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    plan = file_plan(tmp_path / "a.tar")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(Skip, match="missing file"):
        plan.read(0)


def test_readers_close_their_file(samples, tmp_path: pathlib.Path):
    write(tmp_path / "1.png", samples.png(1))
    reader = FileReader()
    blob = file_plan(tmp_path)._items[0].image
    assert isinstance(blob, Blob)
    assert reader.read(blob, limit=10**6) == samples.png(1)
    reader.close()


# The procedural world.


def test_shapes_by_split():
    assert world_counts("shapes:train=30,validation=2") == {"train": 30, "validation": 2}
    assert world_counts("shapes") == {"train": 30_000, "validation": 1_000, "compositional": 1_000}
    assert world_counts("./shapes") is None
    with pytest.raises(UserError, match="not of the form shapes:train=30000"):
        world_counts("shapes:train=x")
    with pytest.raises(UserError, match="train of .* is 0"):
        world_counts("shapes:train=0")


def test_shapes_are_the_worlds_scenes_from_anywhere():
    plan = WorldPlan("shapes", "validation", count=70, image_size=32, seed=5)
    in_order = [plan.read(i) for i in range(70)]
    assert [plan.read(i) for i in (66, 67, 3)] == [in_order[i] for i in (66, 67, 3)]
    assert image_codec.decode(in_order[0].image).shape == (32, 32, 3)
    scene = json.loads(in_order[0].scene)
    assert in_order[0].caption in scene["captions"]
    other = WorldPlan("shapes", "validation", count=70, image_size=32, seed=6)
    assert other.read(0) != in_order[0]
    assert other.fingerprint != plan.fingerprint


def test_portraits_by_split():
    assert world_counts("portraits:train=30") == {"train": 30}
    assert world_counts("portraits") == world_counts("shapes")
    with pytest.raises(UserError, match="not of the form portraits:train=30000"):
        world_counts("portraits:30")


def test_plans_of_the_worlds_differ():
    plans = [
        WorldPlan(world, "train", count=2, image_size=32, seed=0)
        for world in ("shapes", "portraits")
    ]
    assert plans[0].fingerprint != plans[1].fingerprint
    assert [plan.sources for plan in plans] == [("shapes:train=2",), ("portraits:train=2",)]
    assert "hair_colour" in json.loads(plans[1].read(1).scene)


def test_a_split_of_two_worlds():
    plans = make_specs(["shapes:train=3", "portraits:validation=2"], split="train")
    assert [len(plans[name].open()) for name in ("train", "validation")] == [3, 2]
    with pytest.raises(UserError, match="split 'train' would mix two worlds; give each its own"):
        make_specs(["shapes:train=3", "portraits:train=2"], split="train")


def test_unknown_split_of_shapes():
    with pytest.raises(UserError, match="unknown split 'trian'"):
        make_specs(["shapes:trian=3"], split="train")["trian"].open()


def test_a_split_of_shapes_and_files(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    with pytest.raises(UserError, match="'train' would mix shapes and files"):
        make_specs(["shapes:train=3", f"{tmp_path}/a.tar"], split="train")


def test_split_names_that_cannot_be_files(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(2)))
    with pytest.raises(UserError, match="split 'my/train' is not a valid name"):
        make_specs([f"{tmp_path}/a.tar"], split="my/train")
