"""`restore_image`: whatever an image is held in, the result is that of its pixels."""

import io
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import bfr.runtime
from bfr.runtime import PhotoOptions, PhotoRestorer, Restorer, as_image, restore_image
from bfr.runtime.errors import BfrError, InputNotFound, InvalidImage, InvalidOption
from bfr.runtime.images.result import GAP

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 36, 3), np.uint8)


def file_of(image: Pillow.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


class TestAsImage:
    def test_paths_bytes_pil_and_arrays_are_the_same(self, tmp_path: Path) -> None:
        data = file_of(Pillow.fromarray(PIXELS), "PNG")
        (tmp_path / "a.png").write_bytes(data)
        held = [tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), Pillow.fromarray(PIXELS), PIXELS]
        for one in held:
            np.testing.assert_array_equal(as_image(one).pixels, PIXELS)

    def test_a_tensor(self) -> None:
        torch = pytest.importorskip("torch")
        chw = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())
        for tensor in (chw, chw[None]):
            np.testing.assert_array_equal(as_image(tensor).pixels, PIXELS)
        floats = (chw.double() / 255).requires_grad_()
        np.testing.assert_array_equal(as_image(floats).pixels, PIXELS.astype(np.uint16) * 257)
        for wrong in (chw[None].repeat(2, 1, 1, 1), chw.permute(1, 2, 0), chw[0]):
            with pytest.raises(InvalidImage, match="one image is"):
                as_image(wrong)

    def test_grey_alpha_and_depth(self) -> None:
        grey = as_image(PIXELS[..., 0])
        assert grey.grey
        assert (grey.pixels == PIXELS[..., :1]).all()
        alpha = as_image(np.dstack([PIXELS, PIXELS[..., :1]]))
        np.testing.assert_array_equal(alpha.alpha, PIXELS[..., 0])
        given = PIXELS.copy()
        assert not np.shares_memory(as_image(given).pixels, given)  # a caller may reuse it
        deep = PIXELS.astype(np.uint16) * 257
        np.testing.assert_array_equal(as_image(deep).pixels, deep)
        for floats in (np.float16, np.float32, np.float64):
            assert np.abs(as_image((PIXELS / 255).astype(floats)).pixels.astype(int) - deep).max() <= 32  # of float16

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
    def test_modes_of_pil_are_those_of_files(self, mode: str) -> None:
        image = Pillow.new("RGB", (8, 6), (200, 200, 200)).convert(mode if mode != "I;16" else "L")
        image = image.convert("I").convert("I;16") if mode == "I;16" else image
        found = as_image(image)
        assert found.pixels.shape == (6, 8, 3)
        assert (found.alpha is not None) == (mode in ("LA", "RGBA"))

    @pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "RGBX", "HSV", "I;16L", "I;16B"])
    def test_modes_that_files_have_not_are_read_too(self, mode: str) -> None:
        found = as_image(Pillow.new(mode, (8, 6)))
        assert found.pixels.shape == (6, 8, 3)
        assert (found.alpha is not None) == (mode in ("PA", "La", "RGBa"))

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16N", "I;16B"])
    def test_all_16_bits_of_a_pil_image_are_read(self, mode: str) -> None:
        order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
        samples = np.array([[0, 0x12, 0x1234, 0xFFFF]], order)
        found = as_image(Pillow.frombytes(mode, (4, 1), samples.tobytes()))
        np.testing.assert_array_equal(found.pixels[..., 0], samples)

    @pytest.mark.parametrize(("mode", "form"), [("RGB", "PNG"), ("CMYK", "JPEG"), ("RGB", "TIFF"), ("LAB", "TIFF")])
    def test_a_pil_image_is_turned_upright_once(self, mode: str, form: str) -> None:
        exif = Pillow.Exif()
        exif[0x0112] = 6
        data = file_of(Pillow.new(mode, (9, 4)), form, exif=exif)
        turned = Pillow.open(io.BytesIO(data))
        found = as_image(turned)
        assert found.pixels.shape == (9, 4, 3)
        np.testing.assert_array_equal(found.pixels, as_image(data).pixels)

    def test_a_pil_image_keeps_what_its_file_says(self) -> None:
        said = {"dpi": (300, 150), "comment": "words", "xmp": b"<rdf:RDF/>"}
        data = file_of(Pillow.fromarray(PIXELS), "JPEG", **said)
        expected, found = as_image(data).metadata, as_image(Pillow.open(io.BytesIO(data))).metadata
        assert (found.xmp, found.comments) == (expected.xmp, expected.comments) == (b"<rdf:RDF/>", ("words",))
        assert found.density is not None
        assert (found.density.x, found.density.y) == pytest.approx((300, 150), abs=0.1)
        odd = Pillow.fromarray(PIXELS)
        odd.info |= {"dpi": ("a", 0), "comment": 3, "xmp": b"\xff", "gamma": -1.0, "chromaticity": ("a",)}
        np.testing.assert_array_equal(as_image(odd).pixels, PIXELS)
        odd.info["comment"] = "\ud800"
        np.testing.assert_array_equal(as_image(odd).pixels, PIXELS)

    @pytest.mark.parametrize("srgb", [b"", b"sRGB"])
    def test_a_pil_image_has_the_gamma_of_its_file(self, files: Any, srgb: bytes) -> None:
        gamma, primaries = (
            struct.pack(">I", 100_000),
            struct.pack(">8I", *[31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000]),
        )
        chunks = [
            files.chunk(b"gAMA", gamma),
            files.chunk(b"cHRM", primaries),
            *([files.chunk(srgb, b"\0")] if srgb else []),
        ]
        for samples, colour_type in ((PIXELS, 2), (PIXELS[..., 0].astype(np.uint16) * 257, 0)):
            data = files.png(samples, colour_type, *chunks)
            found = as_image(Pillow.open(io.BytesIO(data))).pixels
            np.testing.assert_array_equal(found, as_image(data).pixels)
            assert bool((found[..., 0] == samples.reshape((*found.shape[:2], -1))[..., 0]).all()) == bool(srgb)

    def test_a_pil_image_of_broken_exif(self) -> None:
        image = Pillow.fromarray(PIXELS)
        image.getexif()[0x0112] = "six"
        found = as_image(image)
        np.testing.assert_array_equal(found.pixels, PIXELS)
        assert "EXIF data are broken" in found.notes[0]

    def test_a_pil_image_that_cannot_be_read(self) -> None:
        file = file_of(Pillow.fromarray(PIXELS), "PNG")
        closed, cut = Pillow.fromarray(PIXELS), Pillow.open(io.BytesIO(file[: len(file) // 2]))
        closed.close()
        for image in (closed, cut, Pillow.new("RGB", (0, 5))):
            with pytest.raises(InvalidImage, match="the PIL image of mode RGB cannot be read"):
                as_image(image)

    def test_a_path_of_any_kind_and_an_array_of_any_class(self, tmp_path: Path) -> None:
        Pillow.fromarray(PIXELS).save(tmp_path / "a.png")
        np.testing.assert_array_equal(as_image(PurePath(tmp_path / "a.png")).pixels, PIXELS)
        np.testing.assert_array_equal(as_image(np.asmatrix(PIXELS[..., 0])).pixels[..., 1], PIXELS[..., 0])
        np.testing.assert_array_equal(as_image(PIXELS.astype(">u2")).pixels, PIXELS)

    def test_tensors_of_a_child_class_and_without_plain_numbers(self) -> None:
        torch = pytest.importorskip("torch")
        chw = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())
        child = type("Picture", (torch.Tensor,), {"__module__": "elsewhere"})
        np.testing.assert_array_equal(as_image(chw.as_subclass(child)).pixels, PIXELS)
        negated = torch._neg_view(chw / -255)  # a sign that is applied later
        np.testing.assert_array_equal(as_image(negated).pixels, PIXELS.astype(np.uint16) * 257)
        for wrong in (chw.to("meta"), chw.to_sparse()):
            with pytest.raises(InvalidImage, match="without plain numbers"):
                as_image(wrong)

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (None, InvalidImage, "an object of type NoneType was given: an image is a path"),
            ([PIXELS], InvalidImage, "call it for each"),
            (PIXELS[0, 0], InvalidImage, r"shape \(3,\)"),
            (PIXELS.transpose(2, 0, 1), InvalidImage, r"shape \(3, 40, 36\)"),
            (PIXELS[:0], InvalidImage, "shape"),
            (PIXELS.astype(np.int64), InvalidImage, "int64"),
            (PIXELS.astype(np.float32), InvalidImage, r"scale them to \[0, 1\]"),
            (np.full((4, 4, 3), np.nan), InvalidImage, "scale"),
            (PIXELS / 127.5 - 1, InvalidImage, "scale"),
            (np.ma.masked_equal(PIXELS, 0), InvalidImage, r"array\.filled\(0\)"),
            (b"words", InvalidImage, "image"),
            (b"", InvalidImage, "empty"),
            ("nowhere.png", InputNotFound, "does not exist"),
            (Path("nowhere.png"), InputNotFound, "does not exist"),
            ("https://host/a.png", InputNotFound, "https://host/a.png is an address"),
            (Pillow.new("F", (4, 4)), InvalidImage, "scale it to 8 or 16 bits"),
            (Pillow.new("I", (4, 4)), InvalidImage, "scale it to 8 or 16 bits"),
        ],
    )
    def test_what_is_none_says_so(self, image: Any, error: type[BfrError], message: str) -> None:
        with pytest.raises(error, match=message):
            as_image(image)


