"""Whole photographs, with a detector that knows where the faces are and networks made of NumPy functions."""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidImage
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.condition import Condition
from bfr.runtime.faces.geometry import Face, template
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoEditor, PhotoRestorer, read_reference
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import Image, read_image
from bfr.runtime.restore.restorer import Restorer

Array = NDArray[Any]
SIZE = 32  # of the crops
COLOUR = (0.75, 0.5, 0.25)  # every face becomes this, RGB in [0, 1]
LEVELS = np.array([191, 128, 64])  # the same in 8 bits, give or take one
SHORT = Preset(spacing="ddim50", start=2)
RNG = np.random.default_rng(0)


def known_face(x: float, y: float, scale: float = 1.0, degrees: float = 0.0) -> Face:
    """A face whose crop has its middle at (x, y); one of its pixels is 1 / scale of the photograph's."""
    turn = np.exp(-1j * np.radians(degrees)) / scale
    points = (template(SIZE) - (SIZE - 1) / 2) @ (1, 1j) * turn + x + 1j * y
    landmarks = np.stack([points.real, points.imag], axis=1).astype(np.float32)
    half = SIZE / scale / 2
    return Face(np.array([x - half, y - half, x + half, y + half], np.float32), landmarks, 0.95)


class Known:
    """A detector that finds given faces."""

    name = "known"

    def __init__(self, *faces: Face, refined: Callable[[Face], Face] = lambda face: face) -> None:
        self.faces, self.refined = faces, refined
        self.seen: list[Array] = []
        self.looked_at: list[Face] = []

    def detect(self, pixels: Array) -> list[Face]:
        self.seen.append(pixels.copy())
        return list(self.faces)

    def refine(self, pixels: Array, face: Face) -> Face:
        assert np.array_equal(pixels, self.seen[-1])
        self.looked_at.append(face)
        return self.refined(face)


@pytest.fixture
def painter(fakes: Any) -> Restorer:
    """Makes every face COLOUR; one whose crop is white all over becomes NaN."""

    def estimate(degraded: Array) -> tuple[Array]:
        bad = degraded.min(axis=(1, 2, 3), keepdims=True) > 0.99
        return (np.where(bad, np.nan, 2 * degraded - 1),)

    def denoise(x: Array, **_: Any) -> tuple[Array, Array]:
        colour = 2 * np.array(COLOUR, np.float32)[None, :, None, None] - 1
        result = np.where(np.isnan(x), np.nan, colour)
        return result, result

    networks = {"estimator": fakes.Network(estimate), "denoiser": fakes.Network(denoise)}
    return Restorer(fakes.bundle(), fakes.Device(), SHORT, batch=2, networks=networks)


def picture(shape: tuple[int, int] = (100, 140), dtype: type = np.uint8) -> Array:
    """A photograph that may not be written to."""
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype)
    pixels.flags.writeable = False
    return pixels


