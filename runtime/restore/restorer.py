"""`Restorer`: aligned faces in, restored faces out."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Device, Network
from bfr.runtime.backends.registry import FALLBACK, open_device, open_usable
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Precision, Preset
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.errors import BfrError, DeviceOutOfMemory, InvalidOption, RestorationFailed
from bfr.runtime.restore.batch import Finished, Pending, Restored
from bfr.runtime.restore.chain import Chain, ChainResult
from bfr.runtime.restore.chains import Batch, Chains, load_networks
from bfr.runtime.restore.inputs import Given, ImageInputs, as_pixels, as_several, check_image
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.precision import Trial, choose_precision, sample
from bfr.runtime.restore.tables import sampler_table

DEFAULT_SEED = 12345  # the published code's
_log = logging.getLogger("bfr")


class Restorer:
    """A system opened on a device.

    While the device works on a batch, the host prepares and launches the next one and finishes the previous one.
    One Restorer serves one caller at a time: other threads wait. On a GPU, one thread alone may call `launch`. Several
    Restorers, on one GPU or on several, may be open in one process.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        sampler: Preset,
        *,
        precision: str = "fp32",
        batch: int = 1,
        networks: dict[str, Network] | None = None,
    ) -> None:
        """Put a bundle on a device; most users call `Restorer.open`.

        Args:
            bundle: The bundle.
            device: The device; the caller closes it.
            sampler: The preset, with everything that replaces its fields.
            precision: Precision of the networks; those without it run in fp32.
            batch: Faces that go through the networks together, at most.
            networks: Networks that replace the bundle's own, by name.

        Raises:
            InvalidOption: The batch is out of range.
        """
        if batch < 1:
            raise InvalidOption(f"batch {batch} is out of range: choose 1 or more")
        self.bundle, self.device, self.sampler, self.size = bundle, device, sampler, bundle.manifest.image_size
        self.precision: Precision = bundle.precision(precision)
        self.plan = make_plan(bundle, sampler)
        weight = bundle.manifest.weight if sampler.weight is None else sampler.weight
        self.inputs = ImageInputs(bundle.manifest.system, self.size, bundle.manifest.inputs, weight, sampler.pixels)
        loaded = load_networks(bundle, device, self.precision) if networks is None else networks
        self.chains = Chains(bundle, device, loaded, self.plan)
        self.batch = self.chains.limit(batch)
        self._float32: Restorer | None = None
        self.fixed: dict[str, NDArray[Any]] = {}  # pictures for further inputs, for images that are not given their own
        self._owns_device = self._closed = False
        self._running, self._process = threading.RLock(), os.getpid()

    @classmethod
    def open(
        cls,
        bundle: Path | str | OpenOptions | None = None,
        *,
        spinning: bool = True,
        **options: Any,
    ) -> "Restorer":
        """Open a bundle for restoring. On a GPU this allocates all memory.

        Args:
            bundle: The bundle's folder, or OpenOptions with the folder and all other fields; None is the default
                system, `mini`.
            spinning: Whether the threads of a CPU backend wait in a loop within a call. False for videos: other work
                needs the cores at the same time.
            options: Fields of `OpenOptions`: backend, preset, precision, batch, threads, device. Others replace those
                of the preset: the fields of `SamplerOptions`, and matched, adapt and stages, see
                `bfr.runtime.bundle.manifest.Preset`.

        Raises:
            BfrError: Its text says how to fix it.
        """
        offered = [*(() if isinstance(bundle, OpenOptions) else OpenOptions.model_fields), *Preset.model_fields]
        if unknown := sorted(options.keys() - set(offered)):
            raise InvalidOption(f"there is no option {', '.join(unknown)} here: choose among {', '.join(offered)}")
        if not isinstance(bundle, OpenOptions):
            names = OpenOptions.model_fields.keys() & options.keys()
            bundle = OpenOptions(bundle=bundle, **{name: options.pop(name) for name in names})  # type: ignore[arg-type]
        chosen, opened = bundle, Bundle.open(bundle.bundle or default_bundle())
        sampler = opened.preset(chosen.preset, **options)
        precision = settle_precision(opened, chosen)
        return open_usable(
            chosen.backend,
            opened,
            precision,
            chosen.device,
            lambda backend: cls._open_on(backend, opened, sampler, precision, chosen, spinning=spinning),
        )

    @classmethod
    def _open_on(
        cls,
        backend: str,
        bundle: Bundle,
        sampler: Preset,
        precision: Precision,
        chosen: OpenOptions,
        *,
        spinning: bool = True,
    ) -> "Restorer":
        device = open_device(
            backend,
            bundle,
            precision=precision,
            threads=chosen.threads,
            spinning=spinning,
            index=chosen.device,
            compiler=chosen.compiler,
        )
        try:
            restorer = cls(bundle, device, sampler, precision=precision, batch=chosen.batch)
            restorer._owns_device = True
            restorer.chains.reserve(restorer.batch)
        except BaseException:
            device.close()
            raise
        _log.info("%s is open on %s in %s", bundle.manifest.system, device.name, precision)
        return restorer

    def __enter__(self) -> "Restorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory, and close the device if `open` opened it. A closed Restorer cannot be used again."""
        self._closed = True
        self.chains.close()
        if self._float32:
            self._float32.close()
        if self._owns_device:
            self.device.close()

    @property
    def table(self) -> StepTable:
        """The step table of the first denoise stage. Raises InvalidOption if the system has no loop."""
        return sampler_table(self.bundle, self.sampler)

    def restore(
        self, images: Any, *, seed: int = DEFAULT_SEED, inputs: Mapping[str, Given] | None = None
    ) -> list[NDArray[Any]]:
        """Restore aligned faces.

        Args:
            images: One, or a sequence of them: (H, W, 3) RGB arrays, uint8 or uint16, or float32 in [0, 1]; tensors,
                (C, H, W); paths, bytes of files and PIL images, whose alpha is left out. Another size than the system's
                is resized (antialiased bicubic) and the result resized back.
            seed: Seed of the noise, 0 .. 2**32 - 1. The result of an image depends on its pixels and the seed alone,
                not on its neighbours.
            inputs: Pictures for systems that read more than the image: `mask` or `reference`, one picture or None for
                each image, see `bfr.runtime.restore.inputs`.

        Returns:
            As many images, of the same sizes and dtypes.

        Raises:
            InvalidImage: An image has a wrong shape or dtype.
            RestorationFailed: A result is not finite; `run` returns the others all the same.
        """
        results = self.run(as_several(images), seed=seed, inputs=inputs)
        failed = {i: result.error for i, result in enumerate(results) if result.pixels is None}
        if failed:
            reasons = "; ".join(f"image {i}: {error}" for i, error in failed.items())
            raise RestorationFailed(f"{len(failed)} of {len(results)} images failed: {reasons}")
        return [result.pixels for result in results]  # type: ignore[misc]

    def run(
        self,
        images: Sequence[Any],
        *,
        seed: int = DEFAULT_SEED,
        keys: Sequence[int | None] | None = None,
        on_step: OnStep | None = None,
        inputs: Mapping[str, Given] | None = None,
    ) -> list[Restored]:
        """Restore aligned faces as `restore` does; if an image fails, its result has `error` set.

        If the device's memory runs out, the batch is halved for this and later calls; an image that does not fit alone
        fails.

        Args:
            images: See `restore`.
            seed: See `restore`.
            keys: Keys of the noise of each image, 0 .. 2**32 - 1; None for one is a function of its pixels. Images that
                share a key get the same noise, as the frames of a video should.
            on_step: Called between the steps of each batch; on a GPU the batch is not one graph then.
            inputs: See `restore`.

        Returns:
            One result for each image.
        """
        images = [as_pixels(image) for image in images]
        given = self._checked(images, seed, inputs)
        named = [None] * len(images) if keys is None else keys
        if len(named) != len(images):
            raise InvalidOption(f"{len(named)} keys, {len(images)} images: give one, or None, for each")
        results: list[Restored] = []
        running: Pending | None = None
        begin = 0
        with self._running:
            while begin < len(images):
                part = slice(begin, begin + self.batch)
                begin = part.stop
                pictures = {name: pictures[part] for name, pictures in given.items()}
                following = self._launch(Batch(self.inputs, images[part], named[part], seed, pictures), on_step)
                if running:
                    results += running.finish()
                running = following
            return results + running.finish() if running else results

    def launch(
        self,
        images: Sequence[NDArray[Any]],
        *,
        seed: int = DEFAULT_SEED,
        keys: Sequence[int | None] | None = None,
        on_step: OnStep | None = None,
        inputs: Mapping[str, Given] | None = None,
    ) -> Pending:
        """Start as `run` does, with at most `batch` images, and return before the results are ready.

        On a GPU, launch the next images before you wait for these, so that the GPU is never idle. At most two batches
        are in flight: a third launch first waits for the first. A GPU runs a batch without the host, so there `on_step`
        is called once, with all steps and None, when the batch is finished.
        """
        if not images:
            return Finished([])
        if len(images) > self.batch:
            raise ValueError(f"{len(images)} images were launched together: at most {self.batch} fit")
        batch = Batch(self.inputs, images, keys or [None] * len(images), seed, self._checked(images, seed, inputs))
        if on_step is None or not self.device.asynchronous:
            return self._launch(batch, on_step)
        return self._launch(batch, None, partial(on_step, self.plan.steps, None))

    def warm_up(self, *, batch: int | None = None, times: int = 2) -> float:
        """Run a chain on grey images.

        Args:
            batch: Size of the batch, the largest if left out.
            times: Number of runs. A GPU records the chain in the second one.

        Returns:
            The seconds that it took.

        Raises:
            RestorationFailed: A result is not finite.
        """
        begin = time.perf_counter()
        grey = np.full((self.size, self.size, 3), 0.5, np.float32)
        for _ in range(times):
            for restored in self.run([grey] * (batch or self.batch)):
                if restored.pixels is None:
                    raise RestorationFailed(
                        f"the warm-up of {self.bundle.manifest.system} failed: {restored.error}. Do not use this bundle"
                    )
        return time.perf_counter() - begin

    def chain(self, batch: int) -> Chain:
        """Return the chain of a batch size. Raises InvalidOption after `close`."""
        self._check_open()
        return self.chains.chain(batch)

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Restorer cannot be copied or sent to another process: open one there")

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidOption("this Restorer is closed: use it inside its `with`, or open another")
        if self._process != os.getpid():  # a fork does not copy the threads that it would wait for
            raise InvalidOption("this Restorer was opened in another process: open one in each, after the fork")

    def float32(self) -> "Restorer":
        """Return the same system in float32 on the same device, for images that overflow in half precision."""
        if self._float32 is None:
            self._float32 = Restorer(self.bundle, self.device, self.sampler)
        return self._float32

    def _checked(
        self, images: Sequence[NDArray[Any]], seed: int, inputs: Mapping[str, Given] | None
    ) -> dict[str, Given]:
        """The pictures for further inputs, by name, an entry for each image. Raises InvalidImage, InvalidOption."""
        self._check_open()
        check_seed(seed)
        if not isinstance(inputs, Mapping | None):
            raise InvalidOption(f"inputs are given by name, as a dict, not as a {type(inputs).__name__}")
        for image in images:
            check_image(image)
        given: dict[str, Given] = {name: [picture] * len(images) for name, picture in self.fixed.items()}
        given |= {name: self.inputs.held(name, pictures) for name, pictures in (inputs or {}).items()}
        self.inputs.check(len(images), given)
        return given

    def _launch(self, batch: Batch, on_step: OnStep | None, finished: Callable[[], None] = lambda: None) -> Pending:
        """Launch a batch. on_step: see `Chain.launch`. finished: called when the results were waited for."""

        def results(outcome: ChainResult) -> list[Restored]:
            found = batch.results(outcome, self.precision, self._again)
            finished()
            return found

        with self._running:
            try:
                return self.chains.launch(batch, on_step, results)
            except DeviceOutOfMemory as error:
                return Finished(self._run_in_halves(batch, error, on_step))

    def _again(self, batch: Batch, i: int, seconds: dict[str, float]) -> Restored:
        """Restore an image in float32 whose result in another precision is not finite."""
        precision = self.precision
        if not all(np.isfinite(values).all() for values in batch.prepared[i].values()):
            return Restored(None, seconds, precision, "the input holds NaN or Inf")
        if precision == "fp32":
            return Restored(None, seconds, "fp32", "the result holds NaN or Inf in float32")
        given = {name: [picture] for name, picture in batch.pictures(i).items()}
        try:
            float32 = self.float32()
        except BfrError as error:
            return Restored(None, seconds, precision, f"the result holds NaN or Inf, and float32 failed: {error}")
        return float32.run([batch.images[i]], seed=batch.seed, keys=[batch.keys[i]], inputs=given)[0]

    def _run_in_halves(self, batch: Batch, error: DeviceOutOfMemory, on_step: OnStep | None) -> list[Restored]:
        """Run a batch that did not fit, and later ones, in halves; an image that does not fit alone fails."""
        self.chains.clear()
        if len(batch.images) == 1:
            return [Restored(None, {}, self.precision, str(error))]
        half = len(batch.images) // 2
        self.batch = max((b for b in self.chains.buckets or () if b <= half), default=half)
        _log.warning("the device's memory ran out at a batch of %d, continuing with %d", len(batch.images), self.batch)
        return self.run(batch.images, seed=batch.seed, keys=batch.keys, on_step=on_step, inputs=batch.given)


def settle_precision(bundle: Bundle, chosen: OpenOptions) -> Precision:
    """Return the precision to open a bundle in, see `choose_precision`; for `auto` on a CPU this times the system."""

    def try_out(precision: Precision) -> Trial:
        name = FALLBACK if chosen.backend == "auto" else chosen.backend
        alone = chosen.model_copy(update={"batch": 1})
        with Restorer._open_on(name, bundle, bundle.preset(), precision, alone) as restorer:
            image, seconds = sample(restorer.size), []
            for _ in range(3):
                begin = time.perf_counter()
                pixels = restorer.restore([image])[0]
                seconds.append(time.perf_counter() - begin)
        return Trial(pixels, min(seconds) / max(1, restorer.plan.steps))

    return choose_precision(bundle, chosen.precision, backend=chosen.backend, index=chosen.device, trial=try_out)