class TestRestoreImage:
    def test_an_aligned_face(self, small: Callable[..., Any]) -> None:
        restorer = small()
        (expected,) = restorer.restore([PIXELS], seed=3)
        found = restore_image(PIXELS, aligned=True, restorer=restorer, seed=3)
        np.testing.assert_array_equal(found.pixels, expected)
        floats = restore_image(PIXELS / 255, aligned=True, restorer=restorer, seed=3)
        assert floats.pixels.dtype == np.float32
        assert 0 <= floats.pixels.min() <= floats.pixels.max() <= 1
        assert found.compare().shape == (40, 2 * 36 + GAP, 3)

    def test_a_photograph_is_saved_with_what_it_says(
        self, small: Callable[..., Any], fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bfr.runtime.faces.photo.YuNet", fakes.Squares)
        pixels = np.full((64, 64, 3), (60, 120, 60), np.uint8)
        pixels[16:48, 16:48] = fakes.face
        Pillow.fromarray(pixels).save(tmp_path / "a.png", dpi=(300, 300))
        found = restore_image(tmp_path / "a.png", restorer=small(), photo=PhotoOptions(upscale=2))
        assert (found.pixels.shape, len(found.faces)) == ((128, 128, 3), 1)
        assert not np.array_equal(found.pixels[40:80:2, 40:80:2], pixels[20:40, 20:40])
        path = found.save(str(tmp_path / "b.png"))
        assert Pillow.open(path).info["dpi"] == pytest.approx((300, 300), abs=0.1)
        np.testing.assert_array_equal(np.asarray(Pillow.open(path)), found.pixels)
        np.testing.assert_array_equal(np.asarray(found.to_pil()), found.pixels)
        assert "array([[[" not in repr(found)  # the pixels would fill the screen
        shown = np.asarray(Pillow.open(io.BytesIO(found._repr_png_())))
        np.testing.assert_array_equal(shown, found.pixels)

    def test_options_that_do_not_go_together(self, small: Callable[..., Any]) -> None:
        with pytest.raises(InvalidOption, match=r"give preset to Restorer\.open"):
            restore_image(PIXELS, restorer=small(), preset="fast")
        with pytest.raises(InvalidOption, match=r"no option upscal: choose among faces, .*upscale, .*preset, .*steps"):
            restore_image(PIXELS, restorer=small(), upscal=2)
        with pytest.raises(InvalidOption, match=r"no option presett here: choose among bundle, .*preset, .*steps"):
            Restorer.open(presett="fast")
        with pytest.raises(InvalidOption, match=r"quality 9\.5 is not accepted"):
            restore_image(PIXELS, aligned=True, restorer=small()).save("a.jpg", quality=9.5)  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match=r"BytesIO was given: name a file, or use to_pil\(\)"):
            restore_image(PIXELS, aligned=True, restorer=small()).save(io.BytesIO())  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="'mini' is no Restorer: give an open one, or name a bundle"):
            restore_image(PIXELS, restorer="mini")  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="leave out photo"):
            restore_image(PIXELS, aligned=True, photo=PhotoOptions())


