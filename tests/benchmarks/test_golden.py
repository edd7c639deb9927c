import shutil
from pathlib import Path

import numpy as np
import pytest

from bfr.benchmarks.golden import main, run_golden

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    "name", ["tiny_swinir", "loop_ddim250_n10_eta05", "loop_ddpm250_n10", "loop_inpaint_ddim250_n12_eta10"]
)
def test_the_published_code_is_met_by_both_backends(name: str, tmp_path: Path) -> None:
    errors = run_golden(GOLDEN / f"{name}.npz", tmp_path)
    assert errors.worst < 1e-4


def test_a_wrong_result_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("npz", "json"):
        shutil.copy(GOLDEN / f"tiny_swinir.{suffix}", tmp_path)
    with np.load(GOLDEN / "tiny_swinir.npz") as file:
        arrays = dict(file)
    arrays["y"][0, 0, 0, 0] += 1e-3
    np.savez(tmp_path / "tiny_swinir.npz", **arrays)
    assert main([str(tmp_path / "tiny_swinir.npz")]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_what_is_no_golden_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    assert main([str(tmp_path / "other.npz"), str(tmp_path / "missing.npz")]) == 2
    out = capsys.readouterr().out
    assert "begins with none of" in out
    assert "missing.npz does not exist" in out
