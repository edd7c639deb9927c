"""What a file says beside its pixels: which of it a result has, in which format, and what is said of the rest."""

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import Image, decode_image
from bfr.runtime.images.encode import encode_noted
from bfr.runtime.images.exif import Density, clean_exif, exif_density
from bfr.runtime.images.formats import BY_SUFFIX, WRITTEN
from bfr.runtime.images.headers import check_tags
from bfr.runtime.images.metadata import LONGEST, Metadata, clean_xmp, photoshop_block
from bfr.runtime.images.png import raw_profile, read_raw_profile

SUFFIXES = [one.suffixes[0] for one in WRITTEN]
PIXELS = np.full((6, 8, 3), 90, np.uint8)
IPTC = b"\x1c\x02\x78\x00\x0eAunt Mary 1932\x1c\x02\x19\x00\x06family"
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>'
    b'<rdf:Description tiff:Orientation="6" exif:PixelXDimension="999" exif:ColorSpace="65535" dc:title="Mary">'
    b"<tiff:ImageLength>777</tiff:ImageLength><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
    b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def dull(files: Any, kind: str, mode: str = "RGB", colour: Any = (9, 9, 9), **options: Any) -> Image:
    """What is read of a picture of one colour."""
    return decode_image(files.saved(files.flat(mode, colour), kind, **options))


def jpeg(files: Any, *segments: bytes, size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    """A JPEG with segments after its JFIF."""
    data: bytes = files.saved(files.flat("RGB", (90, 90, 90), size), "JPEG", **options)
    return data[:20] + b"".join(segments) + data[20:]


def scanned(files: Any) -> bytes:
    """A JPEG of a scanner: 300 x 200 dpi, turned by its XMP, with IPTC and two comments."""
    return jpeg(
        files,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xED, b"Photoshop 3.0\0" + photoshop_block(IPTC)),
        segment(0xFE, b"scan 12"),
        segment(0xFE, "Tante Märy".encode()),
        dpi=(300, 200),
    )


def written(image: Image, suffix: str, **options: Any) -> tuple[Image, tuple[str, ...], Any]:
    """What comes back of an image, what was said to be lost, and the file as Pillow sees it."""
    data, notes = encode_noted(np.zeros((12, 16, 3), np.uint8), suffix, like=image, **options)
    seen = Pillow.open(io.BytesIO(data))
    seen.load()
    return decode_image(data), notes, seen


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_scan_says_survives_or_is_said_to_be_lost(files: Any, suffix: str) -> None:
    image = decode_image(scanned(files))
    assert image.notes == ()
    assert image.pixels.shape[:2] == (8, 6)
    assert image.metadata.iptc == IPTC
    assert image.metadata.comments == ("scan 12", "Tante Märy")
    back, notes, seen = written(image, suffix)
    assert back.pixels.shape[:2] == (12, 16)  # and is not turned again
    holds = BY_SUFFIX[suffix].metadata
    density = back.metadata.density or exif_density(back.metadata.exif or b"")
    assert density is not None
    assert (round(density.x), round(density.y), density.unit) == (200, 300, 1)
    assert back.metadata.xmp is not None
    assert b'dc:title="Mary"' in back.metadata.xmp
    assert (back.metadata.iptc == IPTC) == ("iptc" in holds)
    assert "\n".join(back.metadata.comments) == ("scan 12\nTante Märy" if "comments" in holds else "")
    lost = [name for name in ("IPTC data", "comments") if {"IPTC data": "iptc"}.get(name, name) not in holds]
    assert [name for name in ("IPTC data", "comments") if any(f"its {name} are left out" in n for n in notes)] == lost
    if suffix == ".jpg":
        assert (seen.info["dpi"], seen.info["photoshop"][0x0404]) == ((200, 300), IPTC)
    if suffix == ".png":
        assert seen.info["dpi"] == pytest.approx((200, 300), rel=1e-3)
    if suffix == ".webp":
        assert [float(seen.getexif()[tag]) for tag in (0x011A, 0x011B)] == [200, 300]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_once_more_and_nothing_changes(files: Any, suffix: str) -> None:
    """A result of a result says the same."""
    first, _, _ = written(decode_image(scanned(files)), suffix)
    second, notes, _ = written(first, suffix)
    assert second.metadata == first.metadata
    assert notes == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_stripped_is_stripped(files: Any, suffix: str) -> None:
    back, notes, seen = written(decode_image(scanned(files)), suffix, metadata=False)
    assert back.metadata == Metadata()
    assert notes == ()
    assert not {"dpi", "xmp", "comment", "photoshop", "exif"} & seen.info.keys()


