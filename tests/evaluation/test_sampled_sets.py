"""Sets sampled in parts, COCO's protocol and prompt files, with a sampler that counts."""

import contextlib
import json
import pathlib

import numpy as np
import pytest

from tests import cascades
from unclip_jax import evaluate
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import coco, feature_extraction, image_sets, prompts, sampled_set
from unclip_jax.evaluation.image_sets import ImageSetOptions
from unclip_jax.evaluation.sampled_set import SampledSetConfig
from unclip_jax.inference import batch_sampling, load
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import frechet, npz
from unclip_jax.metrics.report import SetFeatures
from unclip_jax.portraits import grammar, render
from unclip_jax.portraits import world as portraits
from unclip_jax.portraits.scene import to_spec

SIZE = 16
CAPTIONS = ["a red circle", "a blue square", "two green stars", "a pink ring", "a red heart"]


class Draws:
    """Stands in for `batch_sampling.sample_images`: image i of a seed is one grey level."""

    def __init__(self):
        self.calls = []

    def __call__(self, loaded, captions, *, seed, options, batch_size, name, first_index):
        self.calls.append((first_index, list(captions)))
        levels = (np.arange(first_index, first_index + len(captions)) + 10 * seed).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (len(captions), SIZE, SIZE, 3)).copy()


def sampling(run_dir, out, **changes):
    return SampledSetConfig(run_dir, out, part=2, steps="2", **changes)


