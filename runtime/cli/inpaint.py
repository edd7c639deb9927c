"""`bfr inpaint`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bfr.runtime.cli.terminal import progress_bar, say

inpaints = typer.Typer()


@inpaints.command()
def inpaint(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures of aligned faces, or folders of them.")],
    bundle: Annotated[Path, typer.Option(help="A bundle that inpaints, see `bfr export difface-inpainting`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="White where the picture is to be made up: an image, or a folder of them by name; "
            "without it, pixels that are 0."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="As of `bfr restore`.")] = "auto",
    preset: Annotated[str | None, typer.Option(help="A preset of the bundle, see `bfr info`.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Instead of the bundle's: how strongly known pixels pull, from 0.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 where the bundle has it.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the noise, 0 to 4294967295.")] = 12345,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU backend.")] = None,
    device: Annotated[int, typer.Option(help="Number of the GPU.")] = 0,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused.")] = 64_000_000,
) -> None:
    """Make up the holes of pictures of faces; every known pixel comes back as it was. Writes PNG and report.json."""
    from bfr.runtime.jobs.inpaint import inpaint_files
    from bfr.runtime.jobs.sources import find_images
    from bfr.runtime.restore.restorer import Restorer

    items = find_images(inputs, out=out)
    changed: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    with (
        Restorer.open(
            bundle, backend=backend, preset=preset, precision=precision, threads=threads, device=device, **changed
        ) as restorer,
        progress_bar() as bar,
    ):
        task = bar.add_task("inpainting", total=len(items))
        report = inpaint_files(
            restorer,
            items,
            mask,
            out,
            seed=seed,
            max_pixels=max_pixels,
            progress=lambda done, name: bar.update(task, completed=done, description=name),
        )
    for entry in report.entries:
        if entry.error:
            say(f"failed: {entry.source}: {entry.error}")
    failed = report.count("failed")
    print(f"{len(items)} image{'s' * (len(items) != 1)}: {len(items) - failed} inpainted, {failed} failed; see {out}")
    if failed:
        raise typer.Exit(1)
