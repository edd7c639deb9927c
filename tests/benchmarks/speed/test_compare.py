"""`bfr bench --compare`: ratios of medians, and whether chance alone explains them."""

import json
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.speed.compare import as_table, read_bench, speed_up
from bfr.benchmarks.speed.results import FORMAT
from bfr.runtime.errors import InputNotFound, InvalidOption


def bench(**samples: list[float]) -> dict[str, Any]:
    rows = [
        {"backend": name, "batch": 1, "samples": times, "seconds": {"p50": sorted(times)[len(times) // 2]}}
        for name, times in samples.items()
    ]
    return {"format": FORMAT, "system": "mini", "machine": {"cpu": "a"}, "measurements": rows}


def test_a_ratio_and_its_interval() -> None:
    old, new = [2.0, 2.1, 1.9, 2.0, 2.2], [1.0, 1.1, 0.9, 1.0, 1.1]
    ratio, least, most = speed_up(old, new)
    assert ratio == 2.0
    assert 1 < least <= ratio <= most
    ratio, least, most = speed_up(old, old[::-1])
    assert ratio == 1.0
    assert least <= 1 <= most


def test_the_table() -> None:
    old = bench(fast=[2.0, 2.1, 1.9], same=[1.0, 2.0, 3.0], gone=[1.0])
    new = bench(fast=[1.0, 1.1, 0.9], same=[1.1, 2.1, 2.9], new=[5.0])
    rows = {line.split("|")[1].strip(): line for line in as_table(old, new).splitlines() if line.startswith("|")}
    assert "2x (" in rows["fast"]
    assert "no difference" not in rows["fast"]
    assert "no difference" in rows["same"]
    assert rows["new"].count("| 5 |") == 1
    assert rows["gone"] == "| gone | 1 | 1 |  |  |"
    assert "differ in machine" in as_table(old, {**new, "machine": {"cpu": "b"}})
    assert "differ in" not in as_table(old, new)


def test_what_is_no_bench(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match=r"bench\.json"):
        read_bench(tmp_path / "none.json")
    for text in ("words", "[]", json.dumps({"format": 0})):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InvalidOption, match=r"bench\.json"):
            read_bench(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps(bench(a=[1.0])))
    assert read_bench(tmp_path / "a.json")["measurements"][0]["backend"] == "a"
