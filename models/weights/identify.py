"""Identify a file that is no checkpoint or no ONNX graph, by its first bytes and its end."""

import json
import re
import struct
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are looked at
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file, by its definition
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")  # of checkpoints
AGAIN = "download it again; `bfr fetch` resumes an interrupted download"
UNPACK = "unpack it, and name what was in it"
LEGACY = b"\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # PyTorch's magic number, in files of before 1.6
STATE_DICT = "save the network's `state_dict()` with torch.save, and name that"

MOST_UNPACKED = 20  # bytes of an archive's content for each of its own: deflated weights have less than 2
TRUSTED = "take the file from its authors"
TAR_ENTRIES = (b"sys_info", b"pickle", b"tensors", b"storages")  # of PyTorch's first format

# Place and bytes -> what has them there, and the remedy; empty if another file has to be chosen.
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` there"),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", UNPACK),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes", ""),
    (0, b"\x93NUMPY", "a NumPy array", ""),
    (0, b"GGUF", "a GGUF file, of quantized weights", ""),
    (0, b"\x89PNG", "a PNG picture", ""),
    (0, b"\xff\xd8\xff", "a JPEG picture", ""),
    (0, b"%PDF", "a PDF document", ""),
    (0, b"ftrt", "an engine of TensorRT", ""),
    (0, b"ptrt", "an engine of TensorRT", ""),  # before TensorRT 10
    (4, b"ORTM", "a model in ONNX Runtime's own format", ""),
    (4, b"TFL3", "a model of TensorFlow Lite", ""),
)
EXPORT = "export the network with torch.onnx and name that file"
WEIGHTS_ALONE = f"holds weights without a graph: {EXPORT}, or export a system of bfr with `bfr export SYSTEM`"


def no_graph(path: Path) -> str | None:
    """What a file is and what to do, where it is no ONNX graph; None if it may be one."""
    head, size = read_head(path), path.stat().st_size
    if head.startswith(b"PK\x03\x04"):
        problem = _no_zip_checkpoint(path, size, (".onnx",)) or f"is a checkpoint of PyTorch and {WEIGHTS_ALONE}"
        return problem.replace(STATE_DICT, EXPORT)
    if is_safetensors(head) or head.startswith(b"\x80"):
        return f"is {'a pickle' if head[0] == 0x80 else 'a safetensors file'} and {WEIGHTS_ALONE}"
    if found := _kind(head, size):
        return f"is {found[0]}: {found[1] or 'choose the ONNX file'}"
    return None


def no_checkpoint(path: Path) -> str | None:
    """What a file is and what to do, where it is no checkpoint or not all of one; None if it may be one.

    A checkpoint is a safetensors file, or what `torch.save` writes: a zip archive, or before PyTorch 1.6 a pickle.
    """
    head, size = read_head(path), path.stat().st_size
    if head.startswith(b"PK\x03\x04"):
        return _no_zip_checkpoint(path, size, SUFFIXES)
    if is_safetensors(head):
        return _no_whole_safetensors(path, size)
    if head.startswith(b"\x80"):
        known = LEGACY in head[:40]
        return None if known else f"is a Python pickle that torch.save did not write, not tensors: {STATE_DICT}"
    return _other(head, path, size)


def read_head(path: Path) -> bytes:
    """The first HEAD bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def is_safetensors(head: bytes) -> bool:
    """Whether a file of this beginning is one: the length of its header, which is JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < LONGEST_HEADER


def _no_whole_safetensors(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
    whole = 8 + length
    if len(header) == length:
        try:
            entries = json.loads(header)
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            whole += max(ends, default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
            return f"is a safetensors file whose header is damaged: {AGAIN}"
    if size < whole:
        return f"is a safetensors file that ends early, at {size:,} of {whole:,} bytes, damaged or truncated: {AGAIN}"
    return f"is a safetensors file with {size - whole:,} bytes too many, damaged: {AGAIN}" if size > whole else None


def _no_zip_checkpoint(path: Path, size: int, wanted: tuple[str, ...]) -> str | None:
    """What a zip archive is and what to do, where it is no checkpoint; wanted: endings of files to take out of it."""
    try:
        if not zipfile.is_zipfile(path):
            return f"is a zip archive whose end is missing ({size:,} bytes are there), damaged or truncated: {AGAIN}"
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged list makes zipfile raise nearly any type
        return f"is a zip archive whose list of contents is damaged ({error}): {AGAIN}"
    names, unpacked = [entry.filename for entry in entries], sum(entry.file_size for entry in entries)
    encrypted = any(entry.flag_bits & 1 for entry in entries)
    if encrypted or any(re.search(r"(^|/)(constants\.pkl|code/|archive_format$)", name) for name in names):
        program = f"an archive of TorchScript or torch.export, a program with its weights: {STATE_DICT}"
        return f"is {f'an encrypted zip archive: {UNPACK}' if encrypted else program}"
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside or unpacked > MOST_UNPACKED * size:
        claim = f"names {outside[0]!r}, outside itself," if outside else f"claims {unpacked:,} bytes, of {size:,},"
        return f"is a zip archive that {claim} as weights never do: {TRUSTED}"
    if any(name.endswith("data.pkl") for name in names):
        return None
    listed = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    numpy = bool(names) and all(name.endswith(".npy") for name in names)
    kind = "a NumPy archive" if numpy else "a zip archive of other files"
    held = any(name.endswith(wanted) for name in names)
    remedy = UNPACK if held else f"choose a file that ends in {' or '.join(wanted)}"
    return f"is {kind} ({listed or 'none'}): {remedy}"


def is_whole_zip(path: Path) -> bool:
    """Whether a file is a zip archive whose contents have the checksums that it names."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged list makes zipfile raise nearly any type
        return False


def _other(head: bytes, path: Path, size: int) -> str:
    """What a file is that begins like none of the formats."""
    if found := _kind(head, size):
        return f"is {found[0]}: {found[1] or 'choose the file with the weights'}"
    if path.suffix == ".onnx" or (head[0] == 8 and b"pytorch" in head[:64]):
        return "is an ONNX graph: `bfr wrap FILE -o BUNDLE` makes a bundle of it"
    return f"is no checkpoint of PyTorch and no safetensors file, it begins with {head[:8].hex(' ')}: {AGAIN}"


def _kind(head: bytes, size: int) -> tuple[str, str] | None:
    """What begins so, and the remedy; empty if another file has to be chosen."""
    for place, start, what, remedy in _KINDS:
        if head.startswith(start, place):
            return what, remedy
    if head[257:262] == b"ustar":
        if head[:100].strip(b"\0./") in TAR_ENTRIES:
            return "a checkpoint of PyTorch before 0.1.10", "load it with an old PyTorch, and save it again"
        return "a tar archive", UNPACK
    if not head.strip(b"\0"):
        return ("a file of zero bytes, an incomplete download" if head else "empty"), "download it again"
    return _kind_of_text(text, size) if (text := _text(head)) else None


def _kind_of_text(text: str, size: int) -> tuple[str, str]:
    start = text.lstrip("\ufeff \t\r\n")
    lower = start.lower()
    if lower.startswith("<?xml") and "<net " in lower:
        return "a graph of OpenVINO", ""
    if lower.startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")) or "<html" in lower[:512]:
        title = re.search(r"<title>(.*?)</title>", start, re.IGNORECASE | re.DOTALL)
        named = f", {' '.join(title[1].split())[:80]!r}" if title else ""
        return (
            f"a web page{named}, which the server sent instead of the file (a login, a warning, an error)",
            "open its address in a browser, and save the file itself",
        )
    if '"weight_map"' in text:
        return "the index of weights in several files", "join their tensors in one file, and choose that"
    kind = "a JSON text" if start.startswith(("{", "[")) else "a text"
    line = start.splitlines()[0][:60] if start else ""
    return f"{kind} of {size:,} bytes, {line!r}", ""


def _text(head: bytes) -> str:
    """The bytes as text; empty if they are none."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely cut inside a character
            return ""
        text = head[: error.start].decode("utf-8")
    printable = sum(character.isprintable() or character in "\t\r\n\ufeff" for character in text)
    return text if printable == len(text) else ""
