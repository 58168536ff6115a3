"""Configs and records are values: what holds one may keep it, and no other code changes it."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def dataclasses_of(package: ModuleType) -> Iterator[type]:
    """Yields the dataclasses of all modules of a package."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and dataclasses.is_dataclass(value):
                yield value


def changeable(package: ModuleType) -> list[str]:
    """Returns the names of dataclasses whose attributes can be assigned.

    Those that extend such a class of a library cannot be otherwise.
    """
    found = list(dataclasses_of(package))
    assert found, f"{package.__name__} has no dataclass"
    return [each.__qualname__ for each in found if not _is_frozen(each) and not _extends(each)]


def _is_frozen(cls: Any) -> bool:
    return cls.__dataclass_params__.frozen


def _extends(cls: type) -> bool:
    bases = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    return any(not _is_frozen(base) for base in bases)
