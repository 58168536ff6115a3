"""The study of manipulations: its criteria, its page, and all of it on untrained stages."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import markdown_page
from studies.manipulations import __main__ as manipulations
from studies.manipulations import measurements, portraits, red_to_blue
from tests import cascades
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.metrics import shapes_detector
from unclip_jax.portraits import render as portrait_render
from unclip_jax.portraits import scene, vocabulary
from unclip_jax.portraits.scene import Portrait
from unclip_jax.shapes import render
from unclip_jax.shapes.scene import Scene, SceneObject


def item(colour, shape, x, y):
    return SceneObject(colour, shape, "large", x, y, 0.2)


SCENE = Scene("white", (item("red", "circle", 0.25, 0.25), item("green", "square", 0.7, 0.7)))


def judge(*items):
    """Judges an image of these items, where `SCENE` should have turned blue."""
    (detection,) = shapes_detector.detect(render.render([Scene("white", items)]))
    return red_to_blue.judge(detection, SCENE)


def test_every_criterion_fails_alone():
    green = SCENE.items[1]
    right = dict.fromkeys(red_to_blue.CRITERIA, True)
    blue = item("blue", "circle", 0.25, 0.25)
    assert judge(blue, green) == judge(green, blue) == right
    assert judge(*SCENE.items) == {**right, "colour": False, "all": False}
    other = judge(item("blue", "square", 0.25, 0.25), green)
    assert other == {**right, "shape": False, "all": False}
    paler = judge(blue, item("yellow", "square", 0.7, 0.7))
    assert paler == {**right, "rest": False, "all": False}
    assert not judge(blue, item("green", "star", 0.7, 0.7))["shape"]
    assert not judge(item("blue", "circle", 0.25, 0.45), green)["place"]
    verdict = judge(green)
    assert not verdict["place"] and not verdict["colour"] and verdict["rest"]
    assert not judge(blue, item("blue", "circle", 0.7, 0.3))["place"]


def test_no_object_is_matched_with_two_items():
    two = (item("red", "ring", 0.4, 0.5), item("green", "star", 0.6, 0.5))
    (detection,) = shapes_detector.detect(
        render.render([Scene("white", (item("red", "ring", 0.5, 0.5),))])
    )
    objects = [object for _, object in red_to_blue.match(two, detection.objects)]
    assert len(detection.objects) == 1 and sorted(each is None for each in objects) == [False, True]


def test_only_captions_with_red_and_without_blue_are_suitable():
    assert red_to_blue.is_suitable("a red circle, a green star")
    assert not red_to_blue.is_suitable("a red circle above a blue square")
    assert not red_to_blue.is_suitable("a reddish circle")
    assert (
        red_to_blue.recolour("two red rings on red, reddish") == "two blue rings on blue, reddish"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "shapes"
    prepare.main(
        ["shapes:train=4,validation=60,compositional=1", f"--out={out}", "--image-size=16"]
    )
    return out


@pytest.mark.nightly
def test_all_of_it_on_an_untrained_cascade(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measurements, "PAPER", ("8", 0))
    # The cascade's tokenizer knows three captions: of longer ones it keeps the first words only.
    is_suitable = red_to_blue.is_suitable
    monkeypatch.setattr(red_to_blue, "is_suitable", lambda caption: is_suitable(caption[:14]))
    run_dir, out = cascades.write(tmp_path / "run"), tmp_path / "page.md"
    arguments = [
        "--paper",
        "--num=3",
        "--steps=4",
        "--refine=1",
        "--batch=4",
        "--upsampler-steps=4",
    ]
    manipulations.main([f"--models={run_dir}", f"--data={data}", f"--out={out}", *arguments])
    page = capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    assert page in out.read_text() and out.read_text().startswith(
        "# Reconstruction and edits, measured"
    )
    names = [row["name"] for row in result["reconstruction"]]
    assert names[0] == "z_img, x_T and details" and names[-1].startswith("the first by the paper's")
    sizes = [result["reconstruction"][0][size]["px"] for size in ("base", "full")]
    assert sizes == [16, 32]
    etas = [row.get("eta") for row in result["variations"]]
    assert etas == [*measurements.ETAS, None]
    assert result["interpolation"]["pairs"] == 1 and result["interpolation"]["most"] <= 2
    rows = [(row["inversion"], row["guidance"], row["theta"]) for row in result["text_diff"]]
    assert rows == [
        (way.inversion, way.guidance, t) for way in red_to_blue.SETTINGS for t in way.thetas
    ]
    for part in ("variations", "text_diff"):
        with Image.open(tmp_path / f"page_{part}.png") as picture:
            assert picture.width > 6 * 128
    rows = result.pop("text_diff")
    out.with_suffix(".json").write_text(json.dumps({**result, "text_diff": rows[:1]}))
    same = [f"--models={run_dir}", f"--data={data}", f"--out={out}", *arguments]
    manipulations.main([*same, "--parts", "interpolation"])  # the others are as they were
    again = json.loads(out.with_suffix(".json").read_text())
    assert again == {**result, "text_diff": rows[:1], "date": again["date"]}
    manipulations.main([*same, "--seed=1", "--parts", "interpolation"])
    assert "text_diff" not in json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num=1"], r"--num is 1; it must lie in \[2, 4096\]"),
        (["--batch=0"], "--batch is 0; it must lie in"),
        (["--refine=99"], r"--refine is 99; it must lie in \[0, 32\]"),
        (["--out=page.txt"], "--out is 'page.txt'; give a name that ends in .md"),
        (["--out=nowhere/page.md"], "nowhere/page.md', but there is no such folder"),
        (["--data=nowhere"], "no data set at nowhere; make one with"),
    ],
)
def test_mistakes_are_reported_before_anything_is_loaded(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        manipulations.main([f"--models={tmp_path}", f"--data={tmp_path}", *arguments])


def test_data_without_red_things_or_scenes_are_rejected():
    blue = [{"caption": "a blue circle", "scene": ""}]
    with pytest.raises(UserError, match="no caption of this split names something red"):
        red_to_blue.select(blue, 4)
    with pytest.raises(UserError, match="this data set has no scenes with which to check"):
        measurements.read_examples(blue, [0])


def test_a_page_without_marks_is_not_overwritten(data, tmp_path):
    out = tmp_path / "page.md"
    out.write_text("mine\n")
    with pytest.raises(UserError, match="page.md has no lines <!-- tables: begin -->"):
        manipulations.main([f"--models={data}", f"--data={data}", f"--out={out}"])
    assert markdown_page.BEGIN not in out.read_text()
    assert len(sources.open_source(data, split="validation")) == 60


def test_portraits_are_read_without_the_colour_of_their_hair():
    """A blue-haired copy is right; a red one is not changed, and another mouth is not kept."""
    plain = Portrait(**{name: values[0] for name, values in vocabulary.ATTRIBUTES.items()})
    red = dataclasses.replace(
        plain, hair="bob", hair_colour="red", skin=plain.skin, background="yellow"
    )
    edits = [
        dataclasses.replace(red, hair_colour="blue"),
        red,
        dataclasses.replace(red, hair_colour="blue", mouth=vocabulary.ATTRIBUTES["mouth"][1]),
        dataclasses.replace(red, hair_colour="blue", glasses="sunglasses"),
    ]
    rates = portraits.rates(portrait_render.render(edits, size=64), [red] * 4)
    hits = {name: rate["hits"] for name, rate in rates.items()}
    assert hits == {**dict.fromkeys(portraits.OTHERS, 4), "changed": 3, "kept": 2} | {
        "mouth": 3,
        "glasses": 3,
        "eyes": 3,  # hidden behind the glasses
    }
    assert all(rate["total"] == 4 for rate in rates.values())


def test_the_last_frame_of_a_text_diff_and_whole_reconstructions_are_judged():
    plain = Portrait(**{name: values[0] for name, values in vocabulary.ATTRIBUTES.items()})
    red = dataclasses.replace(plain, hair="bob", hair_colour="red", background="yellow")
    blue = dataclasses.replace(red, hair_colour="blue")
    red_image, blue_image = portrait_render.render([red, blue], size=64)

    class Engine:
        def run(self, request):
            if request.name == "reconstruct":
                return SimpleNamespace(images=np.stack([red_image] * len(request.images)))
            assert (request.source, request.target) == portraits.CAPTIONS
            return SimpleNamespace(images=np.stack([red_image, blue_image]))

    images = [InputImage(red_image, "", "")] * 3
    result = portraits.measure(Engine(), images, [scene.to_json(red, ())] * 3)
    assert {name: rates["changed"]["hits"] for name, rates in result.items()} == {
        "text diff": 3,
        "reconstruction": 0,
    }
    assert all(rates["kept"]["hits"] == 3 for rates in result.values())


def test_the_study_of_portraits_edits_those_with_red_hair(tmp_path, capsys):
    cascades.write(tmp_path / "run")
    tokenizer = f"--tokenizer={tmp_path}/run/tokenizer"
    prepare.main(["portraits:validation=60", f"--out={tmp_path}/data", tokenizer])
    source = sources.open_source(tmp_path / "data", split="validation")
    indices = portraits.select(source, 2)
    scenes = [json.loads(source[i]["scene"]) for i in indices]
    assert len(indices) == 2 and all(each["hair_colour"] == "red" for each in scenes)
    assert all(each["hair"] != "bald" for each in scenes)
    out = tmp_path / "out.json"
    arguments = [f"--models={tmp_path}/run", f"--data={tmp_path}/data", "--num=2", f"--out={out}"]
    portraits.main(arguments)
    result = json.loads(out.read_text())
    assert result["num"] == 2 and result["captions"][1] == "a person with blue hair"
    printed = capsys.readouterr().out
    for name in ("text diff", "reconstruction"):
        assert result[name]["kept"]["total"] == 2 and f"{name}: changed " in printed
    shapes_dir = tmp_path / "shapes"
    prepare.main(["shapes:validation=3", f"--out={shapes_dir}", tokenizer])
    with pytest.raises(UserError, match="scene|portrait"):
        portraits.main([*arguments[:1], f"--data={shapes_dir}", *arguments[2:]])
