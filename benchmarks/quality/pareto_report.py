"""The Pareto benchmark as Markdown, and as a picture: drift against calls."""

from collections.abc import Iterator, Sequence
from typing import Any

from bfr.benchmarks.quality.metrics import MEASURES
from bfr.benchmarks.quality.pareto_results import DRIFTS, PRESETS, READ_OFF, RULE, Candidate, Study
from bfr.benchmarks.speed.plots import COLOURS, MARKERS, draw
from bfr.benchmarks.tables import page, show, table

TRUTH = {
    "psnr_db": ("PSNR to truth", 2),
    "haar_psi": ("HaarPSI to truth", 4),
    "sharpness": MEASURES["sharpness"],
    "correlation": MEASURES["correlation"],
}


def as_markdown(results: Study) -> str:
    """Render the facts, the presets that are read off, the front, and every sampler; means ± standard errors."""
    facts, system = results.facts, results.facts["bundle"]
    seeds = ", ".join(map(str, facts["other_seeds"]))
    size, threads = system["image_size"], facts["threads"]
    threads = "threads as it chooses" if threads is None else f"{threads} thread{'s' * (threads > 1)}"
    known = [
        f"System: {system['system']}, {size}x{size}, fp32; bundle `{system['hash']}`",
        f"Reference: {results.reference}; seed {facts['seed']}, for the spread the seeds {seeds}",
        f"Images: {facts['images']}, {facts['level']}: {facts['degradation']}",
        f"Backend: {facts['backend']}, {threads}; {facts['machine']['CPU']}",
        "Seconds are per image, one at a time, median; `cost` is their share of the reference's",
        RULE,
        READ_OFF,
        facts["definition"],
        "Values are means over the images ± their standard errors.",
        *([facts["attribution"]] if facts["attribution"] else []),
    ]
    head = ["preset", "calls at most", "dB behind at most", "sampler", "calls", "drift, dB", "spread"]
    ordered = sorted(results.candidates, key=lambda one: (one.line or ("", "", 0.0, 0.0), one.calls))
    return page(
        "# Quality against calls",
        "![Quality against calls](pareto.png)",
        "\n".join(f"- {fact}" for fact in known),
        "## Presets",
        table(head, _presets(results)),
        "## Pareto front",
        _table(results, results.front()),
        "## All samplers",
        _table(results, ordered),
    )


def _presets(results: Study) -> Iterator[list[object]]:
    for name, found in results.presets().items():
        cells = [str(found), found.calls, show(found.drift(), 2), _verdict(results, found)] if found else ["none"]
        allowance = PRESETS[name]
        yield [name, allowance.calls, f"{allowance.db:g}", *cells]


def _table(results: Study, candidates: Sequence[Candidate]) -> str:
    """A row of the reference with its spread, then one for each candidate."""
    drifts = (f"drift {MEASURES[measure][0]}" for measure in DRIFTS)
    head = ["sampler", "calls", *drifts, "drift - spread, dB", "spread", *(label for label, _ in TRUTH.values())]
    head += ["s", "cost"]
    rows = [_row(results, results.reference, f"reference: {results.reference}; its spread", "", "")]
    for candidate in candidates:
        difference = show(results.difference(candidate), 2, sign=True)
        rows.append(_row(results, candidate, str(candidate), difference, _verdict(results, candidate)))
    return table(head, rows)


def _row(results: Study, candidate: Candidate, name: str, difference: str, verdict: str) -> list[str]:
    drifts = [show(candidate.drift(measure), MEASURES[measure][1]) for measure in DRIFTS]
    truths = [show(candidate.mean("truth", measure), digits) for measure, (_, digits) in TRUTH.items()]
    times = [f"{candidate.seconds:.3g}", f"{candidate.seconds / results.reference.seconds:.1%}"]
    return [name, str(candidate.calls), *drifts, difference, verdict, *truths, *times]


def _verdict(results: Study, candidate: Candidate) -> str:
    return "within" if results.within_spread(candidate) else "outside"


def as_png(results: Study) -> bytes:
    """Draw a line a solver, spacing, eta and start, coloured by the first two, as PNG; read-off presets are circled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    facts, spread = results.facts, results.reference.drift()
    size, error = facts["bundle"]["image_size"], spread.error or 0.0
    axes.set_title(
        f"{facts['bundle']['system']}, {size}x{size}, {facts['images']} faces, {facts['level']}; "
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
    chosen = results.presets()
    for found in {id(found): found for found in chosen.values() if found}.values():
        names = ", ".join(name for name, other in chosen.items() if other is found)
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
