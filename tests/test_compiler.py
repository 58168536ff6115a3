"""The settings of XLA that all other tests run under."""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from jax._src.interpreters import mlir

from tests import compiler


def test_eight_devices_are_pretended():
    assert len(jax.devices("cpu")) == 8


def test_a_flag_that_this_jaxlib_does_not_know_is_left_out():
    """XLA would end every process that starts under it."""
    flags = ("--xla_no_such_flag=1", f"{compiler.DEVICES}=2")
    assert compiler.known(flags) == [f"{compiler.DEVICES}=2"]


def test_what_is_given_prevails_and_quick_is_left_to_choose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNCLIP_THOROUGH", "0")
    quick = compiler.known(compiler.QUICK)
    given = "--xla_dump_to=x"
    assert compiler.flags(3, given).split() == [*quick, f"{compiler.DEVICES}=3", given]
    monkeypatch.setenv("UNCLIP_THOROUGH", "1")
    assert compiler.flags(3) == f"{compiler.DEVICES}=3"


def test_devices_that_are_given_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", f"{compiler.DEVICES}=4")
    compiler.settle()
    assert os.environ["XLA_FLAGS"] == f"{compiler.DEVICES}=4"


def test_programs_of_a_thread_share_a_context_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlir, "make_ir_context", object)
    compiler.share_contexts(3)
    seen = [mlir.make_ir_context() for _ in range(7)]
    assert [seen.index(context) for context in seen] == [0, 0, 0, 3, 3, 3, 6]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(mlir.make_ir_context).result()
    assert other not in seen


@pytest.mark.skipif(os.environ.get("UNCLIP_THOROUGH") == "1", reason="each program has its own")
def test_the_programs_of_tests_share_a_context():
    first = jax.jit(lambda x: x + 1).lower(1.0).compiler_ir()
    second = jax.jit(lambda x: x + 2).lower(1.0).compiler_ir()
    assert first.context is second.context or mlir.make_ir_context() is second.context
