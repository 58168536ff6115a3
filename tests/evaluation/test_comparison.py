"""Comparisons of two models: sides, blindness, tallies by hand, and what is rejected."""

import collections
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import comparisons
from tests.comparisons import IMAGES, ROWS, pictures, write_comparison, write_samples
from unclip_jax import evaluate
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import comparison_folder, preferences, questionnaire
from unclip_jax.evaluation.comparison import ComparisonConfig, compare
from unclip_jax.evaluation.comparison_folder import draw_sides
from unclip_jax.shapes import render, world

CATEGORIES = [category for category, _ in ROWS]


def config(folder, **changes):
    values = {"a": folder / "secret-one", "b": folder / "secret-other", "out": folder / "out"}
    return ComparisonConfig(**values | changes)


def sides_of(folder):
    """Model on the left by prompt, from the key."""
    return json.loads((folder / "key" / "sides.json").read_text())["left"]


def pixels(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


# Sides


@pytest.mark.parametrize("sizes", [(1,), (2,), (5, 5, 5), (4, 3, 2), (1, 1, 1, 1), (25, 18)])
def test_each_model_is_on_the_left_of_half_of_every_category(sizes):
    categories = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    for seed in range(20):
        left = draw_sides(categories[::-1], [seed])[::-1]
        groups = [*(np.array(categories) == name for name in categories), np.ones(len(left), bool)]
        for members in groups:
            sides = np.array(left)[members]
            assert abs(int((sides == "A").sum()) - int((sides == "B").sum())) <= 1
        assert set(left) <= {"A", "B"}


def test_sides_are_random_and_follow_from_the_seed():
    draws = [tuple(draw_sides(CATEGORIES, [seed, 7])) for seed in range(400)]
    assert draws[:20] == [tuple(draw_sides(CATEGORIES, [seed, 7])) for seed in range(20)]
    shares = (np.array(draws) == "A").mean(axis=0)
    assert np.abs(shares - 0.5).max() < 4 * 0.5 / 400**0.5  # of every prompt
    pairs = collections.Counter(draw[:2] for draw in draws)
    assert set(pairs) == {("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")}


def test_another_seed_or_model_gives_other_sides(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one = sides_of(write_comparison(tmp_path / "one"))
    assert one == sides_of(write_comparison(tmp_path / "two"))
    seeds = [sides_of(write_comparison(tmp_path / "three" / f"{n}", seed=n)) for n in range(1, 5)]
    assert any(sides != one for sides in seeds)
    variants = []
    for number in range(4):
        a = write_samples(tmp_path / f"a{number}", model=f"model {number}")
        compare(config(tmp_path / "one", a=a, out=tmp_path / f"out{number}"))
        variants.append(sides_of(tmp_path / f"out{number}"))
    assert any(sides != one for sides in variants)


# The folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("compared"))


def test_pictures_are_those_of_the_models_on_their_sides(folder):
    images = {
        model: pictures(len(ROWS) * IMAGES, seed=len(name)).reshape(len(ROWS), IMAGES, 8, 8, 3)
        for model, name in (("A", "secret-one"), ("B", "secret-other"))
    }
    left = sides_of(folder)
    for row, prompt in enumerate(comparison_folder.read(folder).prompts):
        assert (prompt.category, prompt.text) == ROWS[row] and prompt.number == row + 1
        for side in ("left", "right"):
            model = left[prompt.id] if side == "left" else {"A": "B", "B": "A"}[left[prompt.id]]
            stored = [pixels(folder / "pictures" / n) for n in prompt.pictures(side, IMAGES)]
            np.testing.assert_array_equal(stored, images[model][row])
    assert len(list((folder / "pictures").iterdir())) == 2 * IMAGES * len(ROWS)


def test_what_raters_see_does_not_name_the_models(folder):
    public = [path for path in folder.rglob("*") if "key" not in path.relative_to(folder).parts]
    for path in public:
        assert "secret" not in path.name and "/" not in path.name
        if path.is_file():
            assert b"secret" not in path.read_bytes(), path
    assert b"secret-one" in (folder / "key" / "report.md").read_bytes()  # the test can fail
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == 2 * IMAGES * len(ROWS)
    assert "a sign that says &quot;0&quot; &amp; &lt;b&gt;" in page and "<b>" not in page
    assert page.index(">Colors</h2>") < page.index("a car, number 3") < page.index(">Counting</h2>")


def test_sizes_of_files_do_not_depend_on_the_model(tmp_path):
    flat = np.zeros((len(ROWS) * IMAGES, 8, 8, 3), np.uint8)
    a = write_samples(tmp_path / "a", model="flat", images=flat)
    b = write_samples(tmp_path / "b", model="noise")
    compare(ComparisonConfig(a, b, tmp_path / "out"))
    sizes = {path.stat().st_size for path in (tmp_path / "out" / "pictures").iterdir()}
    assert len(sizes) == 1
    compressed = io.BytesIO()
    Image.fromarray(flat[0]).save(compressed, "PNG")
    assert len(compressed.getvalue()) < min(sizes)


def test_smaller_images_are_enlarged_to_the_size_of_the_others(tmp_path):
    a = write_samples(tmp_path / "a", model="small")
    large = pictures(len(ROWS) * IMAGES, seed=1, side=16)
    b = write_samples(tmp_path / "b", model="large", images=large)
    report = compare(ComparisonConfig(a, b, tmp_path / "out"))
    assert report["warnings"] == [
        "images of A are enlarged from 8 x 8 to 16 x 16 pixels, the size of the other model's."
    ]
    for path in (tmp_path / "out" / "pictures").iterdir():
        assert pixels(path).shape == (16, 16, 3)
    report = compare(ComparisonConfig(b, a, tmp_path / "other"))
    assert report["warnings"][0].startswith("images of B are enlarged from 8 x 8 to 16 x 16")


@pytest.mark.parametrize("last", ["0002_left_01.png", "index.html"])
def test_an_interrupted_comparison_has_no_questions_and_continues(tmp_path, monkeypatch, last):
    def fail(path, content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if path.name == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unclip_jax.evaluation.comparison.write_atomically", fail)
        with pytest.raises(KeyboardInterrupt):
            write_comparison(tmp_path)
    before = sides_of(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no comparison\.json; give a folder that `compare`"):
        questionnaire.Questionnaire(tmp_path / "out")
    compare(config(tmp_path))
    assert sides_of(tmp_path / "out") == before
    questions = questionnaire.Questionnaire(tmp_path / "out")
    assert all(path.is_file() for path in questions.pictures.values())


def test_the_key_stays_whatever_would_be_drawn_today(tmp_path, monkeypatch):
    folder = write_comparison(tmp_path)
    before = sides_of(folder)
    monkeypatch.setattr(comparison_folder, "draw_sides", lambda categories, _: ["A"] * len(ROWS))
    answer = questionnaire.Questionnaire(folder).store
    for prompt in comparison_folder.read(folder).prompts:
        values = {"rater": "anna", "prompt": prompt.id, "question": "fidelity"}
        answer({**values, "answer": "left" if before[prompt.id] == "B" else "right"})
    report = compare(config(tmp_path))
    assert sides_of(folder) == before
    assert report["people"]["fidelity"][-1]["B"]["value"] == 1.0


# Tallies


def store_answers(folder, answers):
    """Stores answers: (rater, row of the prompt, question, A, B or indifferent)."""
    prompts, left = comparison_folder.read(folder).prompts, sides_of(folder)
    questions = questionnaire.Questionnaire(folder)
    for rater, row, question, outcome in answers:
        prompt = prompts[row]
        side = "left" if left[prompt.id] == outcome else "right"
        answer = outcome if outcome == "indifferent" else side
        values = {"rater": rater, "prompt": prompt.id, "question": question, "answer": answer}
        questions.store(values)


def test_answers_are_counted_by_model_category_and_question(tmp_path):
    folder = write_comparison(tmp_path)
    store_answers(
        folder,
        [
            *(("anna", row, "fidelity", "A") for row in range(4)),  # Colors
            ("ben", 0, "fidelity", "B"),
            ("ben", 1, "fidelity", "indifferent"),
            ("ben", 4, "fidelity", "B"),  # Counting
            ("anna", 0, "alignment", "B"),
        ],
    )
    report = compare(config(tmp_path))
    colors, counting, text, everything = report["people"]["fidelity"]
    assert [row["category"] for row in (colors, counting, text)] == list(dict.fromkeys(CATEGORIES))
    assert (colors["raters"], colors["answers"]) == (2, 6)
    values = [colors[name]["value"] for name in ("A", "indifferent", "B", "difference")]
    assert values == pytest.approx([4 / 6, 1 / 6, 1 / 6, 3 / 6])
    assert (counting["raters"], counting["answers"], counting["B"]["value"]) == (1, 1, 1.0)
    assert (text["raters"], text["answers"], text["A"]) == (0, 0, None)
    assert everything["category"] is None
    assert (everything["raters"], everything["answers"]) == (2, 7)
    assert everything["A"]["value"] == pytest.approx(4 / 7)
    aligned = report["people"]["alignment"]
    assert aligned[0]["B"]["value"] == 1.0 and aligned[-1]["answers"] == 1
    assert report["raters"] == ["anna", "ben"] and report["answers"] == 8
    stored = json.loads((folder / "key" / "report.json").read_text())
    assert stored["people"] == report["people"]
    lines = (folder / "key" / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| Colors |"))
    assert row.startswith("| Colors | 2 | 6 | 0.67 [") and "| 0.17 [" in row
    assert any(line.startswith("| Text \\| signs | 0 | 0 | - | - | - | - |") for line in lines)
    assert any(line.startswith("| **all** | 2 | 7 | 0.57 [") for line in lines)


@pytest.mark.parametrize(
    ("answer", "left", "outcome"),
    [
        *(("left", "A", "A"), ("left", "B", "B"), ("right", "A", "B"), ("right", "B", "A")),
        *(("indifferent", "A", "indifferent"), ("indifferent", "B", "indifferent")),
    ],
)
def test_an_answer_prefers_the_model_of_its_side(answer, left, outcome):
    assert preferences.outcome_of(answer, left) == outcome


def test_shares_count_answers_and_resample_prompts():
    """Nine raters of one prompt are not nine prompts."""
    counts = np.array([[9.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    share = preferences.shares(counts, ("A", "equal", "B"))
    assert share["A"]["value"] == 0.9 and share["difference"]["value"] == pytest.approx(0.8)
    assert (share["A"]["low"], share["A"]["high"]) == (0.0, 1.0)  # either prompt, twice
    assert preferences.shares(np.zeros((2, 3)), ("A", "equal", "B"))["B"] is None


def test_the_checker_prefers_the_model_that_meets_more_criteria(tmp_path):
    examples = [world.example("validation", seed=0, index=index) for index in range(6)]
    rows = [("easy" if i < 4 else "hard", e.captions[0]) for i, e in enumerate(examples)]
    right = render.render([example.scene for example in examples for _ in range(IMAGES)])
    black = np.zeros_like(right)
    mixed = np.concatenate([right[: 2 * IMAGES], black[2 * IMAGES :]])
    a = write_samples(tmp_path / "a", model="right", rows=rows, images=right)
    b = write_samples(tmp_path / "b", model="mixed", rows=rows, images=mixed)
    easy, hard, everything = compare(ComparisonConfig(a, b, tmp_path / "out"))["checker"]
    assert [easy[name]["value"] for name in ("A", "equal", "B")] == [0.5, 0.5, 0.0]
    assert [hard[name]["value"] for name in ("A", "equal", "B")] == [1.0, 0.0, 0.0]
    assert (easy["prompts"], everything["prompts"]) == (4, 6)
    assert everything["difference"]["value"] == pytest.approx(4 / 6)
    *_, other = compare(ComparisonConfig(b, a, tmp_path / "swapped"))["checker"]
    assert other["difference"]["value"] == pytest.approx(-4 / 6)


def test_clip_scores_are_compared_by_one_clip_alone(tmp_path):
    rng = np.random.default_rng(0)
    one, other = rng.normal(30, 1, len(ROWS)), rng.normal(28, 1, len(ROWS))
    a = write_samples(tmp_path / "a", model="one", scores=list(one))
    b = write_samples(tmp_path / "b", model="another", scores=list(other))
    rows = compare(ComparisonConfig(a, b, tmp_path / "out"))["clip_score"]
    assert rows[0]["A"]["value"] == pytest.approx(one[:4].mean())
    assert rows[-1]["difference"]["value"] == pytest.approx((one - other).mean())
    assert rows[-1]["difference"]["low"] < (one - other).mean() < rows[-1]["difference"]["high"]
    for number, change in enumerate(({"clip": "d"}, {"scores": None}, {"clip": "d"})):
        options = {"model": "another", "scores": list(other)} | change
        c = write_samples(tmp_path / f"c{number}", **options)
        report = compare(ComparisonConfig(a, c, tmp_path / f"out{number}"))
        assert report["clip_score"] is None
        assert "Not compared: the models do not share one CLIP" in preferences.markdown(report)


def test_the_command_prints_the_report_that_it_writes(tmp_path, capsys):
    for model in ("one", "another"):
        write_samples(tmp_path / model, model=model)
    inputs = [str(tmp_path / "one"), str(tmp_path / "another")]
    evaluate.main(["compare", *inputs, f"--out={tmp_path}/out", "--seed=3"])
    output = capsys.readouterr().out
    assert output == (tmp_path / "out" / "key" / "report.md").read_text()
    assert f"A is `{tmp_path}/one`, B is `{tmp_path}/another`." in output
    assert "This report names the models: do not show it to raters" in output
    assert "Raters:\n0. Answers: 0." in output


# What is rejected, and warnings


@pytest.fixture
def pair(tmp_path):
    comparisons.write_samples(tmp_path / "secret-one", model="one")
    comparisons.write_samples(tmp_path / "secret-other", model="another")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROWS[:-1]}, "secret-one has 9 prompts, .*secret-other has 8; sample both from"),
        (
            {"rows": [*ROWS[:2], ("Colors", "a bus"), *ROWS[3:]]},
            "the text of prompt 3 is 'a car, number 2' in .*one and 'a bus' in .*other; sample",
        ),
        (
            {"rows": [("Cars", ROWS[0][1]), *ROWS[1:]]},
            "the category of prompt 1 is 'Colors' in .*one and 'Cars' in .*other",
        ),
        ({"per_prompt": 3}, "one has 2 images per prompt, .*other has 3; sample .* same --images"),
    ],
)
def test_outputs_of_other_prompts_or_numbers_are_rejected(pair, change, message):
    shutil.rmtree(pair / "secret-other")
    write_samples(pair / "secret-other", model="another", **change)
    with pytest.raises(UserError, match=message) as error:
        compare(config(pair))
    assert "\n" not in str(error.value) and not (pair / "out").exists()


def damage_prompts(change):
    """A change of prompts.json."""

    def apply(folder):
        content = json.loads((folder / "prompts.json").read_text())
        change(content)
        (folder / "prompts.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is not an output of `evaluate prompts`; give a folder"),
        (lambda f: (f / "prompts.json").unlink(), "is unfinished: it has no prompts.json; run"),
        (lambda f: (f / "pictures/000003.npz").unlink(), "is unfinished: there is no .*000003.npz"),
        (
            lambda f: comparisons.npz.write(
                f / "pictures/000003.npz", [pictures(2, seed=0)], count=2
            ),
            "is unfinished: its parts hold 17 images of 18; delete .*pictures and run",
        ),
        (lambda f: (f / "prompts.json").write_text("{"), "prompts.json cannot be read as JSON"),
        (
            damage_prompts(lambda c: c.pop("prompts")),
            "lists no prompts, since an earlier version wrote",
        ),
        (
            damage_prompts(lambda c: c["prompts"][0].pop("text")),
            r"is damaged \(KeyError\('text'\)\); run",
        ),
        (
            damage_prompts(lambda c: c.update(images=3)),
            "states 3 images for each of 9 prompts and 18",
        ),
        (
            damage_prompts(lambda c: c.update(prompts=[])),
            "states 2 images for each of 0 prompts and 18",
        ),
    ],
)
def test_unfinished_or_damaged_outputs_are_rejected(pair, damage, message):
    damage(pair / "secret-other")
    with pytest.raises(UserError, match=message) as error:
        compare(config(pair))
    assert "secret-other" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_belongs_to_one_comparison(pair):
    compare(config(pair))
    for change, name in (
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"a": pair / "secret-other", "b": pair / "secret-one"}, "a is "),
    ):
        with pytest.raises(UserError, match=f"holds a comparison of another protocol: {name}"):
            compare(config(pair, **change))
    with pytest.raises(UserError, match="--out is .*secret-one', a folder to compare; give"):
        config(pair, out=pair / "secret-one")
    with pytest.raises(UserError, match="--seed is -1"):
        config(pair, seed=-1)


