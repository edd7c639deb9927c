"""`bfr bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bfr.benchmarks.speed.options import BenchOptions
from bfr.runtime.cli.options import AS_JSON, OUT, Flags, expanded
from bfr.runtime.cli.terminal import conclude, tell
from bfr.runtime.errors import InvalidOption
from bfr.runtime.install import need


@expanded
def bench(
    options: Annotated[BenchOptions, Flags(argument="bundle", names=OUT, negative={"cold": "--no-cold"})],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[OTHER]...", help="More bundles to measure; one table compares all."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="3 repeats after 1 warm-up call: a trial, not a result.")
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Measure latency, throughput, memory and drift of backends.

    Backends take turns with eager PyTorch, if it is installed. --backends accepts eager-cpu, eager-cuda, eager-tf32,
    eager-half, torch-cpu (compiled), openvino-cpu, and the backends of `bfr restore --backend`, which may end in :fp16
    or :int8. +graph and +nograph turn CUDA graphs on and off. Each bundle runs on the backends that it supports.
    """
    from bfr.benchmarks.speed.compare import as_table, read_bench
    from bfr.benchmarks.speed.contender import split_name
    from bfr.runtime.bundle.bundle import Bundle, default_bundle

    bundles = [Bundle.open(folder) for folder in (options.bundle or default_bundle(), *(others or ()))]
    for bundle in bundles:
        bundle.preset(options.preset if bundle.denoisers or not others else None)
    for name in options.backends:
        precision = split_name(name).precision
        having = [bundle for bundle in bundles if precision in bundle.precisions]  # each runs what it has
        (having or bundles)[0].precision(precision)
    if others and options.compare:
        raise InvalidOption("--compare is for one bundle: leave out the others, or --compare")
    old = None if options.compare is None else read_bench(options.compare)
    need("bench", "torch", "safetensors", "matplotlib", "onnxruntime")
    from bfr.benchmarks.speed.bench import bench as measure
    from bfr.benchmarks.speed.several import bench_several

    if quick:
        options = options.model_copy(update={"repeats": 3, "warmup": 1})
    report = bench_several(bundles, options, tell) if others else measure(options, tell)
    found = report.with_name("bench.json").read_text("utf-8")
    if as_json:
        print(found)
        return
    conclude(report.read_text("utf-8"))
    if old is not None:
        conclude(as_table(old, json.loads(found)))
