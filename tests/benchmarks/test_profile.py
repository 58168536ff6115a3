"""The profile of a step: how moments are counted, and all of it on a small stage."""

import jax
import pytest

from benchmarks import profile
from benchmarks.profile import Event
from unclip_jax.core.checks import UserError


def test_every_moment_counts_once_for_the_innermost_operation():
    events = [
        Event("ThunkExecutor::Execute", 0, 100),
        Event("while.1", 10, 90),
        Event("ynn_fusion.3", 10, 40),
        Event("copy.7", 40, 60),
        Event("all-reduce.1", 90, 100),
        Event("Rendezvous", 92, 95),
        Event("ynn_fusion.3", 120, 130),  # of the next step
    ]
    result = profile.own_time(reversed(events))
    assert sum(result.values()) == 110
    assert result["matrix products"] == 40 and result["moving data"] == 20
    assert result["elementwise"] == 30  # what the loop did itself
    assert result["between devices"] == 10 and result["waiting"] == 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dot.12", "matrix products"),
        ("bitcast_dynamic-update-slice_fusion.2", "moving data"),
        ("wrapped_broadcast", "moving data"),
        ("broadcast_add_fusion", "elementwise"),
        ("reduce_fusion", "reductions"),
        ("convolution.1", "convolutions"),
    ],
)
def test_operations_are_distinguished_by_name(name, kind):
    assert profile.kind(name) == kind


def test_a_step_is_profiled(capsys):
    profile.main(["--config=experiments/prior.py:tiny", "--steps=1"])
    output = capsys.readouterr().out
    assert f"devices: {jax.device_count()}\n" in output and "| matrix products |" in output


def test_a_wrong_number_of_steps_is_rejected():
    with pytest.raises(UserError, match=r"--steps is 0; it must lie in \[1, 100\]"):
        profile.main(["--config=experiments/prior.py:tiny", "--steps=0"])