class TestDensity:
    @pytest.mark.parametrize(
        ("kind", "options", "expected"),
        [
            ("JPEG", {"dpi": (300, 300)}, Density(300, 300, 1)),
            ("PNG", {"dpi": (300, 300)}, Density(299.9994, 299.9994, 1)),
            ("BMP", {"dpi": (300, 300)}, Density(300, 300, 1)),
            ("TIFF", {"dpi": (300, 300)}, Density(300, 300, 1)),
            ("TIFF", {"resolution_unit": 3, "x_resolution": 118, "y_resolution": 118}, Density(118, 118, 2)),
            ("JPEG", {}, None),
            ("PNG", {}, None),
        ],
    )
    def test_it_is_read_from_each_format(self, files: Any, kind: str, options: Any, expected: Density | None) -> None:
        found = dull(files, kind, **options).metadata.density
        assert (found and found.unit) == (expected and expected.unit)
        if found and expected:
            assert (found.x, found.y) == pytest.approx((expected.x, expected.y), rel=1e-4)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_exif_tells_it_where_nothing_else_does(self, files: Any, kind: str) -> None:
        exif = Pillow.Exif()
        exif.update({0x011A: 300.0, 0x011B: 300.0, 0x0128: 2})
        image = dull(files, kind, exif=exif.tobytes())
        assert image.metadata.density == Density(300, 300, 1)
        assert written(image, ".jpg")[2].info["dpi"] == (300, 300)

    def test_photoshop_tells_it_too(self, files: Any) -> None:
        body = struct.pack(">IHHIHH", 300 << 16, 1, 1, 150 << 16, 1, 1)
        resource = b"8BIM" + struct.pack(">HxxI", 0x03ED, len(body)) + body
        image = decode_image(jpeg(files, segment(0xED, b"Photoshop 3.0\0" + resource)))
        assert image.metadata.density == Density(300, 150, 1)

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_it_turns_with_the_picture(self, files: Any, orientation: int, kind: str) -> None:
        exif = Pillow.Exif()
        exif.update({0x0112: orientation, 0x011A: 300.0, 0x011B: 150.0, 0x0128: 2})
        image = dull(files, kind, dpi=(300, 150), exif=exif)
        expected = (150, 300) if orientation > 4 else (300, 150)
        density, block = image.metadata.density, exif_density(image.metadata.exif or b"")
        assert density is not None
        assert block is not None
        assert (density.x, density.y) == (block.x, block.y) == expected

    def test_the_proportion_of_a_pixel_is_kept_too(self, files: Any) -> None:
        data = bytearray(jpeg(files))
        data[13:18] = struct.pack(">BHH", 0, 4, 3)
        image = decode_image(bytes(data))
        assert image.metadata.density == Density(4, 3, 0)
        assert written(image, ".png")[0].metadata.density == Density(4, 3, 0)
        assert written(image, ".jpg")[2].info["jfif_density"] == (4, 3)

    @pytest.mark.parametrize("dots", [(0, 300), (300, -1), (float("nan"), 1), (float("inf"), 1), (1,), ("a", "b")])
    def test_what_is_no_density(self, dots: Any) -> None:
        assert Density.of(dots, 1) is None
        assert Density.of((300, 300), 9) is None
        assert Density.of((1, 1), 0) is None

    def test_one_in_odd_units_fits_into_exif(self) -> None:
        for x in (1e-6, 0.333, 118.11, 1e6):
            block = clean_exif(None, (1, 1), density=Density(x, 72, 2))
            assert block is not None
            found = exif_density(block)
            assert found is not None
            assert (found.unit, found.y) == (2, 72)
            assert found.x == pytest.approx(x, rel=1e-2) or x < 1e-3


