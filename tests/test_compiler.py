"""The settings of XLA that all other tests run under."""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from jax.interpreters import mlir

from tests import compiler

shared = mlir.ModuleContext.__init__
OWN_CONTEXTS = getattr(shared, "__wrapped__", shared)  # as JAX has it


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


def context(_):
    """The MLIR context in which JAX lowers a program."""
    return jax.jit(lambda x: x + 1).lower(1.0).compiler_ir().context


def test_programs_of_a_thread_share_a_context_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlir.ModuleContext, "__init__", OWN_CONTEXTS)
    assert context(0) is not context(0)
    compiler.share_contexts(3)
    seen = [context(i) for i in range(7)]
    assert [seen.index(each) for each in seen] == [0, 0, 0, 3, 3, 3, 6]
    with ThreadPoolExecutor(1) as pool:
        (other,) = pool.map(context, [0])
    assert other is not context(0) is seen[6]


@pytest.mark.skipif(os.environ.get("UNCLIP_THOROUGH") == "1", reason="each program has its own")
def test_the_programs_of_tests_share_contexts():
    assert len({id(each) for each in [context(i) for i in range(5)]}) <= 2
