import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import difface_plan

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidImage, InvalidOption, RestorationFailed
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.chains import choose_bucket
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.restore.tables import sampler_table

RNG = np.random.default_rng(0)
FACES = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(5)]


def opened(bundle: Bundle, **options: Any) -> Restorer:
    return Restorer.open(bundle.folder, backend="onnxruntime-cpu", threads=1, **options)


@pytest.fixture(scope="module")
def alone(tiny_bundle: Bundle) -> list[np.ndarray]:
    with opened(tiny_bundle) as restorer:
        return [restorer.restore([face])[0] for face in FACES]


def test_restoring_changes_a_face_and_keeps_its_form(alone: list[np.ndarray]) -> None:
    for face, result in zip(FACES, alone, strict=True):
        assert result.shape == face.shape
        assert result.dtype == np.uint8
        assert not np.array_equal(result, face)


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_the_same_face_gives_the_same_bytes_in_any_batch_and_order(
    tiny_bundle: Bundle, alone: list[np.ndarray], batch: int
) -> None:
    with opened(tiny_bundle, batch=batch) as restorer:
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
            results = restorer.restore([FACES[i] for i in order])
            assert all(np.array_equal(result, alone[i]) for i, result in zip(order, results, strict=True))


def test_padding_never_reaches_a_result(tiny_bundle: Bundle, alone: list[np.ndarray]) -> None:
    with opened(tiny_bundle, batch=4) as restorer:
        restorer.device.buckets = (4,)
        results = restorer.restore(FACES)  # 4, then 1 padded to 4
        assert len(results) == 5
        assert all(np.array_equal(a, b) for a, b in zip(results, alone, strict=True))
        assert list(restorer.chains.made) == [4]


def test_a_nan_image_beside_it_changes_nothing(tiny_bundle: Bundle, alone: list[np.ndarray]) -> None:
    bad = np.full((32, 32, 3), np.nan, np.float32)
    with opened(tiny_bundle, batch=3) as restorer:
        results = restorer.run([FACES[0], bad, FACES[1]])
        assert results[1].pixels is None
        assert "input holds NaN" in str(results[1].error)
        for result, expected in ((results[0], alone[0]), (results[2], alone[1])):
            assert result.pixels is not None
            assert np.array_equal(result.pixels, expected)
        with pytest.raises(RestorationFailed, match=r"1 of 2.*image 1"):
            restorer.restore([FACES[0], bad])


def test_the_seed_decides(tiny_bundle: Bundle, alone: list[np.ndarray]) -> None:
    with opened(tiny_bundle) as restorer:
        assert np.array_equal(restorer.restore(FACES[:1], seed=12345)[0], alone[0])
        assert not np.array_equal(restorer.restore(FACES[:1], seed=1)[0], alone[0])
        with pytest.raises(InvalidOption, match="seed"):
            restorer.restore(FACES[:1], seed=-1)


def test_keys_decide_the_noise(tiny_bundle: Bundle, alone: list[np.ndarray]) -> None:
    """One key, one noise, whatever the batch; without a key an image has its own."""

    def results(restorer: Restorer, faces: list[np.ndarray], keys: Any) -> list[np.ndarray]:
        found = [result.pixels for result in restorer.run(faces, keys=keys)]
        return [pixels for pixels in found if pixels is not None]

    with opened(tiny_bundle, batch=2) as restorer:
        same = [FACES[0]] * 3
        first, second, third = results(restorer, same, [5, 5, 6])
        assert np.array_equal(first, second)
        assert not np.array_equal(first, third)
        assert np.array_equal(results(restorer, [FACES[1], FACES[0]], [7, 6])[1], third)
        mixed = results(restorer, [FACES[0], FACES[1], FACES[0]], [None, None, 5])
        assert np.array_equal(mixed[0], alone[0])
        assert np.array_equal(mixed[1], alone[1])
        assert np.array_equal(mixed[2], first)
        for wrong in (-1, 1 << 32, "a", 0.5):
            with pytest.raises(InvalidOption, match=f"key '?{wrong}'? is"):
                restorer.run([FACES[0]], keys=[wrong])  # type: ignore[list-item]
        other = [result.pixels for result in restorer.run([FACES[0]], keys=[5], seed=1)]
        assert not np.array_equal(other[0], first)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(32, 32), (50, 40), (1, 1)])