def around(face: Face, shape: tuple[int, ...], reach: float = 1.0) -> Array:
    """(H, W) bool: within `reach` times an upright face's square, of its middle."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    middle = (face.box[:2] + face.box[2:]) / 2
    half = (face.box[2] - face.box[0]) / 2
    return np.asarray(np.maximum(np.abs(x - middle[0]), np.abs(y - middle[1])) <= half * reach + 0.5)


def test_without_options_yunet_finds_faces_and_lanczos_enlarges(painter: Restorer) -> None:
    photo = PhotoRestorer(painter)
    assert (type(photo.detector), type(photo.background), photo.options) == (YuNet, Lanczos, PhotoOptions())


class TestRestoring:
    def test_faces_are_restored_where_they_are_and_nothing_else_changes(self, painter: Restorer) -> None:
        photograph = picture()
        faces = [known_face(100, 60), known_face(30, 30, 0.8), known_face(65, 75, 1.5)]
        result = PhotoRestorer(painter, detector=Known(*faces)).restore(photograph)
        assert result.faces == (faces[1], faces[2], faces[0])  # from left to right
        assert result.errors == ()
        assert result.pixels.shape == photograph.shape
        assert result.pixels.dtype == np.uint8
        for face in faces:
            middle = around(face, photograph.shape, 0.6)
            # The change is averaged and interpolated, and this is noise: not every pixel, but all together.
            assert np.abs(result.pixels[middle].mean(0) - LEVELS).max() < 8
        outside = ~np.any([around(face, photograph.shape) for face in faces], axis=0)
        assert np.array_equal(result.pixels[outside], photograph[outside])
        assert set(result.seconds) == {"align", "restore", "paste"}

    def test_at_the_crops_own_resolution_the_result_is_the_networks(self, painter: Restorer) -> None:
        """Also a check of colours: red has to come back as the largest."""
        photograph = picture()
        photo = PhotoRestorer(painter, detector=Known(known_face(69.5, 49.5)))
        (aligned,) = photo.align(photograph)
        assert np.array_equal(aligned.crop, photograph[34:66, 54:86])
        result = photo.restore(photograph).pixels.astype(int)
        assert np.abs(result[47:57, 65:75] - LEVELS).max() <= 2

    @pytest.mark.parametrize("upscale", [2, 4])
    def test_faces_are_pasted_into_the_enlarged_photograph(self, painter: Restorer, upscale: int) -> None:
        photograph = picture((60, 70))
        face = known_face(35, 30, 1.3)
        photo = PhotoRestorer(painter, PhotoOptions(upscale=upscale, blend=1), detector=Known(face))
        plain = Lanczos().enlarge(photograph, upscale)
        result = photo.restore(photograph).pixels
        assert result.shape == (60 * upscale, 70 * upscale, 3)
        changed = (result != plain).any(-1)
        small = cv2.resize(around(face, photograph.shape, 1.1).astype(np.uint8), changed.shape[::-1], interpolation=0)
        assert changed[30 * upscale, 35 * upscale]
        assert not changed[small == 0].any()

    def test_it_is_its_three_parts_in_a_row(self, painter: Restorer) -> None:
        photograph = picture()
        photo = PhotoRestorer(painter, detector=Known(known_face(60, 50), known_face(100, 50, 0.7, 30)))
        faces = photo.align(photograph)
        parts = photo.paste(Image(photograph), faces, painter.run([face.crop for face in faces]))
        assert np.array_equal(photo.restore(photograph).pixels, parts.pixels)
        assert set(parts.seconds) == {"background", "paste"}

    @pytest.mark.parametrize("degrees", [0, 35, 180])
    @pytest.mark.parametrize("at", [(0, 0), (139, 50), (70, 99), (-8, 105)])
    def test_faces_at_the_border(self, painter: Restorer, at: tuple[float, float], degrees: float) -> None:
        photograph = picture()
        face = known_face(*at, degrees=degrees)
        result = PhotoRestorer(painter, detector=Known(face)).restore(photograph)
        assert result.faces == (face,)
        changed = (result.pixels != photograph).any(-1)
        assert changed.any()
        assert not changed[~around(face, photograph.shape, 1.5)].any()

    @pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1)])
    def test_photographs_of_one_pixels_width_keep_their_shape(self, painter: Restorer, shape: tuple[int, int]) -> None:
        photo = PhotoRestorer(painter, PhotoOptions(upscale=2), detector=Known(known_face(0, 0)))
        assert photo.restore(picture(shape)).pixels.shape == (2 * shape[0], 2 * shape[1], 3)

    def test_16_bits_stay_16_bits(self, painter: Restorer) -> None:
        photograph = picture(dtype=np.uint16)
        detector = Known(known_face(69.5, 49.5))
        result = PhotoRestorer(painter, detector=detector).restore(photograph)
        assert result.pixels.dtype == np.uint16
        assert np.array_equal(detector.seen[0], photograph // 256)
        assert detector.seen[0].dtype == np.uint8
        assert np.abs(result.pixels[47:57, 65:75] / 257 - LEVELS).max() < 1.5
        outside = ~around(detector.faces[0], photograph.shape)
        assert np.array_equal(result.pixels[outside], photograph[outside])

    @pytest.mark.parametrize("upscale", [1, 2])
    @pytest.mark.parametrize("keep_colour", [False, True])
    def test_grey_stays_grey(self, painter: Restorer, upscale: int, keep_colour: bool) -> None:
        photograph = np.repeat(picture()[..., :1], 3, axis=2)
        options = PhotoOptions(upscale=upscale, keep_colour=keep_colour)
        photo = PhotoRestorer(painter, options, detector=Known(known_face(69.5, 49.5)))
        result = photo.restore(photograph).pixels
        assert (result == result[..., :1]).all()
        assert not np.array_equal(result, photo.background.enlarge(photograph, upscale))

    @pytest.mark.parametrize(("tint", "coloured"), [(2, False), (3, True)])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_what_compression_leaves_of_grey_is_no_colour(
        self, painter: Restorer, tint: int, coloured: bool, depth: int
    ) -> None:
        face = known_face(69.5, 49.5)
        photograph = np.full((100, 140, 3), 90, np.uint8)
        photograph[40, 60, 2] += tint  # one pixel, in a row that is not looked at first
        given = photograph if depth == 8 else photograph.astype(np.uint16) * 257
        result = PhotoRestorer(painter, detector=Known(face)).restore(given).pixels
        assert coloured == bool((result[47:57, 65:75] != result[47:57, 65:75, :1]).any())

    @pytest.mark.parametrize("faces", [(), (known_face(69.5, 49.5),)])
    def test_a_background_that_colours_leaves_grey_grey(self, painter: Restorer, faces: Sequence[Face]) -> None:
        class Network:
            name = "tinted"

            def enlarge(self, pixels: Array, upscale: int) -> Array:
                return np.asarray(Lanczos().enlarge(pixels, upscale) // np.array([1, 2, 3], pixels.dtype))

        photograph = np.repeat(picture()[..., :1], 3, axis=2)
        photo = PhotoRestorer(painter, PhotoOptions(upscale=2), detector=Known(*faces), background=Network())
        result = photo.restore(photograph).pixels
        assert (result == result[..., :1]).all()
        assert result.shape == (200, 280, 3)

    def test_the_photograph_may_be_a_view(self, painter: Restorer) -> None:
        photograph = picture()
        photo = PhotoRestorer(painter, detector=Known(known_face(60, 50)))
        result = photo.restore(photograph[::-1, ::-1, ::-1][:, 3:]).pixels
        assert np.array_equal(result, photo.restore(photograph[::-1, ::-1, ::-1][:, 3:].copy()).pixels)


class TestWithoutFaces:
    """P14."""

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_the_photograph_is_kept(self, painter: Restorer, dtype: type) -> None:
        photograph = picture(dtype=dtype)
        result = PhotoRestorer(painter, detector=Known()).restore(photograph)
        assert result.faces == result.errors == ()
        assert np.array_equal(result.pixels, photograph)
        assert result.pixels.dtype == dtype
        assert not np.shares_memory(result.pixels, photograph)

    @pytest.mark.parametrize("upscale", [2, 4])
    def test_it_is_enlarged_like_any_background(self, painter: Restorer, upscale: int) -> None:
        photograph = picture((20, 30))
        result = PhotoRestorer(painter, PhotoOptions(upscale=upscale), detector=Known()).restore(photograph)
        expected = cv2.resize(photograph, (30 * upscale, 20 * upscale), interpolation=cv2.INTER_LANCZOS4)
        assert np.array_equal(result.pixels, expected)

    def test_a_face_whose_landmarks_fit_none_is_left_out(self, painter: Restorer) -> None:
        photograph = picture()
        flat = Face(np.array([0, 0, 50, 50], np.float32), np.full((5, 2), 30, np.float32), 0.9)
        photo = PhotoRestorer(painter, detector=Known(known_face(60, 50), refined=lambda _: flat))
        result = photo.restore(photograph)
        assert result.faces == ()
        assert np.array_equal(result.pixels, photograph)


class TestChoice:
    FACES = (known_face(40, 64, 1.0), known_face(70, 50, 2.0), known_face(110, 60, 0.8))

    @pytest.mark.parametrize(
        ("options", "chosen"),
        [
            ({}, (0, 1, 2)),
            ({"faces": "largest"}, (2,)),
            ({"faces": "centre"}, (1,)),
            ({"min_eye_distance": 7.0}, (0, 2)),
            ({"min_eye_distance": 9.0}, (2,)),
            ({"min_eye_distance": 50.0}, ()),
        ],
    )
    def test_only_the_chosen_are_looked_at_and_restored(
        self, painter: Restorer, options: dict[str, Any], chosen: Sequence[int]
    ) -> None:
        """Eye distances are 7.9, 3.9 and 9.8 pixels."""
        detector = Known(*reversed(self.FACES))
        options = {"min_eye_distance": 2.0, **options}
        photograph = picture()
        result = PhotoRestorer(painter, PhotoOptions(**options), detector=detector).restore(photograph)
        looked_at = sorted(detector.looked_at, key=lambda face: tuple(face.box))  # they are looked at side by side
        assert list(result.faces) == looked_at == [self.FACES[i] for i in chosen]
        for i, face in enumerate(self.FACES):
            middle = around(face, photograph.shape, 0.6)
            assert np.array_equal(result.pixels[middle], photograph[middle]) == (i not in chosen)

    def test_the_crop_follows_the_closer_look(self, painter: Restorer) -> None:
        moved = known_face(73.5, 45.5)
        photo = PhotoRestorer(painter, detector=Known(known_face(69.5, 49.5), refined=lambda _: moved))
        photograph = picture()
        (aligned,) = photo.align(photograph)
        assert aligned.face is moved
        assert np.array_equal(aligned.crop, photograph[30:62, 58:90])

    def test_a_face_that_is_sharp_already_is_left(self, painter: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
        """And its neighbour does not paint over it."""
        sharp, poor = known_face(40, 50), known_face(90, 50)
        measured = []

        def measure(crop: Array, matrix: Array, photograph: Array) -> Condition:
            measured.append(photograph)
            return Condition(0.9 if len(measured) == 1 else 0.3, 0, 0, 0, 1)

        monkeypatch.setattr("bfr.runtime.faces.photo.measure_condition", measure)
        photograph = picture()
        result = PhotoRestorer(painter, detector=Known(sharp, poor)).restore(photograph)
        assert (result.faces, result.sharp) == ((poor,), (sharp,))
        assert measured[0] is not None
        assert np.array_equal(measured[0], photograph)
        assert np.array_equal(result.pixels[:, :56], photograph[:, :56])
        assert np.abs(result.pixels[47:57, 85:95].mean((0, 1)) - LEVELS).max() < 8
        measured.clear()
        both = PhotoRestorer(painter, PhotoOptions(restore_sharp=True), detector=Known(sharp, poor)).restore(photograph)
        assert (both.faces, both.sharp, measured) == ((sharp, poor), (), [])

    def test_a_photograph_of_sharp_faces_is_only_enlarged(
        self, painter: Restorer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bfr.runtime.faces.photo.measure_condition", lambda *_: Condition(0.9, 0, 0, 0, 1))
        photograph = picture()
        photo = PhotoRestorer(painter, PhotoOptions(upscale=2), detector=Known(known_face(40, 50)))
        result = photo.restore(photograph)
        assert (result.faces, len(result.sharp)) == ((), 1)
        assert np.array_equal(result.pixels, Lanczos().enlarge(photograph, 2))

    def test_blend_is_the_share_of_the_restored_face(self, painter: Restorer) -> None:
        photograph = np.full((100, 140, 3), 20, np.uint8)
        photograph[0] = 20, 30, 40  # or no colour would come in
        levels = {}
        for blend in (0.0, 0.5, 1.0):
            photo = PhotoRestorer(painter, PhotoOptions(blend=blend), detector=Known(known_face(69.5, 49.5)))
            levels[blend] = photo.restore(photograph).pixels[50, 70].astype(int)
        assert levels[0.0].tolist() == [20, 20, 20]
        assert np.abs(levels[0.5] - (20 + LEVELS) / 2).max() <= 1
        assert np.abs(levels[1.0] - LEVELS).max() <= 1

    def test_keep_colour(self, painter: Restorer) -> None:
        """The network's flat colour is colour and light alone: nothing of it is left."""
        photograph = np.full((100, 140, 3), 20, np.uint8)
        photo = PhotoRestorer(painter, PhotoOptions(keep_colour=True), detector=Known(known_face(69.5, 49.5)))
        result = photo.restore(photograph)
        assert len(result.faces) == 1
        assert np.array_equal(result.pixels, photograph)


