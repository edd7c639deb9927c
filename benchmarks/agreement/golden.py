"""Runs recorded outputs of the published code against this one: `python -m bfr.benchmarks.agreement.golden FILE...`.

A golden is an .npz with a .json of the same name beside it (`layout_NAME.json` for `full_NAME.npz`). Weights are
generated from the parameters' names (`bfr.models.weights.seeded`). These forms are known: `tiny_*`, a network's whole
input and output; `full_*`, every 16th pixel of a published network at full size; `loop_*`, a whole sampler run with its
noise; and `pgdiff_*`, `dr2_*`, `osdface_*`, whole systems. Each is run in eager PyTorch and exported, on ONNX Runtime;
the largest absolute error of each is printed. Exit status: 0 if every error is below the tolerance, 1 if one is
not, 2 if a file is no golden.
"""

import argparse
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bfr.benchmarks.agreement.replay import Arrays, Config, Errors, distance, parameters, read_config
from bfr.benchmarks.agreement.systems import run_dr2, run_loop, run_osdface, run_pgdiff
from bfr.export.onnx.graph import export_graph
from bfr.export.verify.walk import call_network
from bfr.models.networks.lama import LaMa
from bfr.models.networks.swinir import SwinIR
from bfr.models.networks.unet import UNet
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.errors import BfrError, InputNotFound, InvalidOption
from bfr.runtime.files import write_bytes

TOLERANCE = 1e-4
NETWORKS: dict[str, type[nn.Module]] = {"UNetModel": UNet, "SwinIR": SwinIR, "FFCResNetGenerator": LaMa}


def run_golden(path: Path, scratch: Path) -> Errors:
    """Run one golden; `scratch` is a folder for the exported graphs."""
    if not path.is_file():
        raise InputNotFound(f"{path} does not exist")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    form, _, name = path.stem.partition("_")
    if form not in FORMS:
        raise InvalidOption(f"{path.name} is no golden: its name begins with none of {', '.join(FORMS)}")
    described = path.with_name(f"layout_{name}.json") if form == "full" else path.with_suffix(".json")
    return FORMS[form](path, arrays, read_config(described), scratch)


def _run_tiny(_: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    inputs = {name: arrays[name].astype(np.float32) for name in ("x", "t") if name in arrays}
    outputs = run_network(_network(config, arrays["x"].shape[-1]), inputs, scratch)
    return Errors(*(distance(output, arrays["y"]) for output in outputs))


def _run_full(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    name = path.stem.removeprefix("full_")
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"full-x-{name}.pth".encode())))
    kind, size = config["class"], 512 if "512" in name else 256
    shape = (1, 4 if kind == "FFCResNetGenerator" else 3, size, size)
    draw = generator.standard_normal if kind == "UNetModel" else generator.random
    inputs = {"x": draw(shape).astype(np.float32)}
    if kind == "UNetModel":
        inputs["t"] = np.array([396.0], np.float32)

    def error(result: Float32) -> float:
        y = result[0]
        pairs = ((y[:, ::16, ::16], "out_every_16"), (y.mean((1, 2)), "mean"), (y.std((1, 2)), "std"))
        return max(distance(value, arrays[kept]) for value, kept in pairs)

    return Errors(*map(error, run_network(_network(config, size), inputs, scratch)))


def run_network(module: nn.Module, inputs: dict[str, Float32], scratch: Path) -> tuple[Float32, Float32]:
    """The output of a module on `inputs`, in eager PyTorch and exported on ONNX Runtime."""
    with torch.inference_mode():
        eager = module.eval()(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    pair = {name: torch.from_numpy(np.concatenate([v, v])[:2].copy()) for name, v in inputs.items()}
    graph, _ = export_graph(module, pair, ["y"], scratch / "network.onnx")
    device = CpuDevice()
    exported = call_network(device, device.load_graph(graph), inputs, {"y": eager.shape[1:]})
    return eager, exported["y"]


def _network(config: Config, image_size: int) -> Any:
    if config["class"] not in NETWORKS:
        raise InvalidOption(f"networks of class {config['class']} are not supported: {', '.join(NETWORKS)} are")
    module = NETWORKS[config["class"]](**parameters(config, image_size))
    seed_weights(module)
    return module.eval()


FORMS: dict[str, Callable[[Path, Arrays, Config, Path], Errors]] = {
    "tiny": _run_tiny,
    "full": _run_full,
    "loop": run_loop,
    "pgdiff": run_pgdiff,
    "dr2": run_dr2,
    "osdface": run_osdface,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest absolute error (%(default)s)")
    args = parser.parse_args(arguments)
    status, rows = 0, ["# Goldens", "| golden | eager PyTorch | ONNX Runtime |", "| --- | --- | --- |"]
    print(f"{'golden':44} {'eager':>10} {'onnxruntime':>12}")
    for path in args.files:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                errors = run_golden(path, Path(scratch))
            except BfrError as error:
                print(f"{path.stem:44} {error}")
                status = max(status, 2)
                continue
        ok = errors.worst <= args.tolerance
        print(
            f"{path.stem:44} {errors.eager:10.1e} {errors.onnxruntime:12.1e}  {'ok' if ok else 'TOO LARGE'}", flush=True
        )
        rows.append(f"| {path.stem} | {errors.eager:.1e} | {errors.onnxruntime:.1e} |")
        status = max(status, 0 if ok else 1)
    if args.markdown:
        write_bytes(args.markdown, ("\n".join(rows) + "\n").encode())
    return status


if __name__ == "__main__":
    sys.exit(main())
