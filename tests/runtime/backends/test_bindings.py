"""What the fakes stand for: the real cuda-python and the real TensorRT-RTX take what they are given, without a GPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interpreter import python

from bfr.export.tensorrt import builder
from bfr.runtime.backends import tensorrt, tensorrt_stream
from bfr.runtime.backends import tensorrt_key as trt
from bfr.runtime.backends.cuda import bindings as cuda

rt: Any = pytest.importorskip("cuda.bindings.runtime")
driver: Any = pytest.importorskip("cuda.bindings.driver")
# Made-up handles would be followed on a GPU: there the tests of whole chains say more.
no_gpu = pytest.mark.skipif(cuda.device_count() > 0, reason="a GPU is there")

STREAM, EVENT = rt.cudaStream_t(5), rt.cudaEvent_t(6)
CALLS: dict[str, tuple[Any, ...]] = {
    "cudaDriverGetVersion": (),
    "cudaDeviceGetAttribute": (rt.cudaDeviceAttr.cudaDevAttrIntegrated, 0),
    "cudaDeviceGetPCIBusId": (32, 0),
    "cudaEventCreateWithFlags": (rt.cudaEventDisableTiming,),
    "cudaEventDestroy": (EVENT,),
    "cudaEventRecord": (EVENT, STREAM),
    "cudaEventSynchronize": (EVENT,),
    "cudaFree": (4096,),
    "cudaFreeHost": (4096,),
    "cudaGetDeviceCount": (),
    "cudaGetDeviceProperties": (0,),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (rt.cudaGraph_t(7),),
    "cudaGraphExecDestroy": (rt.cudaGraphExec_t(7),),
    "cudaGraphInstantiate": (rt.cudaGraph_t(7), 0),
    "cudaGraphLaunch": (rt.cudaGraphExec_t(7), STREAM),
    "cudaMalloc": (4096,),
    "cudaMallocHost": (4096,),
    "cudaMemGetInfo": (),
    "cudaMemcpyAsync": (4096, 8192, 16, rt.cudaMemcpyKind.cudaMemcpyDefault, STREAM),
    "cudaMemsetAsync": (4096, 0, 16, STREAM),
    "cudaRuntimeGetVersion": (),
    "cudaSetDevice": (0,),
    "cudaStreamBeginCapture": (STREAM, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
    "cudaStreamCreateWithFlags": (rt.cudaStreamNonBlocking,),
    "cudaStreamDestroy": (STREAM,),
    "cudaStreamEndCapture": (STREAM,),
    "cudaStreamSynchronize": (STREAM,),
    "cudaStreamWaitEvent": (STREAM, EVENT, 0),
}


@no_gpu
@pytest.mark.parametrize("name", CALLS)
def test_the_runtime_takes_what_it_is_given(name: str) -> None:
    """Without a driver every call is an error code; arguments that it does not take are an exception."""
    error, *_ = getattr(rt, name)(*CALLS[name])
    assert error in (rt.cudaError_t.cudaErrorInsufficientDriver, rt.cudaError_t.cudaErrorNoDevice, 0)


def test_every_call_is_in_the_table() -> None:
    named = set(re.findall(r"\bcuda[A-Z]\w+", Path(cuda.__file__).read_text()))
    assert {name for name in named if "function" in type(getattr(rt, name, None)).__name__} == set(CALLS)


def test_every_error_that_ends_the_process_is_known() -> None:
    """By the words of CUDA's own documentation."""
    words = {error.name: " ".join((error.__doc__ or "").split()) for error in rt.cudaError_t}
    fatal = {name for name, text in words.items() if "inconsistent state" in text}
    assert len(fatal) > 10
    assert fatal <= cuda.STICKY


