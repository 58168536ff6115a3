"""Settings of XLA for tests: several simulated devices, and quick compilation.

Most of the tests' time is the compilation of programs that then run for milliseconds. Without
LLVM's optimisations and XLA's MLIR emitters a program compiles in a quarter of the time (the
gradient of the smallest U-Net in 2.0 s of CPU time instead of 8.1) and computes the same up to
rounding.
UNCLIP_THOROUGH=1 leaves the compiler as users have it, as `make nightly` and `make parity` do.

The environment is set before JAX is imported, so this module imports it in functions only.

A third of the time of a small program, such as one operation outside `jax.jit`, is neither XLA's
nor the program's: JAX builds a new MLIR context for each, with all its dialects. `share_contexts`
lets the programs of a thread use the same one.

Another twentieth is Flax's: each `apply` traces the initialiser of every parameter, only to learn
its shape. `compare_shapes` takes the shape that the initialiser is asked for instead.
"""

import functools
import importlib.util
import mmap
import os
import pathlib
import threading
from collections.abc import Sequence

DEVICES = "--xla_force_host_platform_device_count"
# For `jax.jit(..., compiler_options=THOROUGH)`: a program whose last digits a test looks at.
THOROUGH = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",  # in parts, they are more work in all
)


def supported_flags(flags: Sequence[str]) -> list[str]:
    """Those flags whose names this jaxlib contains; XLA ends a process at one it does not know."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None and spec.origin is not None
    library = pathlib.Path(spec.origin).with_name("libjax_common.so")
    if not library.is_file():
        return []
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary,
    ):
        return [f for f in flags if binary.find(f[2:].partition("=")[0].encode()) >= 0]


def flags(devices: int, user_flags: str = "") -> str:
    """A value of XLA_FLAGS; `user_flags` come last and so take precedence."""
    quick = [] if os.environ.get("UNCLIP_THOROUGH") == "1" else supported_flags(QUICK)
    return " ".join([*quick, f"{DEVICES}={devices}", user_flags]).strip()


def settle() -> None:
    """Set XLA_FLAGS of this process and its children: eight devices, unless it sets a number."""
    user_flags = os.environ.get("XLA_FLAGS", "")
    if (
        DEVICES not in user_flags
    ):  # a worker of pytest-xdist has them from the process that began it
        os.environ["XLA_FLAGS"] = flags(8, user_flags)


def share_contexts(most: int = 100) -> None:
    """Lower up to `most` programs of a thread in one MLIR context, then begin another.

    A context keeps the constants of its programs, so it may not live for long.
    """
    from jax.interpreters import mlir

    begin = mlir.ModuleContext.__init__
    local = threading.local()

    @functools.wraps(begin)
    def reuse(self, *, context=None, module=None, **others):
        if context is None and module is None:
            local.left = getattr(local, "left", 0) - 1
            if local.left < 0:
                local.context, local.left = mlir.make_ir_context(), most - 1
            context = local.context
        begin(self, context=context, module=module, **others)

    mlir.ModuleContext.__init__ = reuse


def compare_shapes() -> None:
    """Checks parameters of `apply` against the shape argument of their initialiser.

    By convention an initialiser is called with a key, a shape and a dtype. Where the shapes differ,
    or there is no such argument, Flax decides as ever.
    """
    import flax.core
    import numpy as np

    scope = flax.core.scope.Scope
    checked = scope.param

    @functools.wraps(checked)
    def param(self, name, init_fn, *init_args, unbox=True, **init_kwargs):
        if init_args and isinstance(init_args[0], tuple) and self.has_variable("params", name):
            value = self.get_variable("params", name)
            value = flax.core.meta.unbox(value) if unbox else value
            if hasattr(value, "shape") and np.shape(value) == init_args[0]:
                self.reserve(name, "params")
                return value
        return checked(self, name, init_fn, *init_args, unbox=unbox, **init_kwargs)

    scope.param = param
