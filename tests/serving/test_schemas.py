"""Requests over HTTP, without any models: values, limits, and the schemas."""

import dataclasses
import io

import pytest
from PIL import Image

from tests.serving.conftest import png
from unclip_jax.cli import request_command, request_flags
from unclip_jax.core.checks import UserError
from unclip_jax.engine import request_fields
from unclip_jax.engine.requests import REQUESTS
from unclip_jax.serving import schemas
from unclip_jax.serving.schemas import RequestLimits

IMAGE = png()
OTHER = png(seed=1)
OF_SERVER = {"probe-pca": {"embeddings": "x"}}
LEAST = {
    "text": {"captions": ["--out=x"]},
    "reconstruct": {"images": [IMAGE]},
    "variations": {"image": IMAGE},
    "interpolate": {"images": [IMAGE, IMAGE]},
    "text-diff": {"image": IMAGE, "target": "-a blue circle"},
    "blend": {"texts": ["a", "-b"]},
    "probe-pca": {"images": [IMAGE]},
    "upscale": {"images": [IMAGE]},
    "inpaint": {"image": IMAGE, "mask": png()},
    "complete": {"image": IMAGE, "caption": "-a star"},
}
# A value for every type of field, and for fields that must agree with others.
VALUES = {"integer": 2, "number": 1.0, "boolean": False, "text": "-x", "image": IMAGE}
AGREEING = {
    "guidance_schedule": "rising",
    "guidance": 2.0,
    "best_of": 2,
    "inversion": "ddpm",
    "details": "inverted",
    "noise": "fresh",
    "clip_scale": 0.0,  # one guide at most
    "paste": True,
}


def read(command, values, **options):
    return schemas.read(command, values, of_server=OF_SERVER.get(command), **options)


def full(command):
    """A value for every field of a request."""
    values = {}
    for name, field in schemas.served_fields(command).items():
        value = field.option.choices[0] if field.option.choices else VALUES[field.scalar]
        value = AGREEING.get(name, value)
        if field.option.choices and value not in field.option.choices:
            value = field.option.choices[0]
        values[name] = [value] * 2 if field.many else value
    return values


@pytest.mark.parametrize("command", REQUESTS)
def test_flags_and_json_give_the_same_request(command, tmp_path):
    for index, values in enumerate((LEAST[command], full(command))):
        by_json = read(command, values, limits=RequestLimits(images=1000)).request
        by_flags = parse(command, values, tmp_path / str(index))
        assert getattr(by_json, "weights", None) == getattr(by_flags, "weights", None)
        for name in request_fields.fields(by_json).keys() - {"image_weights", "text_weights"}:
            one, other = (comparable(getattr(r, name)) for r in (by_json, by_flags))
            assert one == other, name
            assert name not in values or one not in (None, ()), name


def parse(command, values, folder):
    """The command line's request with the same values."""
    folder.mkdir()
    arguments, positional = [], []
    for name, value in {**values, **OF_SERVER.get(command, {})}.items():
        field = request_fields.fields(REQUESTS[command])[name]
        items = value if field.many else [value]
        if field.scalar == "image":
            paths = [folder / f"{name}{index}.png" for index in range(len(items))]
            for path, item in zip(paths, items, strict=True):
                path.write_bytes(item)
            items = [str(path) for path in paths]
        flag = f"--{(field.option.flag or name).replace('_', '-')}"
        if field.scalar == "boolean":
            arguments += [f"--no-{name}"] * (field.default and not value)
            arguments += [flag] * (value and not field.default)
        elif field.option.positional:
            positional += items
        elif field.option.weights:
            weights = values.get(field.option.weights, [1] * len(items))
            for item, weight in zip(items, weights, strict=True):
                word = f" {item}" if item.startswith("-") else item
                arguments += [flag, word, str(weight)]
        elif name in ("image_weights", "text_weights"):
            continue
        else:
            arguments += [flag, *map(str, items)] if field.many else [f"{flag}={value}"]
    positional = ["--", *positional] if positional else []
    args = request_command.parser(command).parse_args([*arguments, *positional])
    return request_fields.build(
        REQUESTS[command], request_flags.values(args, REQUESTS[command]), name=command
    )


