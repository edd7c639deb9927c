"""The roofline as a picture: ceilings, and the denoising steps of every backend and batch below them."""

import io
from collections.abc import Sequence
from typing import Any

from bfr.benchmarks.speed.roofline import Ceilings, Cost

MARKERS = ("o", "s", "^", "D", "v", "P")  # by batch size


def as_png(
    ceilings: Ceilings, costs: Sequence[Cost], points: Sequence[tuple[str, int, float]], colours: Sequence[str]
) -> bytes:
    """The roofline as PNG. points: backend, batch and seconds of a step, the backends in the order of their colours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    by_batch = {cost.batch: cost for cost in costs}
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    ridge = ceilings.flop_per_second / ceilings.bytes_per_second
    lowest = [cost.flop / cost.layer_bytes for cost in costs]
    left, right = min(*lowest, ridge) / 3, max(*(cost.intensity for cost in costs), ridge) * 4
    xs = [left, ridge, right]
    roof = [min(ceilings.flop_per_second, x * ceilings.bytes_per_second) / 1e12 for x in xs]
    axes.plot(xs, roof, color="black", linewidth=1.8, zorder=2)
    axes.annotate(
        f"{ceilings.flop_per_second / 1e12:.3g} TFLOP/s, {ceilings.dtype} product",
        (right, roof[2]),
        xytext=(-4, 5),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.annotate(
        f"{ceilings.bytes_per_second / 1e9:,.4g} GB/s, copy",
        (ridge, roof[1]),
        xytext=(8, -14),  # under the roof: left of it the text may leave the picture
        textcoords="offset points",
        ha="left",
        fontsize=9,
    )
    axes.axvspan(min(lowest), max(lowest), color="#dddddd", alpha=0.6, linewidth=0, zorder=0)
    axes.axvline(min(lowest), color="#bbbbbb", linewidth=1, zorder=0)
    names = list(dict.fromkeys(name for name, _, _ in points))
    sizes = sorted({batch for _, batch, _ in points})
    for name, batch, seconds in points:
        cost = by_batch[batch]
        axes.plot(
            cost.intensity,
            cost.flop / seconds / 1e12,
            linestyle="none",
            marker=MARKERS[sizes.index(batch) % len(MARKERS)],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.6,
            color=colours[names.index(name) % len(colours)],
            zorder=3,
        )
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    lows = [by_batch[batch].flop / seconds / 1e12 for _, batch, seconds in points]
    axes.set_ylim(min(roof[0], *lows) / 2, roof[2] * 2.5)
    axes.set_xlabel("arithmetic intensity: operations a byte, every weight, input and output moved once")
    axes.set_ylabel("TFLOP/s of a denoising step")
    axes.set_title(f"Roofline of {ceilings.device}", fontsize=11)
    axes.grid(which="major", color="#eeeeee", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(
        min(lowest),
        0.02,
        " if every layer went through memory",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        color="#555555",
        rotation=90,
        va="bottom",
        ha="right",
    )
    handles: list[Any] = [Patch(color=colours[i % len(colours)], label=name) for i, name in enumerate(names)]
    for i, batch in enumerate(sizes):
        shape = MARKERS[i % len(MARKERS)]
        handles += axes.plot([], [], linestyle="none", marker=shape, color="#444444", label=f"batch {batch}")
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
