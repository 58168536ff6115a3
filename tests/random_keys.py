"""The random keys that a function draws with, read off its jaxpr without running it.

`CONTRIBUTING.md` asks that keys are addressed and not reused. Two draws from one key are the same
numbers, which no statistic of either shows.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

Origin = tuple  # how a value came about: nested tuples of names, literals and positions

CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}


def uses(function: Callable, *args: Any) -> list[Origin]:
    """Returns the origin of the key of every draw in `function(*args)`; equal keys are equal.

    A key is used by drawing bits with it and by splitting it, as `jax.random.randint` does.
    A draw inside a scan is listed once; its origin names the loop if the key depends on the step.
    """
    closed = jax.make_jaxpr(function)(*args)
    result: list[Origin] = []
    inputs = [("argument", number) for number, _ in enumerate(closed.jaxpr.invars)]
    _walk(closed.jaxpr, [_constant(c) for c in closed.consts], inputs, result, itertools.count())
    return result


def duplicates(origins: list[Origin]) -> list[Origin]:
    """Returns the origins that occur more than once."""
    return [origin for number, origin in enumerate(origins) if origin in origins[:number]]


def depends_on_a_loop(origin: Origin) -> bool:
    """True if a key is another one in every step of a scan."""
    return "loop" in str(origin)


def _walk(jaxpr: Any, consts: list, inputs: list, result: list, numbers: Any) -> list:
    """Follows the equations of a jaxpr; returns the origins of its results."""
    origins: dict[Any, Origin] = dict(zip(jaxpr.constvars, consts, strict=True))
    origins.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Origin:
        return _constant(atom.val) if isinstance(atom, core.Literal) else origins[atom]

    for equation in jaxpr.eqns:
        sources = [read(atom) for atom in equation.invars]
        results = _results(equation, sources, result, numbers)
        origins.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: Any, sources: list, result: list, numbers: Any) -> list:
    name, params = equation.primitive.name, equation.params
    if name in ("random_bits", "random_split"):
        result.append(sources[0])
    if name in CALLS:
        inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
        jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", [])
        return _walk(jaxpr, [_constant(c) for c in consts], sources, result, numbers)
    if name == "scan":
        number, fixed = next(numbers), params["num_consts"]
        varying = [("loop", number, place) for place in range(len(sources) - fixed)]
        inner = params["jaxpr"]
        consts = [_constant(c) for c in inner.consts]
        _walk(inner.jaxpr, consts, sources[:fixed] + varying, result, numbers)
    if name == "cond":
        for branch in params["branches"]:
            consts = [_constant(c) for c in branch.consts]
            _walk(branch.jaxpr, consts, sources[1:], result, numbers)
    settings = tuple(sorted((k, str(v)) for k, v in params.items() if k != "jaxpr"))
    return [(name, settings, tuple(sources), place) for place, _ in enumerate(equation.outvars)]


def _constant(value: Any) -> Origin:
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return ("constant", array.shape, array.tobytes())