class TestXmp:
    def test_it_is_made_true_of_the_result(self) -> None:
        clean = clean_xmp(XMP, (16, 12))
        for part in (
            b'tiff:Orientation="1"',
            b"<tiff:Orientation>1</tiff:Orientation>",
            b'exif:PixelXDimension="16"',
            b"<tiff:ImageLength>12</tiff:ImageLength>",
            b'exif:ColorSpace="1"',
        ):
            assert part in clean
        assert clean_xmp(clean, (16, 12)) == clean

    def test_previews_and_what_lies_behind_the_picture_are_taken_out(self) -> None:
        more = (
            b'<rdf:Description hdrgm:Version="1.0" GCamera:MotionPhoto="1" dc:title="Mary">'
            b"<xmp:Thumbnails><rdf:Alt><xmpGImg:image>/9j/4AAQ</xmpGImg:image></rdf:Alt></xmp:Thumbnails>"
            b"<Container:Directory><rdf:Seq/></Container:Directory><GCamera:MicroVideo>1</GCamera:MicroVideo>"
            b"</rdf:Description>"
        )
        clean = clean_xmp(b"<rdf:RDF>" + more + b"</rdf:RDF>", (1, 1))
        assert clean == b'<rdf:RDF><rdf:Description dc:title="Mary"></rdf:Description></rdf:RDF>'

    @pytest.mark.parametrize("packet", [b"words", b"\xff\xfe<\0r\0", b"<rdf:RDF>\0</rdf:RDF>", b"<rdf:RDF>\xff"])
    def test_what_is_no_xmp_is_left_out_and_said(self, files: Any, packet: bytes) -> None:
        with pytest.raises(ValueError, match="it is n"):
            clean_xmp(packet, (1, 1))
        image = decode_image(jpeg(files, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)))
        assert image.metadata.xmp is None
        assert "its XMP is left out" in image.notes[0]

    def test_many_begins_without_an_end_take_no_time(self) -> None:
        """In time that grows with the length alone: a million of them."""
        packet = b"<rdf:RDF>" + b"<xmp:Thumbnails" * 60_000 + b" hdrgm:" * 10_000
        assert len(clean_xmp(packet, (1, 1))) == len(packet)

    @pytest.mark.parametrize(
        ("name", "note"), [(b'GCamera:MotionPhoto="1"', "motion photo"), (b'hdrgm:Version="1.0"', "gain map")]
    )
    def test_what_it_says_is_lost(self, files: Any, name: bytes, note: str) -> None:
        packet = b"http://ns.adobe.com/xap/1.0/\0<rdf:RDF><rdf:Description " + name + b"/></rdf:RDF>"
        image = decode_image(jpeg(files, segment(0xE1, packet)))
        assert any(note in one for one in image.notes)

    def test_a_film_behind_a_jpeg_is_said_to_be_lost_without_xmp(self, files: Any) -> None:
        film = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
        image = decode_image(jpeg(files) + b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + film)
        assert image.notes == ("its moving part (motion photo) is left out",)
        assert decode_image(jpeg(files) + bytes(5000) + b"SEFT").notes == ()


def test_exif_of_a_big_tiff_is_said_to_be_left_out(files: Any) -> None:
    tags = Pillow.Exif()
    tags[0x010F] = "Kodak"
    image = dull(files, "TIFF", big_tiff=True, exif=tags)
    assert image.metadata.exif is None
    assert image.notes == ("its EXIF data are left out: it is a BigTIFF",)


