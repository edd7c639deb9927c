"""The published networks whose outputs and layouts are recorded in `tests/golden`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bfr.models.networks.lama import LaMa
from bfr.models.networks.swinir import SwinIR
from bfr.models.networks.unet import UNet
from bfr.models.weights.seeded import seed_weights

GOLDEN = Path(__file__).parents[1] / "golden"
# By the class in the published code: our network, its options that are ours, and the published ones that it lacks.
CLASSES: dict[str, tuple[type[Any], dict[str, Any], tuple[str, ...]]] = {
    "FFCResNetGenerator": (LaMa, {"image_size": 64}, ()),
    "SwinIR": (SwinIR, {}, ()),
    "UNetModel": (UNet, {}, ("dims", "use_fp16")),
}


def description(name: str) -> Any:
    """A recorded network: its `class`, its `params`, and of layouts its `state_dict`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def build(name: str, **changes: Any) -> Any:
    """The network of a description, with other options; its weights are random."""
    recorded = description(name)
    network, ours, lacks = CLASSES[recorded["class"]]
    params = {key: value for key, value in recorded["params"].items() if key not in lacks}
    if name.startswith("layout"):
        ours = {}
    return network(**(params | ours | changes)).eval()


def seeded(name: str, **changes: Any) -> Any:
    """As `build`, its weights functions of their names."""
    network = build(name, **changes)
    seed_weights(network)
    return network


def golden(name: str) -> tuple[Tensor, ...]:
    """The recorded inputs of a network, (2, ...) each, and last its output."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return tuple(torch.from_numpy(arrays[key]) for key in ("x", "t", "y") if key in arrays)
