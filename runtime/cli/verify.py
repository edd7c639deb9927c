"""`bfr verify`."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.terminal import conclude, tell
from bfr.runtime.errors import VerificationFailed
from bfr.runtime.install import need
from bfr.runtime.restore.options import OpenOptions


@expanded
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    opened: Annotated[OpenOptions, Flags(only=("backend", "device"))],
    preset: Annotated[
        str | None, typer.Option(help="Preset whose loop is compared. Default: reference, if the bundle has it.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Record the result on this machine: `auto` chooses the fastest verified backend."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the layers that deviate from float32, with range and error.")
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Compare a bundle with eager float32 PyTorch.

    Compares every network and the whole loop, in every precision of the bundle; int8 always on the CPU. If a network is
    below its floor, the error names the layer where the difference begins; --explain names it in any case. Both need
    the extra `explain`.
    """
    from bfr.runtime.bundle.bundle import Bundle

    whole = Bundle.open(bundle)
    sampler = whole.preset(whole.reference_preset if preset is None else preset)
    need("export", "torch", "safetensors", "onnxruntime")
    from bfr.export.verify.compare import open_reference
    from bfr.export.verify.compare import verify as compare
    from bfr.export.verify.explain import PACKAGES, Explanation, explain_all
    from bfr.runtime.backends.cuda.device import GpuDevice
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.bundle.machine import MachineFiles
    from bfr.runtime.restore.plan import make_plan

    if explain:
        need("explain", *PACKAGES)
    whole.check_all()
    reference = open_reference(whole, opened.device)
    plan = make_plan(whole, sampler)
    checks, failed = [], None
    explained: list[Explanation] = []
    for precision in whole.precisions:
        name = "onnxruntime-cpu" if precision == "int8" else opened.backend  # int8 is for the CPU
        with closing(open_device(name, whole, precision=precision, index=opened.device)) as where:
            gpu = where.facts.name if isinstance(where, GpuDevice) else None
            if explain:
                explained += explain_all(whole, plan, reference, precision, where.name, opened.device)
            try:
                checks += compare(whole, reference, precision, device=where, preset=preset, gpu=gpu, progress=tell)
            except VerificationFailed as error:
                failed = error
                break
    if record and not failed:
        MachineFiles(whole.hash).record_checks(checks)
    if as_json:
        listed: Any = [check.model_dump() for check in checks]
        if explain:
            listed = {"checks": listed, "explained": [one.as_json() for one in explained]}
        print(json.dumps(listed, indent=1))
    else:
        for one in explained:
            conclude(str(one))
        for check in checks:
            found = f"{check.psnr_db:6.1f} dB (floor {check.floor_db:.0f}), largest {check.max_abs:.1e}"
            conclude(f"{check.what}, {check.precision}, {check.backend}: {found}, relative {check.relative:.1e}")
    if failed:
        raise failed
