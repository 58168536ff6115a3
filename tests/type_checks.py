"""The type checker of tests: beartype, applied to a function when it is first called.

Most functions of the package are never called in one process, and beartype writes a wrapper for
each: two milliseconds, thousands of times.
"""

import functools
from collections.abc import Callable
from typing import Any

import beartype


def when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks the types of its arguments and its result as beartype does."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype.beartype(function)
        return checked(*args, **kwargs)

    return call
