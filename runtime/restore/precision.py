"""`precision auto`: the fastest precision whose results stay close to float32 on this machine."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.cuda.bindings import Cuda, device_count
from bfr.runtime.backends.registry import BACKENDS, FALLBACK, choose, recorded, verified_seconds
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import MachineFiles, MachineRecord
from bfr.runtime.bundle.manifest import Check, Precision
from bfr.runtime.errors import BfrError

PrecisionChoice = Literal["auto", Precision]
FASTER_ON_CPU: tuple[Precision, ...] = ("int8",)  # ONNX Runtime's CPU kernels compute half in float32, with casts
WORTH = 0.9  # of float32's time: a smaller gain is not worth the drift, and would vary with the machine's load
FLOOR_DB = 34.0  # of the result against float32's, peak 255, as of a loop in int8 when it is exported
_log = logging.getLogger("bfr")


@dataclass(frozen=True, slots=True)
class Trial:
    """A run of a whole system on an image: its result, (S, S, 3) uint8 RGB, and seconds a step, the least of a few."""

    pixels: NDArray[np.uint8]
    seconds_a_step: float


def sample(size: int) -> NDArray[np.uint8]:
    """Return the image of trials, (size, size, 3) uint8 RGB: seeded squares, 2 to 32 a side, coarse ones strongest."""
    rng, image = np.random.default_rng(0), np.full((size, size, 3), 127.5)
    for cells in (2, 4, 8, 16, 32):
        nearest = np.arange(size) * cells // size
        image += rng.normal(0.0, 24.0 / np.log2(2 * cells), (cells, cells, 3))[nearest][:, nearest]
    return np.asarray(image.clip(0, 255), dtype=np.uint8)


def choose_precision(
    bundle: Bundle,
    wanted: PrecisionChoice,
    *,
    backend: str = "auto",
    index: int = 0,
    trial: Callable[[Precision], Trial] | None = None,
) -> Precision:
    """Return the precision that a bundle is opened in.

    On a GPU `auto` is the fastest of those that `bfr build` or `bfr verify --record` proved there, else fp32. On a CPU
    it is the faster of fp32 and int8. They are tried once on each machine; the record in the cache keeps both times and
    the drift.

    Args:
        bundle: What is opened.
        wanted: `auto`, or a precision that the bundle holds.
        backend: One of BACKENDS, or `auto`.
        index: The number of the GPU.
        trial: Runs the bundle in a precision on the CPU. Without it, a bundle that was not tried before runs in fp32.

    Raises:
        InvalidOption: The bundle has no network in the precision wanted.
    """
    if wanted != "auto":
        return bundle.precision(wanted)
    row = BACKENDS.get(backend)
    if device_count() if row is None else row.where == "cuda":
        proven = _fastest_on_gpu(bundle, backend, index)
        if proven or row is not None or choose(bundle, "fp32", index) != FALLBACK:
            return proven or bundle.precision("fp32")
        # Nothing uses the GPU, as on a board before its first build.
    offered: list[Precision] = [one for one in ("fp32", *FASTER_ON_CPU) if one in bundle.precisions]
    if len(offered) < 2:
        return bundle.precision("fp32")
    name = FALLBACK if row is None else row.name
    record = recorded(bundle)
    if trial and not _tried(record, name).issuperset(offered):
        try:
            checks = _compare({one: trial(one) for one in offered}, name)
        except BfrError as error:  # if float32 fails too, opening the bundle raises
            _log.warning("using float32, because %s could not be compared: %s", " and ".join(offered), error)
            return "fp32"
        record = recorded(bundle)  # of processes that try at the same time, the first decides for all
        if not _tried(record, name).issuperset(offered):
            record = MachineRecord(verified=tuple(checks))
            _keep(bundle, checks)
    times: dict[Precision, float] = {
        one: found[name] for one in offered if name in (found := verified_seconds(record, one, None))
    }
    if "fp32" not in times:
        return "fp32"
    fastest = min(times, key=lambda one: times[one])
    return fastest if times[fastest] <= WORTH * times["fp32"] else "fp32"


def _tried(record: MachineRecord, backend: str) -> set[Precision]:
    return {check.precision for check in record.verified if check.gpu is None and check.backend == backend}


def _fastest_on_gpu(bundle: Bundle, backend: str, index: int) -> Precision | None:
    record, gpu = recorded(bundle), Cuda(index).facts.name
    times = {
        (one, name): seconds
        for one in bundle.precisions
        for name, seconds in verified_seconds(record, one, gpu).items()
        if backend in ("auto", name)
    }
    return min(times, key=lambda pair: times[pair])[0] if times else None


def _compare(trials: Mapping[Precision, Trial], backend: str) -> list[Check]:
    reference = trials["fp32"].pixels.astype(np.float64)
    checks = []
    for precision, trial in trials.items():
        difference = trial.pixels - reference
        rms = max(float(np.sqrt(np.mean(difference**2))), 1e-3)
        psnr = float(20 * np.log10(255.0 / rms))
        checks.append(
            Check(
                what="result of one run, in grey levels",
                backend=backend,
                precision=precision,
                batch=1,
                psnr_db=round(psnr, 1),
                max_abs=float(np.abs(difference).max() / 127.5),
                relative=float(np.linalg.norm(difference) / np.linalg.norm(reference)),
                floor_db=FLOOR_DB,
                reference="fp32 on this machine",
                seconds_a_step=round(trial.seconds_a_step, 7),
            )
        )
        if precision != "fp32":
            _log.info(
                "%s: %.3f s a step against %.3f s in fp32, %.1f dB from it (at least %.0f): recorded for this machine",
                precision, trial.seconds_a_step, trials["fp32"].seconds_a_step, psnr, FLOOR_DB,
            )  # fmt: skip
        if psnr < FLOOR_DB:
            _log.warning("%s is not used on this machine: it is %.1f dB from fp32", precision, psnr)
    return checks


def _keep(bundle: Bundle, checks: Sequence[Check]) -> None:
    try:
        MachineFiles(bundle.hash).record_checks(checks)
    except BfrError as error:
        _log.warning("the trial of precisions was not saved, and runs again next time: %s", error)
