"""What reads files of strangers, and valid ones to damage: each reader takes any bytes, and raises our errors alone."""

import io
import json
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from bfr.runtime.errors import BfrError

TESTS = Path(__file__).parents[1]
MAX_PIXELS = 1_000_000
WEIGHTS = ("estimator", "denoiser", "estimator.fp16", "denoiser.fp16")  # that graphs may name


@dataclass(frozen=True, slots=True)
class Target:
    """A reader.

    read: takes bytes; a BfrError is an answer, any other exception a finding. seeds: makes valid files to damage.
    words: what it looks for, which random damage would not hit upon. needs: a module without which it is left out.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    needs: str | None = None


@cache
def image_files() -> Any:
    """The makers of image files that the tests of images share."""
    spec = spec_from_file_location("image_files", TESTS / "runtime/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Files


@cache
def scratch() -> Path:
    """A folder for readers that take paths; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="bfr-fuzz-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


def images() -> list[bytes]:
    """Valid files of every kind, and some that say much beside their pixels."""
    from bfr.runtime.images.decode import Image
    from bfr.runtime.images.encode import encode_image
    from bfr.runtime.images.exif import Density, clean_exif
    from bfr.runtime.images.metadata import Metadata

    xmp = b'<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6" hdrgm:Version="1.0"/></rdf:RDF></x:xmpmeta>'
    exif = clean_exif(None, (4, 3), density=Density(300, 300, 1))
    iptc = b"\x1c\x02\x78\x00\x04Mary"
    said = Metadata(exif, xmp, iptc, ("scan 12",), {"Title": "Mary"}, Density(300, 300, 1))
    pixels = np.full((3, 4, 3), 90, np.uint8)
    like = Image(pixels, pixels[..., 0], metadata=said)
    full = [encode_image(pixels, suffix, like=like) for suffix in (".png", ".jpg", ".webp")]
    return [*image_files().valid, *full]


def read_image(data: bytes) -> None:
    """Decode, with warnings raised for every other length, and encode in every format what came out, which is whole."""
    from bfr.runtime.images.decode import decode_image
    from bfr.runtime.images.encode import encode_noted

    with warnings.catch_warnings():
        warnings.simplefilter("error" if len(data) % 2 else "ignore")
        image = decode_image(data, max_pixels=MAX_PIXELS)
        warnings.simplefilter("ignore")
        height, width, _ = image.pixels.shape
        assert 0 < height * width <= MAX_PIXELS
        for array, shape in ((image.pixels, (height, width, 3)), (image.alpha, (height, width))):
            if array is not None:
                assert (array.shape, array.dtype) == (shape, image.pixels.dtype)
                assert array.dtype in (np.uint8, np.uint16)
                assert array.flags.c_contiguous
                assert array.flags.writeable
        assert type(image.grey) is bool
        assert all(isinstance(note, str) for note in image.notes)
        small = np.zeros((2, 3, 3), image.pixels.dtype)
        for suffix in (".png", ".jpg", ".webp"):
            written, _ = encode_noted(small, suffix, like=image)
            again = decode_image(written)
            assert again.pixels.shape == (2, 3, 3)
            assert suffix != ".png" or (again.metadata.exif is None) == (image.metadata.exif is None)


def read_chunks(data: bytes) -> None:
    """The chunks of a PNG, whose checksums are made right: no decoder looks behind a wrong one."""
    parts, at = [b"\x89PNG\r\n\x1a\n"], 0
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    read_image(b"".join(parts))


def png_seeds() -> list[bytes]:
    """The chunks of the PNGs among the images."""
    return [one[8:] for one in images() if one[:4] == b"\x89PNG"]


def read_blocks(data: bytes) -> None:
    """As EXIF data and as a profile of images: whatever they hold, the pixels come through."""
    from bfr.runtime.images.decode import decode_image

    files, block = image_files(), data[:60_000]  # a segment of a JPEG holds no more
    made = [
        files.saved(files.flat("RGB", (9, 9, 9), (3, 2)), kind, **{name: block})
        for kind in ("PNG", "JPEG", "WEBP")
        for name in ("exif", "icc_profile")
    ]
    for file in made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode_image(file).pixels.shape in ((2, 3, 3), (3, 2, 3))
        read_image(file)
    for name, body in ((b"eXIf", block), (b"iCCP", b"name\0\0" + zlib.compress(block))):
        with suppress(BfrError):
            read_image(files.png(files.deep, 6, files.chunk(name, body)))


def block_seeds() -> list[bytes]:
    """EXIF data of both byte orders, a profile, and nothing."""
    files = image_files()
    return [
        *metadata_seeds()[:2],
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0",
        files.swapped_profile(),
        b"",
    ]


