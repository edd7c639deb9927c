"""The process that runs the networks on one device: `python -m bfr.runtime.serve.workers.process DESCRIPTOR`.

The first message names the bundles to open. The process answers when its networks are warm, and then restores one call
of faces after the other. A GPU gets the next call before the host waits for the previous one. The process ends with its
server, and when its device is lost; the server then starts a new one.
"""

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.backends.device import Device, Network
from bfr.runtime.backends.registry import open_device, open_usable
from bfr.runtime.errors import BfrError, DeviceLost
from bfr.runtime.restore.batch import Finished, Pending, Restored
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import Restorer, settle_precision
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.systems import System, open_systems
from bfr.runtime.serve.workers.wire import Line, Message, line_to_server, pack_results

OnShare = Callable[[float], None]
"""Called after each denoising step with the share that is done, 0 to 1."""

NICENESS = 10  # on a CPU: the process that answers requests comes before the one that computes
TICK = 0.25  # seconds between two reports of progress
LOST = 3  # exit status of a process whose device is lost


class Abandoned(Exception):
    """All faces of a call were dropped."""


class Networks:
    """The systems of a server, opened on one device. Presets of a system share its networks.

    The constructor warms up, on a GPU every preset and batch size. It fails where a result is not finite, or the
    device's memory does not hold all systems.
    """

    def __init__(self, options: ServeOptions, index: int = 0) -> None:
        """Open the systems and warm them up.

        Args:
            options: What is served.
            index: Number of the GPU.

        Raises:
            BfrError: A bundle is refused, no backend opens it, or the warm-up failed.
        """
        begin = time.perf_counter()
        self.devices: list[Device] = []
        self.restorers: dict[tuple[str, str], Restorer] = {}
        for system in open_systems(options).values():
            self._open(system, options, index)
        self.on_cpu = all(device.memory() is None for device in self.devices)
        if self.on_cpu:
            next(iter(self.restorers.values())).warm_up(batch=1, times=1)
        for restorer in () if self.on_cpu else self.restorers.values():
            for size in restorer.chains.sizes(restorer.batch):  # recorded now, so that no request waits for it
                restorer.warm_up(batch=size)
        self.facts: dict[str, Any] = {
            "backend": self.devices[0].name,
            # All but one are on the device: it does not wait for the server between two. A GPU works on one while the
            # next is launched behind it.
            "calls": 2 if self.on_cpu else 3,
            "warm_up_seconds": round(time.perf_counter() - begin, 3),
        }

    def launch(
        self,
        group: Group,
        images: Sequence[NDArray[Any]],
        keys: Sequence[int | None],
        on_share: OnShare = lambda _share: None,
    ) -> Pending:
        """Start to restore faces of one group, see `Restorer.launch`; a CPU returns when they are restored.

        Args:
            group: Their bundle, preset and seed.
            images: (S, S, 3) uint8 or uint16 RGB each.
            keys: See `Restorer.run`.
            on_share: Called on a CPU alone, and may raise. A GPU's loop is one graph, which nothing stops.
        """
        restorer = self.restorers[group.bundle, group.preset]
        steps = max(1, restorer.plan.steps)
        on_step = (lambda done, _state: on_share(done / steps)) if self.on_cpu else None
        if len(images) > restorer.batch:  # its graphs take fewer, or the device's memory ran out before
            return Finished(restorer.run(images, seed=group.seed, keys=keys, on_step=on_step))
        return restorer.launch(images, seed=group.seed, keys=keys, on_step=on_step)

    def memory(self) -> tuple[int, int] | None:
        """Free and total bytes of the device, None for a CPU."""
        return next((found for device in self.devices if (found := device.memory())), None)

    def _open(self, system: System, options: ServeOptions, index: int) -> None:
        """Open a system on the backend of the options; `auto` tries the next one if a backend does not work here."""
        bundle, shared = system.bundle, options.model_dump(include={"backend", "precision", "threads"})
        precision = settle_precision(bundle, OpenOptions(**shared, device=index))

        def open_on(backend: str) -> tuple[Device, dict[str, Network]]:
            # Threads that wait in a loop burn what the front, its decoders and other processes could use.
            device = open_device(
                backend, bundle, precision=precision, threads=options.threads, spinning=False, index=index
            )
            return device, load_networks(bundle, device, precision)

        device, networks = open_usable(options.backend, bundle, precision, index, open_on)
        self.devices.append(device)
        for preset, sampler in system.presets.items():
            restorer = Restorer(
                bundle, device, sampler, precision=precision, batch=options.batch_size, networks=networks
            )
            restorer.chains.reserve(restorer.batch)
            self.restorers[system.name, preset] = restorer


