"""The report of `bfr bench` as Markdown."""

from collections.abc import Callable, Iterator, Sequence

from bfr.benchmarks.speed.results import STAGES, Measurement, Results
from bfr.benchmarks.speed.roofline import Ceilings, Cost
from bfr.benchmarks.tables import page, table
from bfr.runtime.bundle.manifest import Preset

GPU_NOTES = (
    " On the GPU `network` is all of estimate and denoise, by events on the device; `overhead` is therefore launch, "
    "upload, download and the host's work. A backend that records graphs does so in its second call, before the timed "
    "ones; `first` holds what a first call compiles and measures."
)


def _shown(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else f"{value:{form}}"


COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "backend": lambda m: m.backend,
    "p50 s": lambda m: _shown(m.seconds.p50),
    "p90 s": lambda m: _shown(m.seconds.p90),
    "p99 s": lambda m: _shown(m.seconds.p99),
    "mean s": lambda m: _shown(m.seconds.mean),
    "min s": lambda m: _shown(m.seconds.min),
    "first s": lambda m: _shown(m.first_seconds),
    "step s": lambda m: _shown(m.step_seconds),
    "overhead": lambda m: _shown(m.overhead, ".1%"),
    "images/s": lambda m: _shown(m.images_per_second, ".3g"),
    "GFLOP/s": lambda m: _shown(m.gflop_per_second),
    "speed-up": lambda m: "" if m.speedup is None else f"{m.speedup:.2f}x",
    "PSNR dB": lambda m: _shown(m.drift.psnr_db if m.drift else None, ".1f"),
    "max abs": lambda m: _shown(m.drift.max_abs if m.drift else None, ".1e"),
    "limit ms": lambda m: _shown(m.limit_seconds and 1e3 * m.limit_seconds, ".3g"),
    "share": lambda m: _shown(m.share, ".0%"),
    "J a face": lambda m: _shown(m.joules),
}
SOMETIMES = ("limit ms", "share", "J a face")  # columns that are left out where no backend has one
FIRST = "process to first result s"


def as_markdown(results: Results, *, roofline: str | None = None) -> str:
    """Render a table a batch size, then stages, start and memory, the machine.

    Args:
        results: The results of one run.
        roofline: File name of the picture; None if there is none.
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
    columns = {
        head: cell for head, cell in COLUMNS.items() if head not in SOMETIMES or any(cell(m) for m in r.measurements)
    }
    for batch in r.batches:
        rows = [[cell(m) for cell in columns.values()] for m in r.at(batch)]
        there = {m.backend for m in r.at(batch)}
        # Why a row has no numbers stands in its place.
        rows += [[f"{name}: {why}"] for name, why in r.absent.items() if name not in there]
        parts += [f"## Batch {batch}", table([*columns], rows)]
    parts.append(_notes(r))
    if r.ceilings is not None and "share" in columns:
        parts += ["## Limit", _limit_notes(r.ceilings, r.costs)]
        if roofline is not None:
            parts.append(f"![The denoising steps below the device's ceilings]({roofline})")
    parts += [
        "## Stages",
        "Median seconds of a batch.",
        table(
            ("backend", "batch", *STAGES),
            (
                (m.backend, m.batch, *(_shown(m.stages[stage]) for stage in STAGES))
                for batch in r.batches
                for m in r.at(batch)
            ),
        ),
        *_starts(r),
    ]
    parts += [f"- {note}" for note in r.notes]
    others = "unknown" if r.others_cores is None else f"{r.others_cores:.2f}"
    facts = {**r.machine, "cores busy with others' work": others, "bundle sha256": r.bundle_sha256}
    parts += ["## Machine", table(("what", "found"), facts.items())]
    return page(*parts)


def _notes(r: Results) -> str:
    tail = f"; the p99 of {r.repeats} calls lies between the two slowest" if r.repeats < 100 else ""
    return (
        f"Seconds are of one batch, over {r.repeats} calls of each backend after {r.warmup} of warm-up, the first of "
        "which is `first`. The backends took turns in separate processes and rotating order; no outlier was removed"
        f"{tail}. `step` is one denoising step, noise included. `overhead` is the share of the wall time outside the "
        f"networks' calls. images/s, GFLOP/s and speed-up (over {r.baseline}) follow from the medians; GFLOP are the "
        "networks', 2 per multiply-add. PSNR (peak 1) and the largest difference are between results and those of "
        f"{r.baseline}, images in [0, 1]. CPU threads of each: {r.threads}."
        + (f" Energy: {r.energy}." if r.energy else "")
        + (GPU_NOTES if r.baseline == "eager-cuda" else "")
    )


def _limit_notes(ceilings: Ceilings, costs: Sequence[Cost]) -> str:
    """What the columns `limit ms` and `share` mean, and the numbers behind them."""
    precision = "half" if ceilings.dtype == "float16" else "float32"
    counted = "; ".join(
        f"batch {c.batch}: {c.flop / 1e9:.4g} GFLOP, at least {c.bytes / 1e6:.4g} MB, "
        f"{c.layer_bytes / 1e6:.4g} MB if every layer's input and output crossed the memory"
        for c in costs
    )
    return (
        f"Measured on {ceilings.device}: {ceilings.flop_per_second / 1e12:.4g} TFLOP/s in a large {ceilings.dtype} "
        f"matrix product, {ceilings.bytes_per_second / 1e9:.4g} GB/s in a large copy, read and written bytes together. "
        f"`limit` is the least time of one denoising step in {precision} under these two ceilings: the larger of its "
        "operations divided by the first, and of its fewest bytes (weights, inputs and outputs once) divided by the "
        f"second. `share` is `limit` divided by `step`, for backends in {precision}. An algorithm with fewer "
        f"operations than counted (Winograd's) may exceed it. {counted}."
    )


def _starts(r: Results) -> Iterator[str]:
    """Heading, words and table of each backend's start and memory."""
    built = any(b.build_seconds is not None for b in r.backends)
    on_gpu = any(b.cold and any(b.cold.gpu_bytes.values()) for b in r.backends)
    places = [(place, batch) for place in ("RSS", "GPU")[: 1 + on_gpu] for batch in r.batches]
    yield "## Start and memory"
    yield (
        "`load` is reading, hashing and loading the networks. The other columns come from a fresh process for each "
        f"backend: the time from its start to its first result (batch {r.batches[0]}), and its peak resident memory "
        "after a batch of each size; GPU memory is the growth of the GPUs' use."
        + (" `build` is the time of `bfr build`, once." if built else "")
        + (
            " The fresh process of PyTorch finds its earlier compiled code on disk."
            if any(b.name.startswith("torch-") for b in r.backends)
            else ""
        )
    )
    rows = []
    for b in r.backends:
        memory = {"RSS": b.cold.peak_bytes, "GPU": b.cold.gpu_bytes} if b.cold else {"RSS": {}, "GPU": {}}
        grown = [memory[place].get(batch) for place, batch in places]
        rows.append(
            (
                b.name,
                ", ".join(f"{name} {version}" for name, version in b.versions.items()),
                *([_shown(b.build_seconds)] if built else ()),
                _shown(b.load_seconds, ".3g"),
                _shown(b.cold.first_result_seconds if b.cold else None, ".3g"),
                *(size if size is None else f"{size / 2**20:.0f}" for size in grown),
            )
        )
    heads = ("backend", "versions", *(["build s"] if built else ()), "load s", FIRST)
    yield table((*heads, *(f"{place} MiB, batch {batch}" for place, batch in places)), rows)
