"""Memory over many images."""

import json
from pathlib import Path

import pytest

from bfr.benchmarks.end_to_end import endurance as e
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption


def looks(*values: tuple[int | None, int | None]) -> list[e.Look]:
    return [{"images": 50 * i, "device": device, "host": host} for i, (device, host) in enumerate(values)]


@pytest.mark.parametrize(
    ("found", "constant"),
    [
        (looks((10, 1000), (10, 1009), (10, 1000)), True),
        (looks((10, 1000), (11, 1000), (10, 1000)), False),  # grew and shrank again
        (looks((10, 1000), (10, 1010)), False),
        (looks((10, 1000), (10, 1020), (10, 1000), (10, 1020)), True),  # comes and goes
        (looks((10, 1000), (10, 1000), (10, 1000), (10, 1000), (10, 1010)), False),
        (looks((None, 1000), (None, 900)), True),
        (looks((None, None), (None, None)), True),
    ],
)
def test_nothing_may_grow(found: list[e.Look], constant: bool) -> None:
    figures = {"backend": "x", "batch": 1, "steps": 1, "seconds": 1.0, "looks": found, **e.judge(found)}
    assert figures["constant"] == constant
    assert ("NOT constant" in e.as_markdown("s", figures)) != constant


def test_it_looks_after_the_warm_up_every_so_many_images_and_at_the_end(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = e.Restorer.restore

    def restore(self: e.Restorer, images: list, **options: int) -> list:
        seen.append((len(images), options.get("seed")))
        return real(self, images, **options)

    monkeypatch.setattr(e.Restorer, "restore", restore)
    monkeypatch.setattr(e, "WARM_UP", 4)
    found = e.endure(tiny_bundle, "onnxruntime-cpu", images=7, batch=2, steps=1, threads=1, every=3)
    assert [look["images"] for look in found["looks"]] == [0, 4, 6, 7]
    assert seen == [(2, None), (1, None)] * 2 + [(2, 0), (2, 2), (2, 4), (1, 6)]
    assert found["steps"] == 1
    assert all(look["device"] is None and look["host"] > 1 << 20 for look in found["looks"])


def test_a_count_of_nothing_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidOption, match="images 0"):
        e.endure(tiny_bundle, "onnxruntime-cpu", images=0)


def test_the_command_ends_with_1_where_memory_grew(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter((100 << 20, 100 << 20, 200 << 20))  # two looks of the first half, one of the second
    monkeypatch.setattr(e, "resident_bytes", lambda: next(sizes))
    options = ["--images", "2", "--every", "1", "--steps", "1", "--threads", "1"]
    assert e.main([str(tiny_bundle.folder), "--out", str(tmp_path), *options]) == 1
    found = json.loads((tmp_path / "endurance.json").read_text())
    assert (found["constant"], found["host_growth"], found["device_growth"]) == (False, 1.0, None)
    assert str(tiny_bundle.folder) not in (tmp_path / "endurance.json").read_text()


def test_an_error_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert e.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is no bundle" in capsys.readouterr().err
