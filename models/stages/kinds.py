"""Every kind of network that a bundle may hold, by its name in the manifest."""

import inspect
from typing import Any

from torch import nn

from bfr.models.discover import modules
from bfr.models.stages.stage import Stage
from bfr.runtime.errors import BundleInvalid

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for module in modules("bfr.models.stages")
    if module.__name__ != __name__
    for stage in vars(module).values()
    if inspect.isclass(stage) and issubclass(stage, Stage) and hasattr(stage, "kind")
}
"""The classes in the modules of `bfr.models.stages` that have a `kind`."""


def make_stage(kind: str, network: nn.Module, options: dict[str, Any]) -> Stage:
    """The stage of a kind around a network, in eval mode. Raises BundleInvalid for a kind that is not known."""
    if kind not in STAGES:
        raise BundleInvalid(f"this version of bfr knows no networks of kind {kind!r}: upgrade bfr")
    made: Any = STAGES[kind]
    stage: Stage = made(network, **options)
    return stage.eval()
