"""The systems of `bfr`, by name."""

from bfr.models.discover import modules
from bfr.models.systems.difface import DIFFACE
from bfr.models.systems.mini.system import MINI
from bfr.models.systems.system import ARCHITECTURES, NetworkSpec, SystemSpec
from bfr.runtime.errors import InvalidOption

__all__ = ["ARCHITECTURES", "DIFFACE", "MINI", "SYSTEMS", "NetworkSpec", "SystemSpec", "get_system"]

SYSTEMS: dict[str, SystemSpec] = {
    spec.name: spec
    for module in modules("bfr.models.systems")
    for spec in vars(module).values()
    if isinstance(spec, SystemSpec)
}
"""The constants of the modules of `bfr.models.systems` that are systems."""


def get_system(name: str) -> SystemSpec:
    """A system by its name. Raises InvalidOption, which lists the systems."""
    if name not in SYSTEMS:
        raise InvalidOption(f"system {name!r} is unknown: choose one of {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]
