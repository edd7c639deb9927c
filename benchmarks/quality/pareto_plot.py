"""The Pareto benchmark as a picture: drift against calls."""

from collections.abc import Mapping
from typing import Any

from bfr.benchmarks.quality.pareto_results import Allowance, Study, read_off
from bfr.benchmarks.speed.plots import COLOURS, MARKERS, draw


def as_png(results: Study, presets: Mapping[str, Allowance]) -> bytes:
    """Draw a line a solver, spacing, eta and start, coloured by the first two, as PNG; read-off presets are circled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    facts, spread = results.facts, results.reference.drift()
    size, error = facts["image_size"], spread.error or 0.0
    axes.set_title(
        f"{facts['system']}, {size}x{size}, {len(results.reference.samples)} faces, {results.settings['level']}; "
        f"reference: {results.reference}",
        fontsize=9,
    )
    axes.axhspan(spread.mean - error, spread.mean + error, color="#56B4E9", alpha=0.45, label="other seeds: the spread")
    for candidate in results.candidates:
        if candidate.preset is None:
            drift = candidate.drift().mean
            axes.axhline(drift, color="#777777", linestyle="dotted", label="the estimate, 0 calls")
    lines = sorted({candidate.line for candidate in results.candidates if candidate.line is not None})
    kinds = list(dict.fromkeys(line[:2] for line in lines))
    for line in lines:
        kind = kinds.index(line[:2])
        points = sorted((c for c in results.candidates if c.line == line), key=lambda candidate: candidate.calls)
        drifts = [point.drift() for point in points]
        style: dict[str, Any] = {"color": COLOURS[1 + kind % 5], "marker": MARKERS[kind % len(MARKERS)]}
        first = line == next(other for other in lines if other[:2] == line[:2])
        axes.errorbar(
            [point.calls for point in points],
            [drift.mean for drift in drifts],
            yerr=[drift.error or 0.0 for drift in drifts],
            elinewidth=0.6,
            markersize=4.5,
            label=", ".join(line[:2]) if first else None,
            **style,
        )
        if kind == 0 and line[3]:
            end = points[-1].calls, drifts[-1].mean
            axes.annotate(f"t = {line[3]:g}", end, xytext=(8, -3), textcoords="offset points", fontsize=8)
    for found in {id(found): found for most in presets.values() if (found := read_off(results, most))}.values():
        names = ", ".join(name for name, most in presets.items() if read_off(results, most) is found)
        place = found.calls, found.drift().mean
        axes.scatter(*place, s=130, facecolors="none", edgecolors="black", zorder=5)
        axes.annotate(names, place, xytext=(8, 9), textcoords="offset points", fontweight="bold")
    counts = sorted({candidate.calls for candidate in results.candidates if candidate.calls})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("calls of the denoiser per image")
    axes.set_ylabel("PSNR to the reference, dB (higher is nearer)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return draw(figure, metadata={"Software": None})
