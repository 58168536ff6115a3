"""Networks that answer at once, in the place of a stage's own, and remember their arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass
class Stub:
    """Calls of a network: positional arguments after the parameters, and named ones."""

    calls: list[tuple[tuple, dict[str, Any]]] = dataclasses.field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """The argument `name` of the last call."""
        return self.calls[-1][1][name]

    @property
    def x_t(self) -> jax.Array:
        return self.calls[-1][0][0]

    @property
    def t(self) -> jax.Array:
        return self.calls[-1][0][1]


def replace(monkeypatch, module: Any, output: Callable[..., Any]) -> Stub:
    """Replaces `module.apply`; `output(x_t, t)` is what the network answers."""
    stub = Stub()

    def network(_, params, *inputs, **options):
        stub.calls.append((inputs, options))
        method = getattr(options.get("method"), "__name__", "")
        return jnp.zeros((1, 1, 1)) if method == "encode_text" else output(*inputs)

    monkeypatch.setattr(module, "apply", network)
    return stub