class TestTexts:
    def image(self, files: Any) -> Image:
        def text(kind: bytes, body: bytes) -> bytes:
            chunk: bytes = files.chunk(kind, body)
            return chunk

        return decode_image(
            files.png(
                PIXELS,
                2,
                text(b"tEXt", b"Title\0Mary"),
                text(b"zTXt", b"parameters\0\0" + zlib.compress(b"steps: 20")),
                text(b"iTXt", "Author\0\0\0\0\0Jürgen ☃".encode()),
                text(b"tEXt", b"Comment\0scan 12"),
                raw_profile("iptc", photoshop_block(IPTC)),
                raw_profile("exif", b"Exif\0\0" + files.exif(6).removeprefix(b"Exif\0\0")),
            )
        )

    def test_a_png_keeps_them(self, files: Any) -> None:
        image = self.image(files)
        assert image.pixels.shape[:2] == (8, 6)  # turned, as the text says
        assert image.metadata.texts == {"Title": "Mary", "parameters": "steps: 20", "Author": "Jürgen ☃"}
        assert (image.metadata.comments, image.metadata.iptc) == (("scan 12",), IPTC)
        back, notes, _ = written(image, ".png")
        assert (back.metadata, notes) == (image.metadata, ())
        assert back.pixels.shape[:2] == (12, 16)  # and is not turned again

    def test_the_others_say_which_are_lost(self, files: Any) -> None:
        for suffix in (".jpg", ".webp"):
            back, notes, _ = written(self.image(files), suffix)
            assert any("its texts (Title, parameters, Author) are left out" in note for note in notes)
            assert back.metadata.comments == (("scan 12",) if suffix == ".jpg" else ())

    def test_a_name_that_is_too_long(self, files: Any) -> None:
        image = decode_image(files.png(PIXELS, 2, files.chunk(b"tEXt", b"k" * 80 + b"\0words")))
        assert image.metadata.texts == {}
        assert image.notes == ("its texts of names that PNG does not allow are left out",)

    @pytest.mark.parametrize("text", ["", "iptc", "iptc 3", "iptc x 00", "iptc 2 00", "iptc 1 zz"])
    def test_a_raw_profile_that_is_broken(self, files: Any, text: str) -> None:
        with pytest.raises(ValueError, match=r"raw profile|fromhex"):
            read_raw_profile(text)
        image = decode_image(files.png(PIXELS, 2, files.chunk(b"tEXt", b"Raw profile type iptc\0" + text.encode())))
        assert image.metadata.iptc is None
        assert "iptc data in a text are broken" in image.notes[0]


def test_a_tiff_has_xmp_and_iptc_in_tags(files: Any) -> None:
    words = struct.pack(
        f"<{-(-len(IPTC) // 4)}I", *struct.unpack(f"<{-(-len(IPTC) // 4)}I", IPTC + bytes(3)[: -len(IPTC) % 4])
    )
    for value in (IPTC, words):
        image = dull(files, "TIFF", tiffinfo={700: XMP, 33723: value})
        assert image.metadata.xmp is not None
        assert image.metadata.iptc is not None
        assert image.metadata.iptc.rstrip(b"\0") == IPTC


def test_directories_that_overlap_are_not_read(files: Any) -> None:
    """A long chain of them would take hours; a JPEG goes without its EXIF, a TIFF is refused."""
    block = bytearray(60_000)
    block[:12] = b"II*\0" + struct.pack("<IHH", 8, 3_000, 3_000)  # two directories of 36,000 bytes, at 8 and 10
    block[36_010:36_014] = struct.pack("<I", 10)
    with pytest.raises(ValueError, match="6000 tags"):
        check_tags(bytes(block))
    hostile, long = segment(0xE1, b"Exif\0\0" + bytes(block)), segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 17
    # Decoders pass over bytes between segments.
    for segments in (hostile, b"\0" + hostile, b"\xff" + hostile, long):
        image = decode_image(jpeg(files, segments))
        assert image.pixels.shape == (6, 8, 3)
        assert image.metadata.exif is None
        assert "its EXIF data are broken and left out" in image.notes[0]
    with pytest.raises(InvalidImage, match="6000 tags"):
        decode_image(bytes(block))
    for valid in files.valid:
        if valid[:2] in (b"II", b"MM"):
            check_tags(valid)


def test_too_long_for_a_jpeg() -> None:
    long = b"<rdf:RDF>" + b"x" * 66_000
    said = Metadata(xmp=long, iptc=IPTC * 4_000, comments=("x" * 66_000,))
    like = Image(PIXELS, metadata=said)
    _, notes = encode_noted(PIXELS, ".jpg", like=like)
    assert [note.split(" do not fit")[0] for note in notes] == ["its XMP data", "its IPTC data", "its comments"]
    back, notes, _ = written(like, ".png")
    assert notes == ()
    assert back.metadata == said


def test_more_than_a_megabyte_is_left_out_and_said(files: Any) -> None:
    text = zlib.compress(b"x" * (LONGEST - 9))
    image = decode_image(files.png(PIXELS, 2, *(files.chunk(b"zTXt", b"k%d\0\0" % i + text) for i in range(2))))
    assert image.metadata.texts == {}
    assert "its TEXTS of" in image.notes[0]