def test_a_closed_restorer_refuses() -> None:
    with Restorer.open(preset="fast") as restorer:
        pass
    with pytest.raises(InvalidOption, match="closed"):
        restorer.restore([PIXELS])
    restorer.close()


class TestEveryPlace:
    """A Restorer, a PhotoRestorer and `restore` take an image in whatever it is held."""

    @pytest.fixture
    def held(self, tmp_path: Path) -> list[Any]:
        Pillow.fromarray(PIXELS).save(tmp_path / "a.png")
        held: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
        return [*held, Pillow.fromarray(PIXELS), PIXELS]

    def test_a_restorer(self, small: Callable[..., Any], held: list[Any]) -> None:
        restorer = small()
        (expected,) = restorer.restore([PIXELS])
        for one in held:
            np.testing.assert_array_equal(restorer.restore(one)[0], expected)  # one, without a list
        for found in restorer.restore(held):
            np.testing.assert_array_equal(found, expected)
        assert len(restorer.restore(np.stack([PIXELS, PIXELS]))) == 2
        with pytest.raises(InvalidImage, match="type NoneType was given"):
            restorer.restore([None])
        with pytest.raises(InputNotFound, match=r"photo\.jpg"):
            restorer.restore("photo.jpg")
        np.testing.assert_array_equal(
            restorer.restore(PIXELS.astype(">u2"))[0], restorer.restore(PIXELS.astype("u2"))[0]
        )
        for options, message in (({"keys": [1]}, "1 keys, 2 images"), ({"inputs": [PIXELS]}, "by name, as a dict")):
            with pytest.raises(InvalidOption, match=message):
                restorer.run([PIXELS, PIXELS], **options)
        floats = PIXELS / np.float32(255)
        rounded = np.where(floats == 1, np.nextafter(np.float32(1), np.float32(2)), floats)  # as after a resize
        np.testing.assert_array_equal(as_image(rounded).pixels, as_image(floats).pixels)
        assert len(restorer.restore(rounded)) == 1
        for wrong in (PIXELS.astype(np.float32), np.float32(-0.5) + floats):
            with pytest.raises(InvalidImage, match=r"scale them to \[0, 1\]"):
                restorer.restore(wrong)
        with pytest.raises(InvalidImage, match="a masked array"):
            restorer.restore(np.ma.masked_equal(PIXELS, 0))

    def test_a_tensor(self, small: Callable[..., Any]) -> None:
        torch = pytest.importorskip("torch")
        restorer = small()
        chw = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())
        np.testing.assert_array_equal(restorer.restore(chw)[0], restorer.restore(PIXELS)[0])
        (floats,) = restorer.restore(chw.float() / 255)
        np.testing.assert_array_equal(floats, restorer.restore(PIXELS.astype(np.float32) / np.float32(255))[0])
        assert len(restorer.restore(chw[None].repeat(2, 1, 1, 1))) == 2

    def test_a_photo_restorer(self, small: Callable[..., Any], held: list[Any], fakes: Any) -> None:
        photo = PhotoRestorer(small(), detector=fakes.Squares())
        for one in held:
            made = photo.restore(one)
            np.testing.assert_array_equal(made.pixels, PIXELS)
            assert made.compare().shape == (40, 2 * 36 + GAP, 3)

    def test_a_photo_restorer_of_something_else(self, small: Callable[..., Any]) -> None:
        for wrong in ("mini", None, PhotoRestorer(small())):
            with pytest.raises(InvalidOption, match="open a Restorer first"):
                PhotoRestorer(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="options are PhotoOptions, not of type dict"):
            PhotoRestorer(small(), {"upscale": 2})  # type: ignore[arg-type]

    def test_a_closed_restorer_refuses_a_photograph_without_a_face(self, small: Callable[..., Any], fakes: Any) -> None:
        restorer = small()
        restorer.close()
        with pytest.raises(InvalidOption, match="closed"):
            PhotoRestorer(restorer, detector=fakes.Squares()).restore(PIXELS)

    def test_the_package_is_called(self, small: Callable[..., Any]) -> None:
        from bfr.runtime import restore
        from bfr.runtime.restore.options import OpenOptions  # it stays a package

        assert OpenOptions().batch == 1
        made = restore(PIXELS, aligned=True, restorer=small())
        np.testing.assert_array_equal(made.pixels, small().restore(PIXELS)[0])


def test_the_version() -> None:
    assert bfr.runtime.__version__ == version("bfr-runtime")