def main() -> None:
    """Answer calls on the socket whose descriptor is the first argument, until it is closed."""
    line = line_to_server()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the server has ended
        _serve(line)


def _serve(line: Line) -> None:
    """Raises EOFError and OSError where the other side has ended."""
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
    calls = Calls(networks, line)
    threading.Thread(target=calls.listen, daemon=True).start()
    while True:
        calls.step()


@dataclass(frozen=True, slots=True)
class _Raised:
    """A call that could not be launched."""

    error: Exception
    done: bool = True

    def finish(self) -> list[Restored]:
        raise self.error


class Calls:
    """Answers the calls of the server in their order. At most two are on the device.

    Attributes:
        waiting: Messages of calls that are not launched yet.
        launched: Number of each call that is not answered yet, when it was launched, and what waits for it.
        stopped: Numbers of calls that were cancelled.
    """

    def __init__(self, networks: Networks, line: Line) -> None:
        self.networks, self.line = networks, line
        self.waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.stopped: set[int] = set()
        self.launched: deque[tuple[int, float, Pending]] = deque()
        self._answered = 0.0

    def listen(self) -> None:
        """In a thread: take messages in, until the server ends."""
        while True:
            try:
                content, images = self.line.receive()
            except (EOFError, OSError):
                os._exit(0)
            if "stop" in content:
                self.stopped.add(content["stop"])
            else:
                self.waiting.put((content, images))

    def step(self) -> None:
        """Launch the next call, then answer the previous one; without a next call, answer what is launched."""
        if self.launched and self.waiting.empty():
            self._settle()
            return
        content, images = self.waiting.get()
        if content["alone"]:  # one of its faces may have ended a worker: no other call is on the device with it
            self._settle()
        pending = self._launch(content, images)
        self._settle(all_but=0 if pending.done or content["alone"] else 1)

    def _launch(self, content: dict[str, Any], images: Sequence[Any]) -> Pending:
        begin, reported = time.perf_counter(), time.monotonic()

        def on_share(share: float) -> None:
            nonlocal reported
            if content["call"] in self.stopped:
                raise Abandoned
            if time.monotonic() - reported >= TICK:
                reported = time.monotonic()
                self.line.send({"share": share})

        pending: Pending
        try:
            on_share(0.0)  # it may have been stopped while it waited
            pending = self.networks.launch(Group(*content["group"]), images, content["keys"], on_share)
        except (Abandoned, BfrError, MemoryError) as error:
            pending = _Raised(error)
        self.launched.append((content["call"], begin, pending))
        return pending

    def _settle(self, *, all_but: int = 0) -> None:
        """Answer what is launched, all but the last calls."""
        while len(self.launched) > all_but:
            self._answer(*self.launched.popleft())

    def _answer(self, number: int, begin: float, pending: Pending) -> None:
        answer: dict[str, Any]
        pixels: list[Any] = []
        try:
            results, pixels = pack_results(pending.finish())
            answer = {"results": results, "memory": self.networks.memory()}
        except Abandoned:
            answer = {"abandoned": True}
        except (DeviceLost, MemoryError) as error:  # only a new process can continue
            self.line.send({"lost": str(error) or "the process ran out of memory"})
            os._exit(LOST)
        except BfrError as error:
            answer = {"error": str(error)}
        now = time.perf_counter()
        self.line.send({**answer, "seconds": now - max(begin, self._answered)}, pixels)
        self._answered = now
        self.stopped.discard(number)


if __name__ == "__main__":
    main()
