"""`Restorer`: aligned faces in, restored faces out."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends import Device, Float32, Network, open_device
from bfr.runtime.bundle import Bundle, default_bundle
from bfr.runtime.errors import InvalidImage, InvalidOption, RestorationFailed
from bfr.runtime.image import resize
from bfr.runtime.loop import Chain, ChainResult, OnStep
from bfr.runtime.manifest import Precision, Preset
from bfr.runtime.noise import check_seed
from bfr.runtime.schedule import linear_schedule
from bfr.runtime.solvers import StepTable, step_table

DEFAULT_SEED = 12345  # the published code's
Pixels = TypeVar("Pixels", bound=NDArray[Any])


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one image.

    pixels: (H, W, 3) RGB of the input's size and dtype, or None where it failed. error: why it failed.
    seconds: stage -> this image's share of its batch, in seconds. precision: of the networks that made it.
    """

    pixels: NDArray[Any] | None
    seconds: dict[str, float]
    precision: Precision
    error: str | None = None


class Restorer:
    """A system opened on a device. Chains are made per batch size, when first needed, and kept.

    Not thread-safe: one Restorer serves one caller at a time.
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
        """Most users call `Restorer.open`. `networks` replaces the bundle's own, by name."""
        if batch < 1:
            raise InvalidOption(f"batch {batch} is out of range: choose 1 or more")
        self.bundle, self.device, self.sampler = bundle, device, sampler
        self.precision: Precision = bundle.precision(precision)
        self.batch, self.size = batch, bundle.manifest.image_size
        self.table = sampler_table(bundle, sampler)
        self._networks = networks or load_networks(bundle, device, self.precision)
        self._chains: dict[int, Chain] = {}
        self._float32: Restorer | None = None

    @classmethod
    def open(
        cls,
        bundle: Path | str | None = None,
        *,
        backend: str = "auto",
        preset: str = "reference",
        precision: str = "fp32",
        batch: int = 1,
        threads: int | None = None,
        **overrides: Any,
    ) -> "Restorer":
        """Open a bundle for restoring.

        bundle: its folder; None is the default system, `mini`. backend: one of `bfr.runtime.backends.BACKENDS`.
        preset: a name of the bundle's presets. precision: a network without that variant runs in fp32.
        batch: how many images go through the chain together, at most. threads: of the CPU backend.
        overrides: fields of the preset to change: solver, spacing, start, eta.
        Raises a BfrError whose text says how to mend it.
        """
        opened = Bundle.open(bundle if bundle is not None else default_bundle())
        sampler = opened.preset(preset, **overrides)
        return cls(opened, open_device(backend, threads=threads), sampler, precision=precision, batch=batch)

    def __enter__(self) -> "Restorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the chains' threads. The Restorer can be used again; chains are then made anew."""
        for chain in self._chains.values():
            chain.close()
        self._chains.clear()
        if self._float32:
            self._float32.close()

    def restore(self, images: Sequence[Pixels], *, seed: int = DEFAULT_SEED) -> list[Pixels]:
        """Restore aligned faces.

        images: (H, W, 3) RGB each, uint8 or uint16, or float32 in [0, 1]. A size other than the system's is resized
        (antialiased bicubic) and the result resized back. Returns as many images of the same sizes and dtypes.
        seed: 0 .. 2**32 - 1. The result of an image depends on its pixels and the seed alone, not on its neighbours.
        Raises InvalidImage for a wrong shape or dtype, RestorationFailed where a result is not finite: `run` returns
        the others all the same.
        """
        results = self.run(images, seed=seed)
        failed = {i: result.error for i, result in enumerate(results) if result.pixels is None}
        if failed:
            reasons = "; ".join(f"image {i}: {error}" for i, error in failed.items())
            raise RestorationFailed(f"{len(failed)} of {len(results)} images failed: {reasons}")
        return [result.pixels for result in results]  # type: ignore[misc]

    def run(
        self,
        images: Sequence[NDArray[Any]],
        *,
        seed: int = DEFAULT_SEED,
        keys: Sequence[int | None] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Restored]:
        """As `restore`, but an image that fails is a result with `error` set, and ends nothing.

        keys: of the noise of each image, 0 .. 2**32 - 1; None for one is a function of its pixels. Images that share a
        key get the same noise, as the frames of a video should.
        """
        check_seed(seed)
        keys = keys or [None] * len(images)
        inputs = [to_input(image, self.size) for image in images]
        results: list[Restored] = []
        while len(results) < len(inputs):
            part = inputs[len(results) : len(results) + self.batch]
            named = keys[len(results) : len(results) + self.batch]
            outcome = self._run_batch(part, seed, on_step, named)
            seconds = {stage: total / len(part) for stage, total in outcome.seconds.items()}
            for i, face in enumerate(outcome.image[: len(part)]):
                image = images[len(results)]
                if np.isfinite(face).all():
                    results.append(Restored(to_output(face, image), seconds, self.precision))
                else:
                    results.append(self._run_again(image, part[i], seed, named[i], seconds))
        return results

    def warm_up(self) -> float:
        """Run the largest chain once on a grey image; returns the seconds it took, the chain's making included."""
        grey = np.full((3, self.size, self.size), 0.5, np.float32)
        result = self._run_batch([grey] * self.batch, DEFAULT_SEED, None, [None] * self.batch)
        if not np.isfinite(result.image).all():
            raise RestorationFailed(
                f"the warm-up of {self.bundle.manifest.system} gave NaN or Inf: do not use this bundle"
            )
        return sum(seconds for stage, seconds in result.seconds.items() if stage != "network")

    def chain(self, batch: int) -> Chain:
        """The chain of a batch size, made when first asked for."""
        if batch not in self._chains:
            estimator, denoiser = self.bundle.estimator, self.bundle.denoise.network
            self._chains[batch] = Chain(
                self.device,
                self._networks[estimator],
                self._networks[denoiser],
                self.table,
                batch=batch,
                size=self.size,
            )
        return self._chains[batch]

    def _run_batch(
        self, inputs: list[Float32], seed: int, on_step: OnStep | None, keys: Sequence[int | None]
    ) -> ChainResult:
        bucket = choose_bucket(len(inputs), self.device.buckets)
        padding = [np.zeros_like(inputs[0])] * (bucket - len(inputs))
        named = [image_key(image) if key is None else key for image, key in zip(inputs, keys, strict=True)]
        images = (*named, *(0 for _ in padding))
        return self.chain(bucket).run(np.stack(inputs + padding), seed=seed, images=images, on_step=on_step)

    def _run_again(
        self, image: NDArray[Any], degraded: Float32, seed: int, key: int | None, seconds: dict[str, float]
    ) -> Restored:
        if not np.isfinite(degraded).all():
            return Restored(None, seconds, self.precision, "the input holds NaN or Inf")
        if self.precision == "fp32":
            return Restored(None, seconds, "fp32", "the result holds NaN or Inf in float32")
        if self._float32 is None:
            self._float32 = Restorer(self.bundle, self.device, self.sampler)
        return self._float32.run([image], seed=seed, keys=[key])[0]


