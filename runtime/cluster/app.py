"""The Serve application: which processes there are, and how they are wired.

`bfr serve` runs `engine` below its own HTTP server; `serve deploy` and KubeRay run `build`, where HTTP is Serve's too.
"""

from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.jobs.worker import JobServer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.faces import FaceServer
from bfr.runtime.serve.workers.handles import stream
from bfr.runtime.serve.workers.photos import PhotoServer

Handle = DeploymentHandle[Any]
FACES, PHOTOS, JOBS = "Faces", "Photos", "Jobs"
ONGOING = 10_000  # calls of a replica at once: queues are the front's and the batcher's, which know more than Serve
HEALTH: dict[str, Any] = {"health_check_period_s": 2, "health_check_timeout_s": 60, "graceful_shutdown_timeout_s": 30}
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Photos(PhotoServer):
    """A PhotoServer whose faces go to the replicas of the networks."""

    def __init__(self, options: ServeOptions, size: int, faces: Handle) -> None:
        super().__init__(options, streaming(faces), size=size)


class Jobs(JobServer):
    """A JobServer whose faces go to the replicas of the networks, which are the requests' own.

    app: the application that has them; None for the one that this is a part of. By name, because a deployment that is
    bound in two applications is deployed in both, and there are GPUs for one.
    """

    def __init__(self, options: ServeOptions, app: str | None) -> None:
        app = app or serve.get_replica_context().app_name
        super().__init__(options, streaming(serve.get_deployment_handle(FACES, app)))

    def __del__(self) -> None:
        """Serve calls it before a replica ends."""
        self.stop()


def deployments(options: ServeOptions, *, gpus: bool, app: str | None = None) -> tuple[Application, Application | None]:
    """The deployments without HTTP: photographs, and jobs where there are any.

    app: the name that the first will run under where the jobs become an application of their own.
    """
    size = Bundle.open(options.bundle or default_bundle()).manifest.image_size
    faces = _deployment(
        FaceServer, FACES, options.replicas or 1, options.max_replicas, 2 * options.batch_size, gpus
    ).bind(options)
    photos = _deployment(Photos, PHOTOS, options.photo_processes, None, 8, False).bind(options, size, faces)
    jobs = _deployment(Jobs, JOBS, 1, None, 1, False).bind(options, app) if options.jobs else None
    return photos, jobs


def build(options: ServeOptions) -> Application:
    """The whole application for `serve deploy` and KubeRay, HTTP included; its arguments are ServeOptions.

    Whether the networks are given GPUs is `ray_actor_options` of the deployment Faces in the Serve YAML.
    """
    photos, jobs = deployments(options, gpus=False)

    def interface() -> Any:
        """In the replica: the routes over a Front of its own."""
        made: list[Front] = []

        def front() -> Front:
            if not made:
                name = serve.get_replica_context().app_name
                made.append(Front(options))
                made[0].open(streaming(serve.get_deployment_handle(PHOTOS, name)))
            return made[0]

        return make_api(front)

    front: Any = serve.deployment(
        name="Front",
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 0},
        logging_config=QUIET,
        **HEALTH,
    )(serve.ingress(interface)())
    application: Application = front.bind(photos, jobs)
    return application


def streaming(handle: Handle) -> Any:
    """The method `restore` of whichever replica of a deployment, as a function."""
    return partial(stream, handle.options(method_name="restore", stream=True))


def _deployment(work: type, name: str, replicas: int, most: int | None, target: int, gpus: bool) -> serve.Deployment:
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if most is not None and most > replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": most,
                "target_ongoing_requests": target,
            }
        }
    return serve.deployment(
        name=name,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0},
        max_constructor_retry_count=2,
        logging_config=QUIET,
        **scaling,
        **HEALTH,
    )(work)
