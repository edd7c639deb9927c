"""Paths are given to Python as text, as pathlib's, or as any other os.PathLike, such as the entries of os.scandir."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.benchmarks.speed.options import BenchOptions
from bfr.export.bundle import export_system
from bfr.export.onnx.wrap import wrap
from bfr.export.options import BuildOptions
from bfr.export.tensorrt.engine import build_engines
from bfr.export.triton import export_triton
from bfr.models.catalog import MINI
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import find_images, find_masks
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.video.restore import restore_video


class Entry:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Entry])
def test_every_function_takes_every_kind_of_path(
    kind: Callable[[Path], Any], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    picture, missing, new = (kind(tmp_path / name) for name in ("a.png", "missing", "new"))
    write_image(picture, np.full((16, 16, 3), 9, np.uint8))
    with Restorer.open(kind(tiny_bundle.folder), backend="onnxruntime-cpu") as restorer:
        assert len(restorer.restore(picture)) == 1
        found = find_images([picture], out=kind(tmp_path / "out"))
        assert not run_job(restorer, found, JobOptions(out=kind(tmp_path / "out"))).count("failed")
        assert find_masks(found, picture)
        with pytest.raises(InputNotFound):
            restore_video(PhotoRestorer(restorer), missing, kind(tmp_path / "b.mp4"))
    assert export_triton(tiny_bundle, kind(tmp_path / "models"))
    with pytest.raises(InputNotFound):
        wrap(missing, new)
    with pytest.raises(InputNotFound):
        export_system(MINI, missing, new)
    with pytest.raises(InvalidOption, match="no network in bf16"):
        build_engines(kind(tiny_bundle.folder), "tensorrt", options=BuildOptions(precision=("bf16",)))
    assert BenchOptions(bundle=missing, out=new).out == tmp_path / "new"
