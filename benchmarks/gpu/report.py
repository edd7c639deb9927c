"""The tables of a run of `bfr.benchmarks.gpu`: what was measured, and of the rest that it was not."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bfr.benchmarks.gpu.stages import STAGES, TRAINING
from bfr.benchmarks.tables import page, table
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes

NOT_MEASURED = "not measured"
# Tables: column -> where the figure is, its keys joined by dots, and what it is multiplied by.
Columns = Mapping[str, tuple[str, float]]
CALLS: Columns = {
    "ms": ("milliseconds", 1),
    "ms as a graph": ("milliseconds as a graph", 1),
    "kernels": ("kernels", 1),
    "first call s": ("first call seconds", 1),
}
CHAINS: Columns = {
    "batch": ("batch", 1),
    "steps": ("steps", 1),
    "p50 s": ("seconds.p50", 1),
    "ms a step": ("step_seconds", 1e3),
    "images a second": ("images_per_second", 1),
    "overhead, %": ("overhead", 100),
    "PSNR dB": ("against eager float32.psnr_db", 1),
}
PARTS: Columns = {part: (f"stages.{part}", 1e3) for part in ("upload", "estimate", "diffuse", "denoise", "download")}
COMPILED = {"compiled": "defaults", "autotuned": "autotuned"}
TRAINED: Columns = {key: (key, 1) for key in ("steps", "steps a second", "first loss", "last loss")}


def publish(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `folder/GPU/report.md` of a run on a GPU; return its path. Raises InvalidOption if there is none."""
    if not results.get("stages") or results["rehearsal"]:
        raise InvalidOption("there are no results of a GPU in that folder: a rehearsal's are not published")
    path = folder / gpu_name(results) / "report.md"
    write_bytes(path, as_markdown(results).encode())
    return path


def gpu_name(results: Mapping[str, Any]) -> str:
    """Of the folder: `h200` of an NVIDIA H200."""
    name = str(_figures(results, "ceilings").get("device") or "gpu").lower()
    words = [word for word in re.findall(r"[a-z0-9]+", name) if word not in ("nvidia", "geforce", "rtx", "tesla")]
    return words[0] if words else "gpu"


def as_markdown(results: Mapping[str, Any]) -> str:
    """Render everything that was measured."""
    ceilings, eager = _figures(results, "ceilings"), _figures(results, "unet")
    calls = {f"eager {name}": eager.get(name, {}) for name in ("float32", "TF32", "half")}
    calls |= {f"compiled, {how}": _figures(results, stage) for stage, how in COMPILED.items()}
    names = [stage.name for stage in STAGES if stage.name.startswith("chain ")]
    found = [(name.removeprefix("chain "), _figures(results, name)) for name in names]
    found += [(NOT_MEASURED, batch) for batch in _figures(results, "batches").values()]
    runs = [(run.get("contender", name), run) for name, run in found]
    parts_of_runs = [(f"{name}, batch {run.get('batch', '?')}", run) for name, run in runs]
    trained = [(role, _figures(results, f"train {role}")) for role in ("estimator", "denoiser")]
    parts = [
        "# A rehearsal on a CPU: not measured on a GPU" if results["rehearsal"] else "# Ten minutes on a GPU",
        f"{results['date_utc']}; device: {ceilings.get('device', NOT_MEASURED)}.",
        "## Stages",
        table(["stage", "what it answers", "status", "s"], _stages(results)),
        "## Ceilings",
        _ceilings(ceilings),
        "## One call of the denoiser, batch 1",
        _rows("mode", CALLS, calls.items()),
        "## A whole face, and batches",
        _rows("contender", CHAINS, runs),
        "PSNR is against eager float32 of the same run. Overhead is the share of the time outside the networks.",
        "## Stages of a chain, ms",
        _rows("contender", PARTS, parts_of_runs),
        "## Against the CPU, the packaged system",
        table(["contender", "least PSNR dB", "largest error"], _agreement(results)),
        "## Memory, and training",
        _memory(_figures(results, "memory")),
        _rows("network", TRAINED, trained),
    ]
    for stage, entry in results["stages"].items():
        figures = entry.get("figures", {})
        rows = figures.get("longest kernels") or figures.get("half", {}).get("longest kernels")
        if rows and not results["rehearsal"]:
            named = [[row["name"], row["calls"], _number(row["microseconds"])] for row in rows]
            parts += [f"## Longest kernels: {stage}", table(["kernel", "calls", "microseconds"], named)]
    return page(*parts)


def _rows(first: str, columns: Columns, found: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """A table with a row for each of the named figures."""
    rows = []
    for name, figures in found:
        cells = []
        for path, factor in columns.values():
            value: Any = figures
            for key in path.split("."):
                value = (value or {}).get(key)
            cells.append(_number(None if value is None else factor * value))
        rows.append([name, *cells])
    return table([first, *columns], rows)


def _figures(results: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return dict(results["stages"].get(stage, {}).get("figures", {}))


def _number(value: float | None) -> str:
    """A number, or that there is none."""
    return NOT_MEASURED if value is None else f"{value:.4g}"


def _stages(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for stage in (*STAGES, *TRAINING):
        entry = results["stages"].get(stage.name, {"status": NOT_MEASURED})
        why = re.sub(r"\S*[/\\]\S*", "...", entry.get("why", "").split("\n")[0])[:120]  # no paths of the machine
        status = f"{entry['status']}: {why}" if why else entry["status"]
        yield stage.name, stage.answers, status, _number(entry["seconds"]) if "seconds" in entry else ""


def _ceilings(found: Mapping[str, Any]) -> str:
    if "flop_per_second" not in found:
        return f"{NOT_MEASURED.capitalize()}."
    limits = [f"{1e3 * limit:.3g} ms at batch {batch}" for batch, limit in found["limit seconds by batch"].items()]
    return (
        f"{found['flop_per_second'] / 1e12:.4g} TFLOP/s in a large {found['dtype']} product, "
        f"{found['bytes_per_second'] / 1e9:.4g} GB/s in a large copy. "
        f"A call takes at least {', '.join(limits) or 'an unknown time'}."
    )


def _agreement(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, found in {**_figures(results, "mini"), **_figures(results, "mini compiled")}.items():
        far = found["against the CPU"]
        yield name, _number(min(one["psnr_db"] for one in far)), _number(max(one["max_abs"] for one in far))


def _memory(found: Mapping[str, Any]) -> str:
    if "constant" not in found:
        return f"Memory: {NOT_MEASURED}."
    host = found["host_growth"]
    return (
        f"Memory over {found['looks'][-1]['images']} images in batches of {found['batch']}: "
        f"{'constant' if found['constant'] else 'NOT constant'}. Growth on the device, bytes: "
        f"{_number(found['device_growth'])}; on the host: {NOT_MEASURED if host is None else f'{host:+.2%}'}."
    )