class TestFailures:
    def test_a_face_that_fails_is_left_and_reported_and_the_others_are_restored(self, painter: Restorer) -> None:
        """P6: its NaN reaches no pixel."""
        photograph = picture().copy()
        photograph[30:70, 50:90] = 255
        good, bad, other = known_face(24, 50), known_face(69.5, 49.5), known_face(115, 50)
        result = PhotoRestorer(painter, detector=Known(good, bad, other)).restore(photograph)
        assert result.faces == (good, other)
        assert len(result.errors) == 1
        assert "NaN" in result.errors[0]
        assert np.array_equal(result.pixels[30:70, 50:90], photograph[30:70, 50:90])
        for face in (good, other):
            assert np.abs(result.pixels[around(face, photograph.shape, 0.6)].mean(0) - LEVELS).max() < 8

    def test_where_all_faces_fail_the_photograph_is_kept(self, painter: Restorer) -> None:
        photograph = np.full((100, 140, 3), 255, np.uint8)
        photo = PhotoRestorer(painter, PhotoOptions(upscale=2), detector=Known(known_face(60, 50)))
        result = photo.restore(photograph)
        assert result.faces == ()
        assert len(result.errors) == 1
        assert (result.pixels == 255).all()

    @pytest.mark.parametrize(
        "photograph",
        [
            np.zeros((20, 20, 2), np.uint8),
            np.zeros((20, 20, 3, 1), np.uint8),
            np.zeros((0, 20, 3), np.uint8),
            np.zeros((20, 0, 3), np.uint8),
            np.full((20, 20, 3), 255, np.float32),
            np.zeros((20, 20, 3), np.int64),
            np.zeros((20, 20, 3), np.int16),
            np.zeros((20, 20, 3), bool),
        ],
    )
    def test_what_is_no_photograph(self, painter: Restorer, photograph: Array) -> None:
        detector = Known()
        with pytest.raises(InvalidImage, match=r"shape|dtype|array of|scale them") as caught:
            PhotoRestorer(painter, detector=detector).restore(photograph)
        assert "was given" in str(caught.value) or "were given" in str(caught.value)
        assert not detector.seen


