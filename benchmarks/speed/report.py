"""The report of `bfr bench` as Markdown."""

from collections.abc import Iterable, Sequence

from bfr.benchmarks.speed.results import STAGES, Measurement, Results
from bfr.benchmarks.speed.roofline import describe_ceilings
from bfr.benchmarks.tables import table
from bfr.runtime.bundle.manifest import Preset

GPU_NOTES = (
    " On the GPU `network` is all of estimate and denoise, by events on the device; `overhead` is therefore launch, "
    "upload, download and the host's work. A backend that records graphs does so in its second call, before the timed "
    "ones; `first` holds what a first call compiles and measures."
)
HEADS = ("p50 s", "p90 s", "p99 s", "mean s", "min s", "first s", "step s", "overhead")
HEADS_LIMIT = ("limit ms", "share")
FIRST = "process to first result s"
HEADS_MORE = ("images/s", "GFLOP/s", "speed-up", "PSNR dB", "max abs")


def as_markdown(results: Results, *, roofline: str | None = None) -> str:
    """Render a table a batch size, then stages, start and memory, the machine.

    Args:
        results: Of one run.
        roofline: File name of the picture; None where there is none.
    """
    r = results
    parts = [
        f"# Benchmark of {r.system}",
        f"{r.title}. Preset {r.preset}: {Preset.model_validate(r.sampler)}; images of {r.image_size}x"
        f"{r.image_size}, float32 in and out. Measured {r.date_utc}.",
        f"```\n{r.command}\n```",
    ]
    if r.busy:
        parts.append(
            f"**The machine was not idle: other processes kept {r.others_cores:.2f} of its cores busy. Times of "
            "several threads, eager PyTorch's above all, can be many times those of an idle machine; measure again.**"
        )
    limited, metered = any(m.share is not None for m in r.measurements), any(m.joules for m in r.measurements)
    heads = ("backend", *HEADS, *HEADS_MORE, *(HEADS_LIMIT if limited else ()), *(["J a face"] if metered else []))
    for batch in r.batches:
        rows = [(*_numbers(m, limited), *([_joules(m)] if metered else [])) for m in r.at(batch)]
        there = {m.backend for m in r.at(batch)}
        # Why a row has no numbers stands in its place.
        rows += [(f"{name}: {why}", *[""] * (len(heads) - 1)) for name, why in r.absent.items() if name not in there]
        parts += [f"## Batch {batch}", _block(heads, rows)]
    parts.append(_notes(r))
    if r.ceilings is not None and limited:
        parts += ["## Limit", _limit_notes(r)]
        if roofline is not None:
            parts.append(f"![The denoising steps below the device's ceilings]({roofline})")
    parts += [
        "## Stages",
        "Median seconds of a batch.",
        _block(("backend", "batch", *STAGES), (_stages(m) for batch in r.batches for m in r.at(batch))),
        "## Start and memory",
        "`load` is reading, hashing and loading the networks. The rest is of a fresh process "
        f"for each backend: from its start to its first result (batch {r.batches[0]}), and the peak of its resident "
        "memory after a batch of each size; GPU memory is what the GPUs' use grew by." + _build_notes(r),
        _block(("backend", "versions", *_build_heads(r), "load s", FIRST, *_memory_heads(r)), _starts(r)),
    ]
    parts += [f"- {note}" for note in r.notes]
    others = "unknown" if r.others_cores is None else f"{r.others_cores:.2f}"
    facts = {**r.machine, "cores busy with others' work": others, "bundle sha256": r.bundle_sha256}
    parts += ["## Machine", _block(("what", "found"), facts.items())]
    return "\n\n".join(parts) + "\n"


def _notes(r: Results) -> str:
    tail = f"; the p99 of {r.repeats} calls lies between the two slowest" if r.repeats < 100 else ""
    return (
        f"Seconds are of one batch, over {r.repeats} calls of each backend after {r.warmup} of warm-up, the first of "
        "which is `first`. The backends took turns, each in a process of its own, the order rotating; no outlier was "
        "removed"
        f"{tail}. `step` is one denoising step, noise included. `overhead` is the share of the wall time outside the "
        f"networks' calls. images/s, GFLOP/s and speed-up (over {r.baseline}) follow from the medians; GFLOP are the "
        "networks', 2 per multiply-add. PSNR (peak 1) and the largest difference are between results and those of "
        f"{r.baseline}, images in [0, 1]. CPU threads of each: {r.threads}; ONNX Runtime's do not spin while backends "
        "take turns."
        + (f" Energy: {r.energy}." if r.energy else "")
        + (GPU_NOTES if r.baseline == "eager-cuda" else "")
    )


def _joules(m: Measurement) -> str:
    return "" if m.joules is None else f"{m.joules:.4g}"


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
        f"short of, in {precision}: the larger of its operations over the first, and of its fewest bytes (weights, "
        f"inputs and outputs once) over the second. `share` is the limit over `step`, of backends in {precision}. An "
        f"algorithm that needs fewer operations than counted (Winograd's) may exceed it. {costs}."
    )


def _build_heads(r: Results) -> list[str]:
    return ["build s"] if any(b.build_seconds is not None for b in r.backends) else []


def _build_notes(r: Results) -> str:
    built = " `build` is of the engines, once, by `bfr build`." if _build_heads(r) else ""
    if any(b.name.startswith("torch-cuda") for b in r.backends):
        built += " What PyTorch compiled before lies on disk when the fresh one starts."
    return built


def _numbers(m: Measurement, limited: bool) -> tuple[str, ...]:
    s = m.seconds
    return (
        m.backend,
        *(f"{value:.4g}" for value in (s.p50, s.p90, s.p99, s.mean, s.min, m.first_seconds, m.step_seconds)),
        f"{m.overhead:.1%}",
        f"{m.images_per_second:.3g}",
        "" if m.gflop_per_second is None else f"{m.gflop_per_second:.4g}",
        "" if m.speedup is None else f"{m.speedup:.2f}x",
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


def _block(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(table(heads, rows))