# A driver that writes down what arrives. cuda-python finds every function through the first of these.
DRIVER = r"""
#include <stdio.h>
#include <string.h>
static int any(void) { return 0; }
static int launch(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void* stream, void** p, void** extra) {
    printf("launch %p grid %u %u %u block %u %u %u shared %u stream %p extra %d: %p %u\n", f, gx, gy, gz, bx, by, bz,
           shared, stream, extra != 0, *(void**)p[0], *(unsigned*)p[1]);
    return 0;
}
static int load(void** library, const void* code, void* a, void* b, unsigned n, void* c, void* d, unsigned m) {
    printf("load %.4s %u %u\n", (const char*)code, n, m);
    *library = (void*)0x77;
    return 0;
}
static int kernel(void** found, void* library, const char* name) {
    printf("kernel %s of %p\n", name, library);
    *found = (void*)0x99;
    return 0;
}
int cuGetProcAddress_v2(const char* name, void** found, int version, unsigned long long flags, void* status) {
    *found = !strcmp(name, "cuLaunchKernel")       ? (void*)launch
             : !strcmp(name, "cuLibraryLoadData")  ? (void*)load
             : !strcmp(name, "cuLibraryGetKernel") ? (void*)kernel
             : !strcmp(name, "cuGetProcAddress")   ? (void*)cuGetProcAddress_v2
                                                   : (void*)any;
    return 0;
}
int cuGetProcAddress(const char* name, void** found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
"""
PROGRAM = """
from types import SimpleNamespace
from cuda.bindings import driver, runtime
from bfr.runtime.backends.cuda.bindings import Cuda, pointer, word
one = object.__new__(Cuda)
one.index, one.driver = 0, driver
one.rt = SimpleNamespace(cudaError_t=runtime.cudaError_t, cudaSetDevice=lambda _: (runtime.cudaError_t.cudaSuccess,),
                         cudaFree=lambda _: (runtime.cudaError_t.cudaSuccess,))
kernels = one.load_kernels(b"\\x7fELF", ["first"])
one.launch(kernels["first"], (2, 3), 256, [pointer(0x7000), word(4_000_000_000)], runtime.cudaStream_t(5))
"""


@no_gpu
@pytest.mark.skipif(sys.platform != "linux", reason="the driver is a libcuda.so.1")
def test_the_driver_gets_the_kernels_arguments(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
    assert python(PROGRAM, env={"LD_LIBRARY_PATH": str(tmp_path)}).stdout.splitlines() == [
        "load \x7fELF 0 0",
        "kernel first of 0x77",
        "launch 0x99 grid 2 3 1 block 256 1 1 shared 0 stream 0x5 extra 0: 0x7000 4000000000",
    ]


# What TensorRT lacks, at least in 10.3, and the code asks of TensorRT-RTX alone.
RTX_ONLY = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IExecutionContext.is_stream_capturable",
    "ICudaEngine.create_runtime_config",
}
CLASSES = {
    tensorrt: {"context": "IExecutionContext", "engine": "ICudaEngine", "runtime": "Runtime",
               "inspector": "EngineInspector", "config": "IRuntimeConfig", "kernels": "IRuntimeCache"},
    builder: {"config": "IBuilderConfig", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
              "profile": "IOptimizationProfile", "cache": "ITimingCache", "tensor": "ITensor", "layer": "ILayer",
              "error": "ParserError"},
    tensorrt_stream: {},
    trt: {},
}  # fmt: skip


@pytest.mark.parametrize("module", CLASSES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("name", trt.LIBRARIES)
def test_every_name_of_the_library_is_there(name: str, module: Any) -> None:
    """The names that the code uses, read from its own source, in the bindings of what is installed."""
    library = pytest.importorskip(name.replace("-", "_"))
    source = Path(module.__file__).read_text()
    used = set(re.findall(r"\btrt\.([A-Z]\w+(?:\.\w+)*)", source))
    classes = CLASSES[module]
    for variable, attribute in re.findall(rf"(?<!bfr\.)\b({'|'.join(classes) or '0'})\.([a-z]\w+)\b", source):
        used.add(f"{classes[variable]}.{attribute}")
    used.update(re.findall(r"\btrt\.(init_\w+)", source))
    used.discard("ParserError.strerror")  # of an OSError
    assert not classes or len(used) > 15
    if name == "tensorrt":
        used = {path for path in used - RTX_ONLY if not path.startswith(("IRuntimeConfig", "IRuntimeCache"))}
        if module is tensorrt_stream and not hasattr(library, "IStreamReaderV2"):
            return
    for path in used:
        found = library
        for part in path.split("."):
            assert hasattr(found, part), f"{name} has no {path}"
            found = getattr(found, part)
