"""`bfr bench A B C`: several bundles, each measured as `bfr bench` measures one, and one table of all."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bfr.benchmarks.publish import write_json
from bfr.benchmarks.speed.bench import bench
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.results import BUSY_CORES, FORMAT
from bfr.benchmarks.tables import page, table
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BfrError
from bfr.runtime.files import write_bytes

HEADS = ("system", "backend, batch", "p50 s (p90)", "faces/s", "max abs", "peak MiB", "start to first face s")


def bench_several(
    bundles: Sequence[Bundle], options: BenchOptions, progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Measure bundles one after the other; return the path of `bench.md`, their table, with `bench.json` beside it.

    Each leaves its own report in a folder of `options.out` that is called after its system; a bundle that fails costs
    its rows alone, and its reason stands below the table. Of the options `bundle` and `compare` are not read. Raises
    the last bundle's error, if all fail.
    """
    found: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    systems = [bundle.manifest.system for bundle in bundles]
    for place, (system, bundle) in enumerate(zip(systems, bundles, strict=True), 1):
        name = system if systems.count(system) == 1 else f"{system}-{place}"
        progress(f"{name}, {place} of {len(bundles)}")
        # A system without a loop has neither presets nor steps.
        own = {} if bundle.denoisers else {"preset": None, "steps": None}
        changed = options.model_copy(update={"bundle": bundle.folder, "out": options.out / name, **own})
        try:
            report = bench(changed, progress)
        except BfrError as error:
            failed[name] = str(error)
            if place == len(bundles) and not found:
                raise
            continue
        found.append({"name": name, **json.loads(report.with_name("bench.json").read_bytes())})
    path = options.out / "bench.md"
    write_json(options.out / "bench.json", {"format": FORMAT, "bundles": found, "failed": failed})
    write_bytes(path, as_markdown(found, failed).encode())
    return path


def as_markdown(found: Sequence[dict[str, Any]], failed: dict[str, str]) -> str:
    """Render the table: a row a system, backend and batch.

    Args:
        found: Contents of each `bench.json`, with its `name`.
        failed: Name -> why it was not measured.
    """
    rows = []
    for one in found:
        colds = {b["name"]: b["cold"] or {} for b in one["backends"]}
        for m in one["measurements"]:
            cold, batch = colds[m["backend"]], m["batch"]
            peak = cold.get("peak_bytes", {}).get(str(batch))
            first = cold.get("first_result_seconds") if batch == cold.get("batch") else None
            times = f"{m['seconds']['p50']:.4g} ({m['seconds']['p90']:.4g})"
            drift = m["drift"] and f"{m['drift']['max_abs']:.1e}"
            start = [peak and f"{peak / 2**20:.0f}", first and f"{first:.3g}"]
            name, speed = f"{m['backend']}, {batch}", f"{m['images_per_second']:.4g}"
            rows.append([one["name"], name, times, speed, drift, *start])
    parts = ["# Several systems"]
    if found:
        machine, busy = found[0]["machine"], any((one["others_cores"] or 0) > BUSY_CORES for one in found)
        facts = "; ".join(value if key in value else f"{key} {value}" for key, value in machine.items())
        threads = f"{found[0]['threads']} thread{'s' * (found[0]['threads'] != 1)}"
        warning = "\n**Other processes kept cores busy meanwhile.**" * busy
        width = len(HEADS) if any(row[-1] for row in rows) else len(HEADS) - 2  # without --cold nothing of a start
        parts += [f"Measured one after the other, {threads}; {facts}.{warning}"]
        parts += [table(HEADS[:width], [row[:width] for row in rows])]
        baselines = " or ".join(dict.fromkeys(one["baseline"] for one in found))  # of wrapped files it is another
        parts += [f"`max abs` is the largest difference from the result of {baselines}, images in [0, 1]."]
    missing = {f"{one['name']}, {name}": why for one in found for name, why in (one["skipped"] | one["lost"]).items()}
    return page(*parts, *(f"{name} was not measured: {why}" for name, why in {**missing, **failed}.items()))