class TestNoise:
    """Networks whose result depends on the noise: the noise is each face's own."""

    FACES = tuple(known_face(20 + 25 * i, 30 + 20 * (i % 2), 1.2, 10 * i) for i in range(5))

    def restored(self, fakes: Any, photograph: Array, batch: int, seed: int) -> Array:
        networks = {"estimator": fakes.identity(), "denoiser": fakes.step(lambda x, _: 0.1 * x)}
        sampler = SHORT.model_copy(update={"eta": 1.0})
        with Restorer(fakes.bundle(), fakes.Device(), sampler, batch=batch, networks=networks) as restorer:
            result = PhotoRestorer(restorer, detector=Known(*self.FACES)).restore(photograph, seed=seed)
        assert len(result.faces) == 5
        return result.pixels

    def test_the_same_photograph_gives_the_same_bytes_whatever_the_batch(self, fakes: Any) -> None:
        photograph = picture()
        alone = self.restored(fakes, photograph, 1, 12345)
        assert not np.array_equal(alone, photograph)
        for batch in (2, 3, 8):
            assert np.array_equal(self.restored(fakes, photograph, batch, 12345), alone)

    def test_another_seed_gives_another_result(self, fakes: Any) -> None:
        photograph = picture()
        one, other = (self.restored(fakes, photograph, 8, seed) for seed in (1, 2))
        assert not np.array_equal(one, other)


