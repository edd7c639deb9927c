"""The networks of a server on the GPU made of NumPy: what differs there from a CPU."""

import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from launches import launches

from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import DeviceLost
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.workers.process import Calls, Networks
from bfr.runtime.serve.workers.wire import Line, unpack_results

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
    return [one.pixels for one in networks.launch(group, faces, [None] * len(faces)).finish()]


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


@pytest.mark.parametrize(
    ("alone", "order"), [((), "LLWLWLWW"), ((1,), "LWLWLLWW"), ((0,), "LWLLWLWW"), ((3,), "LLWLWWLW")]
)
def test_a_call_is_launched_before_the_one_before_it_is_waited_for(
    alone: Sequence[int], order: str, networks: Networks, gpus: Any
) -> None:
    """But for a call that may end the GPU: the others keep away from it."""
    assert networks.facts["calls"] == 3  # two are launched, one is at hand
    wanted = [restored(networks, FACES[begin : begin + 2]) for begin in range(4)]
    bundle = next(iter(networks.restorers))[0]
    ours, theirs = (Line(one) for one in socket.socketpair())
    calls = Calls(networks, ours)
    for number in range(4):
        content = {"call": number, "group": [bundle, "short", 3], "keys": [None] * 2, "alone": number in alone}
        calls.waiting.put((content, FACES[number : number + 2]))
    gpus[0].log.clear()
    while calls.launched or not calls.waiting.empty():
        calls.step()
    assert launches(networks.restorers[bundle, "short"], gpus[0].log) == order
    for expected in wanted:
        answer, pixels = theirs.receive()
        found = [one.pixels for one in unpack_results(answer["results"], pixels)]
        assert all(np.array_equal(one, face) for one, face in zip(found, expected, strict=True))
        assert 0 < answer["memory"][0] < answer["memory"][1]
        assert answer["seconds"] > 0


def test_a_lost_gpu_is_raised_so_that_the_process_can_end(networks: Networks, gpus: Any) -> None:
    gpus[0].fail["everything"] = "cudaErrorIllegalAddress"
    with pytest.raises(DeviceLost, match="GPU"):
        restored(networks, FACES[:1])
