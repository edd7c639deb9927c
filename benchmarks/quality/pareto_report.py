"""The Pareto benchmark's tables as Markdown."""

from collections.abc import Mapping, Sequence

from bfr.benchmarks.quality.drift import LABELS, RULE
from bfr.benchmarks.quality.pareto_results import READ_OFF, Allowance, Candidate, Results, read_off
from bfr.benchmarks.tables import show, table

TRUTH = {
    "psnr_db": ("PSNR to truth", 2),
    "haar_psi": ("HaarPSI to truth", 4),
    "sharpness": ("sharpness", 3),
    "correlation": ("detail correlation", 3),
}


def as_markdown(results: Results, presets: Mapping[str, Allowance], *, plot: str) -> str:
    """The facts, the presets that are read off, the front, and every sampler; means ± standard errors.

    presets: to be read off. plot: the picture's file name.
    """
    facts, settings = results.facts, results.settings
    seeds = ", ".join(map(str, settings["other_seeds"]))
    size = facts["image_size"]
    lines = ["# Quality against calls", "", "```", facts["command"], "```", "", f"![Quality against calls]({plot})", ""]
    lines += [
        f"- System: {facts['system']}, {size}x{size}, {facts['precision']}; bundle `{settings['bundle']}`",
        f"- Reference: {results.reference}; seed {settings['seed']}, for the spread the seeds {seeds}",
        f"- Images: {len(results.reference.samples)}, {settings['level']}: {facts['degradation']}",
        f"- Backend: {settings['backend']}, {_threads(settings['threads'])}; {facts['machine']['CPU']}",
        "- Seconds are per image, one at a time, median; `cost` is their share of the reference's",
        f"- {RULE}",
        f"- {READ_OFF}",
        f"- {facts['definition']}",
        "- Values are means over the images ± their standard errors.",
        *([f"- {facts['attribution']}"] if facts["attribution"] else []),
        "",
        "## Presets",
        "",
        *table(
            ["preset", "calls at most", "dB behind at most", "sampler", "calls", "drift, dB", "spread"],
            _presets(results, presets),
        ),
        "",
        "## Pareto front",
        "",
        *_table(results, results.front()),
        "",
        "## All samplers",
        "",
        *_table(results, sorted(results.candidates, key=_order)),
    ]
    return "\n".join(lines) + "\n"


def _presets(results: Results, presets: Mapping[str, Allowance]) -> list[list[str]]:
    rows = []
    for name, allowance in presets.items():
        found = read_off(results, allowance)
        cells = [str(found), str(found.calls), show(found.drift(), 2), _verdict(results, found)] if found else ["none"]
        rows.append([name, str(allowance.calls), f"{allowance.db:g}", *cells, *[""] * (4 - len(cells))])
    return rows


def _table(results: Results, candidates: Sequence[Candidate]) -> list[str]:
    """A row of the reference with its spread, then one for each candidate."""
    head = ["sampler", "calls", *(f"drift {label}" for label, _ in LABELS.values()), "drift - spread, dB", "spread"]
    head += [*(label for label, _ in TRUTH.values()), "s", "cost"]
    rows = [_row(results, results.reference, f"reference: {results.reference}; its spread", "", "")]
    for candidate in candidates:
        difference = show(results.difference(candidate), 2, sign=True)
        rows.append(_row(results, candidate, str(candidate), difference, _verdict(results, candidate)))
    return table(head, rows)


def _row(results: Results, candidate: Candidate, name: str, difference: str, verdict: str) -> list[str]:
    drifts = [show(candidate.drift(measure), digits) for measure, (_, digits) in LABELS.items()]
    truths = [show(candidate.truth(measure), digits) for measure, (_, digits) in TRUTH.items()]
    cost = candidate.seconds / results.reference.seconds
    return [
        name,
        str(candidate.calls),
        *drifts,
        difference,
        verdict,
        *truths,
        f"{candidate.seconds:.3g}",
        f"{cost:.1%}",
    ]


def _verdict(results: Results, candidate: Candidate) -> str:
    return "within" if results.within_spread(candidate) else "outside"


def _threads(threads: int | None) -> str:
    return "threads as it chooses" if threads is None else f"{threads} thread{'s' * (threads > 1)}"


def _order(candidate: Candidate) -> tuple[str, str, float, int]:
    return (*(candidate.line or ("", "", 0.0)), candidate.calls)