def test_packed_texts_beyond_a_megabyte_do_not_cost_the_picture(files: Any) -> None:
    """Such as Photoshop's resources in hexadecimal, as ImageMagick writes them; Pillow refuses the file."""
    large = zlib.compress(b"x" * 2_000_000)
    chunks = {
        "zTXt": b"Raw profile type 8bim\0\0" + large,
        "iTXt": b"workflow\0\1\0en\0\0" + large,
        "iCCP": b"scanner\0\0" + large,
    }
    kept = files.chunk(b"zTXt", b"kept\0\0" + zlib.compress(b"words"))
    data = files.png(PIXELS, 2, kept, *(files.chunk(name.encode(), body) for name, body in chunks.items()))
    image = decode_image(data)
    assert image.metadata.texts == {"kept": "words"}
    assert image.notes == (
        "texts or profiles of more than 1048576 bytes are left out: 'Raw profile type 8bim', 'workflow', 'scanner'",
    )
    many = [files.chunk(b"zTXt", b"k%d\0\0" % i + large) for i in range(2_000)]
    assert "and 1997 more" in decode_image(files.png(PIXELS, 2, *many)).notes[0]  # 64 MB of them are unpacked at most


def test_provenance_that_no_longer_holds_is_said(files: Any) -> None:
    boxes = b"\0\0\0\x20jumb\0\0\0\x18jumdc2pa"
    tiff = files.saved(files.flat("L", 9), "TIFF", tiffinfo={52545: boxes})
    segments = jpeg(files, segment(0xEB, b"JP\0\1\0\0\0\1" + boxes))
    for data in (segments, files.png(PIXELS, 2, files.chunk(b"caBX", boxes)), tiff):
        assert "content credentials" in decode_image(data).notes[0]
    image = decode_image(jpeg(files, segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40))))
    assert "extended XMP" in image.notes[0]


class TestPages:
    @pytest.mark.parametrize(
        ("kind", "word"), [("PNG", "frames"), ("WEBP", "frames"), ("TIFF", "pages"), ("MPO", "pictures")]
    )
    def test_more_than_one_is_said(self, files: Any, kind: str, word: str) -> None:
        more = [files.flat("RGB", (9 * i, 9, 9)) for i in range(2)]
        options = {"lossless": True} if kind == "WEBP" else {}
        image = dull(files, kind, colour=(99, 9, 9), save_all=True, append_images=more, **options)
        assert image.notes == (f"the first of its 3 {word} is used",)

    @pytest.mark.parametrize(("tags", "pages"), [({}, 2), ({254: 1}, 1)])
    def test_a_thumbnail_is_no_page(self, files: Any, tags: dict[int, int], pages: int) -> None:
        more = Pillow.new("RGB", (8, 8))
        more.encoderinfo = {"tiffinfo": tags}
        data = files.saved(files.flat("RGB", (9, 9, 9)), "TIFF", save_all=True, append_images=[more])
        assert check_tags(data) == pages

    def test_a_raw_file_is_not_its_preview(self, files: Any) -> None:
        for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
            with pytest.raises(InvalidImage, match=r"x\.nef begins with a preview, as cameras' raw files do"):
                decode_image(files.saved(files.flat("RGB", (9, 9, 9)), "TIFF", tiffinfo=tags), name="x.nef")

    def test_a_chain_that_leads_back_or_out(self) -> None:
        entry = struct.pack("<HHII", 256, 3, 1, 1)
        back = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)
        assert check_tags(back) == 1
        assert check_tags(back[:-4] + struct.pack("<I", 1 << 31)) == 1
        assert check_tags(b"II+\0" + bytes(4) + struct.pack("<Q", (1 << 64) - 1)) == 1
        assert check_tags(b"II*\0") == 1


