"""Exports and verifies the published DifFace 512 with name-seeded weights: `python -m
bfr.benchmarks.agreement.full_size`.

Needs no checkpoint: what the arithmetic costs, and how well backends agree, does not depend on what was learned. The
denoiser's last layer is scaled by 0.3, without which a random network makes the loop chaotic. Writes `full_size.json`,
the manifest's checks, and `full_size.md`. About 3 GB of memory and of temporary disk; 20 minutes on two cores.
`--export-only --keep DIR` makes the bundle and verifies nothing: for a machine with a GPU, where `bfr build` and
`bfr verify` do so faster.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.publish import say, write_json
from bfr.benchmarks.tables import table
from bfr.export.bundle import export_system
from bfr.export.options import ExportOptions
from bfr.models.catalog import get_system
from bfr.models.weights.seeded import write_seeded
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.files import write_bytes


def as_markdown(bundle: Bundle, seconds: float) -> str:
    """Render the checks of a verified bundle."""
    rows = []
    for check in bundle.manifest.verified:
        times = ["", "", ""]
        if check.seconds_a_step and check.eager_seconds_a_step:
            own, eager = check.seconds_a_step, check.eager_seconds_a_step
            times = [f"{own:.2f}", f"{eager:.2f}", f"{eager / own:.2f}x"]
        rows.append([check.what, check.precision, f"{check.psnr_db:.1f} dB", f"{check.max_abs:.1e}", *times])
    networks = [
        f"{name}: {network.parameter_count / 1e6:.2f} M parameters, {network.gflop} GFLOP a call"
        for name, network in bundle.manifest.networks.items()
    ]
    networks.append(f"{torch.get_num_threads()} CPU threads each")
    size = sum(path.stat().st_size for path in bundle.folder.iterdir()) / 2**20
    head = ["what", "precision", "PSNR", "largest error", "seconds a step", "eager", "speed-up"]
    lines = [
        "# DifFace 512, name-seeded weights",
        *table(head, rows),
        "",
        f"{'; '.join(networks)}. Bundle of {size:.0f} MiB, exported and verified in {seconds:.0f} s on this machine.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the report")
    parser.add_argument("--threads", type=int, help="of both backends; default: their own choice")
    parser.add_argument("--keep", type=Path, help="keep the bundle here")
    parser.add_argument("--precision", choices=("fp16", "bf16"), action="append", help="beside fp32; default: none")
    parser.add_argument("--export-only", action="store_true", help="verify nothing, report nothing; needs --keep")
    args = parser.parse_args(arguments)
    if args.export_only and args.keep is None:
        parser.error("--export-only makes nothing but the bundle: name its folder with --keep")
    if not args.export_only and args.out is None:
        parser.error("--out is needed, the folder of the report")
    system = get_system("difface")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights"
        weights.mkdir()
        write_seeded(system, weights)
        begin = time.perf_counter()
        folder = args.keep or Path(scratch) / "bundle"
        bundle = export_system(
            system,
            weights,
            folder,
            ExportOptions(precision=args.precision or (), replace=True),
            threads=args.threads,
            verified=not args.export_only,
            progress=say,
        )
        seconds = time.perf_counter() - begin
        if args.export_only:
            print(f"{bundle.folder}: exported in {seconds:.0f} s, not verified, hash {bundle.hash}")
            return 0
        text = as_markdown(bundle, seconds)
        checks = [check.model_dump() for check in bundle.manifest.verified]
        content = {"environment": describe_machine(), "seconds": round(seconds, 1), "checks": checks}
    write_json(args.out / "full_size.json", content)
    write_bytes(args.out / "full_size.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
