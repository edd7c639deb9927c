"""The commands as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from called import Called
from interpreter import python
from PIL import Image

from bfr.runtime.backends.cuda import bindings
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.machine import Engine, EngineKey, MachineFiles
from bfr.runtime.bundle.manifest import BundleFile
from bfr.runtime.cli.main import INTERRUPTED
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.result import GAP
from bfr.runtime.install import install_command
from bfr.runtime.jobs import run as job
from bfr.runtime.jobs.report import Entry, Report
from bfr.runtime.jobs.run import JobOptions
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import Restorer

BLOCKED = ("torch", "onnx", "onnxscript", "safetensors", "tensorrt", "av")
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
    code = f"{guard}\nimport sys\nsys.argv = ['bfr', *sys.argv[1:]]\nfrom bfr.runtime.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


def test_ctrl_c_while_typer_is_loaded_shows_no_traceback() -> None:
    interrupting = """
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from bfr.__main__ import main
main()
"""
    assert python(interrupting, status=INTERRUPTED).stderr == "interrupted\n"


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Noise, in which no detector finds a face, and which is an aligned face as well as any."""
    folder = tmp_path / "faces"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "sub/b.webp"):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / name)
    return folder


def face_in(path: Path, fakes: Any) -> Path:
    pixels = np.full((64, 64, 3), (60, 120, 60), np.uint8)
    pixels[16:48, 16:48] = fakes.face
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_a_folder_of_faces_is_restored_without_torch_and_without_network(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = "--bundle", tiny_bundle.folder, "--backend", "onnxruntime-cpu"
    done = bfr("restore", faces, "-o", out, "--aligned", "--compare", "--batch", "2", *chosen)
    assert done.returncode == 0, done.stderr
    assert "3 images: 3 restored, in " in done.stdout
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    results = ["a_jpg.jpg", "a_png.png", "sub/b.webp"]
    pairs = [f"{result.rpartition('.')[0]}.compare.png" for result in results]
    assert found == sorted([*results, *pairs, "report.json", "resume.jsonl"])
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
    assert report["settings"]["bundle_hash"] == tiny_bundle.hash
    assert report["settings"]["seed"] == 12345
    assert {name: count for name, count in report["counts"].items() if count} == {"restored": 3}
    for image in report["images"]:
        assert {"read", "estimate", "denoise", "write"} <= image["seconds"].keys()


def test_photographs_need_neither_torch_nor_pyav_nor_a_download(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("restore", faces, "-o", out, "--html", "--bundle", tiny_bundle.folder, "--backend", "onnxruntime-cpu")
    done = bfr(*arguments, BFR_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "3 images: 3 no face, 0 faces, in " in done.stdout
    assert (out / "sub/b.webp").read_bytes() == (faces / "sub/b.webp").read_bytes()
    assert (out / "report.html").is_file()
    assert not list((tmp_path / "home").rglob("*.onnx"))


def test_one_bad_file_does_not_end_a_folder_and_resume_finishes_it(
    call: Called, opened: Any, tmp_path: Path, fakes: Any
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "[/b] {x}.png", "c.png"):  # the second would be markup to a terminal
        face_in(folder / name, fakes)
    (folder / "bad.png").write_text("no image")
    done = call("restore", folder, "-o", out)
    assert done.status == 1
    assert "4 images: 3 restored, 1 failed, 3 faces, in " in done.stdout
    assert f"see {out}" in done.stdout
    assert f"failed: {folder / 'bad.png'}: " in done.stderr.replace("\n", " ")
    assert not (out / "bad.png").exists()
    (out / "c.png").unlink()
    before = (out / "a.png").stat().st_mtime_ns
    Image.new("RGB", (8, 8)).save(folder / "bad.png")
    done = call("restore", folder, "-o", out, "--resume")
    assert done.status == 0, done.stderr
    assert "4 images: 1 restored, 1 no face, 2 skipped, 3 faces, in " in done.stdout
    assert (out / "a.png").stat().st_mtime_ns == before
    said = call.refused("restore", folder, "-o", out, "--resume", "--seed", "7", "--upscale", "2")
    assert "seed: 12345 then, 7 now" in said
    assert "photo.upscale: 1 then, 2 now" in said


def test_a_failure_in_part_is_said_and_is_a_failure(call: Called, opened: Any, tmp_path: Path, fakes: Any) -> None:
    pixels = np.full((64, 128, 3), (60, 120, 60), np.uint8)
    pixels[16:48, 16:48], pixels[16:48, 80:112] = fakes.face, fakes.bad_face
    Image.fromarray(pixels).save(tmp_path / "a.png")
    done = call("restore", tmp_path / "a.png", "-o", tmp_path / "out")
    assert done.status == 1
    assert "1 image: 1 restored, 1 face, in " in done.stdout
    assert "in part: " in done.stderr
    assert "1 of 2 faces failed" in done.stderr


def test_a_folder_of_nothing_that_is_read(call: Called, opened: list[Any], tmp_path: Path) -> None:
    """What was passed over is named, on the terminal and in the report."""
    (tmp_path / "in").mkdir()
    for name in ("IMG_1.HEIC", "notes.txt"):
        (tmp_path / "in" / name).write_text("words")
    said = call.refused("restore", tmp_path / "in", "-o", tmp_path / "out")
    assert "2 files were passed over" in said
    assert f"{tmp_path / 'in/IMG_1.HEIC'}: not an image of PNG" in said
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert [Path(one["source"]).name for one in written["passed_over"]] == ["IMG_1.HEIC", "notes.txt"]


def test_warnings_and_what_was_passed_over(call: Called, opened: Any, tmp_path: Path) -> None:
    """A line each, twenty at most of a kind; neither is a failure."""
    (tmp_path / "in").mkdir()
    for i in range(22):
        Image.new("RGBA", (64, 64), (60, 120, 60, 99)).save(tmp_path / f"in/{i}.png")
    (tmp_path / "in/notes.txt").touch()
    done = call("restore", tmp_path / "in", "-o", tmp_path / "out", "--format", "jpg")
    assert done.status == 0
    assert done.stderr.count("what is transparent becomes white in a JPEG") == 20
    assert "and 2 more, see report.json" in done.stderr
    assert "passed over: " in done.stderr
    assert "22 with warnings; 1 file passed over (1 .txt); see" in done.stdout


def test_options_reach_the_run(
    call: Called, opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[Any, list[str], JobOptions]] = []

    def run_job(worker: Any, items: Any, options: JobOptions, *, progress: Any, passed_over: Any) -> Report:
        progress(0.5, "a")
        runs.append((worker, [item.source.name for item in items], options))
        return Report((Entry("a", "restored"),), {}, {"seconds": 1.0})

    monkeypatch.setattr(job, "run_job", run_job)
    monkeypatch.setattr(bindings, "device_count", lambda: 2)
    monkeypatch.setattr("bfr.runtime.cli.restore._check_bundle", lambda *_: None)  # there is no bundle B
    for name in ("in/a.jpg", "in/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "in/a.jpg")
    out = tmp_path / "in" / "out"
    done = call("restore", tmp_path / "in", "-o", out)
    assert (done.status, done.stdout) == (0, f"1 image: 1 restored, in 1.0 s; see {out}\n")
    networks: dict[str, Any] = {
        "bundle": None,
        "backend": "auto",
        "preset": None,
        "precision": "auto",
        "batch": 1,
        "threads": None,
    }
    networks |= {"device": 0, "compiler": OpenOptions().compiler, "spinning": False}
    assert opened[0] == networks
    worker, names, options = runs[0]
    assert names == ["a.jpg", "b.mp4"]
    assert options == JobOptions(out)
    assert isinstance(worker, PhotoRestorer)
    assert worker.options == PhotoOptions()
    words = (
        "--bundle B --backend onnxruntime-cpu --preset short --precision fp16 "
        "--solver ddim --start 3 --steps 7 --eta 0.25 --spacing time "
        "--seed 9 --batch 4 --threads 2 --device 1 "
        "--faces largest --min-eye-distance 8.5 --upscale 2 --blend 0.5 --keep-colour "
        "--compare --html --resume --format jpg --quality 80 --strip-metadata --max-pixels 1000 --codec vp9 --crf 30 "
        "--key-frames 4"
    )
    assert call("restore", tmp_path / "in", "-o", out, *words.split()).status == 0
    networks |= {"bundle": Path("B"), "backend": "onnxruntime-cpu", "preset": "short", "precision": "fp16", "batch": 4}
    sampler = {"solver": "ddim", "start": 3.0, "steps": 7, "eta": 0.25, "spacing": "time"}
    assert opened[1] == {**networks, **sampler, "threads": 2, "device": 1}
    worker, _, options = runs[1]
    assert worker.options == PhotoOptions("largest", 8.5, upscale=2, blend=0.5, keep_colour=True)
    assert worker.restorer.batch == 4
    flags: dict[str, Any] = {"metadata": False, "compare": True, "html": True, "resume": True}
    numbers: dict[str, Any] = {"seed": 9, "quality": 80, "max_pixels": 1000, "crf": 30, "key_frames": 4}
    assert options == JobOptions(out, format=".jpg", codec="vp9", **flags, **numbers)
    assert call("restore", tmp_path / "in", "-o", out, "--aligned").status == 0
    worker, names, _ = runs[2]
    assert isinstance(worker, Restorer)
    assert names == ["a.jpg"]
    assert opened[2]["spinning"]  # no video is among them


def test_an_interrupt_ends_with_130(
    call: Called, opened: Any, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run_job", interrupt)
    done = call("restore", faces, "-o", tmp_path / "out")
    assert done.status == 130
    assert "interrupted; what was finished is kept" in done.stderr
    assert "Traceback" not in done.stderr


def test_info_checks_and_names(tiny_bundle: Bundle) -> None:
    done = bfr("info", tiny_bundle.folder)
    assert done.returncode == 0, done.stderr
    for text in (tiny_bundle.hash, "reference", "loop, preset reference", "6 checked", "random weights"):
        assert text in done.stdout


def test_info_says_what_presets_cost(call: Called) -> None:
    """The same in words and as JSON; `mini` is a name of the bundle that comes with the package."""
    words = call("info", "mini").stdout
    found = json.loads(call("info", "--json").stdout)
    assert (found["system"], found["image_size"], found["batches"]) == ("mini", 256, None)
    for text in ("256x256 pixels", "batches    any", "preset     balanced (default): "):
        assert text in words
    estimator, denoiser = (found["networks"][name]["gflop"] for name in ("estimator", "denoiser"))
    fast = found["presets"]["fast"]
    steps = Bundle.open(default_bundle()).preset("fast").steps
    assert fast["calls"] == {"estimator": 1, "denoiser": steps}
    assert fast["gflop"] == pytest.approx(estimator + steps * denoiser)
    assert f"1 of estimator and {steps} of denoiser, {fast['gflop']:.0f} GFLOP" in words


def test_a_folder_called_mini_comes_first(call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    assert "mini is no bundle" in call.refused("info", "mini")


def test_info_names_engines_and_their_proof_once(call: Called, tiny_bundle: Bundle, home: Path) -> None:
    manifest = tiny_bundle.manifest
    loop = next(check for check in manifest.verified if check.what.startswith("loop"))
    proof = loop.model_copy(update={"what": "loop on the GPU", "backend": "tensorrt", "gpu": "NVIDIA X"})
    here: dict[str, Any] = {"cuda": "12.6", "driver": "12.6", "gpu": "NVIDIA X", "compute_capability": "8.7"}
    library: dict[str, Any] = {"library": "tensorrt", "version": "10.3.0", "buckets": (1, 4), "options": {}}
    key = EngineKey(graph_sha256="0", weights_sha256=(), precision="fp32", **library, **here)
    files = {name: BundleFile(path=f"{name}.engine", sha256="0" * 64, bytes=6) for name in manifest.networks}
    made: dict[str, Any] = {"key": key, "half_share": 0.0, "build_seconds": 1.0, "checks": (proof,)}
    MachineFiles(tiny_bundle.hash).write_engines([Engine(network=name, file=files[name], **made) for name in files])
    done = call("info", tiny_bundle.folder)
    assert done.status == 0, done.stderr
    assert "engine     denoiser in fp32: tensorrt 10.3.0, NVIDIA X, batches 1, 4, 6 bytes" in done.stdout
    assert done.stdout.count("loop on the GPU") == 1


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
    assert install_command("export") in done.stderr
    no_runtime = without(*BLOCKED, "onnxruntime")
    done = bfr("restore", faces, "-o", tmp_path / "out", "--aligned", "--bundle", tiny_bundle.folder, guard=no_runtime)
    assert done.returncode == 2
    assert install_command("cpu") in done.stderr


def test_fetch_shows_the_licence_and_waits_for_its_acceptance() -> None:
    done = bfr("fetch", "difface", guard=NO_NETWORK)
    assert done.returncode == 2
    assert "S-Lab License 1.0" in done.stdout
    assert "non-commercial" in done.stdout
    assert "--accept-license" in done.stderr


def test_the_runtime_imports_neither_torch_nor_a_backend() -> None:
    code = (
        "import sys, bfr.runtime\n"
        "heavy = 'torch', 'tensorrt', 'onnx', 'onnxruntime', 'matplotlib', 'av', 'cv2'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


def test_options_of_videos_are_said_to_be_unused_without_one(faces: Path, tmp_path: Path, call: Called) -> None:
    video = tmp_path / "a.mkv"
    video.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(600))
    to = "-o", tmp_path / "out", "--preset", "none"
    done = call("restore", faces, *to, "--crf", 20, "--key-frames", 2, "--quality", 9)
    assert "warning: --crf and --key-frames: for videos only" in done.stderr
    assert "for images only" not in done.stderr
    assert "warning: --quality: for images only" in call("restore", video, *to, "--crf", 20, "--quality", 9).stderr
    assert "only, and" not in call("restore", faces, video, *to, "--crf", 20, "--quality", 9).stderr