def read_header(data: bytes) -> None:
    """The size in a header, the pages of a TIFF and the container of a video."""
    from bfr.runtime.images.headers import check_tags, header_size
    from bfr.runtime.video.formats import suffix_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = header_size(data)
    assert size is None or min(size) > 0
    with suppress(ValueError):
        assert check_tags(data) >= 1
    suffix_of(data)


def read_metadata(data: bytes) -> None:
    """EXIF, XMP and Photoshop's resources without a file around them."""
    from bfr.runtime.images.exif import LONGEST_EXIF, clean_exif, exif_density
    from bfr.runtime.images.metadata import _resources, clean_xmp
    from bfr.runtime.images.png import read_raw_profile

    with suppress(ValueError):  # how these say that they are broken
        clean = clean_exif(data, (3, 2))
        assert clean is None or len(clean) < 2 * LONGEST_EXIF
        exif_density(data)
    with suppress(ValueError):
        assert clean_xmp(clean_xmp(data, (3, 2)), (3, 2)) == clean_xmp(data, (3, 2))
    assert sum(len(body) for _, body in _resources(data)) <= len(data)
    with suppress(ValueError):
        read_raw_profile(data.decode("latin-1"))


def metadata_seeds() -> list[bytes]:
    """The blocks themselves."""
    from bfr.runtime.images.exif import Density, clean_exif
    from bfr.runtime.images.metadata import photoshop_block

    exif = clean_exif(None, (4, 3), density=Density(300, 300, 1)) or b""
    xmp = b'<rdf:RDF><rdf:Description tiff:Orientation="6"><xmp:Thumbnails></xmp:Thumbnails></rdf:RDF>'
    return [exif, image_files().exif(6), xmp, photoshop_block(b"\x1c\x02\x78\x00\x04Mary"), b"\niptc\n 4\n00ff00ff\n"]


def read_manifest(data: bytes) -> None:
    """A bundle of this manifest: opened, its presets planned, its files checked."""
    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.manifest import MANIFEST
    from bfr.runtime.restore.plan import make_plan

    folder = scratch() / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(data)
    bundle = Bundle.open(folder)
    for preset in bundle.manifest.presets.values():
        with suppress(BfrError):
            make_plan(bundle, preset)
    bundle.check_all()


def manifests() -> list[bytes]:
    """Of the tests' bundles."""
    found = []
    for name in ("tiny", "identity", "osdface"):
        with zipfile.ZipFile(TESTS / "bundles" / f"{name}.zip") as archive:
            found.append(archive.read("manifest.json"))
    return found


def read_graph(data: bytes) -> None:
    """A graph before a library opens it."""
    from bfr.runtime.bundle.onnx import check_graph

    check_graph(data, {f"{name}.safetensors": 1 << 30 for name in WEIGHTS}, "the graph")


def graphs() -> list[bytes]:
    """Of the tests' bundles, the smallest."""
    with zipfile.ZipFile(TESTS / "bundles/tiny.zip") as archive:
        names = [one for one in archive.infolist() if one.filename.endswith(".onnx")]
        return [archive.read(one) for one in sorted(names, key=lambda one: one.file_size)[:2]]


def read_checkpoint(data: bytes) -> None:
    """A checkpoint, whose content decides what it is."""
    from bfr.models.weights.checkpoint import load_state_dict

    path = scratch() / "weights.pt"
    path.write_bytes(data)
    state = load_state_dict(path)
    assert sum(tensor.numel() for tensor in state.values()) <= 4 * len(data)


def checkpoints() -> list[bytes]:
    """A state dict as torch and as safetensors write it."""
    import torch
    from safetensors.torch import save

    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2, dtype=torch.float16)}
    found = [save(state)]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        stream = io.BytesIO()
        torch.save({"state_dict": state}, stream, **options)
        found.append(stream.getvalue())
    return found


def read_reports(data: bytes) -> None:
    """What a resumed run reads of earlier ones, here and on a cluster, and the page that shows it."""
    from bfr.runtime.cluster.bulk.table import RESULTS, read_entries
    from bfr.runtime.jobs.cards import Card
    from bfr.runtime.jobs.ledger import LEDGER, Ledger
    from bfr.runtime.jobs.page import write_page
    from bfr.runtime.jobs.report import Report, summary
    from bfr.runtime.jobs.store import Store

    folder = scratch() / "out"
    folder.mkdir(exist_ok=True)
    (folder / LEDGER).write_bytes(data)
    ledger = Ledger(folder, {"seed": 1}, resume=False)
    entries = [entry for _, entry in ledger._lines.values()]
    ledger.begin({"a.png"})
    assert ledger.known("a.jpg", "1-1", "a.png", "2-2") is None
    (folder / RESULTS).write_bytes(data)
    (folder / "rows-000001.jsonl").write_bytes(data)
    rows = read_entries(Store(folder), ["rows-000001.jsonl"])
    report = Report((*entries, *rows.values()), {"photo": {}}, {"seconds": 1.0})
    summary(report, folder)
    page = write_page(folder, [Card(entry.source, entry) for entry in report.entries], {"seconds": 1.0})
    assert b"<script>alert" not in page.read_bytes()


