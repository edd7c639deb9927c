"""The tables of a run of `bfr.benchmarks.gpu`: what was measured, and of the rest that it was not."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bfr.benchmarks.gpu.stages import STAGES, TRAINING
from bfr.benchmarks.tables import table
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes

NOT_MEASURED = "not measured"
CHAINS = ("chain eager-cuda", "chain eager-half", "chain torch-cuda:fp16")


def publish(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `folder/GPU/report.md` of a run on a GPU; return its path.

    Raises:
        InvalidOption: There are no results, or they are a rehearsal's.
    """
    if not results or results["rehearsal"]:
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
    title = "# A rehearsal on a CPU: not measured on a GPU" if results["rehearsal"] else "# Ten minutes on a GPU"
    device = _figures(results, "ceilings").get("device", NOT_MEASURED)
    lines = [title, "", f"{results['date_utc']}; device: {device}.", "", "## Stages", ""]
    lines += [*table(["stage", "what it answers", "status", "s"], _stages(results)), ""]
    lines += ["## Ceilings", "", _ceilings(_figures(results, "ceilings")), ""]
    lines += ["## One call of the denoiser, batch 1", ""]
    head = ["mode", "ms", "ms as a graph", "kernels", "first call s"]
    lines += [*table(head, _calls(results)), ""]
    lines += ["## A whole face, and batches", ""]
    head = ["contender", "batch", "steps", "p50 s", "ms a step", "images a second", "overhead", "PSNR dB"]
    lines += [*table(head, _chains(results)), ""]
    lines += [
        "PSNR is against eager float32 of the same run. Overhead is the share of the time outside the networks.",
        "",
        "## Stages of a chain, ms",
        "",
        *table(["contender", "upload", "estimate", "diffuse", "denoise", "download"], _parts(results)),
        "",
        "## Against the CPU, the packaged system",
        "",
        *table(["contender", "least PSNR dB", "largest error"], _agreement(results)),
        "",
        "## Memory, and training",
        "",
        _memory(_figures(results, "memory")),
        "",
        *table(["network", "steps", "steps a second", "first loss", "last loss"], _training(results)),
    ]
    for stage, entry in results["stages"].items():
        rows = entry.get("figures", {}).get("longest kernels") or entry.get("figures", {}).get("half", {}).get(
            "longest kernels"
        )
        if rows and not results["rehearsal"]:
            named = [[row["name"], str(row["calls"]), _number(row["microseconds"])] for row in rows]
            lines += ["", f"## Longest kernels: {stage}", "", *table(["kernel", "calls", "microseconds"], named)]
    return "\n".join(lines) + "\n"


def _figures(results: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return dict(results["stages"].get(stage, {}).get("figures", {}))


def _number(value: Any, digits: int = 4) -> str:
    """A number, or that there is none."""
    return NOT_MEASURED if value is None or isinstance(value, str) else f"{value:.{digits}g}"


def _stages(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for stage in (*STAGES, *TRAINING):
        entry = results["stages"].get(stage.name, {"status": NOT_MEASURED})
        why = re.sub(r"\S*[/\\]\S*", "...", entry.get("why", "").split("\n")[0])[:120]  # no paths of the machine
        status = f"{entry['status']}: {why}" if why else entry["status"]
        yield stage.name, stage.answers, status, _number(entry.get("seconds")) if "seconds" in entry else ""


def _ceilings(found: Mapping[str, Any]) -> str:
    if "flop_per_second" not in found:
        return f"{NOT_MEASURED.capitalize()}."
    limits = [f"{1e3 * limit:.3g} ms at batch {batch}" for batch, limit in found["limit seconds by batch"].items()]
    return (
        f"{found['flop_per_second'] / 1e12:.4g} TFLOP/s in a large {found['dtype']} product, "
        f"{found['bytes_per_second'] / 1e9:.4g} GB/s in a large copy. "
        f"A call takes at least {', '.join(limits) or 'an unknown time'}."
    )


def _calls(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    eager = _figures(results, "unet")
    modes = {f"eager {name}": eager.get(name, {}) for name in ("float32", "TF32", "half")}
    modes |= {
        "compiled, defaults": _figures(results, "compiled"),
        "compiled, autotuned": _figures(results, "autotuned"),
    }
    for mode, found in modes.items():
        keys = ("milliseconds", "milliseconds as a graph", "kernels", "first call seconds")
        yield mode, *(_number(found.get(key)) for key in keys)


def _runs(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in CHAINS:
        yield name.removeprefix("chain "), _figures(results, name)
    for found in _figures(results, "batches").values():
        yield found.get("contender", NOT_MEASURED), found


def _chains(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, found in _runs(results):
        step, overhead = found.get("step_seconds"), found.get("overhead")
        yield (
            found.get("contender", name),
            _number(found.get("batch")),
            _number(found.get("steps")),
            _number(found.get("seconds", {}).get("p50")),
            _number(None if step is None else 1e3 * step),
            _number(found.get("images_per_second")),
            NOT_MEASURED if overhead is None else f"{overhead:.2%}",
            _number(found.get("against eager float32", {}).get("psnr_db")),
        )


def _parts(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, found in _runs(results):
        seconds = found.get("stages", {})
        times = (seconds.get(part) for part in ("upload", "estimate", "diffuse", "denoise", "download"))
        label = f"{found.get('contender', name)}, batch {found.get('batch', '?')}"
        yield label, *(_number(None if value is None else 1e3 * value) for value in times)


def _agreement(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, found in {**_figures(results, "mini"), **_figures(results, "mini compiled")}.items():
        far = found["against the CPU"]
        yield name, _number(min(one["psnr_db"] for one in far)), _number(max(one["max_abs"] for one in far))


def _memory(found: Mapping[str, Any]) -> str:
    if "constant" not in found:
        return f"Memory: {NOT_MEASURED}."
    host = found["host growth"]
    return (
        f"Memory over {found['looks'][-1]['images']} images in batches of {found['batch']}: "
        f"{'constant' if found['constant'] else 'NOT constant'}. Growth on the device, bytes: "
        f"{_number(found['device growth'])}; on the host: {NOT_MEASURED if host is None else f'{host:+.2%}'}."
    )


def _training(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for role in ("estimator", "denoiser"):
        found = _figures(results, f"train {role}")
        keys = ("steps", "steps a second", "first loss", "last loss")
        yield role, *(_number(found.get(key)) for key in keys)
