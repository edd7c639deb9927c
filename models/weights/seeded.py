"""Name-seeded weights: a function of each parameter's name, for tests and benchmarks without a checkpoint.

Two networks of the same layout get the same weights on every machine, so a test can compare a recorded output without
storing the weights.
"""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bfr.models.systems.system import SystemSpec

LOOP_SCALE: Mapping[str, float] = MappingProxyType({"out.2.weight": 0.3, "out.2.bias": 0.3})
"""Factors for a UNet in a sampling loop: at full strength the last layer of a random network makes the loop chaotic."""

COMPUTED = ("attn_mask", "relative_position_index")  # buffers that the architecture determines


def seeded_array(name: str, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Weights named `name`: PCG64 normals seeded by the name's CRC-32, scaled to keep activations of order one.

    Two or more dimensions: standard deviation 1/sqrt(fan in) (0.02 for relative position biases). One dimension:
    `1 + 0.1 n` for weights, `1 + 0.1 |n|` for running variances, `0.1 n` otherwise.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    normal = generator.standard_normal(shape).astype(np.float32)
    kind = name.rsplit(".", 1)[-1]
    if kind == "relative_position_bias_table":
        scaled = normal * 0.02
    elif len(shape) >= 2:
        scaled = normal / math.sqrt(math.prod(shape[1:]))
    elif kind == "weight":
        scaled = 1 + 0.1 * normal
    elif kind == "running_var":
        scaled = 1 + 0.1 * np.abs(normal)
    else:
        scaled = 0.1 * normal
    return scaled.astype(np.float32)


def seed_weights(module: nn.Module, scale: Mapping[str, float] | None = None) -> None:
    """Fill the state dict of a module in place with functions of the names.

    Integer buffers, attention masks and relative position indices keep the values that the network computed. scale:
    factors of single tensors, by name; KeyError if one is not there.
    """
    state = module.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point() and name.rsplit(".", 1)[-1] not in COMPUTED:
                tensor.copy_(torch.from_numpy(seeded_array(name, tuple(tensor.shape))))
        for name, factor in (scale or {}).items():
            state[name].mul_(factor)


def write_seeded(system: SystemSpec, folder: Path) -> None:
    """Write the checkpoints of a system under their published names, weights a function of the parameters' names.

    They restore nothing: they are for tests and timings. A file that several networks share is the same for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Tensor]] = {}
    for spec in system.networks.values():
        module = spec.build()
        for part, download in spec.files.items():
            filled = module.get_submodule(part)
            scale = {name: factor for name, factor in LOOP_SCALE.items() if name in filled.state_dict()}
            seed_weights(filled, scale if spec.kind.startswith("step") else None)
            files.setdefault(download.file, {}).update(filled.state_dict())
    for name, state in files.items():
        if name.endswith(".safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
