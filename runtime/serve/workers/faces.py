"""The replicas that run the networks: one a GPU, each with a queue that forms batches across requests."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.backends.device import Device
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import DeviceLost
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.restorer import Restorer, load_networks
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Refusal
from bfr.runtime.serve.workers.batching import Batcher, Expired, Finished, Group, OnShare

Faces = Sequence[NDArray[Any]]
NICENESS = 10  # on a CPU: who answers requests comes before who computes
NO_LOOP = "default"  # what the one setting of a system without a loop is called
TICK = 0.5  # seconds between two reports of progress


class FaceServer:
    """A system opened on one device, for any number of callers. Its presets share the device and the networks.

    The constructor warms up, on a GPU every preset, and raises where a result is not finite: what fails never serves.
    """

    def __init__(self, options: ServeOptions) -> None:
        begin = time.perf_counter()
        bundle = Bundle.open(options.bundle or default_bundle())
        device = open_device(
            options.backend, bundle, precision=bundle.precision(options.precision), threads=options.threads
        )
        self.restorers = open_presets(bundle, device, options)
        on_cpu = device.memory() is None
        if on_cpu:
            with suppress(OSError, AttributeError):
                os.nice(NICENESS)
        for restorer in self.restorers.values():
            restorer.reserve()
        if on_cpu:
            next(iter(self.restorers.values())).warm_up(batch=1, times=1)  # nothing is recorded: one image proves it
        else:
            for restorer in self.restorers.values():
                for size in restorer.sizes():  # each is recorded, so that no request waits for that
                    restorer.warm_up(batch=size)
        # A GPU works on one batch while the next is prepared; its loop is one graph, which nothing stops.
        self._stoppable = on_cpu
        self._lost: DeviceLost | None = None
        self.batcher = Batcher(self._run, size=options.batch_size, linger=options.linger, ahead=1 if on_cpu else 2)
        self.facts = {"backend": device.name, "warm_up_seconds": round(time.perf_counter() - begin, 3)}

    def check_health(self) -> None:
        """Raise where this process must be started anew."""
        if self._lost:
            raise self._lost

    def describe(self) -> dict[str, Any]:
        """The backend's name, and the seconds until it was warm."""
        return self.facts

    async def restore(self, faces: Faces, order: FaceOrder) -> AsyncIterator[float | list[Finished] | Refusal]:
        """The share of the denoising that is done, now and then, and at last the results or why there are none.

        faces: (S, S, 3) uint8 or uint16 RGB each. Closed before its end, it drops what is queued.
        """
        ticket = self.batcher.submit(
            faces,
            Group(order.preset, order.seed),
            seconds=order.deadline - time.time(),
            keys=order.keys,
            urgent=order.urgent,
        )
        try:
            told = 0.0
            while not await ticket.wait(TICK):
                if ticket.share != told:  # who only waits costs nothing
                    yield (told := ticket.share)
            yield ticket.results()
        except Expired as error:
            yield Refusal("expired", str(error))
        finally:
            ticket.abandon()

    def _run(self, group: Group, images: Faces, keys: Sequence[int | None], on_share: OnShare) -> Sequence[Restored]:
        restorer = self.restorers[group.preset]
        steps = max(1, restorer.plan.steps)
        try:
            return restorer.run(
                images,
                seed=group.seed,
                keys=keys,
                on_step=(lambda done, _state: on_share(done / steps)) if self._stoppable else None,
            )
        except DeviceLost as error:
            self._lost = error
            raise


def open_presets(bundle: Bundle, device: Device, options: ServeOptions) -> dict[str, Restorer]:
    """A Restorer for each preset that is served, over the same networks."""
    networks = load_networks(bundle, device, bundle.precision(options.precision))
    return {
        name: Restorer(
            bundle, device, sampler, precision=options.precision, batch=options.batch_size, networks=networks
        )
        for name, sampler in served_presets(bundle, options).items()
    }


def served_presets(bundle: Bundle, options: ServeOptions) -> dict[str, Preset]:
    """The presets that are offered, by name, the default one first. Raises InvalidOption for one that is not there."""
    if not bundle.denoisers:
        bundle.preset(*options.presets[:1])  # a system without a loop has none, and says so
        return {NO_LOOP: bundle.preset()}
    names = options.presets or (bundle.manifest.default_preset, *bundle.manifest.presets)
    return {name: bundle.preset(name) for name in dict.fromkeys(names)}
