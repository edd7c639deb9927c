"""Compute the shortest time that a call of the denoiser can take on a device.

Two ceilings are measured here and now, never looked up: operations a second of a large matrix product, and bytes a
second of a large copy. A call cannot be faster than its operations over the one or its fewest bytes over the other.
`bfr bench` draws its measurements under these ceilings.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model" (2009).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from bfr.runtime.bundle.bundle import Bundle

REPEATS = 20
GPU_SIDE, GPU_COPY = 8192, 2 << 30  # of the square matrices; bytes of the copy, far beyond any cache
CPU_SIDE, CPU_COPY = 1536, 256 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The speeds that one device reached.

    Attributes:
        dtype: Dtype of the product.
        bytes_per_second: Read and written bytes of the copy together.
    """

    device: str
    dtype: str
    flop_per_second: float
    bytes_per_second: float

    @property
    def precision(self) -> str:
        """The precision of networks that these ceilings are for, as manifests name it."""
        return "fp16" if self.dtype == "float16" else "fp32"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one call of the step network.

    Attributes:
        flop: Operations of the batch, 2 per multiply-add.
        bytes: The fewest that must cross the memory: every weight once, the step's inputs and outputs once.
        layer_bytes: Where besides every layer (convolution, norm, activation) reads its input from memory and writes
            its output there; an estimate, since kernels merge layers, and sums are not counted.
    """

    batch: int
    flop: float
    bytes: int
    layer_bytes: int

    @property
    def intensity(self) -> float:
        """Operations a byte, at the fewest bytes."""
        return self.flop / self.bytes

    def limit_seconds(self, ceilings: Ceilings) -> float:
        """Return the seconds that no call of this cost can fall below."""
        return max(self.flop / ceilings.flop_per_second, self.bytes / ceilings.bytes_per_second)


def measure_ceilings(index: int | None, threads: int | None = None, *, repeats: int = REPEATS) -> Ceilings:
    """Measure a GPU in half precision, or the CPU in float32.

    Args:
        index: Number of the GPU; None is the CPU.
        threads: PyTorch's from now on; None leaves them as they are.
        repeats: Timed calls of each.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    where = torch.device("cpu") if index is None else torch.device("cuda", index)
    dtype = torch.float32 if index is None else torch.float16
    side, size = (CPU_SIDE, CPU_COPY) if index is None else (GPU_SIDE, GPU_COPY)
    a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))  # zeros would draw less power
    product = torch.empty_like(a)
    flop_per_second = 2.0 * side**3 / median_seconds(lambda: torch.mm(a, b, out=product), where, repeats)
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    return Ceilings(
        device="CPU" if index is None else torch.cuda.get_device_name(index),
        dtype=str(dtype).removeprefix("torch."),
        flop_per_second=flop_per_second,
        bytes_per_second=2.0 * size / median_seconds(lambda: target.copy_(source), where, repeats),
    )


def median_seconds(call: Callable[[], Any], where: Any, repeats: int) -> float:
    """The median of single calls, after a quarter as many others; by events on a GPU."""
    import torch

    found: list[float] = []
    for repeat in range(-max(1, repeats // 4), repeats):
        if where.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            with torch.cuda.device(where):
                begin.record()
                call()
                end.record()
                end.synchronize()
            seconds = begin.elapsed_time(end) / 1e3
        else:
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        if repeat >= 0:
            found.append(seconds)
    return float(statistics.median(found))


def count_cost(bundle: Bundle, batches: Sequence[int], *, half: bool) -> list[Cost]:
    """Count the cost of the denoiser's call at each batch size.

    Args:
        bundle: A system with one denoiser that is a UNet on images.
        batches: The batch sizes.
        half: Weights and inner activations in half where the published half mode has them so, else all float32.

    Returns:
        One a batch size; none for other systems, and where the manifest has no operation count.
    """
    if len(bundle.denoisers) != 1:
        return []
    entry = bundle.network(bundle.denoise.network)
    if entry.gflop is None or entry.architecture != "unet" or entry.kind not in ("step", "step-known", "step-learned"):
        return []
    weights, traffic = _count_layers(bundle, half=half)
    state = sum(4 * prod(int(size) for size in tensor.shape[1:]) for tensor in (*entry.inputs, *entry.outputs))
    return [
        Cost(batch, 1e9 * entry.gflop * batch, weights + state * batch, weights + (state + traffic) * batch)
        for batch in batches
    ]


def _count_layers(bundle: Bundle, *, half: bool) -> tuple[int, int]:
    """Bytes of the denoiser's weights, and of all layers' inputs and outputs for one image. Computes nothing."""
    import torch

    from bfr.models.catalog import ARCHITECTURES

    entry = bundle.network(bundle.denoise.network)
    with torch.device("meta"):
        module: Any = ARCHITECTURES[entry.architecture](**entry.parameters)
    if half:
        module.cast_torso(torch.float16)
    traffic = 0

    def count(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal traffic
        if not isinstance(layer, torch.nn.Identity | torch.nn.Dropout):  # they move nothing
            traffic += sum(t.numel() * t.element_size() for t in (*inputs, output) if isinstance(t, torch.Tensor))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    size = bundle.manifest.image_size
    with torch.no_grad():
        module(torch.empty(1, 3, size, size, device="meta"), torch.empty(1, device="meta"))
    return sum(p.numel() * p.element_size() for p in module.parameters()), traffic