def test_a_reference_is_the_largest_face_of_its_photograph(small: Any, fakes: Any, tmp_path: Path) -> None:
    picture = np.full((200, 300, 3), 120, np.uint8)
    picture[20:60, 20:60] = fakes.face
    picture[60:160, 150:250] = fakes.face
    Pillow.fromarray(picture).save(tmp_path / "two.png")
    Pillow.fromarray(picture[:20]).save(tmp_path / "none.png")
    worker = PhotoRestorer(small(), detector=fakes.Squares())
    crop = read_reference(tmp_path / "two.png", worker)
    largest = max(worker.align(picture), key=lambda face: face.face.box[2] - face.face.box[0])
    assert np.array_equal(crop, largest.crop)
    assert np.array_equal(read_reference(tmp_path / "two.png", small()), picture)  # of aligned faces, all of it
    with pytest.raises(InvalidImage, match="no face"):
        read_reference(tmp_path / "none.png", worker)


class TestTurns:
    """A photograph that lies on its side or on its head."""

    PHOTOGRAPH = Path(__file__).parents[3] / "docs" / "images" / "photograph.jpg"

    def test_the_face_is_found_where_it_is(self) -> None:
        upright = cv2.resize(np.asarray(read_image(self.PHOTOGRAPH).pixels), None, fx=0.5, fy=0.5)
        editor = PhotoEditor(128)
        [expected] = editor.align(upright)
        for quarters in (1, 2, 3):
            [found] = editor.align(np.ascontiguousarray(np.rot90(upright, quarters)))
            assert np.abs(found.crop.astype(int) - expected.crop).mean() < 2  # the same crop, upright
            left, top, right, bottom = found.face.box
            assert ((left, top) < found.face.landmarks).all()
            assert (found.face.landmarks < (right, bottom)).all()

    def test_an_upright_face_costs_no_further_look(self, fakes: Any) -> None:
        looks: list[tuple[int, ...]] = []

        class Counted(type(fakes.Squares())):  # type: ignore[misc]
            def detect(self, pixels: Any) -> Any:
                looks.append(pixels.shape)
                return super().detect(pixels)

        pixels = np.full((64, 48, 3), (60, 120, 60), np.uint8)
        editor = PhotoEditor(16, detector=Counted())
        assert editor.find(pixels) == []
        assert looks == [(64, 48, 3), (48, 64, 3), (64, 48, 3), (48, 64, 3)]
        pixels[16:48, 8:40] = fakes.face
        looks.clear()
        assert len(editor.find(pixels)) == 1
        assert len(looks) == 1


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_says_that_it_cannot_be_sent_to_another_process(small: Any, duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="a PhotoRestorer cannot be copied or sent to another process"):
        duplicate(PhotoRestorer(small(1)))