class TestColour:
    def gamma(self, files: Any, samples: Any, colour_type: int, gamma: float, *more: bytes) -> Image:
        return decode_image(
            files.png(samples, colour_type, files.chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))), *more)
        )

    SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # its primaries
    RAMP = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2)

    def expected(self, samples: Any, gamma: float) -> Any:
        linear = (samples / 255) ** (1 / gamma)
        return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)

    @pytest.mark.parametrize("gamma", [1.0, 0.55556, 0.3])
    def test_a_png_of_another_gamma_becomes_srgb(self, files: Any, gamma: float) -> None:
        image = self.gamma(files, self.RAMP, 2, gamma)
        assert image.notes == ()
        assert np.abs(image.pixels - self.expected(self.RAMP, gamma)).max() <= 2

    def test_grey_too_and_it_stays_grey(self, files: Any) -> None:
        grey = self.RAMP[..., 0]
        image = self.gamma(files, grey, 0, 1.0)
        assert image.grey
        assert np.abs(image.pixels[..., 0] - self.expected(grey, 1.0)).max() <= 2
        deep = self.gamma(files, grey.astype(np.uint16) * 257, 0, 1.0)
        assert np.abs(deep.pixels[..., 0] / 257 - self.expected(grey, 1.0)).max() <= 0.01

    def test_deep_colour_stays_in_what_the_chunks_stand_for(self, files: Any) -> None:
        image = self.gamma(files, files.deep[..., :3], 2, 1.0)
        np.testing.assert_array_equal(image.pixels, files.deep[..., :3])
        assert image.icc is not None
        data, _ = encode_noted(image.pixels, ".png", like=image)
        assert decode_image(data).icc == image.icc
        eight = (files.deep[..., :3] >> 8).astype(np.uint8)
        seen = decode_image(files.saved(Pillow.fromarray(eight), "PNG", icc_profile=image.icc))
        assert np.abs(seen.pixels - self.expected(eight, 1.0)).max() <= 2

    def test_other_primaries(self, files: Any) -> None:
        """SRGB's red and green exchanged: its red is green."""
        swapped = [31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000]
        chunk = files.chunk(b"cHRM", struct.pack(">8I", *swapped))
        red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
        image = decode_image(files.png(red, 2, chunk))
        assert np.abs(image.pixels.astype(int) - (0, 255, 0)).max() <= 3

    @pytest.mark.parametrize("more", [{}, {b"cHRM": SRGB}, {b"gAMA": struct.pack(">I", 100_000), b"sRGB": b"\0"}])
    def test_what_says_srgb_changes_nothing(self, files: Any, more: dict[bytes, bytes]) -> None:
        chunks = {b"gAMA": struct.pack(">I", 45455), **more}
        image = decode_image(files.png(self.RAMP, 2, *(files.chunk(name, body) for name, body in chunks.items())))
        np.testing.assert_array_equal(image.pixels, self.RAMP)

    @pytest.mark.parametrize(
        ("name", "body"),
        [
            (b"gAMA", struct.pack(">I", 1)),
            (b"gAMA", struct.pack(">I", 4_000_000_000)),
            (b"cHRM", struct.pack(">8I", *[0] * 8)),
            (b"cHRM", struct.pack(">8I", *[31270, 32900] * 4)),
            (b"cHRM", struct.pack(">8I", *[90_000] * 8)),
        ],
    )
    def test_numbers_that_mean_no_colours(self, files: Any, name: bytes, body: bytes) -> None:
        image = decode_image(files.png(self.RAMP, 2, files.chunk(name, body)))
        np.testing.assert_array_equal(image.pixels, self.RAMP)
        assert "its colours are taken as sRGB" in image.notes[0]

    def test_hdr_and_wide_gamut_are_said(self, files: Any) -> None:
        for code, said in ((b"\x09\x10\0\1", True), (b"\x0c\x0d\0\1", True), (b"\1\x0d\0\1", False)):
            image = decode_image(files.png(self.RAMP, 2, files.chunk(b"cICP", code)))
            assert bool(image.notes) == said
            np.testing.assert_array_equal(image.pixels, self.RAMP)

    def test_cicp_counts_before_all_else(self, files: Any) -> None:
        """By the PNG specification; FFmpeg writes gAMA and cHRM beside it."""
        gamma = files.chunk(b"gAMA", struct.pack(">I", 100_000))
        profile = files.chunk(b"iCCP", b"name\0\0" + zlib.compress(files.swapped_profile()))
        srgb, hdr = (files.chunk(b"cICP", code) for code in (b"\1\x0d\0\1", b"\x09\x10\0\1"))
        for samples, kind in ((self.RAMP, 2), (self.RAMP[..., 0].astype(np.uint16), 0), (files.deep[..., :3], 2)):
            for other in (gamma, profile):
                image = decode_image(files.png(samples, kind, srgb, other))
                np.testing.assert_array_equal(
                    image.pixels[..., 0], samples.reshape((*image.pixels.shape[:2], -1))[..., 0]
                )
                assert (image.notes, image.icc) == ((), None)
            assert "are not converted" in decode_image(files.png(samples, kind, hdr, gamma)).notes[0]
        by_profile = decode_image(files.png(files.deep[..., :3], 2, hdr, profile))
        assert (by_profile.notes, by_profile.icc) == ((), files.swapped_profile())

    def test_a_profile_that_is_not_whole_is_reported(self, files: Any) -> None:
        part = b"ICC_PROFILE\0\1\2" + files.swapped_profile()  # the first of two
        whole = files.saved(files.flat("RGB", (255, 0, 0)), "JPEG")
        jpeg = whole[:2] + struct.pack(">HH", 0xFFE2, 2 + len(part)) + part + whole[2:]
        for data in (jpeg, files.png(self.RAMP, 2, files.chunk(b"iCCP", b"name\0\0words"))):
            assert decode_image(data).notes[0].startswith("its colour profile is broken")

    def test_lab_needs_no_profile(self, files: Any) -> None:
        """Its numbers are colours; whatever profile is there, and no false word is said of it."""
        from PIL import ImageCms

        plain = decode_image(files.saved(files.flat("LAB", (128, 160, 100)), "TIFF"))
        for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), files.swapped_profile()):
            image = decode_image(files.saved(files.flat("LAB", (128, 160, 100)), "TIFF", icc_profile=profile))
            assert image.notes == ()
            np.testing.assert_array_equal(image.pixels, plain.pixels)

    def test_a_profile_of_grey_in_a_colour_picture(self, files: Any) -> None:
        profile = bytearray(files.swapped_profile())
        profile[16:20] = b"GRAY"
        image = decode_image(files.saved(files.flat("RGB", (255, 0, 0)), "PNG", icc_profile=bytes(profile)))
        assert (image.pixels == (255, 0, 0)).all()
        assert "its colour profile is broken" in image.notes[0]


