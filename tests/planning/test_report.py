"""Reports of programs that the compiler accepts but does not write."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from unclip_jax.planning import plan_report
from unclip_jax.planning.compile_target import CompileTarget
from unclip_jax.planning.flops import Count
from unclip_jax.planning.program import Program


class Unwritten:
    """A lowered program whose compiled form has no text."""

    def __init__(self, lowered):
        self._lowered = lowered

    def compile(self, **options):
        compiled = self._lowered.compile(**options)
        self.memory_analysis = compiled.memory_analysis
        return self

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (async-update)\nmore")


@pytest.fixture
def program():
    mesh = Mesh(jax.devices()[:1], ("data",))
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    return Program(
        what="sample",
        mesh=mesh,
        examples=1,
        calls=None,
        parameters=0,
        resident={"parameters": 0},
        model_flops=2.0 * 64**3,
        traced=Count(2.0 * 64**3, ()),
        lowered=Unwritten(lowered),
        memory_options=("more chips",),
    )


def test_memory_is_reported_where_xla_does_not_write_the_program(program):
    report = plan_report.make(program, CompileTarget("1 x cpu", jax.devices()[:1], None, True))
    sizes = report["memory_per_chip"]
    assert sizes["peak"] >= 2 * 64 * 64 * 4 and report["fits"] and report["estimate"] is None
    text = plan_report.as_text(report)
    assert "XLA failed to write the compiled program (INTERNAL: RET_CHECK failure" in text
    assert "more" not in text and "fits: yes" in text
