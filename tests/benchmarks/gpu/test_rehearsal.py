"""All stages, small, on the CPU: in processes of their own, as on a GPU."""

import json
from pathlib import Path

import pytest
from bundles import unpacked

from bfr.benchmarks.gpu.__main__ import main
from bfr.benchmarks.gpu.prepare import prepare
from bfr.benchmarks.gpu.stages import STAGES, TRAINING

NEED_A_GPU = {"machine", "autotuned", "mini compiled"}


@pytest.mark.slow
def test_every_stage_runs_or_says_that_it_needs_a_gpu(tmp_path: Path) -> None:
    prepare(tmp_path / "prepared", unpacked("tiny", tmp_path / "bundle").folder, packages=())
    out = tmp_path / "out"
    assert main([str(tmp_path / "prepared"), "--out", str(out), "--rehearse"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["rehearsal"]
    assert list(found["stages"]) == [stage.name for stage in (*STAGES, *TRAINING)]
    for name, entry in found["stages"].items():
        expected = ("skipped", "needs a GPU") if name in NEED_A_GPU else ("done", None)
        assert (entry["status"], entry.get("why")) == expected, name
    figures = {name: entry["figures"] for name, entry in found["stages"].items()}
    assert figures["unet"]["float32"]["finite"]
    assert figures["unet"]["TF32"] == {"skipped": "needs a GPU"}
    assert figures["compiled"]["milliseconds"] > 0
    assert len(figures["unet"]["float32"]["longest kernels"]) == 20
    assert min(one["psnr_db"] for one in figures["mini"]["onnxruntime-cpu"]["against the CPU"]) > 60
    assert figures["chain torch-cuda:fp16"]["against eager float32"]["psnr_db"] > 60
    assert figures["train denoiser"]["steps"] == 3
    assert (out / "report.md").read_text().startswith("# A rehearsal on a CPU: not measured on a GPU")
    assert len(list(out.iterdir())) <= 8  # what may come back from a machine
