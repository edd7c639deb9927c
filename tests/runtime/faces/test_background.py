"""The photograph around the faces: Lanczos, and a network that is run over it tile by tile."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pairs import pairwise

from bfr.runtime.bundle.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.bundle.manifest import (
    Denoise,
    Diffuse,
    Estimate,
    Licence,
    Manifest,
    Network,
    NoiseSchedule,
    Source,
    Tensor,
    Variant,
)
from bfr.runtime.errors import BundleCorrupt, BundleInvalid, RestorationFailed
from bfr.runtime.faces.background import Lanczos, NetworkBackground, enlarge, open_background
from bfr.runtime.faces.options import UPSCALES, PhotoOptions
from bfr.runtime.faces.photo import PhotoEditor
from bfr.runtime.restore.options import OpenOptions

Array = NDArray[Any]
TILE = 48
SIZES = [(1, 1), (1, 100), (100, 1), (5, 7), (16, 16), (17, 15), (47, 48), (48, 48), (49, 64), (131, 90)]
RNG = np.random.default_rng(0)


def picture(shape: tuple[int, int], dtype: type = np.uint8) -> Array:
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype)
    pixels.flags.writeable = False
    return pixels


def manifest(
    folder: Path,
    *,
    tile: Any = TILE,
    scale: int = 2,
    nodes: Sequence[Any] = (),
    constants: Sequence[Any] = (),
    **changes: Any,
) -> None:
    """Write a bundle with the one network `enlarge.onnx`; without nodes its graph has inputs and outputs alone."""
    inputs = changes.pop("inputs", (Tensor(name="degraded", shape=("batch", 3, tile, tile)),))
    outputs = changes.pop("outputs", (Tensor(name="estimate", shape=("batch", 3, tile * scale, tile * scale)),))
    ends = [[helper.make_tensor_value_info(t.name, 1, t.shape) for t in tensors] for tensors in (inputs, outputs)]
    graph = helper.make_graph(nodes, "enlarge", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "enlarge.onnx").write_bytes(model.SerializeToString())
    variant = Variant(graph=describe_file(folder, folder / "enlarge.onnx"), opset=20)
    kind: dict[str, Any] = {"kind": "estimator", "architecture": "test", "parameters": {}, "parameter_count": 0}
    source = Source(file="none", sha256="0" * 64)
    network = Network(**kind, inputs=inputs, outputs=outputs, source=source, variants={"fp32": variant})
    fields: dict[str, Any] = {"format": 1, "system": "doubler", "title": "twice as large", "image_size": TILE}
    fields |= {"stages": (Estimate(network="enlarge"),), "networks": {"enlarge": network}, "presets": {}}
    fields |= {"schedule": NoiseSchedule(), "licence": Licence(name="none", url="", notice=""), "made_with": {}}
    write_manifest(folder, Manifest(**{**fields, **changes}))


@pytest.fixture
def opened(tmp_path: Path, fakes: Any) -> Callable[..., NetworkBackground]:
    """A background whose network is a NumPy function of (1, 3, T, T)."""

    def make(function: Callable[[Array], Array], **options: Any) -> NetworkBackground:
        manifest(tmp_path, **options)
        network = fakes.Network(lambda degraded: (function(degraded),))
        return NetworkBackground(tmp_path, fakes.Device({"enlarge.onnx": network}))

    return make


def repeated(x: Array, scale: int = 2) -> Array:
    """Nearest neighbours, [0, 1] -> [-1, 1]."""
    return 2 * np.repeat(np.repeat(x, scale, axis=2), scale, axis=3) - 1


def waves(height: int, width: int, upscale: int = 1) -> Array:
    """A smooth photograph at the pixels of an enlarged one."""
    y, x = (np.mgrid[: height * upscale, : width * upscale] + 0.5) / upscale - 0.5
    return np.asarray(128 + 100 * np.sin(x / 15)[..., None] * np.cos(y[..., None] / np.array([12, 14, 16])))


def blurred(x: Array) -> Array:
    """(1, 3, H, W): the mean of 9 x 9 pixels, zeros outside."""
    channels = [cv2.blur(np.ascontiguousarray(c), (9, 9), borderType=cv2.BORDER_CONSTANT) for c in x[0]]
    return np.asarray(channels)[None]


def blurred_whole(pixels: Array) -> Array:
    """The blur of a whole photograph that goes on as its mirror image, twice as large."""
    top = np.iinfo(pixels.dtype).max
    padded = np.pad(pixels / top, ((8, 8), (8, 8), (0, 0)), mode="symmetric")
    mean = np.stack([cv2.blur(padded[..., c], (9, 9)) for c in range(3)], -1)[8:-8, 8:-8]
    return np.repeat(np.repeat(mean, 2, 0), 2, 1) * top


def test_options_name_the_network_and_its_device(tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(tmp_path)
    asked: list[tuple[str, dict[str, Any]]] = []

    def open_device(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return fakes.Device({"enlarge.onnx": fakes.Network(lambda degraded: (repeated(degraded),))})

    monkeypatch.setattr("bfr.runtime.faces.background.open_device", open_device)
    assert isinstance(open_background(None), Lanczos)
    found = open_background(tmp_path, OpenOptions(backend="onnxruntime-cpu", threads=2, device=1))
    assert asked == [("onnxruntime-cpu", {"threads": 2, "index": 1})]
    editor = PhotoEditor(64, PhotoOptions(background=tmp_path))
    assert editor.background.name == found.name == f"doubler {Bundle.open(tmp_path).hash}"


class TestAlpha:
    """Of a red disc before nothing, whose hidden pixels are blue."""

    @staticmethod
    def disc(dtype: type) -> tuple[Array, Array]:
        y, x = np.mgrid[:40, :50]
        top = np.iinfo(dtype).max
        alpha = np.clip(15.5 - np.hypot(x - 25, y - 20), 0, 1)
        hidden = (alpha == 0)[..., None]
        pixels = np.where(hidden, np.array([0, 0, top]), np.array([top, 0, 0])).astype(dtype)
        return pixels, np.rint(alpha * top).astype(dtype)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("upscale", [2, 4])
    def test_hidden_colours_stay_hidden(self, dtype: type, upscale: int) -> None:
        pixels, alpha = self.disc(dtype)
        top = np.iinfo(dtype).max
        shown = cv2.resize(alpha, None, fx=upscale, fy=upscale, interpolation=cv2.INTER_CUBIC) > 0.02 * top
        result = enlarge(Lanczos(), pixels, alpha, upscale)
        assert result.dtype == dtype
        assert (result[shown] >= np.array([0.99, 0, 0]) * top).all()
        assert (result[shown][:, 2] <= 0.01 * top).all()
        assert Lanczos().enlarge(pixels, upscale)[shown][:, 2].max() > 0.3 * top

    def test_a_network_sees_none_of_them_near_visible_ones(self) -> None:
        class Network:
            name, seen = "network", np.empty(0)

            def enlarge(self, pixels: Array, upscale: int) -> Array:
                self.seen = pixels
                return Lanczos().enlarge(pixels, upscale)

        pixels, alpha = self.disc(np.uint8)
        network = Network()
        enlarge(network, pixels, alpha, 2)
        beside = (alpha == 0) & (cv2.dilate(alpha, np.ones((7, 7))) > 0)
        assert (network.seen[beside] == (255, 0, 0)).all()
        assert np.array_equal(network.seen[alpha == 255], pixels[alpha == 255])

    def test_an_opaque_photograph_and_one_that_keeps_its_size_are_as_without(self) -> None:
        pixels = picture((20, 30))
        opaque = np.full((20, 30), 255, np.uint8)
        assert np.array_equal(enlarge(Lanczos(), pixels, opaque, 2), Lanczos().enlarge(pixels, 2))
        assert np.array_equal(enlarge(Lanczos(), pixels, opaque // 2, 1), pixels)


class TestLanczos:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_nothing_to_enlarge_is_a_copy(self, dtype: type) -> None:
        pixels = picture((20, 30), dtype)
        result = Lanczos().enlarge(pixels, 1)
        assert np.array_equal(result, pixels)
        assert result.flags.writeable
        assert not np.shares_memory(result, pixels)

    @pairwise(shape=[(1, 1), (1, 50), (50, 1), (20, 31)], dtype=[np.uint8, np.uint16], upscale=UPSCALES)
    def test_sizes_dtypes_and_flat_colours(self, upscale: int, dtype: type, shape: tuple[int, int]) -> None:
        colour = np.array([np.iinfo(dtype).max, 7, 100], dtype)
        result = Lanczos().enlarge(np.broadcast_to(colour, (*shape, 3)), upscale)
        assert result.shape == (shape[0] * upscale, shape[1] * upscale, 3)
        assert result.dtype == dtype
        assert (result == colour).all()

    @pytest.mark.parametrize("upscale", [2, 4])
    def test_a_smooth_image_is_where_it_was(self, upscale: int) -> None:
        """Middles of pixels: the enlarged x lies at (x + 0.5) / s - 0.5."""
        x, large = np.arange(60.0), (np.arange(60.0 * upscale) + 0.5) / upscale - 0.5
        small = np.rint(30_000 + 20_000 * np.sin(x / 6)).astype(np.uint16)
        pixels = np.repeat(np.repeat(small[None, :, None], 20, axis=0), 3, axis=2)
        result = Lanczos().enlarge(pixels, upscale)[10, 5 * upscale : -5 * upscale, 1]
        assert np.abs(result - (30_000 + 20_000 * np.sin(large / 6))[5 * upscale : -5 * upscale]).max() < 150

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_edges_do_not_wrap_around(self, dtype: type) -> None:
        top = np.iinfo(dtype).max
        pixels = np.zeros((16, 16, 3), dtype)
        pixels[:, 8:] = top
        result = Lanczos().enlarge(pixels, 4).astype(float) / top
        assert result[:, :28].max() < 0.2
        assert result[:, 36:].min() > 0.8


class TestTiles:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("shape", SIZES)
    def test_every_level_of_every_pixel_comes_back(
        self, opened: Callable[..., NetworkBackground], shape: tuple[int, int], dtype: type
    ) -> None:
        pixels = picture(shape, dtype)
        result = opened(repeated).enlarge(pixels, 2)
        assert result.dtype == dtype
        assert np.array_equal(result, np.repeat(np.repeat(pixels, 2, 0), 2, 1))

    @pytest.mark.parametrize("shape", SIZES)
    def test_a_network_that_looks_around_leaves_no_seams(
        self, opened: Callable[..., NetworkBackground], shape: tuple[int, int]
    ) -> None:
        """Each tile's own edge is wrong, for the network pads it with black; only its inner part is used."""
        pixels = picture(shape)
        result = opened(lambda x: repeated(blurred(x))).enlarge(pixels, 2)
        if min(shape) >= 8:
            assert np.abs(result - blurred_whole(pixels)).max() <= 0.51
        assert result.shape == (2 * shape[0], 2 * shape[1], 3)

    def test_the_margin_is_16_pixels(self, opened: Callable[..., NetworkBackground]) -> None:
        """So much of a tile's edge may be spoilt, and no pixel more."""

        def spoilt(x: Array, width: int) -> Array:
            inner = np.zeros_like(x)
            inner[..., width:-width, width:-width] = x[..., width:-width, width:-width]
            return repeated(inner)

        pixels = np.maximum(picture((70, 61)), 1)
        expected = np.repeat(np.repeat(pixels, 2, 0), 2, 1)
        assert np.array_equal(opened(lambda x: spoilt(x, 16)).enlarge(pixels, 2), expected)
        assert not np.array_equal(opened(lambda x: spoilt(x, 17)).enlarge(pixels, 2), expected)

    @pytest.mark.parametrize("upscale", UPSCALES)
    @pytest.mark.parametrize("scale", [1, 2, 4])
    def test_another_scale_than_the_networks(
        self, opened: Callable[..., NetworkBackground], scale: int, upscale: int
    ) -> None:
        pixels = np.rint(waves(70, 90)).astype(np.uint8)
        background = opened(lambda x: repeated(x, scale), scale=scale)
        assert background.scale == scale
        result = background.enlarge(pixels, upscale)
        assert result.shape == (70 * upscale, 90 * upscale, 3)
        assert result.dtype == np.uint8
        error = result - waves(70, 90, upscale)
        assert np.abs(error).max() < 6  # nearest neighbours are half a pixel off at most
        assert np.abs((error * np.sign(np.gradient(waves(70, 90, upscale), axis=1))).mean()) < 0.2  # and no side's

    def test_reducing_averages(self, opened: Callable[..., NetworkBackground]) -> None:
        stripes = np.tile(np.array([-0.4, 0.4], np.float32), TILE)
        result = opened(lambda x: repeated(x) + stripes).enlarge(np.full((70, 30, 3), 100, np.uint8), 1)
        assert np.abs(result.astype(int) - 100).max() <= 1

    @pytest.mark.parametrize("upscale", [1, 4])
    def test_a_single_pixel_at_another_scale(self, opened: Callable[..., NetworkBackground], upscale: int) -> None:
        result = opened(repeated).enlarge(np.full((1, 1, 3), (200, 30, 5), np.uint8), upscale)
        assert result.shape == (upscale, upscale, 3)
        assert (result == (200, 30, 5)).all()

    @pytest.mark.parametrize(("more", "level"), [(2, 255), (-2, 0), (0.6 / 255, 101), (0.4 / 255, 100)])
    def test_levels_are_clipped_and_rounded(
        self, opened: Callable[..., NetworkBackground], more: float, level: int
    ) -> None:
        pixels = np.full((20, 20, 3), 100, np.uint8)
        assert (opened(lambda x: repeated(x + more)).enlarge(pixels, 2) == level).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_result_that_is_not_finite(self, opened: Callable[..., NetworkBackground], value: float) -> None:
        """Of one tile of many; also where only its margin is."""
        calls = []

        def broken(x: Array) -> Array:
            calls.append(1)
            result = repeated(x)
            if len(calls) == 5:
                result[0, 1, 50, 50] = value
            return result

        with pytest.raises(RestorationFailed, match="--background"):
            opened(broken).enlarge(picture((60, 60)), 2)

    def test_threads_do_not_share_a_tile(self, opened: Callable[..., NetworkBackground]) -> None:
        """Results are pasted in several threads, the buffers are one."""
        together = threading.Barrier(2)

        def slow(x: Array) -> Array:
            seen = x.copy()
            try:
                together.wait(0.01)  # another thread inside may go on and write its tile
            except threading.BrokenBarrierError:
                together.reset()
            assert np.array_equal(seen, x)
            return repeated(x)

        background = opened(slow)
        pictures = [picture((40, 40)) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda pixels: background.enlarge(pixels, 2), pictures))
        for result, pixels in zip(results, pictures, strict=True):
            assert np.array_equal(result, np.repeat(np.repeat(pixels, 2, 0), 2, 1))


