"""The systems that a server offers: a bundle each, with the presets that are chosen by name."""

from dataclasses import dataclass
from typing import Any

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.serve.options import ServeOptions

NO_LOOP = "default"  # what the one setting of a system without a loop is called


@dataclass(slots=True)
class System:
    """A bundle that is served, and its presets by name, the default first."""

    name: str
    bundle: Bundle
    presets: dict[str, Preset]

    @property
    def default_preset(self) -> str:
        """The name of the preset that a request without one gets."""
        return next(iter(self.presets))

    def describe(self) -> dict[str, Any]:
        """Describe it for `GET /info`."""
        manifest = self.bundle.manifest
        loops = {} if NO_LOOP in self.presets else self.presets
        return {
            "system": manifest.system,
            "title": manifest.title,
            "licence": manifest.licence.name,
            "bundle": self.bundle.hash,
            "image_size": manifest.image_size,
            "presets": {
                name: {"steps": make_plan(self.bundle, one).steps, "description": str(one)}
                for name, one in loops.items()
            },
            "default_preset": self.default_preset if loops else None,
        }


def open_systems(options: ServeOptions) -> dict[str, System]:
    """The systems by the names of their bundles, the default one first. Raises the BfrErrors of bundles and presets."""
    found = {}
    for name, folder in options.folders.items():
        bundle = Bundle.open(folder)
        found[name] = System(name, bundle, offered_presets(bundle, options.presets))
    return found


def offered_presets(bundle: Bundle, chosen: tuple[str, ...]) -> dict[str, Preset]:
    """The presets that are offered, by name, the default one first. Raises InvalidOption for one that is not there."""
    if not bundle.denoisers:
        bundle.preset(*chosen[:1])  # a system without a loop has none, and says so
        return {NO_LOOP: bundle.preset()}
    names = chosen or (bundle.manifest.default_preset, *bundle.manifest.presets)
    return {name: bundle.preset(name) for name in dict.fromkeys(names)}
