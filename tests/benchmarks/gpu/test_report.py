"""The tables say what was measured, and of everything else that it was not."""

import re
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.gpu.report import as_markdown, gpu_name, publish
from bfr.benchmarks.gpu.stages import STAGES, TRAINING
from bfr.runtime.errors import InvalidOption

EMPTY: dict[str, Any] = {"format": 1, "date_utc": "2000-01-01T00:00:00+00:00", "rehearsal": False, "stages": {}}
CEILINGS = {
    "device": "NVIDIA H200",
    "dtype": "float16",
    "flop_per_second": 7e14,
    "bytes_per_second": 4e12,
    "limit seconds by batch": {"1": 5e-4},
}
CHAIN = {
    "contender": "torch-cuda:fp16",
    "batch": 1,
    "steps": 100,
    "seconds": {"p50": 0.1625},
    "step_seconds": 0.0016,
    "images_per_second": 6.15,
    "overhead": 0.0071,
    "stages": {"upload": 0.001, "denoise": 0.16},
    "against eager float32": {"psnr_db": 61.25, "max_abs": 0.01},
}


def results(**stages: dict[str, Any]) -> dict[str, Any]:
    names = {name.replace("_", " "): entry for name, entry in stages.items()}
    return {**EMPTY, "stages": {name: {"status": "done", "seconds": 1.0, "figures": f} for name, f in names.items()}}


def cells(markdown: str, first: str) -> list[str]:
    """The other cells of the row that begins with `first`."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", markdown, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def test_without_results_no_figure_is_shown() -> None:
    markdown = as_markdown(EMPTY)
    for stage in (*STAGES, *TRAINING):
        assert f"| {stage.name} | {stage.answers} | not measured |" in markdown
    body = markdown.partition("## Ceilings")[2]
    shown = {cell.strip() for row in re.findall(r"^\|(.*)\|$", body, re.MULTILINE) for cell in row.split("|")[1:]}
    headings = {"ms", "ms as a graph", "kernels", "---:"}
    assert not [cell for cell in shown - headings if re.fullmatch(r"[\d.,%-]+", cell)]
    assert "not measured" in shown


def test_what_was_measured_is_shown() -> None:
    found = results(ceilings=CEILINGS, unet={"half": {"milliseconds": 3.25, "kernels": 612}})
    found["stages"]["chain torch-cuda:fp16"] = {"status": "done", "figures": CHAIN}
    markdown = as_markdown(found)
    assert "700 TFLOP/s in a large float16 product, 4000 GB/s in a large copy" in markdown
    assert cells(markdown, "eager half") == ["3.25", "not measured", "612", "not measured"]
    assert cells(markdown, "torch-cuda:fp16") == ["1", "100", "0.1625", "1.6", "6.15", "0.71", "61.25"]
    assert cells(markdown, "eager-cuda") == ["not measured"] * 7


def test_a_stage_that_failed_is_shown_with_its_reason_and_what_it_found() -> None:
    found = results(compiled={"milliseconds": 2.5})
    found["stages"]["compiled"].update(status="timed out", why="stopped after 130 s in /tmp/work\nmore")
    markdown = as_markdown(found)
    assert "timed out: stopped after 130 s in ... |" in markdown
    assert cells(markdown, "compiled, defaults")[0] == "2.5"


def test_the_longest_kernels_are_named() -> None:
    rows = [{"name": "sm90_xmma", "calls": 9, "microseconds": 812.0}]
    assert cells(as_markdown(results(autotuned={"longest kernels": rows})), "sm90_xmma") == ["9", "812"]


def test_a_run_on_a_gpu_is_published_under_its_name(tmp_path: Path) -> None:
    path = publish(results(ceilings=CEILINGS), tmp_path)
    assert path == tmp_path / "h200" / "report.md"
    assert path.read_text().startswith("# Ten minutes on a GPU")


@pytest.mark.parametrize(
    ("device", "name"), [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "4090"), (None, "gpu")]
)
def test_the_folder_is_named_after_the_gpu(device: str | None, name: str) -> None:
    assert gpu_name(results(ceilings={"device": device})) == name


@pytest.mark.parametrize("found", [{}, {**EMPTY, "rehearsal": True}])
def test_a_rehearsal_is_not_published(found: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="rehearsal"):
        publish(found, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rehearsals_report_says_so() -> None:
    assert as_markdown({**EMPTY, "rehearsal": True}).startswith("# A rehearsal on a CPU: not measured on a GPU")
