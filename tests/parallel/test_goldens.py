"""No parameter of the paper's sizes changes its place unnoticed."""

import json

import pytest

from tests.parallel import goldens

GOLDEN = json.loads(goldens.FILE.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("rules", goldens.RULES)
@pytest.mark.parametrize("name", goldens.NAMES)
def test_parameters_are_sharded_as_they_were(name: str, rules: str):
    # If this is meant to change: `python -m tests.parallel.goldens`, and look at the difference.
    assert goldens.of(name, rules) == GOLDEN[name][rules]


@pytest.mark.parametrize("name", goldens.NAMES)
def test_tensor_rules_split_further_and_take_nothing_back(name: str):
    fsdp, both = (GOLDEN[name][rules] for rules in goldens.RULES)
    assert fsdp.keys() == both.keys()
    assert "tensor" not in "".join(fsdp.values()) and "tensor" in "".join(both.values())
    for path, text in fsdp.items():
        axes = [axis for axis in both[path].split(", ") if axis != "tensor"]
        assert text.count("fsdp") >= "".join(axes).count("fsdp"), path
