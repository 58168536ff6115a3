"""What a request may hold, without any models."""

import io

import pytest
from PIL import Image

from tests.serving.conftest import png
from unclip_jax import sample
from unclip_jax.cli import subcommands
from unclip_jax.core.checks import UserError
from unclip_jax.serving import catalogue, forms
from unclip_jax.serving.catalogue import FORMS
from unclip_jax.serving.forms import Limits

PICTURE = png()
LEAST = {
    "text": {"captions": ["--out=x"]},
    "reconstruct": {"pictures": [PICTURE]},
    "variations": {"picture": PICTURE},
    "interpolate": {"pictures": [PICTURE, PICTURE]},
    "text-diff": {"picture": PICTURE, "target": "-a blue circle"},
    "blend": {"texts": ["a", "-b"]},
    "probe-pca": {"pictures": [PICTURE]},
    "upscale": {"pictures": [PICTURE]},
    "inpaint": {"picture": PICTURE, "mask": PICTURE},
}
VALUES = {
    "int": 2,
    "float": 1.0,
    "ints": [2, 4],
    "floats": [0.0, 1.0],
    "text": "-x",
    "texts": ["-x", "y"],
    "bool": False,
    "picture": PICTURE,
    "pictures": [PICTURE, PICTURE],
}


def full(form):
    """A value for every field."""
    return {f.name: f.choices[0] if f.choices else VALUES[f.kind] for f in form.fields}


def files(request):
    counts = {name: len(each) for name, each in request.uploads().items()}
    return {name: [f"{name}{i}.png" for i in range(count)] for name, count in counts.items()}


@pytest.mark.parametrize("command", FORMS)
def test_the_command_line_understands_every_field(command):
    parse = sample.parse if command == "text" else subcommands.COMMANDS[command].parse
    for given in (LEAST[command], full(FORMS[command])):
        request = forms.read(command, given, limits=Limits(images=1000))
        ours = ["--embeddings=x"] if command == "probe-pca" else []
        args = vars(parse([*ours, *forms.arguments(request, files=files(request))]))
        for field in FORMS[command].fields:
            if field.name in FORMS[command].weighted:
                continue
            if field.name in given and field.kind in ("int", "float", "ints", "text", "texts"):
                assert args[field.name] == given[field.name]
            if field.name in given and field.kind == "bool":
                assert args["no_upsample"] is True
        assert args["out"].name == f"{'samples' if command == 'text' else command}.png"


def test_what_is_blended_keeps_its_weights_and_its_first_sign():
    given = {"pictures": [PICTURE, PICTURE], "picture_weights": [1, 0.25], "texts": ["-b", "c d"]}
    request = forms.read("blend", given)
    args = subcommands.COMMANDS["blend"].parse(forms.arguments(request, files=files(request)))
    assert args.picture == [["pictures0.png", "1"], ["pictures1.png", "0.25"]]
    assert args.text == [[" -b", "1"], ["c d", "1"]]


def test_the_description_is_complete():
    told = catalogue.described()
    assert told.keys() == LEAST.keys()
    assert told["text-diff"]["fields"]["theta"]["range"] == [0, 1]
    assert told["interpolate"]["fields"]["noise"]["choices"] == ["inverted", "shared"]


def monster():
    """A hundred megapixels in some ten kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("txt", {}, "unknown command 'txt'. Did you mean 'text'"),
        ("text", {}, "text needs 'captions': what to draw"),
        ("text", {"captions": ["x"], "sed": 1}, "text has no 'sed'. Did you mean 'seed'"),
        ("text", {"captions": "x"}, "captions is 'x'; give a list of texts"),
        ("text", {"captions": []}, r"number of captions is 0; it must lie in \[1, 64\]"),
        ("text", {"captions": [" "]}, "captions is empty; say what the picture should show"),
        ("text", {"captions": [7]}, "captions is '7'; give a text"),
        ("text", {"captions": ["x" * 1001]}, "captions has 1001 characters; give at most 1000"),
        ("text", {"captions": ["x"] * 9, "num": 2}, "would be 18 pictures; .* at most 16 at once"),
        ("text", {"captions": ["x"], "seed": True}, "seed is 'True'; give a whole number"),
        ("text", {"captions": ["x"], "seed": 1.5}, "seed is '1.5'; give a whole number"),
        ("text", {"captions": ["x"], "seed": -1}, "seed is -1; it must lie in"),
        ("text", {"captions": ["x"], "guidance": float("nan")}, "guidance is nan"),
        ("variations", {"picture": "x"}, "picture is 'x'; give a picture file"),
        ("variations", {"picture": b"hello"}, "picture: not an image: 5 bytes of no known format"),
        ("variations", {"picture": b"<svg xmlns='x'/>"}, "picture: not an image: .* give a PNG"),
        ("variations", {"picture": monster()}, "picture: decompression bomb: "),
        ("variations", {"picture": b"0" * (2**24 + 1)}, "picture has 16777217 bytes; give a file"),
        ("variations", {"picture": PICTURE, "etas": [2]}, "etas is 2; it must lie in"),
        ("variations", {"picture": PICTURE, "etas": 1}, "etas is '1'; give a list of numbers"),
        ("variations", {"picture": PICTURE, "upsample": 1}, "upsample is '1'; give true or false"),
        ("interpolate", {"pictures": [PICTURE]}, r"number of pictures is 1; .* \[2, 6\]"),
        ("interpolate", {"pictures": [PICTURE] * 7}, r"number of pictures is 7; .* \[2, 6\]"),
        ("interpolate", {"pictures": PICTURE}, "give a list of pictures"),
        ("interpolate", {"pictures": [PICTURE] * 2, "noise": "no"}, "unknown noise 'no'"),
        ("text-diff", {"picture": PICTURE, "target": " "}, "target is empty"),
        (
            "blend",
            {"texts": ["a", "b"], "text_weights": [1]},
            "text_weights has 1 numbers for 2 te",
        ),
        (
            "blend",
            {"texts": ["a"], "picture_weights": [1]},
            "picture_weights has 1 .* for 0 pictures",
        ),
        (
            "blend",
            {"texts": ["a", "b"], "text_weights": [1, -1]},
            "text_weights is -1; it must lie",
        ),
        ("blend", {"texts": ["a"] * 2, "num": 17}, "would be 17 pictures"),
        ("probe-pca", {"pictures": [PICTURE] * 3}, "would be 24 pictures"),
        ("probe-pca", {"pictures": [PICTURE], "components": [1.5]}, "'1.5'; give a whole number"),
        ("probe-pca", {"pictures": [PICTURE], "embeddings": "/"}, "has no 'embeddings'"),
        ("variations", {"picture": PICTURE, "details": "all"}, "unknown details 'all'"),
    ],
)
def test_what_is_wrong_is_named(command, given, message):
    with pytest.raises(UserError, match=message):
        forms.read(command, given)
