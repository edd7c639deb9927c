"""The photograph around the faces, enlarged by Lanczos or by a separate network."""

import threading
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Device
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Estimate, Tensor
from bfr.runtime.errors import BundleInvalid, RestorationFailed
from bfr.runtime.restore.options import OpenOptions

FAINT = 1 / 512  # share of a pixel below which nothing of it is seen
SPREAD = 4.0  # pixels: how far visible colours are spread into hidden ones for a network, which knows no alpha
MARGIN = 16  # pixels at each edge of a tile that only its neighbour's result uses


class Background(Protocol):
    """Makes the photograph that faces are pasted into; `name` says how, with all that the result depends on."""

    name: str

    def enlarge(self, pixels: NDArray[Any], upscale: int) -> NDArray[Any]:
        """(H, W, 3) uint8 or uint16 -> (H * upscale, W * upscale, 3) of the same dtype, never the same array."""
        ...


class Lanczos:
    """Lanczos interpolation, a = 4; a copy if nothing is to be enlarged."""

    name = "lanczos"

    def enlarge(self, pixels: NDArray[Any], upscale: int) -> NDArray[Any]:
        """See `Background`."""
        return pixels.copy() if upscale == 1 else _resize(pixels, pixels.shape[0] * upscale, pixels.shape[1] * upscale)


class NetworkBackground:
    """A bundle of a single network, run over the photograph tile by tile.

    The network takes `degraded`, (batch, 3, T, T) in [0, 1], and gives `estimate`, (batch, 3, s*T, s*T) in [-1, 1].
    Where its scale s is not the one that is wanted, its result is resized.
    """

    def __init__(self, folder: Path | str, device: Device) -> None:
        """Open and check the bundle.

        `device` must not be shared, because its calls come from several threads. Raises BundleInvalid unless the bundle
        has one network with one image in and one out.
        """
        bundle = Bundle.open(folder)
        stages, networks = bundle.manifest.stages, bundle.manifest.networks
        if len(networks) != 1 or len(stages) != 1 or not isinstance(stages[0], Estimate):
            raise BundleInvalid(
                f"{folder} is the system {bundle.manifest.system}, not a single network: "
                f"a background bundle has one stage, `estimate`"
            )
        name = stages[0].network
        network = bundle.network(name)
        tile, result = _side(network.inputs, "degraded"), _side(network.outputs, "estimate")
        if not tile or not result or result % tile or tile <= 2 * MARGIN:
            raise BundleInvalid(
                f"{folder}: its network {name} cannot enlarge a background: `degraded`, (batch, 3, T, T) with T above "
                f"{2 * MARGIN}, and `estimate`, (batch, 3, s*T, s*T), are needed"
            )
        self.name = f"{bundle.manifest.system} {bundle.hash}"
        self.tile, self.scale = tile, result // tile
        self._device = device
        self._batch = min(bundle.manifest.batches or (1,))  # a tile at a time, repeated where the graph fixes its batch
        self._input = device.array((self._batch, 3, tile, tile))
        self._output = device.array((self._batch, 3, result, result))
        self._running = threading.Lock()  # photographs are pasted in several threads, the buffers are one
        self._call = device.load(bundle, name, "fp32").bind({"degraded": self._input}, {"estimate": self._output})

    def enlarge(self, pixels: NDArray[Any], upscale: int) -> NDArray[Any]:
        """See `Background`. Raises RestorationFailed if the network gives NaN."""
        height, width = pixels.shape[:2]
        top = np.iinfo(pixels.dtype).max
        step, scale = self.tile - 2 * MARGIN, self.scale
        padded = cv2.copyMakeBorder(
            pixels, MARGIN, MARGIN + -height % step, MARGIN, MARGIN + -width % step, cv2.BORDER_REFLECT
        )
        out = np.empty((height * scale, width * scale, 3), pixels.dtype)
        for y in range(0, height, step):
            for x in range(0, width, step):
                tile = padded[y : y + self.tile, x : x + self.tile].astype(np.float32) / np.float32(top)
                with self._running:
                    self._device.write(self._input, np.repeat(tile.transpose(2, 0, 1)[None], self._batch, axis=0))
                    self._call()
                    result = self._device.read(self._output)[0].transpose(1, 2, 0)
                if not np.isfinite(result).all():
                    raise RestorationFailed("the background's network gave NaN or Inf: do without --background")
                inner = result[MARGIN * scale : -MARGIN * scale, MARGIN * scale : -MARGIN * scale]
                part = out[y * scale : (y + step) * scale, x * scale : (x + step) * scale]
                inner = inner[: part.shape[0], : part.shape[1]]
                part[...] = np.rint(np.clip(inner * 0.5 + 0.5, 0, 1) * top).astype(pixels.dtype)
        return out if scale == upscale else _resize(out, height * upscale, width * upscale)


def open_background(folder: Path | str | None, opened: OpenOptions = OpenOptions()) -> Background:  # noqa: B008  (frozen)
    """Open the network of a bundle on a separate device, as the options say; Lanczos without a folder."""
    if folder is None:
        return Lanczos()
    return NetworkBackground(folder, open_device(opened.backend, threads=opened.threads, index=opened.device))


def enlarge(background: Background, pixels: NDArray[Any], alpha: NDArray[Any] | None, upscale: int) -> NDArray[Any]:
    """As `Background.enlarge`; colours that `alpha`, (H, W) of the pixels' dtype, hides do not reach visible ones."""
    if alpha is None or upscale == 1 or alpha.min() == np.iinfo(alpha.dtype).max:
        return background.enlarge(pixels, upscale)
    share = (alpha / np.iinfo(alpha.dtype).max).astype(np.float32)[..., None]
    if isinstance(background, Lanczos):  # premultiplied
        height, width = pixels.shape[0] * upscale, pixels.shape[1] * upscale
        enlarged, shares = _resize(pixels * share, height, width), _resize(share, height, width)[..., None]
        colours = np.divide(
            enlarged, shares, where=shares > FAINT, out=background.enlarge(pixels, upscale).astype(np.float32)
        )
        return np.asarray(np.clip(np.rint(colours), 0, np.iinfo(pixels.dtype).max), pixels.dtype)
    spread, shares = (cv2.GaussianBlur(x, (0, 0), SPREAD) for x in (pixels * share, share))
    around = np.divide(spread, shares[..., None], where=shares[..., None] > FAINT, out=pixels.astype(np.float32))
    return background.enlarge(np.rint(around + share * (pixels - around)).astype(pixels.dtype), upscale)


def _side(tensors: tuple[Tensor, ...], name: str) -> int | None:
    """T of the one tensor, where it has that name and the shape (batch, 3, T, T)."""
    match tensors:
        case (Tensor(name=found, shape=("batch" | 1, 3, int(height), int(width))),) if found == name:
            return height if height == width else None
    return None


def _resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    method = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_LANCZOS4
    return cv2.resize(pixels, (width, height), interpolation=method)
