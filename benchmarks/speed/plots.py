"""The picture of `bfr bench`: the backends' denoising steps below the roofline."""

import io
from collections.abc import Sequence
from typing import Any

from bfr.benchmarks.speed.results import Results
from bfr.benchmarks.speed.roofline import Ceilings, Cost

# Okabe and Ito's colours, told apart by colour-blind readers and on grey paper.
COLOURS: tuple[str, ...] = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
COLOURS += ("#000000", "#8B6914", "#7F3C8D", "#A5AA99", "#F0E442")  # a GPU has more backends
MARKERS = ("o", "s", "^", "D", "v", "P")  # by batch size


def draw(figure: Any, **options: Any) -> bytes:
    """Return a figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", **options)
    return data.getvalue()


def roofline(results: Results) -> bytes | None:
    """Draw the denoising steps below the ceilings; None if no ceilings or no operation counts are known."""
    if results.ceilings is None or not results.costs or not results.measurements:
        return None
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ceilings, costs = results.ceilings, results.costs
    by_batch = {cost.batch: cost for cost in costs}
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_ceilings(axes, ceilings, costs)
    names = list(dict.fromkeys(m.backend for m in results.measurements))
    marker = {batch: MARKERS[i % len(MARKERS)] for i, batch in enumerate(results.batches)}
    style: Any = {"linestyle": "none", "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3}
    speeds = [by_batch[m.batch].flop / m.step_seconds / 1e12 for m in results.measurements]
    for m, speed in zip(results.measurements, speeds, strict=True):
        colour = COLOURS[names.index(m.backend) % len(COLOURS)]
        axes.plot(by_batch[m.batch].intensity, speed, marker=marker[m.batch], color=colour, **style)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, *speeds) / 2, high)
    handles: list[Any] = [Patch(color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(names)]
    for batch, shape in marker.items():
        handles += axes.plot([], [], linestyle="none", marker=shape, color="#444444", label=f"batch {batch}")
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return draw(figure)


def _draw_ceilings(axes: Any, ceilings: Ceilings, costs: Sequence[Cost]) -> None:
    """Draw the roof, and where a step would stand if every layer went through memory."""
    ridge = ceilings.flop_per_second / ceilings.bytes_per_second
    lowest = [cost.flop / cost.layer_bytes for cost in costs]
    xs = [min(*lowest, ridge) / 3, ridge, max(*(cost.intensity for cost in costs), ridge) * 4]
    roof = [min(ceilings.flop_per_second, x * ceilings.bytes_per_second) / 1e12 for x in xs]
    axes.plot(xs, roof, color="black", linewidth=1.8, zorder=2)
    product = f"{ceilings.flop_per_second / 1e12:.3g} TFLOP/s, {ceilings.dtype} product"
    copy = f"{ceilings.bytes_per_second / 1e9:,.4g} GB/s, copy"
    axes.annotate(product, (xs[2], roof[2]), xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=9)
    # Under the roof: left of it the text may leave the picture.
    axes.annotate(copy, (ridge, roof[1]), xytext=(8, -14), textcoords="offset points", ha="left", fontsize=9)
    axes.axvspan(min(lowest), max(lowest), color="#dddddd", alpha=0.6, linewidth=0, zorder=0)
    axes.axvline(min(lowest), color="#bbbbbb", linewidth=1, zorder=0)
    note = {"rotation": 90, "va": "bottom", "ha": "right", "fontsize": 8, "color": "#555555"}
    where = axes.get_xaxis_transform()
    axes.text(min(lowest), 0.02, " if every layer went through memory", transform=where, **note)
    axes.set(xscale="log", yscale="log", xlim=(xs[0], xs[2]), ylim=(roof[0], roof[2] * 2.5))
    axes.set_xlabel("arithmetic intensity: operations a byte, every weight, input and output moved once")
    axes.set_ylabel("TFLOP/s of a denoising step")
    axes.set_title(f"Roofline of {ceilings.device}", fontsize=11)
    axes.grid(which="major", color="#eeeeee", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
