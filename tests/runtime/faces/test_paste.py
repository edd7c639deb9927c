"""Pasting: where faces go, what they leave alone, what of the photograph's detail stays, and how neighbours share."""

from functools import partial
from typing import Any

import face_geometry
import numpy as np
import pytest
from face_geometry import undone
from numpy.typing import NDArray
from pairs import pairwise

from bfr.runtime.faces.geometry import crop_face
from bfr.runtime.faces.paste import Patch, make_patch, paste_faces, to_grey

Array = NDArray[Any]
SIZE = 128
FACE = (slice(56, 88), slice(48, 80))  # a part of the crop that is within every face
RNG = np.random.default_rng(0)


similarity = partial(face_geometry.similarity, size=SIZE)


def in_crop(shape: tuple[int, ...], matrix: Array, upscale: int = 1) -> Array:
    """(H, W, 2): where the pixels of an enlarged photograph lie in the crop, as shares of its side."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    points = (np.stack([x, y], -1) + 0.5) / upscale - 0.5
    return np.asarray((points @ matrix[:, :2].T + matrix[:, 2] + 0.5) / SIZE)


def square_mask() -> Array:
    """1 but for the outer tenth, where it falls to 0."""
    ramp = np.clip(np.minimum(np.arange(128), 127 - np.arange(128)) / 12.8, 0, 1)
    return np.outer(ramp, ramp).astype(np.float32)


def constant(level: float, matrix: Array, size: int = SIZE) -> Patch:
    """A face of one colour."""
    return Patch(np.full((size, size, 3), level, np.float32), square_mask(), matrix, size)


def pasted(photograph: Array, *patches: Patch, **options: Any) -> Array:
    """The result alone."""
    result = photograph.copy()
    paste_faces(result, patches, **options)
    return result


def noise(shape: tuple[int, int] = (150, 170), dtype: type = np.uint8) -> Array:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype)


def grey(level: int, shape: tuple[int, int] = (150, 170), dtype: type = np.uint8) -> Array:
    return np.full((*shape, 3), level, dtype)


PLACES: dict[str, Array] = {
    "upright": similarity(1.0, 0, (85, 75)),
    "small": similarity(3.0, 0, (85, 75)),
    "large": similarity(0.4, 0, (85, 75)),
    "rotated": similarity(1.7, 33, (85, 75)),
    "at the corner": similarity(1.7, 20, (0, 0)),
    "at the edge": similarity(1.7, -70, (169, 75)),
    "outside": similarity(2.0, 20, (500, 500)),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Array:
    return PLACES[request.param]


class TestWhatIsLeftAlone:
    @pytest.mark.parametrize("upscale", [1, 2, 4])
    def test_nothing_outside_the_face_changes(self, place: Array, upscale: int) -> None:
        photograph = noise((150 * upscale, 170 * upscale))
        changed = (pasted(photograph, constant(-40, place), upscale=upscale, detail="crop") != photograph).any(-1)
        where = in_crop(photograph.shape, place, upscale)
        slack = 1.0 / upscale * np.sqrt(abs(np.linalg.det(place[:, :2]))) / SIZE  # one pixel of the photograph
        assert not changed[((where < -slack) | (where > 1 + slack)).any(-1)].any()
        middle = (np.abs(where - 0.5) < 0.35).all(-1)
        assert changed[middle].sum() >= 0.95 * middle.sum()  # all that was not black

    def test_no_faces(self) -> None:
        photograph = noise()
        assert np.array_equal(pasted(photograph), photograph)

    def test_a_blend_of_nothing(self, place: Array) -> None:
        photograph = noise()
        assert np.array_equal(pasted(photograph, constant(90, place), blend=0), photograph)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1)])
    def test_a_thin_photograph(self, shape: tuple[int, int]) -> None:
        result = pasted(grey(10, shape), constant(60, similarity(0.5, 10, (0, 0))), detail="crop")
        assert result[0, 0].tolist() == [60, 60, 60]

    def test_the_crop_and_its_result_are_not_written_to(self) -> None:
        crop, restored = noise((SIZE, SIZE)), noise((SIZE, SIZE))
        crop.flags.writeable = restored.flags.writeable = False
        patch = make_patch(crop, restored, PLACES["rotated"], keep_colour=True, grey=True)
        for array in (patch.pixels, patch.mask, patch.matrix):
            assert array is not None
            array.flags.writeable = False
        assert np.array_equal(pasted(grey(9), patch), pasted(grey(9), patch))


class TestRegistration:
    @pairwise(scale=[0.45, 1.0, 1.37, 3.0], degrees=[0, 25, -110], upscale=[1, 2, 4])
    def test_a_change_lands_where_its_face_is(self, scale: float, degrees: float, upscale: int) -> None:
        """A bright spot in the crop: its centroid in the photograph is the transformed point to a twentieth pixel."""
        matrix = similarity(scale, degrees, (100.3, 95.6))
        spot = np.array([0.44 * SIZE, 0.57 * SIZE])
        y, x = np.mgrid[:SIZE, :SIZE]
        bump = 50_000 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * (0.06 * SIZE) ** 2))
        patch = Patch(np.repeat(bump[..., None], 3, axis=2).astype(np.float32), square_mask(), matrix, SIZE)
        black = grey(0, (200 * upscale, 200 * upscale), np.uint16)
        result = pasted(black, patch, upscale=upscale)[..., 1].astype(float)
        rows, columns = (np.arange(200 * upscale) for _ in range(2))
        centroid = np.array([(result.sum(0) * columns).sum(), (result.sum(1) * rows).sum()]) / result.sum()
        (exact,) = undone(matrix, spot[None])
        expected = (
            exact + 0.5
        ) * upscale - 0.5  # the middle of the enlarged pixel, (upscale - 1) / 2 beyond its corner
        assert np.abs(centroid - expected).max() < 0.05

    @pytest.mark.parametrize("degrees", [0, 25])
    @pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
    def test_crop_and_paste_are_each_others_inverse(self, scale: float, degrees: float) -> None:
        """The crop of another photograph, pasted, is that photograph where the mask is whole."""
        y, x = np.mgrid[:320, :320].astype(float)
        one, other = (
            np.rint(20_000 + 9000 * np.stack([np.sin(x / a), np.cos(y / a), np.sin((x + y) / a)], -1)).astype(np.uint16)
            for a in (70, 55)
        )
        matrix = similarity(scale, degrees, (160.2, 158.8))
        patch = Patch(crop_face(other, matrix, SIZE).astype(np.float32), square_mask(), matrix, SIZE)
        middle = (np.abs(in_crop(one.shape, matrix) - 0.5) < 0.35).all(-1)
        difference = pasted(one, patch, detail="crop")[middle].astype(int) - other[middle]
        assert np.abs(difference).max() < 0.5 * 257
        assert np.abs(one[middle].astype(int) - other[middle]).max() > 20 * 257

    def test_red_stays_red(self) -> None:
        face = np.full((SIZE, SIZE, 3), (180, 100, 80), np.float32)
        result = pasted(grey(100), Patch(face, square_mask(), PLACES["upright"], SIZE))
        assert result[75, 85].tolist() == [180, 100, 80]


class TestDetail:
    """Of a face three times as large as its crop, and of one that is smaller."""

    LARGE = similarity(1 / 3, 7, (210, 205))

    def residual(self, strength: float, detail: str, matrix: Array, shape: tuple[int, int] = (420, 430)) -> float:
        """RMS in the face after a perfect restorer, of a photograph with noise."""
        y, x = np.mgrid[: shape[0], : shape[1]]
        truth = np.stack([128 + 60 * np.sin(x / 31 + y / (40 + k)) for k in range(3)], -1)
        noisy = np.clip(truth + np.random.default_rng(1).normal(0, strength, truth.shape), 0, 255)
        crop = crop_face(np.rint(truth).astype(np.uint8), matrix, SIZE).astype(np.float32)
        result = pasted(np.rint(noisy).astype(np.uint8), Patch(crop, square_mask(), matrix, SIZE, crop), detail=detail)
        inside = (np.abs(in_crop(shape, matrix) - 0.5) < 0.3).all(-1)
        return float(np.sqrt(np.mean((result[inside] - truth[inside]) ** 2)))

    def test_noise_finer_than_the_crop_goes_unless_all_detail_is_wanted(self) -> None:
        assert self.residual(16, "photo", self.LARGE) > 12
        assert self.residual(16, "crop", self.LARGE) < 1
        assert self.residual(16, "auto", self.LARGE) < 3

    @pytest.mark.parametrize("detail", ["auto", "photo", "crop"])
    def test_a_crop_finer_than_the_photograph_replaces_it(self, detail: str) -> None:
        assert self.residual(16, detail, similarity(1.4, 7, (80, 75)), (150, 170)) < 1

    def test_edges_finer_than_the_crop_stay(self) -> None:
        """Lines of one pixel, far apart, on a photograph without noise and on one with a little."""
        for strength in (0, 3):
            photograph = np.clip(np.random.default_rng(2).normal(90, strength, (420, 430, 3)), 0, 255)
            photograph[:, ::40] = 230
            photograph = np.rint(photograph).astype(np.uint8)
            crop = crop_face(photograph, self.LARGE, SIZE).astype(np.float32)
            patch = Patch(crop, square_mask(), self.LARGE, SIZE, crop)
            lines = {
                detail: float(np.mean(pasted(photograph, patch, detail=detail)[150:270, 120:320:40]))
                for detail in ("auto", "photo", "crop")
            }
            assert lines["crop"] < 160  # averaged away
            assert lines["auto"] > lines["crop"] + 0.75 * (230 - lines["crop"])
            assert lines["photo"] > 225

    def test_it_is_the_enlarged_photographs_own(self) -> None:
        """What enlarged the photograph may have corrected the face already: the result is the crop's all the same."""
        photograph = noise((300, 340))
        enlarged = grey(200, (300, 340))
        face = constant(90, similarity(1.5, 0, (85, 75)))
        assert pasted(photograph, face, upscale=2)[150, 170].tolist() == [90] * 3
        assert pasted(enlarged, face, upscale=2)[150, 170].tolist() == [90] * 3


