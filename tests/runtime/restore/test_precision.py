"""`precision auto`: what is tried, what is kept, and what is taken."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import edited

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import MachineFiles
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.restore import precision as module
from bfr.runtime.restore.precision import Trial, choose_precision, sample
from bfr.runtime.restore.restorer import Restorer

GREY = np.full((32, 32, 3), 128, np.uint8)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """`tiny`, whose int8 variants are its float32 ones, on a machine without a GPU."""
    monkeypatch.setattr(module, "device_count", lambda: 0)
    folder = tmp_path / "int8"
    shutil.copytree(tiny_bundle.folder, folder)
    with edited(folder) as manifest:
        for network in manifest["networks"].values():
            network["variants"]["int8"] = network["variants"]["fp32"]
    return Bundle.open(folder)


class Trials:
    """Results by precision, and how often each was asked for."""

    def __init__(self, **results: Trial) -> None:
        self.results, self.asked = results, []

    def __call__(self, precision: Precision) -> Trial:
        self.asked.append(precision)
        return self.results[precision]


def test_the_faster_one_is_taken_and_tried_once(bundle: Bundle) -> None:
    trials = Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY + 1, 1.0))
    assert choose_precision(bundle, "auto") == "fp32"  # nothing is known, and nothing may be tried
    assert [choose_precision(bundle, "auto", trial=trials) for _ in range(2)] == ["int8", "int8"]
    assert trials.asked == ["fp32", "int8"]
    assert choose_precision(bundle, "auto") == "int8"  # the record tells, as it tells the jobs of a server
    checks = {check.precision: check for check in MachineFiles(bundle.hash).read().verified}
    assert checks["int8"].psnr_db == pytest.approx(20 * np.log10(255), abs=0.1)
    assert checks["int8"].seconds_a_step == 1.0


@pytest.mark.parametrize("seconds", [2.0, 0.95])
def test_what_is_slower_or_hardly_faster_is_left(bundle: Bundle, seconds: float) -> None:
    assert choose_precision(bundle, "auto", trial=Trials(fp32=Trial(GREY, 1.0), int8=Trial(GREY, seconds))) == "fp32"


def test_of_two_processes_that_try_at_once_the_first_decides(bundle: Bundle) -> None:
    def slower(precision: Precision) -> Trial:
        if precision == "fp32":  # meanwhile the other one ends
            first = Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY, 1.0))
            assert choose_precision(bundle, "auto", trial=first) == "int8"
        return Trial(GREY, 1.0)

    assert choose_precision(bundle, "auto", trial=slower) == "int8"
    assert choose_precision(bundle, "auto") == "int8"


def test_what_parts_from_float32_is_left_with_a_warning(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    trials = Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY + 40, 1.0))
    assert choose_precision(bundle, "auto", trial=trials) == "fp32"
    assert "int8 is not used" in caplog.text
    assert choose_precision(bundle, "auto", trial=trials) == "fp32"
    assert trials.asked == ["fp32", "int8"]


def test_a_trial_that_cannot_be_kept_counts_all_the_same(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = bundle.folder / "file"
    blocked.write_text("")
    monkeypatch.setenv("BFR_HOME", str(blocked))
    with caplog.at_level(logging.WARNING):
        assert choose_precision(bundle, "auto", trial=Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY, 1.0))) == "int8"
    assert "not saved" in caplog.text


def test_a_trial_that_fails_leaves_float32(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    def trial(precision: Precision) -> Trial:
        if precision == "int8":
            raise RestorationFailed("this library cannot run it")
        return Trial(GREY, 1.0)

    assert choose_precision(bundle, "auto", trial=trial) == "fp32"
    assert "cannot run it" in caplog.text


def test_a_bundle_in_float32_alone_is_not_tried(tiny_bundle: Bundle, home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "device_count", lambda: 0)
    assert choose_precision(tiny_bundle, "auto", trial=Trials()) == "fp32"


def test_a_precision_by_name_is_looked_for_in_the_bundle(bundle: Bundle) -> None:
    assert choose_precision(bundle, "int8") == "int8"
    with pytest.raises(InvalidOption, match="bf16"):
        choose_precision(bundle, "bf16")


def test_on_a_gpu_it_is_the_fastest_that_was_proven_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY, 1.0))
    monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(module, "Cuda", lambda _: SimpleNamespace(facts=SimpleNamespace(name="GPU X")))
    monkeypatch.setattr(module, "choose", lambda *_: "onnxruntime-cuda")
    assert choose_precision(bundle, "auto", trial=trials) == "fp32"
    assert choose_precision(bundle, "auto", backend="onnxruntime-cpu", trial=trials) == "int8"
    check = MachineFiles(bundle.hash).read().verified[0].model_copy(update={"gpu": "GPU X", "precision": "fp16"})
    MachineFiles(bundle.hash).record_checks([check.model_copy(update={"backend": "onnxruntime-cuda"})])
    assert choose_precision(bundle, "auto") == "fp16"
    assert choose_precision(bundle, "auto", backend="tensorrt") == "fp32"


def test_beside_a_gpu_that_nothing_uses_it_is_the_cpus(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a board before its first build, where ONNX Runtime runs on the CPU."""
    monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(module, "Cuda", lambda _: SimpleNamespace(facts=SimpleNamespace(name="GPU X")))
    trials = Trials(fp32=Trial(GREY, 2.0), int8=Trial(GREY, 1.0))
    for chosen, wanted in (("onnxruntime-cuda", "fp32"), ("onnxruntime-cpu", "int8")):
        monkeypatch.setattr(module, "choose", lambda *_, chosen=chosen: chosen)
        assert choose_precision(bundle, "auto", trial=trials) == wanted
        assert choose_precision(bundle, "auto", backend="tensorrt", trial=trials) == "fp32"


def test_opening_a_bundle_tries_it_and_the_result_says_so(bundle: Bundle) -> None:
    with Restorer.open(bundle.folder, preset="short", threads=1) as restorer:
        (result,) = restorer.run([sample(restorer.size)])
        assert result.precision == restorer.precision
    checks = MachineFiles(bundle.hash).read().verified
    assert {check.precision for check in checks} == {"fp32", "int8"}
    assert all(check.seconds_a_step and check.max_abs == 0 for check in checks)
    assert restorer.precision == choose_precision(bundle, "auto")