class TestBundle:
    @pytest.mark.parametrize(
        "stages",
        [
            (Estimate(network="enlarge"), Diffuse(), Denoise(network="enlarge")),
            (Estimate(network="enlarge"), Diffuse()),
            (Denoise(network="enlarge"),),
            (),
        ],
    )
    def test_a_system_that_restores_faces_is_refused(self, tmp_path: Path, fakes: Any, stages: tuple[Any, ...]) -> None:
        manifest(tmp_path, stages=stages)
        with pytest.raises(
            BundleInvalid, match=r"is the system doubler, not a single network: .* one stage, `estimate`"
        ):
            NetworkBackground(tmp_path, fakes.Device())

    def test_a_second_network_is_refused(self, tmp_path: Path, fakes: Any) -> None:
        manifest(tmp_path)
        (network,) = Bundle.open(tmp_path).manifest.networks.values()
        manifest(tmp_path, networks={"enlarge": network, "other": network})
        with pytest.raises(BundleInvalid, match="single"):
            NetworkBackground(tmp_path, fakes.Device())

    @pytest.mark.parametrize(
        "changes",
        [
            {"tile": 32},
            {"scale": 0},
            {"outputs": (Tensor(name="estimate", shape=("batch", 3, 72, 72)),)},
            {"outputs": (Tensor(name="estimate", shape=("batch", 3, 96, 48)),)},
            {"outputs": (Tensor(name="estimate", shape=("batch", 1, 96, 96)),)},
            {"outputs": (Tensor(name="image", shape=("batch", 3, 96, 96)),)},
            {"outputs": ()},
            {"inputs": (Tensor(name="degraded", shape=("batch", 4, 48, 48)),)},
            {"inputs": (Tensor(name="degraded", shape=("batch", 3, "height", "width")),)},
            {"inputs": (Tensor(name="degraded", shape=(4, 3, 48, 48)),)},
            {"inputs": (Tensor(name="degraded", shape=()),)},
            {"inputs": (Tensor(name="x", shape=("batch", 3, 48, 48)),)},
            {"inputs": tuple(Tensor(name=name, shape=("batch", 3, 48, 48)) for name in ("degraded", "mask"))},
        ],
    )
    def test_networks_that_do_not_enlarge_an_image(self, tmp_path: Path, fakes: Any, changes: dict[str, Any]) -> None:
        manifest(tmp_path, **changes)
        with pytest.raises(BundleInvalid, match=r"`degraded`, \(batch, 3, T, T\) with T above 32, and `estimate`"):
            NetworkBackground(tmp_path, fakes.Device())

    def test_a_fixed_batch_of_one_will_do(self, opened: Callable[..., NetworkBackground]) -> None:
        background = opened(repeated, inputs=(Tensor(name="degraded", shape=(1, 3, TILE, TILE)),))
        assert background.scale == 2

    def test_a_changed_file_is_never_loaded(self, tmp_path: Path, fakes: Any) -> None:
        manifest(tmp_path)
        data = bytearray((tmp_path / "enlarge.onnx").read_bytes())
        data[-1] ^= 1
        (tmp_path / "enlarge.onnx").write_bytes(bytes(data))
        with pytest.raises(BundleCorrupt, match="sha256"):
            NetworkBackground(tmp_path, fakes.Device())


def test_an_onnx_network_on_the_cpu(tmp_path: Path) -> None:
    """Nearest neighbours, a blur of 9 x 9 with zeros outside, [-1, 1]: made by hand, run by ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    from bfr.runtime.backends.onnxruntime import CpuDevice

    constants = {
        "box": np.full((3, 1, 9, 9), 1 / 81, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["degraded", "box"], ["mean"], group=3, pads=[4, 4, 4, 4]),
        helper.make_node("Resize", ["mean", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Mul", ["large", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["estimate"]),
    ]
    manifest(
        tmp_path, nodes=nodes, constants=[numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    background = NetworkBackground(tmp_path, CpuDevice(threads=1))
    for dtype, shape in ((np.uint8, (131, 90)), (np.uint16, (40, 17))):
        pixels = picture(shape, dtype)
        result = background.enlarge(pixels, 2)
        assert result.dtype == dtype
        assert np.abs(result - blurred_whole(pixels)).max() <= 0.51
    assert background.enlarge(picture((33, 50)), 4).shape == (132, 200, 3)