class TestBlend:
    @pytest.mark.parametrize(("blend", "expected"), [(0, 0), (0.5, 5000), (0.25, 2500), (1, 10_000)])
    def test_it_is_a_share(self, blend: float, expected: int) -> None:
        result = pasted(grey(10_000, dtype=np.uint16), constant(20_000, PLACES["rotated"]), blend=blend)
        assert result[75, 85].tolist() == [10_000 + expected] * 3

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_light_and_dark_do_not_wrap_around(self, dtype: type) -> None:
        top = np.iinfo(dtype).max
        for level, expected in ((1.4 * top, top), (-0.4 * top, 0)):
            result = pasted(grey(top // 2, dtype=dtype), constant(level, PLACES["upright"]))
            assert result[75, 85].tolist() == [expected] * 3
            assert abs(int(result.max()) - top // 2) <= top // 2 + 1

    def test_levels_are_rounded_to_the_nearest(self) -> None:
        assert pasted(grey(100), constant(100.6, PLACES["upright"])).max() == 101
        assert pasted(grey(100), constant(100.4, PLACES["upright"])).max() == 100
        assert pasted(grey(100), constant(99.4, PLACES["upright"])).min() == 99


def beside(offset: float, levels: tuple[float, float], degrees: float = 0) -> list[Patch]:
    """Two faces, `offset` to the left and to the right of the middle of a photograph of 170 x 150."""
    return [
        constant(level, similarity(1.7, degrees, (85 + x, 75)))
        for level, x in zip(levels, (-offset, offset), strict=True)
    ]


class TestNeighbours:
    @pytest.mark.parametrize("offset", [0, 5, 15, 30, 36])
    @pytest.mark.parametrize("degrees", [0, 20])
    def test_two_never_change_a_pixel_more_than_one(self, offset: float, degrees: float) -> None:
        photograph = grey(10_000, dtype=np.uint16)
        patches = beside(offset, (20_000, 20_000), degrees)
        change = pasted(photograph, *patches).astype(int) - photograph
        assert change.max() <= 10_001
        where = [in_crop(photograph.shape, patch.matrix) for patch in patches]
        whole = [(np.abs(place - 0.5) < 0.39).all(-1) for place in where]
        assert change[whole[0] & whole[1]].min(initial=10_000) >= 9998  # nor less, where both masks are whole
        ovals = [(((place - (0.5, 0.56)) / (0.25, 0.33)) ** 2).sum(-1) < 1 for place in where]
        assert change[ovals[0] | ovals[1]].min() >= 9000  # nor leave a gap in one of the faces

    @pytest.mark.parametrize("upscale", [1, 2])
    def test_the_seam_lies_between_them(self, upscale: int) -> None:
        photograph = grey(30_000, (150 * upscale, 170 * upscale), np.uint16)
        result = pasted(photograph, *beside(22, (40_000, 20_000)), upscale=upscale).astype(int)
        row = result[75 * upscale, :, 0] - 30_000
        middle = 85.5 * upscale - 0.5
        columns = np.arange(len(row))
        assert (row[columns < middle] >= 0).all()
        assert (row[columns > middle] <= 0).all()
        assert abs(np.interp(middle, columns, row)) < 500
        assert row[63 * upscale] > 9900  # each face has its own middle for itself
        assert row[107 * upscale] < -9900
        assert np.abs(np.diff(row)).max() < 5000  # and passes over to the other softly

    @pytest.mark.parametrize("levels", [(80, 80), (80, -80), (300, -200), (-30, 90)])
    @pytest.mark.parametrize("background", [20, 128, 230])
    def test_their_order_does_not_matter(self, levels: tuple[float, float], background: int) -> None:
        """Nor where one of them alone would be saturated."""
        photograph = grey(background)
        patches = beside(15, levels, 10)
        one, other = pasted(photograph, *patches), pasted(photograph, *patches[::-1])
        assert np.abs(one.astype(int) - other).max() <= 1

    def test_faces_apart_do_not_feel_each_other(self) -> None:
        photograph = noise((100, 300))
        patches = [constant(40, similarity(2, 0, (x, 50))) for x in (50, 150, 250)]
        result = pasted(photograph, *patches)
        for patch, left in zip(patches, (0, 100, 200), strict=True):
            alone = pasted(photograph, patch)
            assert np.array_equal(result[:, left : left + 100], alone[:, left : left + 100])

    def test_a_face_that_stays_is_not_painted_over(self) -> None:
        photograph = noise()
        face, neighbour = beside(12, (40, 0))
        stays = Patch(None, neighbour.mask, neighbour.matrix, SIZE)
        result = pasted(photograph, face, stays)
        assert (result[70:80, 60:64] == 40).mean() > 0.9
        inside = (((in_crop(photograph.shape, stays.matrix) - (0.5, 0.56)) / (0.12, 0.16)) ** 2).sum(-1) < 1
        assert np.abs(result[inside].astype(int) - photograph[inside]).mean() < 2
        assert np.abs(pasted(photograph, face)[inside].astype(int) - photograph[inside]).mean() > 10

    def test_a_face_outside_the_photograph_takes_nothing(self) -> None:
        photograph = noise()
        alone = pasted(photograph, constant(40, PLACES["rotated"]))
        assert np.array_equal(pasted(photograph, *(constant(40, PLACES[n]) for n in ("outside", "rotated"))), alone)

    def test_a_small_face_before_a_large_one(self) -> None:
        photograph = grey(20_000, dtype=np.uint16)
        patches = [constant(30_000, similarity(1.0, 0, (85, 75))), constant(10_000, similarity(5.0, 0, (85, 82)))]
        result = pasted(photograph, *patches).astype(int) - photograph
        assert result.max() <= 10_001
        assert result[120, 85, 0] == 10_000  # where the small one is not
        assert np.abs(result - (pasted(photograph, *patches[::-1]).astype(int) - photograph)).max() <= 257

    def test_thirty_faces(self) -> None:
        rng = np.random.default_rng(7)
        centres = [(40.0 * (i % 6) + 30, 40.0 * (i // 6) + 30) for i in range(30)]
        patches = [
            constant(level, similarity(float(rng.uniform(1.5, 3)), float(rng.uniform(-40, 40)), centre))
            for level, centre in zip(rng.uniform(25_000, 30_000, 30), centres, strict=True)
        ]
        photograph = grey(20_000, (220, 260), np.uint16)
        result = pasted(photograph, *patches).astype(int)
        assert result.max() <= 30_001
        for patch, (x, y) in zip(patches, centres, strict=True):
            assert patch.pixels is not None
            assert result[int(y), int(x), 0] == pytest.approx(patch.pixels[0, 0, 0], rel=0.02)
        shuffled = [patches[i] for i in rng.permutation(30)]
        assert np.abs(pasted(photograph, *shuffled).astype(int) - result).max() <= 257


class TestPatch:
    MATRIX = PLACES["upright"]

    def made(self, change: Array, **options: bool) -> Array:
        """The pixels to paste in the face, less the crop: a grey of 20,000, restored to that and a change."""
        crop = grey(20_000, (SIZE, SIZE), np.uint16)
        restored = (crop + np.broadcast_to(change, crop.shape)).astype(np.uint16)
        pixels = make_patch(crop, restored, self.MATRIX, **options).pixels
        assert pixels is not None
        return np.asarray(pixels - crop)[FACE]

    def test_it_is_the_restored_crop(self) -> None:
        crop, restored = noise((SIZE, SIZE)), noise((SIZE, SIZE))
        patch = make_patch(crop, restored, self.MATRIX)
        assert patch.pixels is not None
        assert np.array_equal(patch.pixels[FACE], restored[FACE])
        assert patch.matrix is self.MATRIX
        assert patch.size == SIZE

    def test_a_face_that_stays_has_a_mask_and_no_pixels(self) -> None:
        patch = make_patch(noise((SIZE, SIZE)), None, self.MATRIX)
        assert patch.pixels is None
        assert patch.mask[64, 64] == 1

    def test_keep_colour_takes_out_colour_and_light(self) -> None:
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        light = 3000 * np.sin(2 * np.pi * x)[..., None] * np.cos(np.pi * y)[..., None]
        assert np.abs(self.made(np.array([3000, -800, 41]), keep_colour=True)).max() < 0.01
        assert np.abs(self.made(light, keep_colour=True)).mean() < 0.1 * np.abs(self.made(light)).mean()

    def test_keep_colour_keeps_what_is_fine(self) -> None:
        board = 2000.0 * ((np.indices((SIZE, SIZE)) // 2).sum(0) % 2 * 2 - 1)[..., None]
        kept = self.made(board + np.array([5000, 0, -3000]), keep_colour=True)
        assert np.abs(kept - board[FACE]).max() < 0.01

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_what_overshoots_beside_the_head_is_left_out(self, dtype: type) -> None:
        """A dark head before a wall, restored with a rim of light around it, as networks do."""
        level = dtype(np.iinfo(dtype).max // 255)
        y, x = np.mgrid[:SIZE, :SIZE]
        distance = np.hypot((x - 64) / 0.7, y - 68)
        crop = np.repeat(np.where(distance < 48, 60, 170)[..., None], 3, axis=2).astype(dtype) * level
        restored = crop.copy()
        restored[(distance >= 48) & (distance < 53)] = 230 * level
        restored[(distance > 30) & (distance < 40)] = 20 * level  # within the head all may change
        patch = make_patch(crop, restored, self.MATRIX)
        assert patch.pixels is not None
        levels = patch.pixels[..., 0] / level
        assert np.median(levels[(distance >= 49) & (distance < 52)]) < 185
        assert (levels[(distance > 31) & (distance < 39)] < 25).mean() > 0.9

    @pytest.mark.parametrize("keep_colour", [False, True])
    def test_a_grey_photograph_stays_grey(self, keep_colour: bool) -> None:
        crop, restored = np.repeat(noise((SIZE, SIZE))[..., :1], 3, axis=2), noise((SIZE, SIZE))
        patch = make_patch(crop, restored, PLACES["rotated"], keep_colour=keep_colour, grey=True)
        photograph = np.repeat(noise()[..., :1], 3, axis=2)
        result = pasted(photograph, patch)
        assert not np.ptp(result, axis=2).any()
        assert not np.array_equal(result, photograph)
        assert np.ptp(pasted(photograph, make_patch(crop, restored, PLACES["rotated"])), axis=2).any()

    @pytest.mark.parametrize("size", [1, 8, 20])
    def test_small_crops(self, size: int) -> None:
        crop, restored = grey(100, (size, size)), grey(120, (size, size))
        patch = make_patch(crop, restored, self.MATRIX, keep_colour=True)
        assert patch.pixels is not None
        assert np.abs(patch.pixels - 100).max() < 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
class TestToGrey:
    def test_luma_in_every_channel(self, dtype: type) -> None:
        top = np.iinfo(dtype).max
        pixels = np.zeros((2, 3, 3), dtype)
        pixels[:, 0, 0], pixels[:, 1, 1], pixels[:, 2, 2] = top, top, top
        result = to_grey(pixels)
        assert result.dtype == dtype
        assert result.shape == (2, 3, 3)
        assert (result == result[..., :1]).all()
        assert np.allclose(result[0, :, 0] / top, [0.299, 0.587, 0.114], atol=0.003)

    def test_grey_stays_as_it_is(self, dtype: type) -> None:
        levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
        pixels: Array = np.repeat(levels.reshape(16, -1, 1), 3, axis=2)
        assert np.array_equal(to_grey(pixels), pixels)

    def test_views(self, dtype: type) -> None:
        pixels = noise(dtype=dtype)
        assert np.array_equal(to_grey(pixels[::-1, ::2]), to_grey(pixels)[::-1, ::2])