def test_sizes_and_dtypes_come_back(tiny_bundle: Bundle, dtype: type, shape: tuple[int, int]) -> None:
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    image = (RNG.random((*shape, 3)) * scale).astype(dtype)
    with opened(tiny_bundle) as restorer:
        (result,) = restorer.restore([image])
    assert result.shape == image.shape
    assert result.dtype == dtype
    assert result.min() >= 0
    assert result.max() <= scale


def test_16_bit_results_are_8_bit_results_with_more_levels(tiny_bundle: Bundle) -> None:
    with opened(tiny_bundle) as restorer:
        (fine,) = restorer.restore([FACES[0].astype(np.uint16) * 257])
        (coarse,) = restorer.restore([FACES[0]])
    assert np.abs(fine / 257.0 - coarse).max() <= 0.5 + 1e-3
    assert (fine % 257).any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), np.float64),
    ],
)
def test_what_is_no_image_is_refused(tiny_bundle: Bundle, image: np.ndarray) -> None:
    with opened(tiny_bundle) as restorer, pytest.raises(InvalidImage, match="was given"):
        restorer.restore([image])


def test_no_images(tiny_bundle: Bundle) -> None:
    with opened(tiny_bundle) as restorer:
        assert restorer.restore([]) == []


def test_red_stays_red(tiny_bundle: Bundle, fakes: Any) -> None:
    """With networks that change nothing, every channel comes back where it was."""
    identity = {"estimator": fakes.identity(), "denoiser": fakes.Network(lambda x, **_: (x, x))}
    restorer = Restorer(tiny_bundle, fakes.Device(), tiny_bundle.preset("short"), networks=identity)
    restorer.chains.plan = difface_plan(replace(restorer.table, signal=1.0, noise=0.0), restorer.size)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0], red[..., 1] = 200, 30
    assert np.abs(restorer.restore([red])[0].astype(int) - red).max() <= 1


class TestNotFinite:
    """P6: a result that is not finite is made again in float32, else reported."""

    def restorer(self, bundle: Bundle, fakes: Any, *, float32: Any) -> Restorer:
        def overflow(x: Any, **_: Any) -> tuple[np.ndarray, np.ndarray]:
            x = x.copy()
            x[-1, 0, 5, 5] = np.inf
            return x, x

        half = {"estimator": fakes.identity(), "denoiser": fakes.Network(overflow)}
        graphs = {"estimator.onnx": fakes.identity(), "denoiser.onnx": float32}
        device = fakes.Device(graphs)
        return Restorer(bundle, device, bundle.preset("short"), precision="fp16", batch=2, networks=half)

    def test_float32_is_used_where_half_overflows(self, tiny_bundle: Bundle, fakes: Any) -> None:
        restorer = self.restorer(tiny_bundle, fakes, float32=fakes.Network(lambda x, **_: (0 * x, 0 * x)))
        good, again = restorer.run(FACES[:2])
        assert (good.precision, again.precision) == ("fp16", "fp32")
        assert again.pixels is not None
        assert (again.pixels == 128).all()

    def test_float32_gets_the_noise_that_half_had(self, tiny_bundle: Bundle, fakes: Any) -> None:
        """The result is what the noise is: the fake network gives its input back."""
        keep = fakes.Network(lambda x, **_: (np.where(np.isfinite(x), x, 0), x))
        restorer = self.restorer(tiny_bundle, fakes, float32=keep)
        flat = np.full((32, 32, 3), 128, np.uint8)
        _, keyed = restorer.run([flat, flat], keys=[1, 3])
        _, same = restorer.run([FACES[0], flat], keys=[2, 3])
        _, other = restorer.run([flat, flat], keys=[3, 1])
        assert keyed.precision == "fp32"
        assert np.array_equal(keyed.pixels, same.pixels)  # type: ignore[arg-type]
        assert not np.array_equal(keyed.pixels, other.pixels)  # type: ignore[arg-type]

    def test_it_is_reported_where_float32_fails_too(self, tiny_bundle: Bundle, fakes: Any) -> None:
        nan = fakes.Network(lambda x, **_: (x * np.nan, x))
        graphs = {"estimator.onnx": fakes.identity(), "denoiser.onnx": nan}
        restorer = Restorer(
            tiny_bundle,
            fakes.Device(graphs),
            tiny_bundle.preset("short"),
            precision="fp16",
            networks={"estimator": fakes.identity(), "denoiser": nan},
        )
        (result,) = restorer.run(FACES[:1])
        assert result.pixels is None
        assert "float32" in str(result.error)
        with pytest.raises(RestorationFailed, match="warm-up"):
            restorer.warm_up()


