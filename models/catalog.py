"""The systems that `bfr` knows, by name."""

from bfr.models.systems.clrface import CLRFACE
from bfr.models.systems.difface import DIFFACE, IDENTITY, INPAINTING
from bfr.models.systems.diffbfr import DIFFBFR
from bfr.models.systems.mini.system import MINI
from bfr.models.systems.osdface import OSDFACE
from bfr.models.systems.pgdiff import PGDIFF, REFERENCE
from bfr.models.systems.system import ARCHITECTURES, NetworkSpec, SystemSpec
from bfr.runtime.errors import InvalidOption

__all__ = ["ARCHITECTURES", "DIFFACE", "MINI", "SYSTEMS", "NetworkSpec", "SystemSpec", "get_system"]

SYSTEMS = {
    spec.name: spec for spec in (MINI, DIFFACE, IDENTITY, INPAINTING, PGDIFF, REFERENCE, DIFFBFR, CLRFACE, OSDFACE)
}


def get_system(name: str) -> SystemSpec:
    """A system by its name. Raises InvalidOption with the names that there are."""
    if name not in SYSTEMS:
        raise InvalidOption(f"system {name!r} is unknown: choose one of {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]
