"""What the modules of a folder declare, found by looking: a new network, stage or system is one new file."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules(package: str) -> Iterator[ModuleType]:
    """The modules of a package, in the order of their names; of a package inside it, its module `system` if any."""
    for found in iter_modules(import_module(package).__path__):
        name = f"{package}.{found.name}"
        if not found.ispkg:
            yield import_module(name)
        elif any(inner.name == "system" for inner in iter_modules(import_module(name).__path__)):
            yield import_module(f"{name}.system")
