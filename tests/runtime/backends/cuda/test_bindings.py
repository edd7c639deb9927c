"""The CUDA layer: errors become what a user can mend, and what was taken is given back."""

import gc
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.backends.cuda.bindings import STICKY, Cuda, device_count, pointer, word
from bfr.runtime.backends.cuda.device import GpuDevice
from bfr.runtime.backends.cuda.parts import GpuNoise
from bfr.runtime.errors import BackendUnavailable, DeviceLost, DeviceOutOfMemory, InvalidOption, MissingDependency


def test_facts_of_the_gpu(gpus: Any) -> None:
    facts = Cuda(1).facts
    assert (facts.name, facts.compute_capability) == ("Fake 1", "8.9")
    assert (facts.runtime, facts.driver) == ("13.0", "13.1")
    assert Cuda(1).bus_id == "0000:01:00.0"


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda, "import_module", missing)
    cuda.bindings.cache_clear()
    try:
        assert device_count() == 0
        with pytest.raises(MissingDependency, match="cuda-python"):
            Cuda(0)
    finally:
        cuda.bindings.cache_clear()


def test_without_a_driver() -> None:
    """The real bindings, where the machine has no GPU; where it has one, there is more than none."""
    count = device_count()
    with pytest.raises(BackendUnavailable, match=f"GPU {count} "):
        Cuda(count)


def test_out_of_memory_says_how_much(gpus: Any) -> None:
    one = Cuda(0)
    with pytest.raises(DeviceOutOfMemory, match=r"2,147,483,648.*1,073,741,824.*1,073,741,824"):
        one.allocate(2 << 30)
    one.free(one.allocate(100))


