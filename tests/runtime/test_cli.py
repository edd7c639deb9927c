"""The commands as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bfr.runtime.bundle import Bundle
from bfr.runtime.job import GAP
from bfr.runtime.restorer import Restorer

BLOCKED = ("torch", "onnx", "onnxscript", "safetensors", "tensorrt")
NO_NETWORK = """
import socket
def refuse(*_a, **_k):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
"""


def without(*packages: str) -> str:
    """Code that makes the packages look as if they were not installed."""
    return NO_NETWORK + f"import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n"


GUARD = without(*BLOCKED)


def bfr(*arguments: object, guard: str = GUARD, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `bfr` in a process without torch and without sockets."""
    code = f"{guard}\nimport sys\nsys.argv = ['bfr', *sys.argv[1:]]\nfrom bfr.runtime.cli import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "sub/b.webp"):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / name)
    return folder


def restore(tiny_bundle: Bundle, *arguments: object) -> subprocess.CompletedProcess[str]:
    return bfr("restore", *arguments, "--aligned", "--bundle", tiny_bundle.folder, "--backend", "onnxruntime-cpu")


def test_a_folder_is_restored_without_torch_and_without_network(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path
) -> None:
    done = restore(tiny_bundle, faces, "-o", tmp_path / "out", "--compare", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "3 images: 3 restored" in done.stdout
    out = tmp_path / "out"
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    results = ["a_jpg", "a_png", "sub/b"]
    assert found == sorted([f"{r}.png" for r in results] + [f"{r}.compare.png" for r in results] + ["report.json"])
    with Image.open(out / "a_png.png") as result, Image.open(out / "a_png.compare.png") as pair:
        assert result.size == (36, 40)
        assert pair.size == (72 + GAP, 40)
        with Image.open(faces / "a.png") as source:
            assert np.array_equal(np.asarray(pair)[:, :36], np.asarray(source))
        assert np.array_equal(np.asarray(pair)[:, 36 + GAP :], np.asarray(result))
        with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cpu") as restorer:
            (expected,) = restorer.restore([np.asarray(Image.open(faces / "a.png"))])
        assert np.array_equal(np.asarray(result), expected)
    report = json.loads((out / "report.json").read_text())
    assert report["bundle_hash"] == tiny_bundle.hash
    assert report["seed"] == 12345
    assert report["counts"] == {"restored": 3, "skipped": 0, "failed": 0}
    for image in report["images"]:
        assert {"read", "estimate", "denoise", "write"} <= image["seconds"].keys()


def test_one_bad_file_does_not_end_a_folder_and_resume_finishes_it(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path
) -> None:
    (faces / "bad.png").write_text("no image")
    out = tmp_path / "out"
    done = restore(tiny_bundle, faces, "-o", out)
    assert done.returncode == 1
    assert "3 restored, 1 failed" in done.stdout
    assert "bad.png" in done.stderr
    assert not (out / "bad.png").exists()
    (out / "a_jpg.png").unlink()
    before = (out / "a_png.png").stat().st_mtime_ns
    Image.new("RGB", (8, 8)).save(faces / "bad.png")
    done = restore(tiny_bundle, faces, "-o", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "2 restored, 2 skipped" in done.stdout
    assert (out / "a_png.png").stat().st_mtime_ns == before


def test_empty_and_missing_folders(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = restore(tiny_bundle, tmp_path / "empty", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout.strip()) == (0, "0 images")
    done = restore(tiny_bundle, tmp_path / "missing", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "missing does not exist" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "250"], "allows 1 to 249"),
        (["--eta", "1.5"], "between 0"),
        (["--spacing", "ddim3"], "spacing"),
        (["--seed", "-1"], "seed"),
        (["--preset", "best"], "reference, short"),
        (["--precision", "int8"], "fp16, fp32"),
        (["--backend", "onnxruntime-cuda"], "onnxruntime-cpu"),
        (["--format", "gif"], ".png, .jpg, .webp"),
        (["--batch", "0"], "batch 0"),
    ],
)
def test_options_out_of_range_are_one_clear_error(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = bfr("restore", faces, "-o", tmp_path / "out", "--aligned", "--bundle", tiny_bundle.folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.png"))


def test_whole_photographs_are_not_taken_for_faces(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    done = bfr("restore", faces, "-o", tmp_path / "out", "--bundle", tiny_bundle.folder)
    assert done.returncode == 2
    assert "--aligned" in done.stderr


def test_a_result_never_replaces_its_source(tiny_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    done = restore(tiny_bundle, tmp_path / "a.png", "-o", tmp_path)
    assert done.returncode == 2
    assert "another output folder" in done.stderr
    assert (tmp_path / "a.png").read_bytes() == before


def test_info_checks_and_names(tiny_bundle: Bundle) -> None:
    done = bfr("info", tiny_bundle.folder)
    assert done.returncode == 0, done.stderr
    for text in (tiny_bundle.hash, "reference", "loop, preset reference", "6 checked", "random weights"):
        assert text in done.stdout


def test_doctor_and_version_work_with_nothing_optional() -> None:
    no_runtime = without(*BLOCKED, "onnxruntime")
    done = bfr("doctor", "--json", guard=no_runtime)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    done = bfr("--version", guard=no_runtime)
    assert done.stdout.startswith("bfr ")


def test_a_missing_extra_is_named(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    done = bfr("export", "mini", "-o", tmp_path / "x")
    assert done.returncode == 2
    assert 'pip install "bfr-runtime[export]"' in done.stderr
    no_runtime = without(*BLOCKED, "onnxruntime")
    done = bfr("restore", faces, "-o", tmp_path / "out", "--aligned", "--bundle", tiny_bundle.folder, guard=no_runtime)
    assert done.returncode == 2
    assert 'pip install "bfr-runtime[cpu]"' in done.stderr


def test_fetch_shows_the_licence_and_waits_for_its_acceptance() -> None:
    done = bfr("fetch", "difface", guard=NO_NETWORK)
    assert done.returncode == 2
    assert "S-Lab License 1.0" in done.stdout
    assert "non-commercial" in done.stdout
    assert "--accept-license" in done.stderr


def test_the_runtime_imports_neither_torch_nor_a_backend() -> None:
    code = (
        "import sys, bfr.runtime\n"
        "print([m for m in ('torch', 'tensorrt', 'onnx', 'onnxruntime', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_a_full_disk_ends_the_run_and_leaves_nothing_partial(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    full = GUARD + (
        "\nimport errno, os, pathlib\n"
        "write = pathlib.Path.write_bytes\n"
        "def full(self, data):\n"
        "    if '.png.' in self.name:\n"
        "        write(self, data[: len(data) // 2])\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(self))\n"
        "    return write(self, data)\n"
        "pathlib.Path.write_bytes = full\n"
    )
    out = tmp_path / "out"
    done = bfr("restore", faces, "-o", out, "--aligned", "--bundle", tiny_bundle.folder, guard=full)
    assert done.returncode == 1
    assert "full" in done.stderr
    assert str(out) in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in out.iterdir()] == ["report.json"]
