"""The settings of XLA, Flax and the type checker that all other tests run under."""

import os
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from jax.interpreters import mlir

from tests import compiler
from unclip_jax.diffusion import process

shared = mlir.ModuleContext.__init__
OWN_CONTEXTS = getattr(shared, "__wrapped__", shared)  # as JAX has it


def test_eight_devices_are_pretended():
    assert len(jax.devices("cpu")) == 8


def test_a_flag_that_this_jaxlib_does_not_know_is_left_out():
    """XLA would end every process that starts under it."""
    flags = ("--xla_no_such_flag=1", f"{compiler.DEVICES}=2")
    assert compiler.supported_flags(flags) == [f"{compiler.DEVICES}=2"]


def test_what_is_given_prevails_and_quick_is_left_to_choose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNCLIP_THOROUGH", "0")
    quick = compiler.supported_flags(compiler.QUICK)
    user_flags = "--xla_dump_to=x"
    assert compiler.flags(3, user_flags).split() == [*quick, f"{compiler.DEVICES}=3", user_flags]
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
    contexts = [context(i) for i in range(7)]
    assert [contexts.index(each) for each in contexts] == [0, 0, 0, 3, 3, 3, 6]
    with ThreadPoolExecutor(1) as pool:
        (other,) = pool.map(context, [0])
    assert other is not context(0) is contexts[6]


@pytest.mark.skipif(os.environ.get("UNCLIP_THOROUGH") == "1", reason="each program has its own")
def test_the_programs_of_tests_share_contexts():
    assert len({id(each) for each in [context(i) for i in range(5)]}) <= 2


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (3,)])
def test_parameters_of_another_shape_are_rejected(shape):
    variables = {"params": {"kernel": jnp.ones(shape), "bias": jnp.ones(4)}}
    dense = nn.Dense(4)
    np.testing.assert_array_equal(
        dense.apply({"params": {**variables["params"], "kernel": jnp.eye(3, 4)}}, jnp.ones(3)),
        [2.0, 2.0, 2.0, 1.0],
    )
    with pytest.raises(ScopeParamShapeError):
        dense.apply(variables, jnp.ones(3))


def test_types_and_shapes_of_arguments_are_checked():
    x, level = jnp.ones((2, 3)), jnp.ones((2, 1))
    assert process.q_sample(x, x, alpha_bar=level).shape == (2, 3)
    for wrong in ((jnp.ones((2, 3), int), x), (jnp.ones((4, 3)), x)):
        with pytest.raises(jaxtyping.TypeCheckError):
            process.q_sample(*wrong, alpha_bar=level)
