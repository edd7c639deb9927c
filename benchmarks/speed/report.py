"""Results as JSON, as Markdown tables and as a plot."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from bfr.benchmarks.speed.contender import REMEDY
from bfr.benchmarks.speed.results import STAGES, Measurement, Results
from bfr.benchmarks.speed.roofline import describe_ceilings
from bfr.benchmarks.speed.roofline_plot import as_png as draw_roofline
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import MissingDependency

FORMAT = 1
BUSY_CORES = 0.2
GPU_NOTES = (
    " On the GPU `network` is all of estimate and denoise, by events on the device; `overhead` is therefore launch, "
    "upload, download and the host's work. A backend that records graphs does so in its second call, before the timed "
    "ones; `first` holds what a first call compiles and measures."
)
# Okabe and Ito's colours, told apart by colour-blind readers and on grey paper.
COLOURS: tuple[str, ...] = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
COLOURS += ("#000000", "#8B6914", "#7F3C8D", "#A5AA99", "#F0E442")  # a GPU has more backends
HEADS = ("p50 s", "p90 s", "p99 s", "mean s", "min s", "first s", "step s", "overhead")
HEADS_LIMIT = ("limit ms", "share")
FIRST = "process to first result s"
HEADS_MORE = ("images/s", "GFLOP/s", "speed-up", "PSNR dB", "max abs")


def need_matplotlib() -> None:
    """Raise MissingDependency unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"the plot of a benchmark needs matplotlib: {REMEDY}") from error


def is_busy(results: Results) -> bool:
    """Whether others took enough of the CPU during the measurements to falsify them."""
    return results.others_cores is not None and results.others_cores > BUSY_CORES


def as_json(results: Results) -> bytes:
    """Everything, the single times included."""
    return json.dumps({"format": FORMAT, **asdict(results)}, indent=1, allow_nan=False).encode() + b"\n"


def as_markdown(results: Results, *, plot: str, roofline: str | None = None) -> str:
    """A table a batch size, then stages, start and memory, the machine. plot, roofline: the images' file names."""
    r = results
    parts = [
        f"# Benchmark of {r.system}",
        f"{r.title}. Preset {r.preset}: {Preset.model_validate(r.sampler)}; images of {r.image_size}x"
        f"{r.image_size}, float32 in and out. Measured {r.date_utc}.",
        f"```\n{r.command}\n```",
        f"![Latency and throughput by batch size]({plot})",
    ]
    if is_busy(r):
        parts.append(
            f"**The machine was not idle: other processes kept {r.others_cores:.2f} of its cores busy. Times of "
            "several threads, eager PyTorch's above all, can be many times those of an idle machine; measure again.**"
        )
    limited = any(m.share is not None for m in r.measurements)
    heads = ("backend", *HEADS, *HEADS_MORE, *(HEADS_LIMIT if limited else ()))
    for batch in r.batches:
        parts += [f"## Batch {batch}", _table(heads, (_numbers(m, limited) for m in r.at(batch)))]
    parts.append(_notes(r))
    if r.ceilings is not None and limited:
        parts += ["## Limit", _limit_notes(r)]
        if roofline is not None:
            parts.append(f"![The denoising steps below the device's ceilings]({roofline})")
    parts += [
        "## Stages",
        "Median seconds of a batch.",
        _table(("backend", "batch", *STAGES), (_stages(m) for batch in r.batches for m in r.at(batch))),
        "## Start and memory",
        "`load` is reading, hashing and loading the networks, in the common process. The rest is of a fresh process "
        f"for each backend: from its start to its first result (batch {r.batches[0]}), and the peak of its resident "
        "memory after a batch of each size; GPU memory is what the GPUs' use grew by." + _build_notes(r),
        _table(("backend", "versions", *_build_heads(r), "load s", FIRST, *_memory_heads(r)), _starts(r)),
    ]
    if r.skipped:
        parts.append("\n".join(f"- {name} was skipped: {reason}" for name, reason in r.skipped.items()))
    others = "unknown" if r.others_cores is None else f"{r.others_cores:.2f}"
    facts = {**r.machine, "cores busy with others' work": others, "bundle sha256": r.bundle_sha256}
    parts += ["## Machine", _table(("what", "found"), facts.items())]
    return "\n\n".join(parts) + "\n"