def load_networks(bundle: Bundle, device: Device, precision: Precision) -> dict[str, Network]:
    """Load every network of a bundle, its files checked first. A network without that precision runs in fp32."""
    return {
        name: device.load(bundle.graph(name, precision if precision in network.variants else "fp32"))
        for name, network in bundle.manifest.networks.items()
    }


def sampler_table(bundle: Bundle, sampler: Preset) -> StepTable:
    """The step table of a preset on a bundle's schedule. Raises InvalidOption where they do not go together."""
    stage, spec = bundle.denoise, bundle.manifest.schedule
    learned = bundle.network(stage.network).kind == "step-learned"
    if learned != (sampler.solver == "ddpm-learned"):
        solvers = "ddpm-learned" if learned else "ddim or ddpm"
        raise InvalidOption(f"solver {sampler.solver} does not fit the exported step graph: it runs {solvers}")
    schedule = linear_schedule(spec.timesteps, spec.beta_start, spec.beta_end)
    return step_table(
        schedule,
        solver=sampler.solver,
        spacing=sampler.spacing,
        start=sampler.start,
        eta=sampler.eta,
        matched=sampler.matched,
        prediction=stage.prediction,
    )


def choose_bucket(count: int, buckets: tuple[int, ...] | None) -> int:
    """The smallest bucket that holds `count` images; `count` itself where the device has no buckets."""
    return min((b for b in buckets or () if b >= count), default=count)


def image_key(degraded: Float32) -> int:
    """The noise's key of an image: a function of its pixels, so that neither order nor neighbours matter."""
    return zlib.crc32(degraded.tobytes())


def to_input(image: NDArray[Any], size: int) -> Float32:
    """(H, W, 3) uint8, uint16, or float32 in [0, 1] -> (3, size, size) float32, resized where it must be."""
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidImage(f"an image of shape {image.shape} was given: (H, W, 3) RGB is needed")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InvalidImage(f"an image of dtype {image.dtype} was given: uint8, uint16, or float32 in [0, 1] is needed")
    x = image.astype(np.float32) / np.float32(full_scale(image.dtype))
    if x.shape[:2] != (size, size):
        x = resize(x, (size, size))
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def to_output(face: Float32, like: NDArray[Any]) -> NDArray[Any]:
    """(3, S, S) float32 in [0, 1] -> (H, W, 3) of the size and dtype of `like`, rounded to the nearest level."""
    x = np.ascontiguousarray(face.transpose(1, 2, 0))
    height, width = like.shape[:2]
    if x.shape[:2] != (height, width):
        x = np.clip(resize(x, (width, height)), 0.0, 1.0)
    scale = full_scale(like.dtype)
    return x if scale == 1.0 else np.rint(x * scale).astype(like.dtype)


def full_scale(dtype: np.dtype[Any]) -> float:
    """The value of white: 255, 65535, or 1 for floats."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
