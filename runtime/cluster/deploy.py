"""The same options as a Serve YAML: for `serve deploy` on a cluster, and for a RayService of KubeRay."""

import yaml

from bfr.runtime.errors import InvalidOption
from bfr.runtime.serve.options import ServeOptions

IMPORT_PATH = "bfr.runtime.cluster.app:build"
HEADER = """\
# Made by `bfr serve --print-config`: for `serve deploy FILE`, or below `serveConfigV2` of a RayService of KubeRay.
# The bundle, the folder of jobs and the API keys' hashes are of every node: use the same paths on all of them.
# A replica is a whole server: `num_replicas` or `autoscaling_config` says how many there are.
"""


def for_machines(options: ServeOptions) -> ServeOptions:
    """The options of servers on several machines. `auto` is float32: each machine would choose a precision for itself.

    Raises InvalidOption without an API key: a cluster listens beyond its machines.
    """
    if not options.keys:
        raise InvalidOption("a cluster needs API keys: give one with --api-key-file or BFR_API_KEY")
    return options.model_copy(update={"precision": "fp32"}) if options.precision == "auto" else options


def serve_yaml(options: ServeOptions, *, host: str, port: int) -> str:
    """The options as a file of Serve's schema, with a comment on its use.

    Each replica is given one GPU, or as many as it has workers, unless the CPU is asked for.

    Args:
        options: Options of each replica, with absolute paths.
        host: Address that the proxies of Serve listen on.
        port: Port of the same.

    Raises:
        InvalidOption: See `for_machines`.
    """
    options = for_machines(options)
    gpus = 0 if options.backend == "onnxruntime-cpu" else options.workers or 1
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": "bfr",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": options.model_dump(mode="json", exclude_defaults=True),
                "deployments": [
                    {
                        "name": "Server",
                        "num_replicas": 1,
                        "ray_actor_options": {"num_cpus": 1} | ({"num_gpus": gpus} if gpus else {}),
                    }
                ],
            }
        ],
    }
    text: str = yaml.safe_dump(config, sort_keys=False)
    return HEADER + text
