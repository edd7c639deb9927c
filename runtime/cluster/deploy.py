"""The same options as a Serve YAML: for `serve deploy` on a cluster, and for a RayService of KubeRay."""

from typing import Any

import yaml

from bfr.runtime.serve.options import ServeOptions

IMPORT_PATH = "bfr.runtime.cluster.app:build"
HEADER = """\
# Made by `bfr serve --print-config`: for `serve deploy FILE`, or below `serveConfigV2` of a RayService of KubeRay.
# The bundle, the folder of jobs and the API keys' hashes are of every node: use the same paths on all of them.
"""


def serve_config(options: ServeOptions, *, host: str, port: int) -> dict[str, Any]:
    """As Serve's schema has it. Each replica of the networks is given one GPU unless the CPU is asked for."""
    on_cpu = options.backend == "onnxruntime-cpu"
    faces: dict[str, Any] = {
        "name": "Faces",
        "ray_actor_options": {"num_cpus": 1} if on_cpu else {"num_cpus": 1, "num_gpus": 1},
    }
    if options.max_replicas:
        faces["autoscaling_config"] = {
            "min_replicas": options.replicas or 1,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": 2 * options.batch_size,
        }
    else:
        faces["num_replicas"] = options.replicas or 1
    # max_replicas is in the deployment's own configuration here.
    arguments = options.model_dump(mode="json", exclude_defaults=True, exclude={"max_replicas"})
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": "bfr",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": arguments,
                "deployments": [faces, {"name": "Photos", "num_replicas": options.photo_processes}],
            }
        ],
    }


def serve_yaml(options: ServeOptions, *, host: str, port: int) -> str:
    """`serve_config` as text, with a word on what to do with it."""
    text: str = yaml.safe_dump(serve_config(options, host=host, port=port), sort_keys=False)
    return HEADER + text
