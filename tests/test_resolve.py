"""The table of `.ci/resolve.py`, and every extra that texts name, against pyproject.toml. Nothing is resolved here."""

import re
import sys
from itertools import chain, pairwise
from pathlib import Path
from runpy import run_path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTALLED_BY_CI = {"dev", "bench", "docs", "explain", "sd"}


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(sys, "argv", ["resolve.py"])
    return SimpleNamespace(**run_path(str(ROOT / ".ci" / "resolve.py")))


def test_every_extra_has_a_row(resolve: SimpleNamespace) -> None:
    assert {extra for row in resolve.ROWS for extra in row.extras} == set(EXTRAS) - INSTALLED_BY_CI


def test_every_requirement_of_an_extra_is_looked_for(resolve: SimpleNamespace) -> None:
    for extra in set(EXTRAS) - INSTALLED_BY_CI:
        rows = [row for row in resolve.ROWS if extra in row.extras]
        versions = [{"python_version": row.python} for row in rows]
        wanted = {
            one.name
            for one in map(Requirement, resolve.requirements((extra,)))
            if one.marker is None or any(one.marker.evaluate(version) for version in versions)
        }
        musts = chain.from_iterable(row.must for row in rows)
        assert wanted <= {Requirement(text).name for text in musts}, extra


def test_every_extra_that_a_text_names_exists() -> None:
    folders = [ROOT / name for name in ("docs", "runtime", "export", "benchmarks")]
    texts = [
        ROOT / "README.md",
        *(file for folder in folders for file in folder.rglob("*") if file.suffix in {".md", ".py"}),
    ]
    named: set[str] = set()
    for text in texts:
        content = text.read_text(encoding="utf-8")
        for found in re.findall(r"""["'`]\.\[([a-z0-9,-]+)\]""", content):
            named |= set(found.split(","))
        for found in re.findall(r"""install_command\(((?:["'][a-z0-9-]+["'](?:, )?)+)[,)]?""", content):
            named |= set(re.findall(r"[a-z0-9-]+", found))
    assert {"gpu-cu12", "tensorrt-cu12", "jetson-cu12", "cpu"} <= named <= set(EXTRAS)


def test_a_set_that_lacks_a_library_or_holds_a_wrong_one_is_refused(resolve: SimpleNamespace) -> None:
    row = resolve.Row("CUDA 12", resolve.X86, "3.12", ("gpu-cu12",), resolve.PROVIDER_12, resolve.ONLY_12)
    good = {
        "onnxruntime-gpu": "1.26.0",
        "nvidia-cublas-cu12": "12.9.3.13",
        "nvidia-cuda-runtime-cu12": "12.9.79",
        "nvidia-curand-cu12": "10.3.10.19",
        "nvidia-cufft-cu12": "11.4.1.4",
        "nvidia-cudnn-cu12": "9.28.0.42",
    }
    assert resolve.violations(row, good) == []
    assert resolve.violations(row, good | {"onnxruntime-gpu": "1.31.1"}) == ["onnxruntime-gpu 1.31.1 is not <1.27"]
    assert resolve.violations(row, good | {"nvidia-cudnn-cu13": "9.28"}) == ["nvidia-cudnn-cu13 must not be there"]
    del good["nvidia-cublas-cu12"]
    assert resolve.violations(row, good) == ["nvidia-cublas-cu12>=12,<13 is missing"]


def test_only_tensorrt_may_come_as_sources(resolve: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> CompletedProcess[str]:
        seen.append(command)
        return CompletedProcess(command, 0, "numpy==2.0.0\n", "")

    monkeypatch.setattr(resolve.subprocess, "run", run)
    assert resolve.resolve(resolve.ROWS[0], "highest", "uv", "cache") == ({"numpy": "2.0.0"}, "")
    (command,) = seen
    assert command[command.index("--only-binary") + 1] == ":all:"
    allowed = {after for word, after in pairwise(command) if word == "--no-binary"}
    assert allowed == set(resolve.SDISTS)
    assert all(name.startswith("tensorrt") for name in allowed)


def test_an_index_that_cannot_be_reached(
    resolve: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resolve.shutil, "which", lambda *_, **__: "uv")
    monkeypatch.setattr(resolve.subprocess, "run", lambda command, **_: CompletedProcess(command, 2, "", "dns error"))
    assert resolve.main() == 2
    assert "the package index cannot be reached, no extra was resolved:\ndns error" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["resolve.py", "--offline-ok"])
    assert resolve.main() == 0


def test_a_row_without_a_solution_fails(
    resolve: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> CompletedProcess[str]:
        return CompletedProcess(command, int("--extra" in command), "", "No solution found")

    monkeypatch.setattr(resolve.shutil, "which", lambda *_, **__: "uv")
    monkeypatch.setattr(resolve.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["resolve.py", "gpu", "3.11"])
    assert resolve.main() == 1
    assert "0 of 1 sets hold" in capsys.readouterr().out
