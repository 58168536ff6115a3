"""A wrapper of `jax.jit` that traces guidance scales and eta, and reports compilation."""

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh

from unclip_jax.core import dynamic_fields
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import replicated, traced_on

T = TypeVar("T")

MOST_PROGRAMS = 64  # per function in memory; more are compiled again, or read from the disk


class CompiledFunction(Generic[T]):
    """A pure function, compiled once per shape and per static settings."""

    def __init__(
        self,
        function: Callable[..., T],
        *,
        static: tuple[str, ...],
        mesh: Mesh,
        compiling: Callable[[bool], None],
    ):
        """Wraps a function, which is compiled at the first call.

        Args:
            function: a pure function.
            static: names of arguments that are not arrays: settings and Python values.
            mesh: the devices.
            compiling: called with True before the function is compiled, and with False after it.
        """
        self._function, self._static, self._compiling = function, static, compiling
        self._is_traced = False  # by the present call
        self._programs = 0

        def run(numbers: dict[str, Any], *args: Any, **kwargs: Any) -> T:
            self._is_traced = True  # Python runs only while `jax.jit` traces the function
            compiling(True)
            settings = {
                name: dynamic_fields.join(kwargs[name], own) for name, own in numbers.items()
            }
            return function(*args, **{**kwargs, **settings})

        self._run: Any = jax.jit(
            traced_on(mesh, run), static_argnames=static, out_shardings=replicated(mesh)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Runs the function.

        Raises:
            UserError: the function rejects its arguments.
        """
        settings = {name: kwargs[name] for name in self._static if name in kwargs}
        parts = {name: dynamic_fields.split(value) for name, value in settings.items()}
        fixed = {name: static for name, (static, _) in parts.items()}
        numbers = {name: own for name, (_, own) in parts.items() if own}
        data = {name: value for name, value in kwargs.items() if name not in settings}
        try:
            return self._run(numbers, *args, **data, **fixed)
        except UserError:  # its message shows tracers; that of known numbers shows values
            jax.eval_shape(functools.partial(self._function, **settings), *args, **data)
            raise
        finally:
            if self._is_traced:
                self._is_traced = False
                self._compiling(False)
                self._programs += 1
                if self._programs > MOST_PROGRAMS:
                    self._run.clear_cache()
                    self._programs = 0


def low_memory_options() -> dict[str, str]:
    """Returns compiler options that keep parameters in their own type.

    On a CPU, XLA multiplies in float32. It converts the bfloat16 parameters of all layers before
    the loop over them, 19 GB for T5-XXL; without this pass it converts one layer at a time.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
