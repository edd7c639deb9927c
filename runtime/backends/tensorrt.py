"""TensorRT and TensorRT-RTX: a bundle's engines, a context for each network and bucket, activations shared by all."""

import logging
import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from bfr.runtime.backends.cuda.bindings import Cuda
from bfr.runtime.backends.cuda.device import GpuBuffer, GpuDevice
from bfr.runtime.backends.device import BoundCall, Network, refuse_shared
from bfr.runtime.backends.tensorrt_key import (
    Library,
    find_engine,
    find_engines,
    load_library,
    make_logger,
    make_with,
    this_machine,
)
from bfr.runtime.backends.tensorrt_stream import engine_source
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.files import map_file, read_file
from bfr.runtime.bundle.machine import MachineFiles
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BackendUnavailable, DeviceLost, DeviceOutOfMemory, EngineMismatch, InvalidOption

_log = logging.getLogger("bfr.tensorrt")
ALIGNMENT = 256  # bytes, of a block of activations; cudaMalloc gives it


class TensorRtDevice(GpuDevice):
    """One GPU through the engines that `bfr build` made on this machine.

    The activations of all engines share one block, because one engine runs at a time. The first bound network allocates
    it; a network that is loaded later and needs more gets a larger block, and earlier contexts keep theirs.
    """

    library: Library = "tensorrt"

    def __init__(self, index: int = 0) -> None:
        """Raises MissingDependency without the library, BackendUnavailable without the GPU."""
        self.trt: Any = load_library(self.library)
        super().__init__(index)  # before the runtime is made: without a GPU that can kill the process
        self.name = self.library
        self.logger = make_logger(self.trt)
        try:
            self.machine = this_machine(self.library, self.cuda)
            self.cuda.use()
            self.trt.init_libnvinfer_plugins(self.logger, "")  # an engine may hold some, as for DeformConv
            self.runtime = make_with(self.trt.Runtime, self.logger, f"{self.library} {self.machine.version}")
        except BackendUnavailable:
            super().close()
            raise
        self._networks: list[TensorRtNetwork] = []
        self._blocks: list[tuple[int, int]] = []  # address, bytes; the last is the largest

    @classmethod
    def check(cls, bundle: Bundle | None, precision: Precision, index: int) -> None:
        if bundle is None:
            raise InvalidOption(f"{cls.library} runs the engines of a bundle")
        find_engines(bundle, precision, this_machine(cls.library, Cuda(index)))

    @property
    def buckets(self) -> tuple[int, ...] | None:
        """The batch sizes that all loaded engines have a profile for; of no engine, none in particular."""
        if not self._networks:
            return None
        shared = set.intersection(*(set(network.profiles) for network in self._networks))
        if not shared:
            raise EngineMismatch("the engines have no batch size in common: build them together with `bfr build`")
        return tuple(sorted(shared))

    @property
    def versions(self) -> dict[str, str]:
        return {self.machine.library: self.machine.version, **super().versions}

    def load(self, bundle: Bundle, name: str, precision: Precision) -> "TensorRtNetwork":
        """Load this machine's engine of a network: its key and its sha256 are checked before it is deserialized."""
        entry = find_engine(bundle, name, precision, self.machine)
        remedy = f"`bfr build {bundle.folder} --precision {precision} --force` makes it anew"
        folder = MachineFiles(bundle.hash).folder
        cache = read_file(folder, entry.runtime_cache, remedy) if entry.runtime_cache else None
        return self._deserialize(map_file(folder, entry.file, remedy), entry.file.path, cache)

    def load_engine(self, path: Path, cache: bytes | None = None) -> "TensorRtNetwork":
        """Deserialize the file of an engine that bfr built. cache: what TensorRT-RTX compiled earlier.

        Raises BackendUnavailable, with the library's message, where it refuses.
        """
        with path.open("rb") as file:
            return self._deserialize(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path.name, cache)

    def _deserialize(self, data: mmap.mmap | bytes, name: str, cache: bytes | None) -> "TensorRtNetwork":
        self.logger.errors.clear()
        self.cuda.use()
        engine = self.runtime.deserialize_cuda_engine(engine_source(self.trt, data))
        if engine is None:
            said = "; ".join(self.logger.errors) or "nothing"
            raise BackendUnavailable(
                f"{name} cannot be deserialized; {self.name} {self.machine.version} said: {said}. "
                "Build it again with `bfr build`, or choose another --backend"
            )
        network = TensorRtNetwork(self, engine, cache)
        self._networks.append(network)
        return network

    def inspect(self, network: "TensorRtNetwork") -> str:
        """Return the engine inspector's JSON."""
        inspector = network.engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def runtime_cache(self, network: "TensorRtNetwork") -> bytes | None:
        """Return what TensorRT-RTX compiled while the network ran; None of TensorRT, whose engines are machine code."""
        kernels = network.kernels.serialize() if network.kernels is not None else None
        return bytes(kernels) if kernels is not None else None

    def workspace(self, networks: Sequence[Network], batch: int) -> int | None:
        sizes = [network.activation_bytes(batch) for network in networks if isinstance(network, TensorRtNetwork)]
        return max(sizes, default=None)

    def activations(self, batch: int) -> tuple[int, int]:
        """Address and bytes of the block that every network's context of a batch size uses."""
        size = max(n.activation_bytes(batch) for n in self._networks if batch in n.profiles)
        if not self._blocks or self._blocks[-1][1] < size:
            size = max(size, ALIGNMENT)  # an engine that needs none still needs an address
            self._blocks.append((self.cuda.allocate(size), size))
        return self._blocks[-1]

    def fail(self, what: str) -> NoReturn:
        """Raise RuntimeError with the library's messages; DeviceLost, or DeviceOutOfMemory, if that is the cause."""
        said = "; ".join(self.logger.errors) or "nothing"
        error = RuntimeError(f"{self.name} {self.machine.version}: {what}; it said: {said}")
        self.raise_if_lost(self.name, error)
        if "memory" in said.lower():
            free, total = self.cuda.memory()
            raise DeviceOutOfMemory(f"{error}; {free:,} of {total:,} bytes are free: choose a smaller --batch")
        raise error

    def close(self) -> None:
        for network in self._networks:
            network.close()
        with suppress(DeviceLost):
            for address, _ in self._blocks:
                self.cuda.free(address)
        self._networks.clear()
        self._blocks.clear()
        super().close()


