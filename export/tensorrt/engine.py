"""`bfr build`: build a bundle's engines on this machine, verify them, and publish them in its record.

An engine is published by one write of the record; before that, no backend loads the file. The bundle stays unchanged.
"""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import cast

from bfr.export.options import BuildOptions
from bfr.export.tensorrt.builder import build_engine_bytes, timing_cache_path, typed_share
from bfr.export.tensorrt.precision import prove_precision
from bfr.export.tensorrt.progress import Meter, Report, still_working, watched
from bfr.export.verify.compare import open_reference, verify
from bfr.runtime.backends.device import Network
from bfr.runtime.backends.registry import BACKENDS
from bfr.runtime.backends.tensorrt import TensorRtDevice, TensorRtNetwork
from bfr.runtime.backends.tensorrt_key import Library, Machine, engine_key, find_engine
from bfr.runtime.bundle.bundle import Bundle, describe_file
from bfr.runtime.bundle.files import check_file
from bfr.runtime.bundle.machine import Engine, MachineFiles
from bfr.runtime.bundle.manifest import Check, Precision
from bfr.runtime.errors import (
    BundleCorrupt,
    EngineBuildFailed,
    EngineMismatch,
    EngineMissing,
    InvalidOption,
    WriteFailed,
)
from bfr.runtime.files import clean_leftovers, write_bytes
from bfr.runtime.install import importing

LOCK = ".build.lock"
GATE_STEPS = 10  # of the loop; the CPU, which is often the reference, takes seconds for one
Say = Callable[[str], None]


@dataclass(slots=True)
class _Candidate:
    """An engine whose file exists and whose entry is not in the record yet."""

    engine: Engine
    path: Path
    network: TensorRtNetwork | None = None


def open_library(library: Library, index: int) -> TensorRtDevice:
    """The device of a library. Raises MissingDependency, BackendUnavailable."""
    return cast(TensorRtDevice, BACKENDS[library].load()(index=index))


def build_engines(
    folder: Path | str,
    library: Library,
    *,
    options: BuildOptions = BuildOptions(),  # noqa: B008  (frozen)
    index: int = 0,
    force: bool = False,
    say: Say = lambda _: None,
    report: Report = lambda _: None,
) -> list[Engine]:
    """Build the engines of a bundle that this machine lacks, one after the other.

    All engines of a precision are verified together and published together; the old ones stay until then. If another
    process builds for the same bundle, this one waits for it and does not build the same again.

    Args:
        folder: The bundle's folder.
        library: `tensorrt` or `tensorrt-rtx`.
        options: Precisions, batches, workspace and so on.
        index: Number of the GPU.
        force: Rebuild engines that are up to date.
        say: Called with one line an event.
        report: Called with the progress, twice a second.

    Returns:
        The engines that were published.

    Raises:
        BackendUnavailable: There is no such GPU.
        InvalidOption: The bundle's graphs take none of the batches.
        EngineBuildFailed: An engine was not built, or is float32 although half was requested.
        VerificationFailed: An engine disagrees with float32.
        WriteFailed: The cache folder cannot be written.
    """
    kinds = [Bundle.open(folder).precision(name) for name in dict.fromkeys(options.precision)]
    device = open_library(library, index)  # before anything is written: without a GPU nothing is
    try:
        bundle = Bundle.open(folder)
        options = _fitting(bundle, options, say)
        files = MachineFiles(bundle.hash)
        with _only_builder(files.make(), folder, say):
            _sweep(files)
            built: list[Engine] = []
            try:
                for precision in kinds:
                    if precision != kinds[0]:  # the previous engine's memory is freed
                        device.close()
                        device = open_library(library, index)
                    done = {(engine.network, engine.key.precision) for engine in built}
                    if engines := _Job(bundle, device, precision, options, index, say, report).run(force, done):
                        _publish(files, engines, say)
                        built += engines
            finally:
                _sweep(files)  # the new files of a failed build, or the old ones of a finished build
            return built
    finally:
        if not still_working():  # else the process ends now, and the work must not lose its device before
            device.close()


def _fitting(bundle: Bundle, options: BuildOptions, say: Say) -> BuildOptions:
    """Return the options with the batches that a bundle's graphs take. Raises InvalidOption if they take no other."""
    ours = bundle.manifest.batches
    if ours is None:
        return options
    fitting = tuple(size for size in options.batches or ours if size in ours)
    sizes = ", ".join(map(str, ours))
    if not fitting:
        raise InvalidOption(f"the graphs of {bundle.folder} take batches of {sizes} only: choose --batches among them")
    if fitting != options.buckets:
        say(f"building for batches of {', '.join(map(str, fitting))}: the bundle's graphs take no others than {sizes}")
    return options.model_copy(update={"batches": fitting})