@pytest.mark.parametrize("text", ["{", '{"left": {}}', "{}", '{"left": {"x": "A"}}'])
def test_a_damaged_key_is_rejected(pair, text):
    compare(config(pair))
    (pair / "out" / "key" / "sides.json").write_text(text)
    with pytest.raises(
        UserError, match=r"sides\.json .*; the models of the sides are lost; delete"
    ):
        compare(config(pair))


def test_a_key_of_other_sides_than_the_pictures_is_rejected(pair):
    compare(config(pair))
    path = pair / "out" / "key" / "sides.json"
    swap = {"A": "B", "B": "A"}
    left = {name: swap[model] for name, model in sides_of(pair / "out").items()}
    path.write_text(json.dumps({"left": left}))
    with pytest.raises(
        UserError, match="comparison.json and key/sides.json do not belong together"
    ):
        compare(config(pair))


@pytest.mark.parametrize("text", ["{", "{}", '{"id": "a", "images": 2, "prompts": [{"id": "b"}]}'])
def test_a_damaged_comparison_is_rejected(pair, text):
    compare(config(pair))
    (pair / "out" / "comparison.json").write_text(text)
    with pytest.raises(UserError, match=r"comparison\.json .*run `evaluate compare` again"):
        questionnaire.Questionnaire(pair / "out")


def test_the_same_model_twice_is_a_warning(pair):
    again = config(pair, b=pair / "secret-one", out=pair / "twice")
    line = "A and B are the same images: models, settings and seed agree."
    report = compare(again)
    assert report["warnings"] == [line] and f"WARNING: {line}" in preferences.markdown(report)
    seed = write_samples(pair / "seed", model="one", seed=1, part=5)
    assert compare(config(pair, b=seed, out=pair / "seeds"))["warnings"] == [
        "A and B are of the same models and settings; only their images' seeds differ."
    ]
    assert not compare(config(pair))["warnings"]