def test_bits_between_8_and_16(files: Any) -> None:
    """A TIFF of 12 bits, packed: its range is that of 16."""
    samples = np.array([[0, 1, 2048, 4095]])
    bits = "".join(f"{value:012b}" for value in samples[0])
    strip = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 1, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + strip
    image = decode_image(data)
    assert image.pixels.dtype == np.uint16
    assert image.pixels[0, :, 0].tolist() == [0, 16, 32776, 65535]


class TestAlpha:
    def like(self, level: int, dtype: type[np.unsignedinteger[Any]] = np.uint8) -> Image:
        return Image(np.zeros((6, 8, 3), dtype), np.full((6, 8), level * (np.iinfo(dtype).max // 255), dtype))

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_a_jpeg_shows_it_on_white(self, dtype: type[np.unsignedinteger[Any]]) -> None:
        for level, expected in ((0, 255), (128, 127), (255, 0)):
            data, notes = encode_noted(np.zeros((6, 8, 3), dtype), ".jpg", like=self.like(level, dtype))
            assert np.abs(decode_image(data).pixels.astype(int) - expected).max() <= 2
            assert any("becomes white" in note for note in notes) == (level < 255)

    def test_hidden_colour_does_not_appear(self) -> None:
        red = np.full((6, 8, 3), (255, 0, 0), np.uint8)
        like = replace(self.like(0), pixels=red)
        data, _ = encode_noted(red, ".jpg", like=like)
        assert decode_image(data).pixels.min() >= 253

    def test_sixteen_bits_in_eight_are_said(self) -> None:
        for suffix in SUFFIXES:
            _, notes = encode_noted(np.zeros((6, 8, 3), np.uint16), suffix, like=Image(np.zeros((6, 8, 3), np.uint16)))
            assert any("16 bits a sample become 8" in note for note in notes) == (suffix != ".png")
