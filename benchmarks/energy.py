"""The energy that a machine says it used: a GPU's by NVML, a Jetson's by its sensors, a CPU's by RAPL."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SYSTEM = Path("/sys/class")
EVERY_SECONDS = 0.1
# Rails of a board's whole input, where it has one; elsewhere its rails add up (Jetson Linux Developer Guide).
BOARD_INPUTS = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True, slots=True)
class Source:
    """Where energy is read.

    Attributes:
        name: Name for reports.
        read: Joules since some beginning, or watts now where `power`.
        power: Whether it is watts, to be summed over time.
        wraps: Joules after which a counter restarts.
    """

    name: str
    read: Callable[[], float]
    power: bool = False
    wraps: float | None = None


def measure_joules(source: Source, work: Callable[[], None]) -> float:
    """Return the energy that is used while `work` runs, read ten times a second.

    Raises OSError if the source does not answer at the start or at the end.
    """
    samples = [(time.perf_counter(), source.read())]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(EVERY_SECONDS):
            with suppress(OSError):  # a sensor that does not answer once does so the next time
                samples.append((time.perf_counter(), source.read()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    samples.append((time.perf_counter(), source.read()))
    times, values = np.array(samples).T
    steps = np.diff(values)
    if source.power:
        return float(np.sum((values[:-1] + values[1:]) / 2.0 * np.diff(times)))
    return float(np.sum(np.where(steps < 0, steps + (source.wraps or 0.0), steps)))


def find_source(bus_id: str | None = None) -> Source | str:
    """Where this machine's energy can be read, or why it cannot.

    Args:
        bus_id: PCI bus number of a GPU; None for the CPU.
    """
    return board_source() or (cpu_source() if bus_id is None else gpu_source(bus_id))


def gpu_source(bus_id: str) -> Source | str:
    """A GPU's own counter."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return "energy needs NVML's bindings: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except nvml.NVMLError as error:
        return f"NVML measures no energy: {error}"

    def joules() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3
        except nvml.NVMLError as error:
            raise OSError(str(error)) from error

    return Source("the GPU's counter (NVML)", joules)


def board_source() -> Source | None:
    """The power sensors of a Jetson, INA3221 chips of three rails each; None on other machines."""
    rails: dict[str, tuple[Path, Path]] = {}
    for chip in sorted(SYSTEM.glob("hwmon/hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for rail in (1, 2, 3):
            label = _text(chip / f"in{rail}_label")
            files = chip / f"in{rail}_input", chip / f"curr{rail}_input"
            if label and label != "NC" and all(_text(file) for file in files):
                rails[label] = files
    whole = [name for name in BOARD_INPUTS if name in rails]
    wanted = [rails[name] for name in whole or rails]
    if not wanted:
        return None
    return Source(
        f"the board's sensors (INA3221: {', '.join(whole or rails)})",
        lambda: sum(float(volts.read_text()) * float(amperes.read_text()) for volts, amperes in wanted) / 1e6,
        power=True,
    )


def cpu_source() -> Source | str:
    """The counters of all CPU packages."""
    zones = [zone for zone in sorted(SYSTEM.glob("powercap/*")) if (_text(zone / "name") or "").startswith("package-")]
    if not zones:
        return "this machine measures no energy (no RAPL)"
    counters = [zone / "energy_uj" for zone in zones]
    try:
        for counter in counters:
            counter.read_text()
    except PermissionError:
        return "RAPL is there, but only root may read it: sudo chmod o+r /sys/class/powercap/*/energy_uj"
    except OSError as error:
        return f"RAPL cannot be read: {error.strerror}"
    span = float(_text(zones[0] / "max_energy_range_uj") or 0.0) / 1e6
    return Source("the CPU's counters (RAPL)", lambda: sum(float(c.read_text()) for c in counters) / 1e6, wraps=span)


def _text(path: Path) -> str | None:
    """What a file of the kernel says; None if it does not."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
