"""The comparison of priors: its rows, page and errors; test_cascade.py runs all of it."""

import json

import pytest

from benchmarks import markdown_page as pages
from studies.priors import __main__ as priors
from studies.priors import comparison, prior_tables
from tests.stages import tiny
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.inference.cascade import Cascade


def cell(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "total": 8}


def row(name, **changes):
    names = ("cosine_image", "cosine_text", "finds_image", "finds_caption")
    cells = {**{each: cell(0.5) for each in names}, "rank_image": 3.0, "frechet": 0.01}
    return {"name": name, "prior": "", "embeddings": cells, **changes}


def result(*rows):
    facts = {"split": "validation", "embeddings": 20, "num": 8, "group": 20, "batch": 50}
    return {**facts, "device": "cpu, 2 cores", "date": "2022-04-13", "rows": list(rows)}


def test_rows_are_no_prior_both_priors_guidance_1_2_4_and_the_best_of_1_2_8():
    parts = {name: tiny.experiment(name).model for name in ("clip", "prior", "decoder")}
    rows = comparison.sources_of(Cascade.of(**parts))
    assert [source.prior for source in rows] == ["", "prior", "prior_ar", *["prior"] * 5]
    assert [source.options.condition for source in rows[:3]] == ["z_img", "z_txt", "prior"]
    pairs = [(o.options.prior.guidance_scale, o.options.num_candidates) for o in rows[3:]]
    assert pairs == [(1, 1), (1, 2), (1, 8), (2, 2), (4, 2)]
    assert len({source.name for source in rows}) == len(rows)


def test_the_page_has_every_row_and_the_attributes_of_all_rows():
    one = row("given", checker={"count": cell(0.25), "binding": cell(1.0)})
    other = row("drawn", checker={"count": cell(0.75)}, seconds=0.0123, flops=4.5e9)
    page = prior_tables.tables(result(one, other))
    assert f"| given |{' 0.50 [0.40, 0.60] |' * 3} 0.0100 |  |  |" in page
    assert "| 12.3 | 4.5 |" in page
    assert "| drawn | 0.75 [0.65, 0.85] |" in page
    assert "binding" not in page


def test_captions_without_scenes_have_no_second_table():
    assert "checker" not in prior_tables.tables(result(row("given")))


def test_only_the_text_between_the_marks_is_replaced(tmp_path):
    out = tmp_path / "page.md"
    out.write_text(f"# Priors\n\n{pages.BEGIN}\nold\n{pages.END}\n\nThe end.\n")
    for page in ("first\n", "second\n"):
        pages.write(out, page, {"rows": []}, title=prior_tables.TITLE)
    expected = f"# Priors\n\n{pages.BEGIN}\n\nsecond\n\n{pages.END}\n\nThe end.\n"
    assert out.read_text() == expected
    assert json.loads(out.with_suffix(".json").read_text()) == {"rows": []}


def export(run_dir, *names):
    """Exports that look finished from afar."""
    card = {"format_version": 1, "stage": "upsampler", "size": "shapes", "step": 1}
    card |= {"config": {}, "image_size": 8, "low_res_size": 4}
    for name in names:
        (run_dir / name / "export").mkdir(parents=True)
        (run_dir / name / "export" / "manifest.json").write_text(json.dumps(card))


@pytest.fixture
def run_dir(tmp_path):
    """A run whose autoregressive prior is missing."""
    export(tmp_path, "clip", "prior", "decoder")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--embeddings=0"], "--embeddings is 0; it must be greater than 0"),
        (["--out=page.txt"], "--out is 'page.txt'; give a name that ends in .md"),
        ([], "no export of the prior_ar .*train --config=experiments/prior_ar.py:shapes --workdir"),
    ],
)
def test_mistakes_are_reported_before_anything_is_loaded(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        priors.main([f"--models={run_dir}", f"--data={run_dir}/data", *arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of ten held-out examples."""
    out = tmp_path_factory.mktemp("data") / "shapes"
    prepare.main(
        ["shapes:train=4,validation=10,compositional=1", f"--out={out}", "--image-size=16"]
    )
    return out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nowhere"], "no data set at nowhere; make one with"),
        (["--split=test"], "the data set has no split 'test'"),
        (["--split=compositional"], "split 'compositional' of .* has 1 examples; .* at least 2"),
        (["--num=11"], "--num is 11, but split 'validation' of .* has 10 examples"),
        (["--embeddings=11"], "--embeddings is 11, but split 'validation' of .* has 10 examples"),
        (["--num=6", "--embeddings=5"], r"--embeddings is 5; it must lie in \[6, 10\]"),
    ],
)
def test_insufficient_data_are_reported_before_anything_is_loaded(
    run_dir, data, arguments, message
):
    export(run_dir, "prior_ar")
    with pytest.raises(UserError, match=message):
        priors.main([f"--models={run_dir}", f"--data={data}", *arguments])


@pytest.mark.parametrize(
    ("arguments", "num", "embeddings"),
    [([], 10, 10), (["--num=4"], 4, 10), (["--embeddings=6"], 6, 6)],
)
def test_default_numbers_are_bounded_by_the_split(run_dir, data, arguments, num, embeddings):
    args = priors.parse([f"--models={run_dir}", f"--data={data}", *arguments])
    source, train_embeddings = priors.open_data(args)
    assert (args.num, args.embeddings, len(source), len(train_embeddings)) == (
        num,
        embeddings,
        10,
        4,
    )


def test_a_new_page_has_a_title(tmp_path):
    out = tmp_path / "page.md"
    pages.write(out, "tables\n", {"rows": []}, title=prior_tables.TITLE)
    first = out.read_text()
    assert first.startswith("# Comparison of the priors\n")
    pages.write(out, "tables\n", {"rows": []}, title=prior_tables.TITLE)
    assert out.read_text() == first


def test_a_page_that_cannot_take_the_tables_is_rejected_first(run_dir):
    export(run_dir, "prior_ar")
    (run_dir / "page.md").write_text("my notes\n")
    arguments = [f"--models={run_dir}", f"--data={run_dir}/data"]
    with pytest.raises(UserError, match="page.md has no lines <!-- tables: begin -->"):
        priors.main([*arguments, f"--out={run_dir}/page.md"])
    with pytest.raises(UserError, match="nowhere/page.md', but there is no such folder"):
        priors.main([*arguments, f"--out={run_dir}/nowhere/page.md"])
