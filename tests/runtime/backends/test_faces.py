"""The networks of a server on the GPU made of NumPy: what differs there from a CPU."""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import DeviceLost
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder
from bfr.runtime.serve.workers.batching import Finished
from bfr.runtime.serve.workers.faces import FaceServer

FACES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(7)]


@pytest.fixture
def server(built: Bundle, tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of two presets; it stays as nice as it was, for the GPU computes."""
    monkeypatch.setattr(os, "nice", lambda _: pytest.fail("a GPU server has no reason to be nice"))
    options = ServeOptions(bundle=built.folder, backend=tensorrt.name, batch=2, presets=("short", "reference"))
    made = FaceServer(options)
    yield made
    for restorer in made.restorers.values():
        restorer.close()
    restorer.device.close()


async def restored(server: FaceServer, faces: Sequence[Any], preset: str = "short", seed: int = 3) -> list[Finished]:
    order = FaceOrder(preset, seed, time.time() + 60)
    steps = [step async for step in server.restore(faces, order)]
    assert isinstance(steps[-1], list)
    return steps[-1]


def test_requests_share_recorded_batches_and_get_the_bytes_of_a_cpu(
    built: Bundle, server: FaceServer, gpus: Any
) -> None:
    expected = {}
    for preset in ("short", "reference"):
        with Restorer(built, CpuDevice(1), built.preset(preset), batch=2) as cpu:
            expected[preset] = cpu.restore(FACES, seed=3)
    gpus[0].log.clear()
    before = gpus[0].used, len(gpus[0].alive)

    async def work() -> None:
        for preset, wanted in expected.items():
            found = await asyncio.gather(
                restored(server, FACES[:3], preset),
                restored(server, FACES[3:4], preset),
                restored(server, FACES[4:], preset),
            )
            results = [one for answer in found for one in answer]
            assert all(np.array_equal(one.restored.pixels, image) for one, image in zip(results, wanted, strict=True))
            assert sum(one.batch for one in results) == len(FACES)
            assert max(one.batch for one in results) == 2

    asyncio.run(asyncio.wait_for(work(), 60))
    names = gpus[0].names()
    assert names.count("graph") == 2 * 4  # seven faces are four batches, from the first one on
    assert not {"cudaMalloc", "cudaMallocHost"} & set(names)
    assert (gpus[0].used, len(gpus[0].alive)) == before


def test_two_batches_are_handed_over_at_once_and_go_on_whoever_leaves(
    server: FaceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is prepared while the GPU is at the first one; nothing stops a graph."""
    calls: list[tuple[int, object]] = []
    run = Restorer.run

    def noted(self: Restorer, images: Sequence[Any], **options: Any) -> Any:
        calls.append((len(images), options["on_step"]))
        return run(self, images, **options)

    monkeypatch.setattr(Restorer, "run", noted)

    async def work() -> None:
        leaving = asyncio.create_task(restored(server, FACES[:4]))
        await asyncio.sleep(0)
        while not calls:
            await asyncio.sleep(0.001)
        leaving.cancel()
        assert len(await restored(server, FACES[4:])) == 3

    asyncio.run(asyncio.wait_for(work(), 60))
    assert calls == [(4, None), (3, None)]


def test_a_lost_gpu_is_reported_as_a_process_that_must_be_started_anew(server: FaceServer, gpus: Any) -> None:
    server.check_health()

    async def work() -> None:
        gpus[0].fail["everything"] = "cudaErrorIllegalAddress"
        with pytest.raises(DeviceLost):
            await restored(server, FACES[:1])

    asyncio.run(asyncio.wait_for(work(), 60))
    with pytest.raises(DeviceLost, match="GPU"):
        server.check_health()
