"""The networks of a server on the GPU made of NumPy: what differs there from a CPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import DeviceLost
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.workers.process import Networks

FACES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(7)]


@pytest.fixture
def networks(built: Bundle, tensorrt: Any) -> Any:
    """Of two presets."""
    made = Networks(ServeOptions(bundle=built.folder, backend=tensorrt.name, batch=2, presets=("short", "reference")))
    yield made
    for restorer in made.restorers.values():
        restorer.close()
    for device in made.devices:
        device.close()


def restored(networks: Networks, faces: Sequence[Any], preset: str = "short") -> list[Any]:
    group = Group(next(iter(networks.restorers))[0], preset, 3)
    return [one.pixels for one in networks.run(group, faces, [None] * len(faces))]


def test_calls_run_recorded_batches_and_get_the_bytes_of_a_cpu(built: Bundle, networks: Networks, gpus: Any) -> None:
    expected = {}
    for preset in ("short", "reference"):
        with Restorer(built, CpuDevice(1), built.preset(preset), batch=2) as cpu:
            expected[preset] = cpu.restore(FACES, seed=3)
    gpus[0].log.clear()
    before = gpus[0].used, len(gpus[0].alive)
    for preset, wanted in expected.items():
        found = restored(networks, FACES[:4], preset) + restored(networks, FACES[4:], preset)
        assert all(np.array_equal(one, image) for one, image in zip(found, wanted, strict=True))
    names = gpus[0].names()
    assert names.count("graph") == 2 * 4  # seven faces are four batches, from the first one on
    assert not {"cudaMalloc", "cudaMallocHost"} & set(names)
    assert (gpus[0].used, len(gpus[0].alive)) == before


def test_a_gpu_takes_two_batches_at_once_and_nothing_stops_its_graph(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is prepared while the GPU is at the first one."""
    assert networks.facts["ahead"] == 2
    free, total = networks.memory() or (0, 0)
    assert 0 < free < total
    given: list[object] = []
    run = Restorer.run

    def noted(self: Restorer, images: Sequence[Any], **options: Any) -> Any:
        given.append(options["on_step"])
        return run(self, images, **options)

    monkeypatch.setattr(Restorer, "run", noted)
    assert len(restored(networks, FACES[:4])) == 4
    assert given == [None]


def test_a_lost_gpu_is_raised_so_that_the_process_can_end(networks: Networks, gpus: Any) -> None:
    gpus[0].fail["everything"] = "cudaErrorIllegalAddress"
    with pytest.raises(DeviceLost, match="GPU"):
        restored(networks, FACES[:1])