def _notes(r: Results) -> str:
    tail = f"; the p99 of {r.repeats} calls lies between the two slowest" if r.repeats < 100 else ""
    return (
        f"Seconds are of one batch, over {r.repeats} calls of each backend after {r.warmup} of warm-up, the first of "
        "which is `first`. The backends took turns in one process, the order rotating; no outlier was removed"
        f"{tail}. `step` is one denoising step, noise included. `overhead` is the share of the wall time outside the "
        f"networks' calls. images/s, GFLOP/s and speed-up (over {r.baseline}) follow from the medians; GFLOP are the "
        "networks', 2 per multiply-add. PSNR (peak 1) and the largest difference are between results and those of "
        f"{r.baseline}, images in [0, 1]. CPU threads of each: {r.threads}; ONNX Runtime's do not spin while backends "
        "take turns." + (GPU_NOTES if r.baseline == "eager-cuda" else "")
    )


def _limit_notes(r: Results) -> str:
    """What the columns `limit ms` and `share` mean, and the numbers behind them."""
    if r.ceilings is None:
        return ""
    precision = "half" if r.ceilings.dtype == "float16" else "float32"
    costs = "; ".join(
        f"batch {c.batch}: {c.flop / 1e9:.4g} GFLOP, at least {c.bytes / 1e6:.4g} MB, "
        f"{c.layer_bytes / 1e6:.4g} MB if every layer's input and output crossed the memory"
        for c in r.costs
    )
    return (
        f"{describe_ceilings(r.ceilings)} `limit` is the time of one denoising step that neither ceiling lets fall "
        f"short of, in {precision}, one limit for all backends: the larger of its operations over the first, and of "
        "its fewest bytes (weights, inputs and outputs once) over the second. `share` is the limit over `step`. An "
        f"algorithm that needs fewer operations than counted (Winograd's) may exceed it. {costs}."
    )


def _build_heads(r: Results) -> list[str]:
    return ["build s"] if any(b.build_seconds is not None for b in r.backends) else []


def _build_notes(r: Results) -> str:
    built = " `build` is of the engines, once, by `bfr build`." if _build_heads(r) else ""
    if any(b.name.startswith("torch-cuda") for b in r.backends):
        built += " What PyTorch compiled in the common process lies on disk when the fresh one starts."
    return built


def _numbers(m: Measurement, limited: bool) -> tuple[str, ...]:
    s = m.seconds
    return (
        m.backend,
        *(f"{value:.4g}" for value in (s.p50, s.p90, s.p99, s.mean, s.min, m.first_seconds, m.step_seconds)),
        f"{m.overhead:.1%}",
        f"{m.images_per_second:.3g}",
        "" if m.gflop_per_second is None else f"{m.gflop_per_second:.4g}",
        f"{m.speedup:.2f}x",
        f"{m.drift.psnr_db:.1f}" if m.drift else "",
        f"{m.drift.max_abs:.1e}" if m.drift else "",
        *_limit(m, limited),
    )


def _limit(m: Measurement, limited: bool) -> tuple[str, ...]:
    if not limited:
        return ()
    if m.limit_seconds is None or m.share is None:
        return ("", "")
    return (f"{1e3 * m.limit_seconds:.3g}", f"{m.share:.0%}")


def _stages(m: Measurement) -> tuple[str, ...]:
    return (m.backend, str(m.batch), *(f"{m.stages[stage]:.4g}" for stage in STAGES))


def _memory_heads(r: Results) -> list[str]:
    gpu = any(b.cold and any(b.cold.gpu_bytes.values()) for b in r.backends)
    places = ("RSS", "GPU") if gpu else ("RSS",)
    return [f"{place} MiB, batch {batch}" for place in places for batch in r.batches]