def test_nan_inside_the_network_reaches_the_result(tiny_bundle: Bundle) -> None:
    """ONNX's Clip and the row's zeros must not hide a network that failed."""
    with opened(tiny_bundle) as restorer:
        chain: Chain = restorer.chain(1)

        def poison(done: int, buffer: Any) -> None:
            if done == 2:
                state = restorer.device.read(buffer)
                state[0, 0, 3, 3] = np.nan
                restorer.device.write(buffer, state)

        face = np.full((1, 3, 32, 32), 0.5, np.float32)
        assert np.isnan(chain.run(face, seed=1, images=(0,), on_step=poison).image).any()
        assert np.isfinite(chain.run(face, seed=1, images=(0,)).image).all()


def test_fp16_differs_from_fp32_by_rounding(tiny_bundle: Bundle, alone: list[np.ndarray]) -> None:
    with opened(tiny_bundle, precision="fp16") as restorer:
        results = restorer.run(FACES[:1])
    assert results[0].precision == "fp16"
    difference = np.abs(results[0].pixels.astype(int) - alone[0])  # type: ignore[union-attr]
    assert difference.max() <= 6
    assert difference.mean() < 0.5


def test_presets_and_their_overrides(tiny_bundle: Bundle) -> None:
    with opened(tiny_bundle, preset="short") as restorer:
        assert len(restorer.table) == 2
    with opened(tiny_bundle, start=3, eta=1.0) as restorer:
        assert len(restorer.table) == 3
    with pytest.raises(InvalidOption, match="1 to 250"):
        opened(tiny_bundle, start=251)
    with pytest.raises(InvalidOption, match="between 0"):
        opened(tiny_bundle, eta=2.0)
    with pytest.raises(InvalidOption, match="ddpm-learned"):
        sampler_table(tiny_bundle, tiny_bundle.preset("reference", solver="ddpm-learned", eta=0.0))
    with pytest.raises(InvalidOption, match="batch 0"):
        opened(tiny_bundle, batch=0)
    with pytest.raises(InvalidOption, match="onnxruntime-cpu"):
        Restorer.open(tiny_bundle.folder, backend="gpu")


def test_warm_up_gives_seconds(tiny_bundle: Bundle) -> None:
    with opened(tiny_bundle) as restorer:
        assert restorer.warm_up() > 0


def test_the_smallest_bucket_that_holds_a_batch_is_chosen() -> None:
    assert [choose_bucket(n, (1, 2, 4, 8)) for n in (1, 3, 5, 8, 9)] == [1, 4, 8, 8, 9]
    assert choose_bucket(7, None) == 7


def test_a_bundle_can_be_anywhere(tiny_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "with a space"
    link.symlink_to(tiny_bundle.folder)
    with Restorer.open(link, backend="onnxruntime-cpu") as restorer:
        assert restorer.restore(FACES[:1])[0].shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["run", "launch"])
def test_threads_take_turns(tiny_bundle: Bundle, alone: list[np.ndarray], name: str) -> None:
    def restored(face: np.ndarray) -> Any:
        found = getattr(restorer, name)([face])
        return (found if name == "run" else found.finish())[0].pixels

    with opened(tiny_bundle) as restorer, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(restored, FACES * 4))
    for result, expected in zip(found, alone * 4, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_another_process_is_told_to_open_its_own(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tiny_bundle) as restorer:
        with pytest.raises(TypeError, match="open one there"):
            pickle.dumps(restorer)
        here = os.getpid()
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: here + 1)
            with pytest.raises(InvalidOption, match="opened in another process"):
                restorer.restore(FACES)


@pytest.mark.parametrize("seed", [None, "3", 1.5])
def test_a_seed_is_a_whole_number(tiny_bundle: Bundle, seed: Any) -> None:
    with opened(tiny_bundle) as restorer, pytest.raises(InvalidOption, match="a whole number is needed"):
        restorer.restore(FACES, seed=seed)
