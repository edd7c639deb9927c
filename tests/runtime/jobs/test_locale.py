"""P40: a run in a locale that knows ASCII alone writes what it writes in UTF-8, whatever files are called."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.images.encode import encode_image
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.restorer import Restorer

CODE = "from bfr.runtime.cli.main import main; main()"
NAMES = (b"plain.png", "größe 老照片 🙂.png".encode(), b"not-utf8-\xff\xfe.png", b"-o.png", b" .png")
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes are Linux's")
def test_names_of_all_kinds_in_a_locale_of_ascii(tiny_bundle: Bundle, tmp_path: Path) -> None:
    given, out, expected = (tmp_path / name for name in ("in", "out", "expected"))
    given.mkdir()
    for k, name in enumerate(NAMES):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)
        (given / os.fsdecode(name)).write_bytes(encode_image(pixels, ".png"))
    with Restorer.open(tiny_bundle.folder, preset="short", backend="onnxruntime-cpu", threads=1) as restorer:
        run_job(restorer, find_images([given]), JobOptions(out=expected))
    options = ["--bundle", str(tiny_bundle.folder), "--preset", "short", "--backend", "onnxruntime-cpu"]
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CODE, "restore", "in", "-o", "out", "--aligned", "--html", *options],
        cwd=tmp_path,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("LC_")}, **ASCII},
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = (run.stdout + run.stderr).decode("ascii", "replace")
    assert run.returncode == 0, said
    assert "Traceback" not in said
    written = {os.fsencode(path.name): path.read_bytes() for path in out.glob("*.png")}
    assert written == {os.fsencode(path.name): path.read_bytes() for path in expected.glob("*.png")}
    assert set(written) >= set(NAMES)
    assert "plain.png" in (out / "report.html").read_text("utf-8")  # what ASCII cannot read is replaced there