def test_memory_that_is_shared_with_the_host(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Jetson, CUDA's free memory lacks what the system would give back."""
    one = Cuda(0)
    for available, shared, free in ((0.5, False, 1 << 30), (0.9, True, 1 << 30), (2.0, True, 1 << 30)):
        gpus[0].integrated = shared
        monkeypatch.setattr(cuda, "host_memory", lambda available=available: {"MemAvailable": available})
        assert one.memory() == (free, 1 << 30)
    block = one.allocate(1 << 29)
    assert one.memory() == (1 << 30, 1 << 30)
    monkeypatch.setattr(cuda, "host_memory", dict)
    assert one.memory() == (1 << 29, 1 << 30)
    one.free(block)


@pytest.mark.parametrize("name", sorted(STICKY))
def test_sticky_errors_are_known_to_cuda_and_end_the_device(gpus: Any, name: str) -> None:
    if not hasattr(cuda.bindings()[0].cudaError_t, name):
        pytest.skip(f"these bindings have no {name}")
    gpus[0].fail["cudaMalloc"] = name
    with pytest.raises(DeviceLost, match=name):
        Cuda(0).allocate(8)


def test_a_gpu_that_does_not_start_is_named_with_its_remedy(gpus: Any) -> None:
    """As where another process has it alone, or where the fabric manager does not run."""
    gpus[0].fail["cudaSetDevice"] = "cudaErrorDevicesUnavailable"
    with pytest.raises(BackendUnavailable, match=r"DevicesUnavailable: .*nvidia-smi -c DEFAULT"):
        Cuda(0).allocate(8)
    gpus[0].fail["cudaSetDevice"] = "cudaErrorDevicesUnavailable"
    assert Cuda(0).facts.name == "Fake 0"  # makes no context: `--backend auto` asks for it, and goes on
    del gpus[0].fail["cudaSetDevice"]
    runtime, _ = cuda.bindings()
    with pytest.MonkeyPatch.context() as patch:
        error = runtime.cudaError_t.cudaErrorSystemNotReady
        patch.setattr(runtime, "cudaGetDeviceCount", lambda: (error, 0), raising=False)
        with pytest.raises(BackendUnavailable, match=r"finds none \(cudaErrorSystemNotReady\): .*fabricmanager"):
            Cuda(0)


def test_any_other_error_is_a_bug(gpus: Any) -> None:
    gpus[0].fail["cudaMalloc"] = "cudaErrorInvalidValue"
    with pytest.raises(RuntimeError, match=r"GPU 0.*cudaMalloc.*cudaErrorInvalidValue") as caught:
        Cuda(0).allocate(8)
    assert type(caught.value) is RuntimeError


def test_the_drivers_errors_are_the_same_ones(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = GpuDevice()
    driver = cuda.bindings()[1]
    for name, kind in (("CUDA_ERROR_OUT_OF_MEMORY", DeviceOutOfMemory), ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLost)):
        answer = (getattr(driver.CUresult, name),)
        monkeypatch.setattr(driver, "cuLaunchKernel", lambda *_, answer=answer: answer)
        with pytest.raises(kind):
            device.launch("diffuse", (1, 1), [pointer(0), word(1)])
    device.close()


def test_a_capture_that_fails_ends(gpus: Any) -> None:
    device = GpuDevice()
    buffer = device.array((4,))

    def work() -> None:
        device.zero(buffer)
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        device.cuda.capture(device.stream, work)
    assert not gpus[0].capturing
    device.write(buffer, [1, 2, 3, 4])  # type: ignore[arg-type]
    assert device.read(buffer).tolist() == [1, 2, 3, 4]
    device.release([buffer])
    device.close()


def test_garbage_is_freed_before_a_capture_and_not_in_it(gpus: Any) -> None:
    """CUDA ends a capture in which memory is freed. Python frees garbage whenever it likes."""
    freed: list[Any] = []

    class Holder:
        def __init__(self, device: GpuDevice) -> None:
            self.me, self.buffer = self, device.array((4,))

        def __del__(self) -> None:
            freed.append(self.buffer)

    device = GpuDevice()
    buffer, before = device.array((4,)), []

    def work() -> None:
        before.extend(freed)
        device.zero(buffer)

    gc.disable()
    try:
        Holder(device)
        graph = device.capture(work)
    finally:
        gc.enable()
    assert len(before) == len(freed) == 1
    device.forget(graph)
    device.release([buffer, *freed])
    device.close()


def test_an_allocation_during_a_capture_is_an_error(gpus: Any) -> None:
    device = GpuDevice()
    with pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
        device.cuda.capture(device.stream, lambda: device.array((4,)))  # type: ignore[arg-type, return-value]
    assert not gpus[0].capturing
    device.close()


def test_a_new_input_is_zero_before_its_first_upload_and_not_after_it(gpus: Any) -> None:
    """A Restorer may be opened while the main stream is busy with another one's batch: the copy stream is not."""
    device = GpuDevice()
    with ExitStack() as owned:
        one = device.input(owned, (2, 2))
        one.upload(np.ones((2, 2), np.float32))
        gpus[0].drain(int(device.copy_stream))  # as early as it can
        one.commit()
        assert device.read(one.buffer).tolist() == [[1, 1], [1, 1]]
    device.close()
    assert not gpus[0].alive


def test_noise_of_a_smaller_batch_leaves_the_rest(gpus: Any) -> None:
    device = GpuDevice()
    owned = ExitStack()
    noise = GpuNoise(device, owned, (3, 1, 2, 2))
    noise.begin(1, (5, 6, 7), last=0)
    noise.ready(0)
    three = device.read(noise.buffers[0])
    noise.begin(2, (5,), last=0)
    noise.ready(0)
    one = device.read(noise.buffers[0])
    assert (one[0] != three[0]).all()
    assert (one[1:] == three[1:]).all()
    with pytest.raises(InvalidOption, match="seed -1"):
        noise.begin(-1, (5,), last=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        device.noise(owned, (1, 1, 3, 3))
    owned.close()
    device.close()


def test_the_page_locked_block_grows_once(gpus: Any) -> None:
    device = GpuDevice()
    small, large = device.array((2,)), device.array((200,))
    for buffer in (small, large, small, large):
        device.read(buffer)
    assert [size for name, size in gpus[0].log if name == "cudaMallocHost"] == [8, 800]
    device.release([small, large])
    device.close()