@contextlib.contextmanager
def replace_sampler(sampler):
    """The sampler of images replaced by a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_sampling, "sample_images", sampler)
        yield


def sample_all(config, loaded, captions, *, sampler):
    with replace_sampler(sampler):
        return sampled_set.sample_all(config, loaded, captions)


def levels(result, batch_size=3):
    return [batch[:, 0, 0, 0].tolist() for batch in result.batches(batch_size, slice(None))]


@pytest.fixture(scope="module")
def loaded(run_dir):
    return load.load_cascade(run_dir)


def test_existing_parts_are_not_sampled_again_and_indices_continue(run_dir, loaded, tmp_path):
    draw = Draws()
    config = sampling(run_dir, tmp_path)
    result = sample_all(config, loaded, CAPTIONS, sampler=draw)
    assert draw.calls == [(0, CAPTIONS[:2]), (2, CAPTIONS[2:4]), (4, CAPTIONS[4:])]
    assert levels(result) == [[0, 1, 2], [3, 4]]
    assert (result.count, result.size) == (5, (SIZE, SIZE))
    (tmp_path / "pictures" / "000002.npz").unlink()
    again = Draws()
    assert levels(sample_all(config, loaded, CAPTIONS, sampler=again)) == [[0, 1, 2], [3, 4]]
    assert again.calls == [(2, CAPTIONS[2:4])]


def test_images_of_another_protocol_are_rejected(run_dir, loaded, tmp_path):
    sample_all(sampling(run_dir, tmp_path), loaded, CAPTIONS, sampler=Draws())
    for change, message in [
        ({"seed": 1}, "holds images of another protocol: seed is 0 there and 1 here"),
        ({"guidance": 3.0}, "another protocol: decoding is"),
    ]:
        with pytest.raises(UserError, match=message):
            sample_all(sampling(run_dir, tmp_path, **change), loaded, CAPTIONS, sampler=Draws())
    with pytest.raises(UserError, match="another protocol: captions is"):
        sample_all(sampling(run_dir, tmp_path), loaded, CAPTIONS[::-1], sampler=Draws())


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"seed": NaN'])
def test_a_damaged_protocol_is_reported_in_one_line(run_dir, loaded, tmp_path, text):
    sample_all(sampling(run_dir, tmp_path), loaded, CAPTIONS, sampler=Draws())
    (tmp_path / "protocol.json").write_text(text)
    with pytest.raises(UserError, match=r"protocol\.json.*delete the folder") as error:
        sample_all(sampling(run_dir, tmp_path), loaded, CAPTIONS, sampler=Draws())
    assert "\n" not in str(error.value)


def test_parts_of_several_sizes_are_rejected(tmp_path):
    for number, side in enumerate((8, 4)):
        images = np.zeros((1, side, side, 3), np.uint8)
        npz.write(tmp_path / f"{number}.npz", [images], count=1)
    with pytest.raises(UserError, match=r"1.npz holds images of 4 x 4, .*0.npz images of 8 x 8"):
        image_sets.from_parts([tmp_path / "0.npz", tmp_path / "1.npz"])


def test_a_set_is_resized_by_the_same_rule_as_one_that_is_read_so(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)
    npz.write(tmp_path / "set.npz", [images], count=3)
    here = image_sets.resized(image_sets.from_parts([tmp_path / "set.npz"]), 6)
    there = image_sets.open_set(tmp_path / "set.npz", ImageSetOptions(size=6))
    (one,), (other,) = (list(each.batches(3, slice(None))) for each in (here, there))
    np.testing.assert_array_equal(one, other)
    assert here.size == (6, 6) and here.facts["crop"] == there.facts["crop"]


def test_images_sampled_in_parts_are_those_sampled_at_once(loaded):
    """The real sampler: image i depends on (seed, i) alone, whatever part it is in."""
    options = SampleOptions(condition="z_txt")
    shared = {"seed": 5, "options": options, "batch_size": 2}
    whole = batch_sampling.sample_images(loaded, CAPTIONS[:4], **shared)
    late = batch_sampling.sample_images(loaded, CAPTIONS[2:4], first_index=2, **shared)
    np.testing.assert_array_equal(late, whole[2:])
    assert not np.array_equal(late, batch_sampling.sample_images(loaded, CAPTIONS[2:4], **shared))


# COCO

MANY = [*CAPTIONS, "a green cross", "three pink hearts", "a large orange star"]


def annotations(path, captions):
    result = [{"image_id": i, "id": i, "caption": c} for i, c in enumerate(captions)]
    path.write_text(json.dumps({"images": [], "annotations": result}))
    return path


@pytest.fixture(scope="module")
def copy(run_dir, tmp_path_factory):
    """Somebody's copy of a data set of COCO's form."""
    folder = tmp_path_factory.mktemp("coco")
    annotations(folder / "captions.json", [f" {c}\n" for c in MANY])
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3)).astype(np.uint8)
    npz.write(folder / "real.npz", [images], count=40)
    return folder


def run_coco(run_dir, copy, out, *more, draw=None):
    base = [f"--models={run_dir}", f"--captions={copy}/captions.json", f"--out={out}"]
    base += [f"--real={copy}/real.npz", f"--features=clip:{run_dir}/clip/export"]
    draw = draw or Draws()
    with replace_sampler(draw):
        evaluate.main(["coco", *base, "--num=7", "--part=3", f"--size={SIZE}", *more])
    return draw


def test_coco_samples_compares_and_names_departures(run_dir, copy, tmp_path, capsys):
    draw = run_coco(run_dir, copy, tmp_path)
    captions = [caption for _, part in draw.calls for caption in part]
    assert len(set(captions)) == 7 and set(captions) <= set(MANY)
    result = json.loads((tmp_path / "coco.json").read_text())
    assert np.isfinite(result["scores"]["frechet"])
    assert result["protocol"]["real"]["count"] == 40 and result["protocol"]["fake"]["count"] == 7
    assert result["protocol"]["captions"] == "7 at random of captions.json, seed 0"
    assert result["warnings"][0] == (
        "this is not the COCO-30k protocol: 7 captions instead of 30,000; 40 reference images "
        "instead of 40,504; features of CLIP instead of Inception-v3; compared at 16 px instead of "
        "256."
    )
    assert "WARNING: this is not the COCO-30k" in capsys.readouterr().out
    assert not run_coco(run_dir, copy, tmp_path).calls


def test_statistics_may_stand_for_the_reference(run_dir, copy, tmp_path):
    features = f"--features=clip:{run_dir}/clip/export"
    stats = ["statistics", f"--images={copy}/real.npz", features, f"--size={SIZE}"]
    evaluate.main([*stats, f"--out={tmp_path}/stats.npz"])
    run_coco(run_dir, copy, tmp_path / "one")
    run_coco(run_dir, copy, tmp_path / "other", f"--real={tmp_path}/stats.npz")
    one, other = (
        json.loads((tmp_path / name / "coco.json").read_text())["scores"]["frechet"]
        for name in ("one", "other")
    )
    assert one == pytest.approx(other, rel=1e-9)


def test_the_protocol_itself_has_no_departures():
    moments = frechet.moments(np.random.default_rng(0).normal(size=(4, 2)))
    real = SetFeatures({"count": 40_504}, {}, moments)
    config = coco.CocoConfig(
        sampling(pathlib.Path("run"), pathlib.Path("out")), pathlib.Path("x.json"), "real", "clip:x"
    )
    assert coco.departures(config, real, kind="inception", size=(256, 256)) == []
    small = coco.departures(config, real, kind="inception", size=(64, 64))
    assert small == ["this is not the COCO-30k protocol: images of 64 px, enlarged to 256."]


def test_captions_are_chosen_once_each_and_alike_for_a_seed():
    many = [f"caption {i}" for i in range(50)]
    one = coco.choose(many, num=20, seed=3)
    assert one == coco.choose(many, num=20, seed=3) != coco.choose(many, num=20, seed=4)
    assert len(set(one)) == 20 and set(one) <= set(many)
    assert sorted(coco.choose(many, num=50, seed=0)) == sorted(many)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num=9"], "there are 8 captions, fewer than --num=9; give a smaller --num"),
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--num=5"], "--num is 5; scores of neighbours need 6 at least"),
        (["--part=0"], "--part is 0; it must be greater than 0"),
        (["--captions=none.json"], "there is no file none.json; give captions_val2014.json"),
        (["--features=dino:x"], "write inception:FILE"),
        (["--real=nowhere"], "there is no nowhere"),
    ],
)
def test_mistakes_with_coco_are_reported_before_sampling(run_dir, copy, tmp_path, more, message):
    draw = Draws()
    with pytest.raises(UserError, match=message):
        run_coco(run_dir, copy, tmp_path, *more, draw=draw)
    assert not draw.calls


@pytest.mark.parametrize("text", ["{", "[]", '{"annotations": [{"text": "x"}]}', '{"images": []}'])
def test_files_of_another_format_than_coco_are_rejected(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="is not a file of COCO's captions"):
        coco.read_captions(tmp_path / "x.json")


# Prompts


def test_drawbench_is_read_as_published(tmp_path):
    path = tmp_path / "bench.csv"
    path.write_text('Prompts,Category\n"A red car, parked.",Colors\n Two dogs ,Counting\n')
    expected = [("Colors", "A red car, parked."), ("Counting", "Two dogs")]
    assert prompts.read(path) == expected
    (tmp_path / "bench.tsv").write_text(
        "category\tprompt\nColors\tA red car, parked.\nCounting\tTwo dogs\n"
    )
    assert prompts.read(tmp_path / "bench.tsv") == expected
    lines = [{"category": c, "text": t} for c, t in expected]
    (tmp_path / "bench.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert prompts.read(tmp_path / "bench.jsonl") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.md", "", "x.md is none of .tsv, .csv, .jsonl, .txt"),
        ("x.txt", " \n\n", "x.txt holds no prompt"),
        ("x.csv", "", "x.csv holds no prompt; give a row"),
        ("x.csv", "prompt,category\n", "holds no prompt"),
        ("x.csv", "prompt,kind\na,b\n", r"row 2 has columns \['kind', 'prompt'\]; .* category or"),
        (
            "x.csv",
            "words,category\na,b\n",
            "one must be named prompt or prompts or caption or text",
        ),
        ("x.csv", "prompt,category\n ,b\n", "row 2: prompt is ' '; give a text"),
        ("x.csv", "prompt,category\na\n", "row 2: category is None; give a text"),
        ("x.jsonl", "{", "row 1 is not JSON"),
        ("x.jsonl", '{"prompt": "a", "category": "b"}\n[1]', "row 2 is not a JSON object"),
        ("x.jsonl", '{"prompt": 3, "category": "b"}', "row 1: prompt is 3; give a text"),
        (
            "x.jsonl",
            '{"prompt": "a \\ud83d"}',
            "row 1: prompt holds .* at character 2, which is no",
        ),
        ("x.jsonl", '{"prompt": "a", "category": "\\ud83d"}', "row 1: category holds"),
    ],
)
def test_prompt_files_with_mistakes_are_rejected_by_row(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "a red circle\ntwo stars\n"),
        ("x.txt", "\ufeffa red circle\r\n\r\ntwo stars"),
        ("X.TXT", "  a  red circle \n\ttwo stars\n"),
        ("x.csv", "prompt\na red circle\ntwo stars\n"),
        ("x.tsv", "Caption\na red circle\ntwo stars\n"),
        ("x.jsonl", '{"text": "a red circle"}\n{"prompt": "two stars"}\n'),
    ],
)
def test_prompts_need_no_category(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert prompts.read(tmp_path / name) == [("all", "a red circle"), ("all", "two stars")]


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        (["猫", "犬"], ["猫", "犬"]),
        (["Ёлки", "Ünï-cöde"], ["ёлки", "ünï_cöde"]),
        (["B C", "b-c", "b_c"], ["b_c", "b_c_2", "b_c_3"]),
        (["!", "?", "..", "/"], ["category", "category_2", "category_3", "category_4"]),
        (["../x", "a/b"], ["x", "a_b"]),
        (["猫" * 200, "猫" * 201], ["猫" * 40, "猫" * 40 + "_2"]),
        (["x", "x 2", "X"], ["x", "x_2", "x_3"]),
        (["हिन्दी", "عربي"], ["ह_न_द", "عربي"]),
    ],
)
def test_categories_of_any_script_have_files_of_their_own(categories, names):
    assert list(prompts.file_names(categories).values()) == names


def test_prompt_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match="there is no file nowhere.csv"):
        prompts.read(pathlib.Path("nowhere.csv"))
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot be read .*save it as UTF-8"):
        prompts.read(tmp_path / "x.csv")


ROWS = [("plain", "a red circle"), ("count", "two green stars"), ("plain", "a blue square")]


def run_prompts(run_dir, out, rows, *more, draw=None):
    out.mkdir(exist_ok=True)
    file = out.parent / "rows.tsv"
    file.write_text("prompt\tcategory\n" + "".join(f"{t}\t{c}\n" for c, t in rows))
    base = [str(file), f"--models={run_dir}", f"--out={out}", "--images=2", *more]
    draw = draw or Draws()
    with replace_sampler(draw):
        evaluate.main(["prompts", *base])
    return draw


def test_prompts_are_sampled_scored_and_arranged_by_category(run_dir, tmp_path, capsys):
    draw = run_prompts(run_dir, tmp_path / "out", ROWS)
    assert draw.calls == [(0, [text for _, text in ROWS for _ in range(2)])]
    result = json.loads((tmp_path / "out" / "prompts.json").read_text())["categories"]
    assert list(result) == ["plain", "count"]
    assert [result[c]["prompts"] for c in result] == [2, 1]
    assert result["count"]["checker"]["count"]["total"] == 2
    for category in result:
        assert (tmp_path / "out" / f"{category}.png").stat().st_size > 300
    output = capsys.readouterr().out
    assert "CLIP score" in output and "joint" in output and "plain" in output


def test_every_prompt_is_recorded_with_the_mean_of_its_images(run_dir, tmp_path, monkeypatch):
    cosines = np.array([0.1, 0.3, 0.5, 0.5, 0.2, 0.4])
    monkeypatch.setattr(prompts, "_cosines", lambda *_, **__: cosines)
    run_prompts(run_dir, tmp_path / "out", ROWS)
    rows = json.loads((tmp_path / "out" / "prompts.json").read_text())["prompts"]
    assert [(row["category"], row["text"]) for row in rows] == ROWS
    assert [row["clip_score"] for row in rows] == pytest.approx([20.0, 50.0, 30.0])


def test_prompts_of_a_chain_without_clip_are_sampled_and_checked(tmp_path, capsys):
    imagen = cascades.write(tmp_path / "imagen", names=("text_encoder", "imagen_base"))
    draw = run_prompts(imagen, tmp_path / "out", ROWS)
    assert len(draw.calls[0][1]) == 6
    result = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert result["score"] is None and result["prompts"][0]["clip_score"] is None
    assert "clip_score" not in result["categories"]["count"]
    assert result["categories"]["count"]["checker"]["joint"]["total"] == 2
    (line,) = (each for each in capsys.readouterr().out.splitlines() if each.startswith("count"))
    assert line.split()[1:3] == ["1", "-"]


def test_scores_of_a_category_are_means_over_its_prompts():
    rows = [prompts.Prompt(category, text) for category, text in ROWS]
    cosines = np.array([[0.1, 0.3], [0.5, 0.5], [0.4, 0.4]])
    images = np.zeros((6, SIZE, SIZE, 3), np.uint8)
    result = prompts.by_category(rows, cosines, images=images)
    assert result["plain"]["clip_score"]["value"] == pytest.approx(30.0)
    assert result["count"]["clip_score"]["value"] == pytest.approx(50.0)
    assert result["plain"]["checker"]["count"]["value"] == 0.0  # there is nothing in black images


def test_prompts_of_portraits_are_checked_as_portraits():
    examples = [portraits.example("validation", seed=0, index=index) for index in range(2)]
    captions = [grammar.write(to_spec(example.portrait)) for example in examples]
    rows = [prompts.Prompt("faces", caption) for caption in captions]
    images = render.render([example.portrait for example in examples])
    result = prompts.by_category(rows, np.full((2, 1), 0.4), images=images)
    checker = result["faces"]["checker"]
    assert checker["joint"]["value"] == 1.0 and "shape" not in checker
    assert "joint" in prompts.table(result) and "  clothes_colour" in prompts.table(result)


def test_prompts_of_any_language_have_a_clip_score_alone(run_dir, tmp_path, capsys):
    run_prompts(run_dir, tmp_path / "out", [("words", "ein Hund im Schnee")])
    result = json.loads((tmp_path / "out" / "prompts.json").read_text())["categories"]
    assert "checker" not in result["words"]
    assert "joint" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images=0"], "--images is 0; it must be greater than 0"),
        (["--condition=z_img"], "unknown --condition 'z_img'"),
        (["--batch=0"], "--batch is 0; it must be greater than 0"),
        (["--sampler=ddmi"], "unknown sampler 'ddmi'. Did you mean 'ddim'"),
        (["--guidance=-1"], "sampling.guidance_scale is -1"),
        (["--models=nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_with_prompts_are_reported_before_sampling(run_dir, tmp_path, more, message):
    draw = Draws()
    with pytest.raises(UserError, match=message):
        run_prompts(run_dir, tmp_path / "out", ROWS, *more, draw=draw)
    assert not draw.calls


def test_an_out_that_is_a_file_is_rejected(run_dir, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="which is a file; give a folder"):
        sampling(run_dir, tmp_path / "out")


def test_features_of_parts_are_those_of_the_whole(run_dir, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    for start in (0, 2, 4):
        part = images[start : start + 2]
        npz.write(tmp_path / f"{start}.npz", [part], count=len(part))
    extractor = feature_extraction.open_extractor(f"clip:{run_dir}/clip/export")
    split = image_sets.from_parts([tmp_path / f"{start}.npz" for start in (0, 2, 4)])
    whole = image_sets.in_memory(images, where="whole")
    pools = [
        feature_extraction.collect(extractor, each, batch_size=4).pool for each in (split, whole)
    ]
    np.testing.assert_array_equal(*pools)
