"""Adafactor (Shazeer & Stern, arXiv 1804.04235) with a state that is sharded like the parameters.

This is optax's implementation with its defaults, with which Imagen trains its base model (arXiv
2205.11487, section 4.1). The second moment of a matrix is stored as one row and one column, which
lack an axis of the parameter and therefore need boxes of their own.
"""

from typing import Any

import jax
import numpy as np
import optax

from unclip_jax.parallel.place import axis_names, unbox


def adafactor(rate: Any, *, scale: bool) -> optax.GradientTransformation:
    """Returns Adafactor on boxed or plain parameters.

    Args:
        rate: learning rate by step.
        scale: True multiplies updates by the root mean square of the parameter, at least 1e-3;
            parameters initialised to zero then move a thousand times slower than others.
    """
    inner = optax.adafactor(rate, multiply_by_parameter_scale=scale)

    def init(params: Any) -> Any:
        state, names = inner.init(unbox(params)), list(axis_names(params).values())
        boxes = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "names"))

        def boxed(tree: Any, removed: int | None) -> Any:
            leaves = [
                _box(leaf, box, name, removed)
                for leaf, box, name in zip(jax.tree.leaves(tree), boxes, names, strict=True)
            ]
            return jax.tree.unflatten(jax.tree.structure(tree), leaves)

        def factored(part: Any) -> Any:
            if not isinstance(part, optax.FactoredState):
                return part
            rows, columns = boxed(part.v_row, -1), boxed(part.v_col, -2)
            return optax.FactoredState(part.count, rows, columns, boxed(part.v, None))

        return jax.tree.map(factored, state, is_leaf=lambda x: isinstance(x, optax.FactoredState))

    return optax.GradientTransformation(init, inner.update)


def _box(leaf: Any, box: Any, names: tuple[str | None, ...], removed: int | None) -> Any:
    """Returns a moment in the box of its parameter, without the axis that it sums over.

    Args:
        leaf: the moment; its shape is (1,) if it is not stored.
        box: the parameter.
        names: axis names of the parameter.
        removed: the axis that the moment lacks, in the order of their sizes; None = none.
    """
    shape = unbox(box).shape
    if not hasattr(box, "names") or (leaf.shape == (1,) and shape != (1,)):
        return leaf
    axis = None if removed is None else int(np.argsort(shape)[removed])
    return box.replace(value=leaf, names=tuple(n for i, n in enumerate(names) if i != axis))
