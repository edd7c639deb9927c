"""`bfr serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.errors import MissingDependency

serves = typer.Typer()


@serves.command()
def serve(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; the default is the system mini.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine an API key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; BFR_API_KEY in the environment is one too.")
    ] = None,
    backend: Annotated[str, typer.Option(help="As of `bfr restore`.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or fp16 or int8 where the bundle has it.")] = "fp32",
    preset: Annotated[
        list[str] | None, typer.Option(help="Offer this preset; may be repeated, the first is the default. Else: all.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Faces that go through the networks together, across requests; 4, or 2 without a GPU."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU backend.")] = None,
    detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    replicas: Annotated[
        int | None, typer.Option(help="Processes that run the networks; the default is one for each GPU.")
    ] = None,
    max_replicas: Annotated[int | None, typer.Option(help="Scale up to so many processes by queue length.")] = None,
    photo_replicas: Annotated[
        int | None, typer.Option(help="Processes that decode, paste and encode; the default is one for four cores.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests in the house; more are answered 503 with Retry-After.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 120.0,
    linger: Annotated[float, typer.Option(help="Seconds that a batch waits to be filled.")] = 0.005,
    body_bytes: Annotated[int, typer.Option(help="Largest body of a request.")] = 50_000_000,
    body_seconds: Annotated[float, typer.Option(help="Seconds that a body may take to arrive.")] = 30.0,
    job_bytes: Annotated[int, typer.Option(help="Largest body of a job.")] = 2_000_000_000,
    max_pixels: Annotated[int, typer.Option(help="Larger images, results and frames are refused.")] = 64_000_000,
    jobs: Annotated[
        Path | None, typer.Option(help="Folder of long work; the default is in bfr's cache folder.")
    ] = None,
    no_jobs: Annotated[bool, typer.Option("--no-jobs", help="Take no long work.")] = False,
    keep_jobs: Annotated[float, typer.Option(help="Hours that finished jobs are kept.")] = 24.0,
    drain: Annotated[float, typer.Option(help="Seconds to finish what is in the house when told to end.")] = 60.0,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print these options as a Serve YAML for `serve deploy`, and end.")
    ] = False,
) -> None:
    """Serve a bundle over HTTP, with dynamic batching, and a page to try it. Logs JSON lines to standard output."""
    from importlib.util import find_spec

    if missing := [
        name for name in ("ray", "fastapi", "uvicorn", "multipart", "prometheus_client") if not find_spec(name)
    ]:
        raise MissingDependency(f'bfr serve needs {", ".join(missing)}: pip install "bfr-runtime[serve]"')
    from bfr.runtime.files import cache_folder
    from bfr.runtime.serve.options import check_host, make_options, read_keys

    keys = read_keys(api_key_file, os.environ)
    check_host(host, keys)
    options = make_options(
        bundle=bundle.absolute() if bundle else None,
        backend=backend,
        precision=precision,
        presets=tuple(preset or ()),
        batch=batch,
        threads=threads,
        detector=detector,
        replicas=replicas,
        max_replicas=max_replicas,
        photo_replicas=photo_replicas,
        queue=queue,
        timeout=timeout,
        linger=linger,
        body_bytes=body_bytes,
        body_seconds=body_seconds,
        job_bytes=job_bytes,
        max_pixels=max_pixels,
        jobs=None if no_jobs else (jobs or cache_folder() / "jobs").absolute(),
        keep_jobs=keep_jobs,
        keys=keys,
    )
    if print_config:
        from bfr.runtime.cluster.deploy import serve_yaml

        print(serve_yaml(options, host=host, port=port), end="")
        return
    from bfr.runtime.cluster.server import serve_forever
    from bfr.runtime.serve.http.logs import log_as_json

    log_as_json()
    raise typer.Exit(serve_forever(options, host=host, port=port, drain=drain))