def _starts(r: Results) -> Iterable[tuple[str, ...]]:
    for b in r.backends:
        memory = [*b.cold.peak_bytes.values(), *b.cold.gpu_bytes.values()] if b.cold else []
        cells = [f"{bytes_ / 2**20:.0f}" if bytes_ is not None else "" for bytes_ in memory]
        width = len(_memory_heads(r))
        yield (
            b.name,
            ", ".join(f"{name} {version}" for name, version in b.versions.items()),
            *(f"{b.build_seconds:.4g}" if b.build_seconds is not None else "" for _ in _build_heads(r)),
            f"{b.load_seconds:.3g}",
            f"{b.cold.first_result_seconds:.3g}" if b.cold else "",
            *(cells + [""] * width)[:width],
        )


def _table(heads: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_png(results: Results) -> bytes:
    """Latency (median, whisker to p90) and throughput by batch size, a bar a backend, the values on the bars."""
    from matplotlib.figure import Figure

    names = [backend.name for backend in results.backends]
    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.12)
    figure.suptitle(
        f"{results.system}, {results.image_size}x{results.image_size}, {results.steps} steps, {_machine(results)}",
        fontsize=11,
    )
    latency, throughput = figure.subplots(1, 2)
    width = 0.8 / len(names)
    crowded = len(results.measurements) > 8
    for i, name in enumerate(names):
        found = [m for m in results.measurements if m.backend == name]
        found.sort(key=lambda m: m.batch)
        places = [results.batches.index(m.batch) + (i - (len(names) - 1) / 2) * width for m in found]
        style: dict[str, Any] = {"width": 0.92 * width, "color": COLOURS[i % len(COLOURS)], "label": name}
        medians = [m.seconds.p50 for m in found]
        latency.bar(places, medians, **style)
        whiskers = [m.seconds.p90 - m.seconds.p50 for m in found]
        latency.errorbar(places, medians, yerr=([0.0] * len(found), whiskers), fmt="none", ecolor="black", capsize=3)
        for place, m in zip(places, found, strict=True):
            _label(latency, place, m.seconds.p90, f"{m.seconds.p50:.3g}", crowded)
        throughput.bar(places, [m.images_per_second for m in found], **style)
        for place, m in zip(places, found, strict=True):
            _label(throughput, place, m.images_per_second, f"{m.images_per_second:.3g}\n{m.speedup:.2f}x", crowded)
    for axes, label, title in (
        (latency, "seconds per batch", f"Latency: median, whisker to p90 (n = {results.repeats})"),
        (throughput, "images per second", f"Throughput, and speed-up over {results.baseline}"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label)
        axes.set_xlabel("images per batch")
        axes.set_xticks(range(len(results.batches)), [str(batch) for batch in results.batches])
        axes.margins(y=0.25 if crowded else 0.15)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *latency.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 5), frameon=False
    )
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def as_roofline(results: Results) -> bytes | None:
    """The denoising steps below the ceilings; None where no ceilings or no operation counts are known."""
    if results.ceilings is None or not results.costs or not results.measurements:
        return None
    points = [(m.backend, m.batch, m.step_seconds) for m in results.measurements]
    return draw_roofline(results.ceilings, results.costs, points, COLOURS)


def _label(axes: Any, x: float, y: float, text: str, crowded: bool) -> None:
    style = {"rotation": 90, "fontsize": 7} if crowded else {"fontsize": 8}
    text = text.replace("\n", ", ") if crowded else text
    axes.annotate(text, (x, y), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom", **style)


def _machine(results: Results) -> str:
    gpu = results.machine.get("GPU", "")
    name = gpu.split(",")[0] if "cuda" in results.baseline else results.machine.get("CPU", "").split(",")[0]
    return f"{name}, CPU threads: {results.threads}" + (", machine not idle" if is_busy(results) else "")
