"""The server as a Ray Serve application: a replica is a whole server, with workers for the GPUs that Ray gives it."""

import logging
import os
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from bfr.runtime.cluster.deploy import for_machines
from bfr.runtime.serve.engine import Engine
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.pool import Pool

SERVER = "Server"  # the name of the deployment
ONGOING = 10_000  # requests of a replica at once: admission control is the front's, which counts faces and bytes too
HEALTH: dict[str, Any] = {"health_check_period_s": 5, "health_check_timeout_s": 30, "graceful_shutdown_timeout_s": 60}


class _Server:
    """A replica. Ray calls the methods."""

    front: Front

    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        os.umask(0o077)
        logging.getLogger("bfr").setLevel(logging.INFO)
        options = options.fetched()
        self.front = Front(options)
        _fronts.append(self.front)
        self.engine = Engine(options, Pool(options))
        await self.engine.start(self.front)

    def check_health(self) -> None:
        """Raise if Ray should restart this process."""
        self.engine.check()

    async def __del__(self) -> None:
        """Before a replica ends: Serve has waited for its requests."""
        await self.engine.stop()


_fronts: list[Front] = []  # of this process: routes are made before it is


def front() -> Front:
    """The front of this replica."""
    return _fronts[-1]


def interface() -> FastAPI:
    """The routes of a replica. A function of this module, so that Ray passes its name on and no copy of `_fronts`."""
    return make_api(front)


def build(options: ServeOptions) -> Application:
    """The application for `serve deploy` and KubeRay; its arguments are ServeOptions. Raises as `for_machines`.

    How many replicas there are, and whether each is given a GPU, is the deployment's in the Serve YAML.
    """
    deployment: Any = serve.deployment(
        name=SERVER,
        max_ongoing_requests=ONGOING,
        max_constructor_retry_count=2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **HEALTH,
    )(serve.ingress(interface)(_Server))
    application: Application = deployment.bind(for_machines(options))
    return application
