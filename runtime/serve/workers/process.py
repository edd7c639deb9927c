"""The process that runs the networks on one device: `python -m bfr.runtime.serve.workers.process DESCRIPTOR`.

It is told what to open, says when it is warm, and then restores one call of faces after the other. It ends when its
server does, and when its device is lost: the server starts a new one.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.backends.device import Device
from bfr.runtime.backends.registry import FALLBACK, choose, open_device
from bfr.runtime.errors import BfrError, DeviceLost
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import UNUSABLE, Restorer, load_networks, settle_precision
from bfr.runtime.serve.logs import log_as_json
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.systems import System, open_systems
from bfr.runtime.serve.workers.wire import Line, pack_results

OnShare = Callable[[float], None]
"""Called after each denoising step with the share that is done, 0 to 1."""

NICENESS = 10  # on a CPU: the process that answers requests comes before the one that computes
TICK = 0.25  # seconds between two reports of progress
LOST = 3  # exit status of a process whose device is lost


class Abandoned(Exception):
    """All faces of a call were dropped."""


class Networks:
    """The systems of a server, opened on one device. Presets of a system share its networks.

    The constructor warms up, on a GPU every preset and batch size, and raises where a result is not finite, or the
    device's memory does not hold all systems.
    """

    def __init__(self, options: ServeOptions, index: int = 0) -> None:
        """index: the number of the GPU."""
        begin = time.perf_counter()
        self.devices: list[Device] = []
        self.restorers: dict[tuple[str, str], Restorer] = {}
        for system in open_systems(options).values():
            self._open(system, options, index)
        self.on_cpu = all(device.memory() is None for device in self.devices)
        if self.on_cpu:
            next(iter(self.restorers.values())).warm_up(batch=1, times=1)
        for restorer in () if self.on_cpu else self.restorers.values():
            for size in restorer.sizes():  # each is recorded now, so that no request waits for that
                restorer.warm_up(batch=size)
        self.facts: dict[str, Any] = {
            "backend": self.devices[0].name,
            # A GPU works on one batch of a call while the next is prepared, and its loop is one graph, which nothing
            # stops. A CPU has the next call at hand, so that it does not wait for the server between two.
            "ahead": 1 if self.on_cpu else 2,
            "calls": 2 if self.on_cpu else 1,
            "warm_up_seconds": round(time.perf_counter() - begin, 3),
        }

    def run(
        self,
        group: Group,
        images: Sequence[NDArray[Any]],
        keys: Sequence[int | None],
        on_share: OnShare = lambda _share: None,
    ) -> list[Restored]:
        """Restore faces, (S, S, 3) uint8 or uint16 RGB each. on_share: is called on a CPU alone, and may raise."""
        restorer = self.restorers[group.bundle, group.preset]
        steps = max(1, restorer.plan.steps)
        on_step = (lambda done, _state: on_share(done / steps)) if self.on_cpu else None
        return restorer.run(images, seed=group.seed, keys=keys, on_step=on_step)

    def memory(self) -> tuple[int, int] | None:
        """Free and total bytes of the device, None for a CPU."""
        return next((found for device in self.devices if (found := device.memory())), None)

    def _open(self, system: System, options: ServeOptions, index: int) -> None:
        """Open a system on the backend of the options; `auto` goes on to the next one that works here."""
        bundle, shared = system.bundle, options.model_dump(include={"backend", "precision", "threads"})
        precision = settle_precision(bundle, OpenOptions(**shared, device=index))
        tried: list[str] = []
        while True:
            name = options.backend
            if name == "auto":
                name = choose(bundle, precision, index, without=tried)
            try:
                # Threads that wait in a loop burn what the front, its decoders and other processes could use.
                device = open_device(
                    name, bundle, precision=precision, threads=options.threads, spinning=False, index=index
                )
                networks = load_networks(bundle, device, precision)
                break
            except UNUSABLE:
                if options.backend != "auto" or name == FALLBACK:
                    raise
                tried.append(name)
        self.devices.append(device)
        for preset, sampler in system.presets.items():
            restorer = Restorer(
                bundle, device, sampler, precision=precision, batch=options.batch_size, networks=networks
            )
            restorer.reserve()
            self.restorers[system.name, preset] = restorer


def main() -> None:
    """Serve the line whose descriptor is the first argument, until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides, and closes the line
    log_as_json()
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    setup, _ = line.receive()
    try:
        options = ServeOptions(**setup["options"])
        networks = Networks(options, setup["index"])
    except BfrError as error:
        line.send({"failed": str(error)})
        sys.exit(error.exit_code)
    if networks.on_cpu:
        with suppress(OSError, AttributeError):
            os.nice(NICENESS)
    line.send({"ready": networks.facts})
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_listen, args=(line, calls, stopped), daemon=True).start()
    while True:
        content, images = calls.get()
        line.send(*_answer(networks, line, content, images, stopped))


def _listen(line: Line, calls: "queue.SimpleQueue[Any]", stopped: set[int]) -> None:
    """In a thread: take calls in, and the numbers of those that nobody waits for any more."""
    while True:
        try:
            content, images = line.receive()
        except (EOFError, OSError):
            os._exit(0)  # the server has ended
        if "stop" in content:
            stopped.add(content["stop"])
        else:
            calls.put((content, images))


def _answer(
    networks: Networks, line: Line, content: dict[str, Any], images: Sequence[Any], stopped: set[int]
) -> tuple[dict[str, Any], list[Any]]:
    told = time.monotonic()

    def on_share(share: float) -> None:
        nonlocal told
        if content["call"] in stopped:
            stopped.remove(content["call"])
            raise Abandoned
        if time.monotonic() - told >= TICK:
            told = time.monotonic()
            line.send({"share": share})

    begin = time.perf_counter()
    try:
        on_share(0.0)  # it may have been stopped while it waited
        results = networks.run(Group(*content["group"]), images, content["keys"], on_share)
    except Abandoned:
        return {"abandoned": True, "seconds": time.perf_counter() - begin}, []
    except (DeviceLost, MemoryError) as error:  # only a new process can go on
        line.send({"lost": str(error) or "the process ran out of memory"})
        os._exit(LOST)
    except BfrError as error:
        return {"error": str(error), "seconds": time.perf_counter() - begin}, []
    told_results, pixels = pack_results(results)
    seconds = time.perf_counter() - begin
    return {"results": told_results, "seconds": seconds, "memory": networks.memory()}, pixels


if __name__ == "__main__":
    main()