def reports() -> list[bytes]:
    """A ledger, a table and a part of one, whose names and words are hostile."""
    from bfr.runtime.cluster.bulk.table import RESULTS, NodeEntry, write_table
    from bfr.runtime.jobs.ledger import LEDGER, Ledger
    from bfr.runtime.jobs.report import Entry
    from bfr.runtime.jobs.store import Store

    folder = scratch() / "seeds"
    folder.mkdir(exist_ok=True)
    odd = "<script>alert(1)</script>\x1b[2J=1+1\n\u202e.jpg"
    entry = Entry(odd, "restored", "a.png", 3, 2, faces=1, seconds={"read": 0.5}, error=odd, notes=(odd, "its pages"))
    entry = replace(entry, source_version="1-1", output_version="2-2")
    ledger = Ledger(folder, {"seed": 1, "photo": {"upscale": 1}}, resume=False)
    ledger.begin(set())
    ledger.add(entry)
    row = NodeEntry.of(entry, backend="onnxruntime-cpu", node="n")
    write_table(Store(folder), [row, replace(row, source="b", status="failed", output=None)])
    line = json.dumps(asdict(row)).encode()
    return [(folder / LEDGER).read_bytes(), (folder / RESULTS).read_bytes(), line + b"\n" + line]


def read_video(data: bytes) -> None:
    """A video, to its last frame."""
    from bfr.runtime.video.read import VideoReader

    path = scratch() / "film"
    path.write_bytes(data)
    with VideoReader(path, max_pixels=MAX_PIXELS) as reader:
        for frame in reader.frames():
            assert frame.pts is not None


def videos() -> list[bytes]:
    """A few frames in containers of each kind."""
    import av

    found = []
    # A transport stream has no header: FFmpeg wants some of it to tell what it is.
    for container, codec, count in (
        ("mp4", "mpeg4", 4),
        ("matroska", "mpeg4", 4),
        ("avi", "mpeg4", 4),
        ("mpegts", "mpeg2video", 40),
    ):
        stream = io.BytesIO()
        with av.open(stream, "w", format=container) as output:
            video: Any = output.add_stream(codec, 25, width=32, height=16)
            video.pix_fmt = "yuv420p"
            for level in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 6 * level, np.uint8), "rgb24")
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
        found.append(stream.getvalue())
    return found


TARGETS = (
    Target("header", read_header, images, (b"II*\0", b"MM\0*", b"ftypisom", b"RIFF")),
    Target(
        "image",
        read_image,
        images,
        (b"IHDR", b"IDAT", b"gAMA", b"cHRM", b"iCCP", b"eXIf", b"iTXt", b"tEXt", b"acTL", b"Exif\0\0", b"8BIM\x04\x04",
         b"\xff\xe1", b"\xff\xed", b"\xff\xfe", b"VP8X", b"EXIF", b"XMP ", struct.pack("<HHI", 0x112, 3, 1)),
    ),
    Target("chunks", read_chunks, png_seeds, (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"fcTL")),
    Target("blocks", read_blocks, block_seeds, (b"II*\0", b"MM\0*", struct.pack("<HHI", 0x112, 3, 1))),
    Target(
        "metadata",
        read_metadata,
        metadata_seeds,
        (b"II*\0", b"MM\0*", b"8BIM", b"<rdf:RDF", b"<xmp:Thumbnails", b"tiff:Orientation=\"",
         struct.pack(">HHI", 0x8769, 4, 1)),
    ),
    Target("manifest", read_manifest, manifests, (b"null", b"[]", b"{}", b"-1", b"1e999", b"\"../../x\"", b"9" * 400)),
    Target("graph", read_graph, graphs, (b"\x3a", b"\x0a", b"\xff" * 9 + b"\x01", b"location", b"../x")),
    Target("checkpoint", read_checkpoint, checkpoints, (b"\x80\x02", b"cos\nsystem\n", b"PK\x03\x04"), "torch"),
    Target("report", read_reports, reports, (b"null", b"[]", b"{}", b"1e999", b"\"", b"\n", b"NaN", b"-1", b"true")),
    Target("video", read_video, videos, (b"ftyp", b"moov", b"mdat", b"stsz", b"\x1a\x45\xdf\xa3"), "av"),
)  # fmt: skip
