"""The Pareto benchmark as a picture: drift against calls, and quality against the truth."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from bfr.benchmarks.quality.pareto_results import Allowance, Candidate, Line, Study, read_off
from bfr.benchmarks.speed.plots import COLOURS, draw

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))  # by spacing
MARKERS = ("o", "s", "^", "D")  # by eta
BAND, CHOSEN = "#56B4E9", "#222222"


def as_png(results: Study, presets: Mapping[str, Allowance]) -> bytes:
    """Two panels as PNG: a line a solver, spacing and eta; presets: which are circled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.2), dpi=150, layout="constrained")
    settings, facts = results.settings, results.facts
    figure.suptitle(
        f"{facts['system']}, {facts['image_size']}x{facts['image_size']}: {len(results.reference.samples)} faces, "
        f"{settings['level']}; reference: {results.reference}",
        fontsize=11,
    )
    drift, quality = figure.subplots(1, 2)
    styles = _styles(results)
    chosen: dict[int, tuple[Candidate, list[str]]] = {}
    for name, most in presets.items():
        if (found := read_off(results, most)) is not None:
            chosen.setdefault(id(found), (found, []))[1].append(name)
    _draw_drift(drift, results, styles)
    _draw_quality(quality, results, styles)
    for candidate, names in chosen.values():
        ring = {"s": 130, "facecolors": "none", "edgecolors": CHOSEN, "linewidths": 1.3, "zorder": 5}
        drift.scatter(candidate.calls, candidate.drift().mean, **ring)
        quality.scatter(*_truth(candidate), **ring)
        style = {"xytext": (-8, 9), "textcoords": "offset points", "ha": "right", "fontsize": 9, "color": CHOSEN}
        drift.annotate(", ".join(names), (candidate.calls, candidate.drift().mean), fontweight="bold", **style)
    for axes in (drift, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", zorder=-1)
    handles = [*_handles(styles), *quality.get_legend_handles_labels()[0]]
    columns = len(handles) if len(handles) <= 8 else -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return draw(figure, metadata={"Software": None})


def _draw_drift(axes: Any, results: Study, styles: "_Styles") -> None:
    spread = results.reference.drift()
    error = spread.error or 0.0
    axes.axhspan(spread.mean - error, spread.mean + error, color=BAND, alpha=0.45, linewidth=0, zorder=1)
    axes.axhline(spread.mean, color=BAND, linewidth=1.2, zorder=1)
    counts = sorted({candidate.calls for candidate in results.candidates if candidate.calls})
    left, right = (counts[0] / 1.35, counts[-1] * 1.35) if counts else (0.7, 1.4)
    _note(axes, right, spread.mean + error, "spread: other seeds of the reference")
    for candidate in results.candidates:
        if candidate.preset is None:
            axes.axhline(candidate.drift().mean, color="#777777", linewidth=1, linestyle=(0, (2, 3)), zorder=1)
            _note(axes, right, candidate.drift().mean, "the estimate, 0 calls")
    for line in styles:
        points = _along(results, line)
        calls, drifts = [point.calls for point in points], [point.drift() for point in points]
        errors = [found.error or 0.0 for found in drifts]
        axes.errorbar(calls, [found.mean for found in drifts], yerr=errors, elinewidth=0.6, **styles[line])
    axes.set_xscale("log", base=2)
    axes.set_xlim(left, right)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.margins(y=0.1)
    axes.set_xlabel("calls of the denoiser per image")
    axes.set_ylabel("PSNR to the reference, dB")
    axes.set_title("Drift from the reference (higher is nearer)", fontsize=10)


def _draw_quality(axes: Any, results: Study, styles: "_Styles") -> None:
    for line in styles:
        axes.plot(*zip(*(_truth(point) for point in _along(results, line)), strict=True), **styles[line])
    for candidate in results.front():
        if candidate.preset:
            style = {"xytext": (6, 6), "textcoords": "offset points", "fontsize": 8, "zorder": 5}
            axes.annotate(str(candidate.calls), _truth(candidate), path_effects=_halo(), **style)
    landmarks = [("*", 12, "reference", results.reference)]
    landmarks += [("X", 8, "estimate", c) for c in results.candidates if c.preset is None]
    for marker, size, name, candidate in landmarks:
        style = {"marker": marker, "markersize": size, "linestyle": "none", "color": "black"}
        label = f"{name}, {candidate.calls} calls"
        axes.plot(*_truth(candidate), label=label, markeredgecolor="white", zorder=6, **style)
    axes.margins(0.12)
    axes.set_xlabel("sharpness, 1 is the truth's")
    axes.set_ylabel("PSNR to the truth, dB")
    axes.set_title("Against the truth; numbers are calls, on the front of the left panel", fontsize=10)


_Styles = dict[Line, dict[str, Any]]


def _styles(results: Study) -> _Styles:
    """The line of each solver, spacing and eta: a colour, dashes, a marker."""
    lines = sorted({candidate.line for candidate in results.candidates if candidate.line is not None})
    solvers, spacings, etas = (dict.fromkeys(sorted({line[i] for line in lines})) for i in range(3))
    colour = dict(zip(solvers, cycle(COLOURS[1:6] + COLOURS[7:]), strict=False))
    dashes, marker = dict(zip(spacings, cycle(DASHES), strict=False)), dict(zip(etas, cycle(MARKERS), strict=False))
    shared = {"markersize": 4.5, "linewidth": 1.3, "zorder": 3}
    return {
        line: {"color": colour[line[0]], "linestyle": dashes[line[1]], "marker": marker[line[2]], **shared}
        for line in lines
    }


def _handles(styles: _Styles) -> list[Any]:
    """The legend: solvers by colour, spacings by dashes, etas by marker where there are several."""
    from matplotlib.lines import Line2D

    handles: dict[tuple[int, Any], Any] = {}
    several = len({line[2] for line in styles}) > 1
    for (solver, spacing, eta, _), style in styles.items():
        handles.setdefault((0, solver), Line2D([], [], color=style["color"], linewidth=2.5, label=solver))
        dashed = Line2D([], [], color="#555555", linestyle=style["linestyle"], label=f"spacing {spacing}")
        handles.setdefault((1, spacing), dashed)
        if several:
            shape = Line2D([], [], color="#555555", linestyle="none", marker=style["marker"], label=f"eta {eta:g}")
            handles.setdefault((2, eta), shape)
    return [handles[key] for key in sorted(handles)]


def _halo() -> list[Any]:
    """White around text that lines may cross."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]


def _truth(candidate: Candidate) -> tuple[float, float]:
    return candidate.truth("sharpness").mean, candidate.truth("psnr_db").mean


def _along(results: Study, line: Line) -> list[Candidate]:
    return sorted((c for c in results.candidates if c.line == line), key=lambda candidate: candidate.calls)


def _note(axes: Any, x: float, y: float, text: str) -> None:
    style = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": "#333333", "zorder": 5}
    axes.annotate(text, (x, y), xytext=(-3, 3), textcoords="offset points", path_effects=_halo(), **style)