def comparable(value):
    """Images by their digests; captions without the space that lets a flag take a dash."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(comparable, value)) or None
    if hasattr(value, "sha256"):
        return value.sha256
    return value.strip() if isinstance(value, str) else value


def test_uploads_are_files_of_the_archive():
    request, files = read("blend", {"images": [IMAGE, OTHER], "texts": ["b"], "noise": "fresh"})
    assert files == {"images-0.png": IMAGE, "images-1.png": OTHER}
    assert request_fields.plain(request)["images"] == ["images-0.png", "images-1.png"]


def test_the_description_is_complete():
    description = schemas.describe(RequestLimits())
    assert description.keys() == LEAST.keys()
    assert description["text-diff"]["fields"]["theta"]["range"] == [0, 1]
    assert description["interpolate"]["fields"]["noise"]["choices"] == ["inverted", "shared"]
    assert description["variations"]["fields"]["num"]["default"] == 3


def test_the_openapi_document_describes_every_request():
    document = schemas.openapi(RequestLimits())
    assert document["openapi"].startswith("3.1")
    components = document["components"]["schemas"]
    for name, request in REQUESTS.items():
        body = document["paths"][f"/api/{name}"]["post"]["requestBody"]["content"]
        reference = body["application/json"]["schema"]["$ref"]
        schema = components[reference.rpartition("/")[2]]
        properties = {*request_fields.fields(request)} - {"embeddings"}
        assert schema["properties"].keys() == properties and {*schema["required"]} <= properties
    etas = components["variations"]["properties"]["etas"]
    assert etas["items"]["maximum"] == 1 and etas["default"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert components["text"]["properties"]["candidates"]["maximum"] == 8  # of the server
    assert components["interpolate"]["properties"]["images"]["maxItems"] == 6
    assert components["inpaint"]["required"] == ["image", "mask"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(REQUESTS["upscale"]):
    """A request that is added by its class and its line alone."""

    name = "toy"
    summary = "Do nothing."

    size: int = request_fields.option(4, help="of nothing", low=1, high=9)

    @property
    def image_count(self):
        return self.size * len(self.images)

    def run(self, engine):
        return f"{engine} {self.size}"


def test_a_request_is_added_in_one_place(monkeypatch, tmp_path):
    monkeypatch.setitem(REQUESTS, "toy", Toy)
    assert schemas.describe(RequestLimits())["toy"]["fields"]["size"]["range"] == [1, 9]
    assert "/api/toy" in schemas.openapi(RequestLimits())["paths"]
    assert read("toy", {"images": [IMAGE], "size": 3}).request.run("engine") == "engine 3"
    with pytest.raises(UserError, match="that would be 18 images; this server generates at most"):
        read("toy", {"images": [IMAGE, IMAGE], "size": 9})
    (tmp_path / "one.png").write_bytes(IMAGE)
    command, arguments = request_command.choose(["toy", f"{tmp_path}/one.png", "--size=5"])
    args = request_command.parser(command).parse_args([*arguments, f"--models={tmp_path}"])
    assert request_command.parse(command, args)[0].image_count == 5
    assert "toy" in request_command.parser("text").format_help()
    message = r"size is 10; it must lie in \[1, 9\]"
    with pytest.raises(UserError, match=message):
        read("toy", {"images": [IMAGE], "size": 10})
    with pytest.raises(UserError, match=message):
        request_fields.build(Toy, {"images": [IMAGE], "size": 10}, name="toy")
    args = request_command.parser("toy").parse_args(
        [f"{tmp_path}/one.png", "--size=10", f"--models={tmp_path}"]
    )
    with pytest.raises(UserError, match=message):
        request_command.parse("toy", args)


def monster():
    """A hundred megapixels in some ten kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("command", "fields", "message"),
    [
        ("txt", {}, "unknown command 'txt'. Did you mean 'text'"),
        ("text", {}, "text needs 'captions': captions"),
        ("text", {"captions": ["x"], "sed": 1}, "text has no 'sed'. Did you mean 'seed'"),
        ("text", {"captions": "x"}, "captions is 'x'; give a list of texts"),
        ("text", {"captions": []}, r"number of captions is 0; it must lie in \[1, 64\]"),
        ("text", {"captions": [" "]}, "captions is empty; say what the image should show"),
        ("text", {"captions": [7]}, "captions is '7'; give a text"),
        ("text", {"captions": ["x" * 1001]}, "captions has 1001 characters; give at most 1000"),
        ("text", {"captions": ["x"] * 9, "num": 2}, "would be 18 images; .* at most 16 at once"),
        ("text", {"captions": ["x"], "seed": True}, "seed is 'True'; give a whole number"),
        ("text", {"captions": ["x"], "seed": 1.5}, "seed is '1.5'; give a whole number"),
        ("text", {"captions": ["x"], "seed": -1}, "seed is -1; it must lie in"),
        (
            "text",
            {"captions": ["x"], "guidance": float("nan")},
            "guidance is 'nan'; give a finite number",
        ),
        ("variations", {"image": "x"}, "image is 'x'; give an image file"),
        ("variations", {"image": b"hello"}, "image: not an image: 5 bytes of no known format"),
        (
            "variations",
            {"image": b"<svg xmlns='x'/>"},
            "image: unsupported format SVG: ",
        ),
        ("variations", {"image": monster()}, "image: decompression bomb: "),
        ("variations", {"image": b"0" * (2**24 + 1)}, "image has 16777217 bytes; give a file"),
        ("variations", {"image": IMAGE, "etas": [2]}, "etas is 2; it must lie in"),
        ("variations", {"image": IMAGE, "etas": 1}, "etas is '1'; give a list of numbers"),
        ("variations", {"image": IMAGE, "upsample": 1}, "upsample is '1'; give true or false"),
        ("interpolate", {"images": [IMAGE]}, r"number of images is 1; .* \[2, 6\]"),
        ("interpolate", {"images": [IMAGE] * 7}, r"number of images is 7; .* \[2, 6\]"),
        ("interpolate", {"images": IMAGE}, "give a list of images"),
        ("interpolate", {"images": [IMAGE] * 2, "noise": "no"}, "unknown noise 'no'"),
        ("text-diff", {"image": IMAGE, "target": " "}, "target is empty"),
        (
            "blend",
            {"texts": ["a", "b"], "text_weights": [1]},
            "text_weights has 1 numbers for 2 te",
        ),
        (
            "blend",
            {"texts": ["a"], "image_weights": [1]},
            "image_weights has 1 .* for 0 images",
        ),
        (
            "blend",
            {"texts": ["a", "b"], "text_weights": [1, -1]},
            "text_weights is -1; it must lie",
        ),
        ("blend", {"texts": ["a"] * 2, "num": 17}, "would be 17 images"),
        ("probe-pca", {"images": [IMAGE] * 3}, "would be 24 images"),
        ("probe-pca", {"images": [IMAGE], "components": [1.5]}, "'1.5'; give a whole number"),
        ("probe-pca", {"images": [IMAGE], "embeddings": "/"}, "has no 'embeddings'"),
        ("variations", {"image": IMAGE, "details": "all"}, "unknown details 'all'"),
        ("variations", {"picture": IMAGE}, "has no 'picture'; it is called 'image' now"),
        ("variations", {"image": IMAGE, "refine": 6}, r"refine is 6; it must lie in \[0, 5\]"),
        ("text", {"captions": ["x"], "candidates": 9}, r"candidates is 9; it must lie in \[1, 8"),
        ("text", {"captions": ["x"], "best_of": 17}, "would be 17 images"),
        ("text", {"captions": ["x"], "previews": 9}, r"previews is 9; it must lie in \[0, 8\]"),
        ("text", {"captions": ["x"], "cap": 10**400}, "cap is '1000.*'; give a finite number"),
        ("text", {"captions": ["x"], "cap": float("inf")}, "cap is 'inf'; give a finite number"),
        ("text", {"captions": ["x"], "cap": float("nan")}, "cap is 'nan'; give a finite number"),
    ],
)
def test_what_is_wrong_is_named(command, fields, message):
    with pytest.raises(UserError, match=message):
        read(command, fields)
