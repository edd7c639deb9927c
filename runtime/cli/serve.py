"""`bfr serve`. A flag overrides its environment variable, which overrides the file of `--config`."""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import Flags, expanded
from bfr.runtime.cli.terminal import volume
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.install import need
from bfr.runtime.serve.options import ListenOptions, ServeOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT = "BFR_SERVE_"
MODELS = (ListenOptions, ServeOptions)


def read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Make the values of a TOML file the command's defaults. Raises InputNotFound, InvalidOption."""
    if file is None:
        return None
    try:
        found = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise InputNotFound(f"{file} cannot be read ({error.strerror}): check --config") from error
    except ValueError as error:
        raise InvalidOption(f"{file} is not TOML ({error}): write name = value, one a line") from error
    _check_names(found, f"{file}: there is no option")
    try:
        for model in MODELS:
            model(**{name: value for name, value in found.items() if name in model.model_fields})
    except InvalidOption as error:
        raise InvalidOption(f"{file}: {error}") from None
    context.default_map = found
    return file


def _check_names(names: Iterable[str], what: str) -> None:
    known = [name for model in MODELS for name in model.model_fields if name != "keys"] + ["no_jobs"]
    if unknown := [name for name in names if name not in known]:
        raise InvalidOption(f"{what} {unknown[0]!r}: choose among {', '.join(known)}")


@expanded
def serve(
    listen: Annotated[ListenOptions, Flags(environment=ENVIRONMENT)],
    options: Annotated[
        ServeOptions,
        Flags(
            without=("keys",),
            argument="bundle",
            names={"presets": ("--preset",), "bundles": ("--bundle",)},
            environment=ENVIRONMENT,
        ),
    ],
    no_jobs: Annotated[bool, typer.Option("--no-jobs", help="Accept no jobs.", envvar=f"{ENVIRONMENT}NO_JOBS")] = False,
    config: Annotated[  # noqa: ARG001  (its callback has read it)
        Path | None,
        typer.Option(
            help="TOML file of options. The environment overrides it; flags override both.",
            callback=read_config,
            is_eager=True,
            envvar=f"{ENVIRONMENT}CONFIG",
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print these options as a Serve YAML for `serve deploy`, and exit.",
            envvar=f"{ENVIRONMENT}PRINT_CONFIG",
        ),
    ] = False,
) -> None:
    """Serve a bundle over HTTP, with a test page.

    Requests share batches. Standard output gets a JSON line for each request, with --verbose also for connections, with
    --quiet for neither. An environment variable or a --config file can set every option: --queue 32 is
    BFR_SERVE_QUEUE=32, or queue = 32 in the file.
    """
    given = [name.removeprefix(ENVIRONMENT).lower() for name in os.environ if name.startswith(ENVIRONMENT)]
    _check_names(set(given) - {"config", "print_config"}, f"{ENVIRONMENT}... in the environment: there is no option")
    need("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from bfr.runtime.files import cache_folder
    from bfr.runtime.serve.keys import KEY_VARIABLE, Keys
    from bfr.runtime.serve.options import check_host

    keys = Keys.read(listen.api_key_file, os.environ)
    os.environ.pop(KEY_VARIABLE, None)  # nothing that is started inherits it
    check_host(listen.host, bool(keys))
    jobs = None if no_jobs else options.jobs or cache_folder() / "jobs"
    options = options.model_copy(update={"jobs": jobs}).absolute()
    if print_config:
        from bfr.runtime.cluster.deploy import serve_yaml

        options = options.model_copy(update={"keys": keys.lines()})
        print(serve_yaml(options, host=listen.host, port=listen.port), end="")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # else the first process of a container ignores it
    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.hub import is_address
    from bfr.runtime.serve.logs import LEVEL_VARIABLE, log_as_json
    from bfr.runtime.serve.server import serve_forever

    for folder in options.folders.values():
        if not is_address(folder):
            bundle = Bundle.open(folder)
            for name in options.presets:
                bundle.preset(name)
    os.environ[LEVEL_VARIABLE] = "WARNING" if volume.quiet else "DEBUG" if volume.verbose else "INFO"
    log_as_json()
    raise typer.Exit(serve_forever(options, listen, keys))