@dataclass(frozen=True, slots=True)
class _Job:
    """The engines of one precision. The fields are the arguments of `build_engines`."""

    bundle: Bundle
    device: TensorRtDevice
    precision: Precision
    options: BuildOptions
    index: int
    say: Say
    report: Report

    def run(self, force: bool, done: Container[tuple[str, Precision]]) -> list[Engine]:
        """Build and verify. done: network and precision of the engines that this call of `build_engines` built."""
        candidates: dict[str, _Candidate] = {}
        for name, kind in self._wanted().items():
            found = _built_already(self.bundle, name, kind, self.device.machine, self.options)
            if found and (not force or (name, kind) in done):
                self.say(f"{name} in {kind}: {found.file.path} fits this machine and is kept")
            else:
                candidates[name] = self._build(name, kind)
        if not candidates:
            return []
        meter = Meter(f"{self.precision}, the proof", "loading")
        checks = watched(lambda: self._prove(candidates, meter), meter, self.report)
        return [self._proven(name, candidate, checks) for name, candidate in candidates.items()]

    def _wanted(self) -> dict[str, Precision]:
        networks = self.bundle.manifest.networks
        return {
            name: self.precision if self.precision in entry.variants else "fp32" for name, entry in networks.items()
        }

    def _build(self, name: str, precision: Precision) -> _Candidate:
        """Build the engine of a network and write it beside the others. It is not in the record yet."""
        bundle, machine = self.bundle, self.device.machine
        graph = bundle.graph(name, precision)  # its files are checked here
        meter = Meter(f"{name} in {precision}")
        timing = None
        if machine.library == "tensorrt":
            timing = timing_cache_path(machine, self.say)

        def work() -> bytes:
            self.device.cuda.use()  # CUDA's current GPU belongs to the thread, and this one is new
            return build_engine_bytes(graph, self.options, machine.library, meter=meter, timing=timing, say=self.say)

        begin = time.perf_counter()
        data = watched(work, meter, self.report)
        seconds = round(time.perf_counter() - begin, 1)
        self.say(f"{name} in {precision}: built in {seconds:.0f} s, {len(data):,} bytes")
        tag = sha256(data).hexdigest()[:12]  # a new engine never takes an old one's name
        folder = MachineFiles(bundle.hash).folder
        path = folder / f"{name}.{precision}.{machine.library}.{tag}.engine"
        write_bytes(path, data)
        options = self.options
        key = engine_key(bundle, name, precision, machine, buckets=options.buckets, options=options.key_options)
        file = describe_file(folder, path)
        return _Candidate(Engine(network=name, file=file, key=key, half_share=0.0, build_seconds=seconds), path)

    def _prove(self, candidates: dict[str, _Candidate], meter: Meter) -> list[Check]:
        """Load the engines, look for half precision in them, and compare them with the reference."""

        def progress(text: str) -> None:
            if meter.cancelled.is_set():
                raise EngineBuildFailed("the verification was cancelled")
            meter.say(text)

        networks: dict[str, Network] = {}
        for name, precision in self._wanted().items():
            candidate = candidates.get(name)
            if candidate is None:
                networks[name] = self.device.load(self.bundle, name, precision)
                continue
            progress(f"loading {candidate.path.name}")
            networks[name] = candidate.network = self.device.load_engine(candidate.path)
            # NVIDIA does not document that TensorRT-RTX's inspector shows types; it computes in the graph's types only.
            library, graph = self.device.machine.library, self.bundle.graph(name, precision)
            typed = partial(typed_share, graph, library) if library == "tensorrt-rtx" else None
            share = prove_precision(self.device.inspect(candidate.network), name, precision, typed)
            candidate.engine = candidate.engine.model_copy(update={"half_share": share})
        progress("loading the reference")
        return verify(
            self.bundle,
            open_reference(self.bundle, self.index),
            self.precision,
            device=self.device,
            networks=networks,
            steps=GATE_STEPS,
            gpu=self.device.machine.gpu,
            progress=progress,
        )

    def _proven(self, name: str, candidate: _Candidate, checks: Sequence[Check]) -> Engine:
        """Return the engine's entry with its checks, and with the kernels that TensorRT-RTX compiled for it."""
        own = tuple(check for check in checks if check.what.startswith((f"{name}, ", "loop, ")))
        cache = self.device.runtime_cache(candidate.network) if candidate.network else None
        path = candidate.path.with_suffix(".cache")
        if cache is None:
            return candidate.engine.model_copy(update={"checks": own})
        write_bytes(path, cache)
        return candidate.engine.model_copy(update={"checks": own, "runtime_cache": describe_file(path.parent, path)})


def _built_already(
    bundle: Bundle, name: str, precision: Precision, machine: Machine, options: BuildOptions
) -> Engine | None:
    """Return the undamaged engine that fits this machine and these options, if there is one."""
    try:
        engine = find_engine(bundle, name, precision, machine, buckets=options.buckets, options=options.key_options)
        for file in (engine.file, engine.runtime_cache):
            if file is not None:
                check_file(MachineFiles(bundle.hash).folder, file, "build it anew")
    except (EngineMissing, EngineMismatch, BundleCorrupt):
        return None
    return engine


def _publish(files: MachineFiles, engines: Sequence[Engine], say: Say) -> None:
    """Put engines into the record, instead of those of the same network, precision, library and GPU.

    Engines of other GPUs stay, because machines may share a home folder.
    """

    def place(engine: Engine) -> tuple[str, str, str, str]:
        return engine.network, engine.key.precision, engine.key.library, engine.key.gpu

    new = {place(engine) for engine in engines}
    kept = (engine for engine in files.read().engines if place(engine) not in new)
    files.write_engines((*kept, *engines))
    for engine in engines:
        say(f"{engine.network} in {engine.key.precision}: published as {files.folder / engine.file.path}")


def _sweep(files: MachineFiles) -> None:
    """Delete what is in the folder and not in the record. Only the holder of the lock may do so."""
    known = {file.path for engine in files.read().engines for file in (engine.file, engine.runtime_cache) if file}
    for path in files.folder.iterdir():
        if path.suffix in (".engine", ".cache") and path.name not in known:
            with suppress(OSError):  # a file that stays does no harm
                path.unlink()
    clean_leftovers(files.folder)


@contextmanager
def _only_builder(folder: Path, bundle: Path | str, say: Say) -> Iterator[None]:
    """Wait until no other process builds for this bundle. The operating system releases the lock of a dead process."""
    with importing("filelock", "tensorrt"):
        from filelock import FileLock, Timeout
    try:
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process builds engines for {bundle}: waiting for it")
            lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise WriteFailed(
            f"cannot write in {folder} ({error.strerror or error}): set BFR_HOME to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()