class TensorRtRtxDevice(TensorRtDevice):
    """The same, through TensorRT for RTX."""

    library: Library = "tensorrt-rtx"


class TensorRtNetwork:
    """A deserialized engine, and its contexts by batch size.

    Attributes:
        profiles: Batch size -> number of its optimization profile.
        contexts: Batch size -> its context, once it was used.
        kernels, config: What TensorRT-RTX compiles, and its runtime configuration; None of TensorRT.
    """

    def __init__(self, device: TensorRtDevice, engine: Any, cache: bytes | None) -> None:
        self.device, self.engine = device, engine
        self.names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [n for n in self.names if engine.get_tensor_mode(n) == device.trt.TensorIOMode.INPUT]
        self._check_types()
        self.profiles = {
            int(engine.get_tensor_profile_shape(self.inputs[0], i)[1][0]): i
            for i in range(engine.num_optimization_profiles)
        }
        self.kernels: Any = None
        self.config = self._runtime_config(cache) if device.machine.library == "tensorrt-rtx" else None
        self.contexts: dict[int, Any] = {}

    def activation_bytes(self, batch: int) -> int:
        """Return what a context of this batch size needs. Raises InvalidOption for a size without a profile."""
        return int(self.engine.get_device_memory_size_for_profile_v2(self._profile(batch)))

    def bind(self, inputs: Mapping[str, GpuBuffer], outputs: Mapping[str, GpuBuffer]) -> BoundCall:
        buffers = {**inputs, **outputs}
        if sorted(buffers) != sorted(self.names):
            raise ValueError(f"the engine has the tensors {', '.join(self.names)}; {', '.join(buffers)} were bound")
        refuse_shared([b.address for b in inputs.values()], [b.address for b in outputs.values()])
        batch = next(iter(inputs.values())).shape[0]
        context = self.context(batch)
        for name in self.names:  # the engine would write an output beyond the end of its buffer
            if tuple(context.get_tensor_shape(name)) != buffers[name].shape:
                raise ValueError(f"{name} is {tuple(context.get_tensor_shape(name))}, not {buffers[name].shape}")
        addresses = [(name, buffer.address) for name, buffer in buffers.items()]
        device = self.device

        def call() -> None:
            device.logger.errors.clear()
            device.cuda.use()
            context = self.contexts[batch]  # looked up in each call: a reference would keep it after `close`
            for name, address in addresses:
                if not context.set_tensor_address(name, address):
                    device.fail(f"the address of {name} is refused")
            # A refused enqueue records nothing: a graph captured around it would replay stale buffers.
            if not context.execute_async_v3(int(device.stream)):
                device.fail("the engine is refused")

        return call

    def context(self, batch: int) -> Any:
        """Return the context of a batch size; the first call makes it."""
        if batch not in self.contexts:
            profile, device = self._profile(batch), self.device
            device.logger.errors.clear()
            device.cuda.use()
            context = self.engine.create_execution_context(
                device.trt.ExecutionContextAllocationStrategy.USER_MANAGED if self.config is None else self.config
            )
            if context is None:
                device.fail("no execution context can be made")
            if not context.set_optimization_profile_async(profile, int(device.stream)):
                device.fail(f"profile {profile} is refused")
            for name in self.inputs:
                if not context.set_input_shape(name, self.engine.get_tensor_profile_shape(name, profile)[1]):
                    device.fail(f"the shape of {name} is refused")
            context.set_device_memory(*device.activations(batch))
            device.cuda.synchronize(device.stream)  # the change of profile may copy
            if self.config is not None and device.records and not context.is_stream_capturable(int(device.stream)):
                device.records = False
                _log.warning("%s says that an engine cannot be recorded: chains run call by call", device.name)
            self.contexts[batch] = context
        return self.contexts[batch]

    def close(self) -> None:
        """Free the contexts, and then what they use."""
        self.contexts.clear()
        self.config = self.kernels = None

    def _profile(self, batch: int) -> int:
        if batch not in self.profiles:
            raise InvalidOption(
                f"the engine was built for batches of {', '.join(map(str, sorted(self.profiles)))}, not {batch}: "
                f"`bfr build --batches ...,{batch}` builds it again"
            )
        return self.profiles[batch]

    def _runtime_config(self, cache: bytes | None) -> Any:
        trt, config = self.device.trt, self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Every profile has one shape: its kernels are compiled when the context is made, not beside the first calls.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        # Kept beside the configuration: it must outlive every context that is made with it.
        self.kernels = config.create_runtime_cache()
        if cache is not None:
            self.kernels.deserialize(cache)  # ignores a cache that does not fit
        config.set_runtime_cache(self.kernels)
        return config

    def _check_types(self) -> None:
        other = [n for n in self.names if self.engine.get_tensor_dtype(n) != self.device.trt.DataType.FLOAT]
        if other:
            raise BackendUnavailable(
                f"the engine's {', '.join(other)} are not float32: bfr did not build it, run `bfr build`"
            )
