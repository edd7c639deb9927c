"""Energy from files and libraries as the kernel and NVML have them."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bfr.benchmarks import energy
from bfr.benchmarks.energy import Source, board_source, cpu_source, find_source, gpu_source, measure_joules


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys/class."""
    monkeypatch.setattr(energy, "SYSTEM", tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that is set, and no look between the first and the last."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: found.now)
    monkeypatch.setattr(energy, "EVERY_SECONDS", 600.0)
    return found


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def package(system: Path, number: int, joules: float) -> Path:
    zone = system / "powercap" / f"intel-rapl:{number}"
    write(zone, name=f"package-{number}", energy_uj=int(1e6 * joules), max_energy_range_uj=int(1e6 * 1000))
    return zone


def test_packages_add_up_and_begin_anew(system: Path, clock: Any) -> None:
    zones = [package(system, 0, 10.0), package(system, 1, 990.0)]
    write(system / "powercap" / "intel-rapl:0:0", name="core", energy_uj=5)  # part of a package
    source = cpu_source()
    assert isinstance(source, Source)
    assert measure_joules(source, lambda: write(zones[0], energy_uj=14_000_000)) == pytest.approx(4.0)
    assert measure_joules(source, lambda: write(zones[1], energy_uj=3_000_000)) == pytest.approx(13.0)


def test_counters_that_only_root_may_read_are_named(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(system, 0, 1.0)
    read = Path.read_text

    def refused(path: Path, *arguments: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refused)
    found = find_source()
    assert isinstance(found, str)
    assert "only root may read it: sudo chmod" in found


def test_a_machine_without_any(system: Path) -> None:
    assert find_source() == "this machine measures no energy (no RAPL)"


def rails(system: Path, **amperes: int) -> None:
    """Two chips of three rails, at 5 V."""
    for place, (label, milliamperes) in enumerate(amperes.items()):
        rail = place % 3 + 1
        files = {f"in{rail}_label": label, f"in{rail}_input": 5000, f"curr{rail}_input": milliamperes}
        write(system / "hwmon" / f"hwmon{place // 3 + 1}", name="ina3221", **files)


@pytest.mark.parametrize(
    ("amperes", "watts"),
    [
        ({"VDD_IN": 3000, "VDD_CPU_GPU_CV": 1000, "VDD_SOC": 500}, 15.0),  # Orin Nano: its input
        ({"VDD_GPU_SOC": 2000, "VDD_CPU_CV": 600, "VIN_SYS_5V0": 400, "NC": 9000}, 15.0),  # AGX Orin: the sum
    ],
)
def test_the_sensors_of_a_jetson(system: Path, clock: Any, amperes: dict[str, int], watts: float) -> None:
    write(system / "hwmon" / "hwmon0", name="coretemp", in1_label="VDD_IN", in1_input=1, curr1_input=1)
    rails(system, **amperes)
    source = board_source()
    assert source is not None
    assert source.read() == pytest.approx(watts)
    assert "NC" not in source.name

    def later(seconds: float) -> None:
        clock.now += seconds

    def die_away() -> None:
        rails(system, **dict.fromkeys(amperes, 0))
        later(1.0)

    assert measure_joules(source, lambda: later(2.0)) == pytest.approx(2.0 * watts)
    assert measure_joules(source, die_away) == pytest.approx(0.5 * watts)  # evenly
    found = find_source("0000:01:00.0")
    assert isinstance(found, Source)  # a Jetson's GPU is on its board
    assert found.power


def test_the_counter_of_a_gpu(system: Path, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class NvmlError(Exception):
        pass

    state: dict[str, Any] = {"millijoules": 5000}

    def consumption(handle: str) -> int:
        assert handle == "gpu at 0000:41:00.0"
        if "refused" in state:
            raise NvmlError(state["refused"])
        return int(state["millijoules"])

    nvml = SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda bus: f"gpu at {bus}",
        nvmlDeviceGetTotalEnergyConsumption=consumption,
    )
    monkeypatch.setattr(energy, "import_module", lambda _: nvml)
    source = find_source("0000:41:00.0")
    assert isinstance(source, Source)
    assert measure_joules(source, lambda: state.update(millijoules=12_500)) == pytest.approx(7.5)
    state["refused"] = "Not Supported"
    with pytest.raises(OSError, match="Not Supported"):
        source.read()
    assert gpu_source("0000:41:00.0") == "NVML measures no energy: Not Supported"


def test_without_the_bindings_of_nvml(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(energy, "import_module", missing)
    assert "pip install nvidia-ml-py" in str(gpu_source("0000:41:00.0"))


def test_the_meter_reads_by_itself() -> None:
    """Power is only known while somebody looks."""
    reads: list[int] = []

    def read() -> float:
        reads.append(1)
        return 10.0

    def work() -> None:
        while len(reads) < 3:
            time.sleep(0.01)

    assert measure_joules(Source("a sensor", read, power=True), work) > 0.0
