"""Evaluation of DALL-E's chain: reconstructions as the ceiling, and the curve of the best of n."""

import json

import pytest

from tests import cascades
from unclip_jax import evaluate, prepare
from unclip_jax.core.checks import UserError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dalle")
    cascades.write(folder, names=("clip", "dvae", "dalle"))
    inputs = ["shapes:train=4,validation=16", f"--out={folder}/data"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder


def test_a_chain_of_codes_is_judged_from_its_captions_below_its_reconstructions(run_dir, capsys):
    evaluate.main([f"--models={run_dir}", f"--data={run_dir}/data", "--num=4"])
    result = json.loads((run_dir / "evaluation.json").read_text())
    assert list(result["checker"]) == ["caption"] and result["checker"]["caption"]["joint"]["total"]
    reconstruction = result["reconstruction"]
    assert 0 < reconstruction["usage"] <= 1 and 1 <= reconstruction["perplexity"] <= 64
    assert reconstruction["checker"]["joint"]["total"] == 4
    output = capsys.readouterr().out
    assert "reconstructions " in output and "exact checker   from the:" in output


def test_the_curve_over_candidates_rises_in_the_score_that_chooses(run_dir, capsys, tmp_path):
    out = tmp_path / "curve.json"
    flags = [f"--models={run_dir}", f"--data={run_dir}/data", "--num=3", "--candidates=5"]
    evaluate.main(["rerank", *flags, f"--out={out}"])
    result = json.loads(out.read_text())
    assert list(result["curves"]["joint"]) == ["1", "2", "4", "5"]
    values = [point["value"] for point in result["curves"]["clip_score"].values()]
    assert values == sorted(values) and values[0] < values[-1]
    assert "3 captions, the best of n of 5 by CLIP" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--candidates is 513; it must lie in \[1, 512\]"):
        evaluate.main(["rerank", *flags[:3], "--candidates=513"])
    with pytest.raises(UserError, match="decodes codes, which has no decoder to sweep; use `eval"):
        evaluate.main(["sweep", *flags[:2], f"--out={tmp_path}/sweep"])
