"""The server as a Ray Serve application, as `serve deploy` and KubeRay start it: HTTP is Serve's own there."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import yaml
from live import face, restore, until

from bfr.benchmarks.end_to_end.server_process import COMMAND, kill_session
from bfr.runtime.cluster.deploy import serve_yaml
from bfr.runtime.errors import InvalidOption
from bfr.runtime.images.decode import decode_image
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.keys import hash_key
from bfr.runtime.serve.options import ServeOptions

PINNED = ("--backend", "onnxruntime-cpu", "--precision", "fp32")
OPTIONS = ServeOptions(presets=("fast",), batch=2, backend="onnxruntime-cpu")


def test_the_serve_yaml_makes_the_same_options_again() -> None:
    options = OPTIONS.model_copy(update={"keys": (f"{hash_key('k' * 24)} name=me",), "jobs": Path("/shared/jobs")})
    config = yaml.safe_load(serve_yaml(options, host="0.0.0.0", port=80))  # noqa: S104
    [application] = config["applications"]
    assert ServeOptions(**application["args"]) == options.model_copy(update={"precision": "fp32"})  # on every machine
    assert "num_gpus" not in application["deployments"][0]["ray_actor_options"]
    gpu = yaml.safe_load(serve_yaml(options.model_copy(update={"backend": "auto"}), host="::", port=80))
    assert gpu["applications"][0]["deployments"][0]["ray_actor_options"]["num_gpus"] == 1


def test_a_cluster_is_not_served_without_api_keys() -> None:
    with pytest.raises(InvalidOption, match="--api-key-file"):
        serve_yaml(OPTIONS, host="127.0.0.1", port=80)
    app = pytest.importorskip("bfr.runtime.cluster.app", exc_type=ImportError)
    with pytest.raises(InvalidOption, match="--api-key-file"):
        app.build(OPTIONS)


@pytest.mark.server
@pytest.mark.slow
def test_the_same_options_run_as_a_serve_application(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    printed = subprocess.run(  # noqa: S603
        [*COMMAND, "--print-config", "--port", port, "--preset", "fast", "--jobs", str(tmp_path / "jobs"), *PINNED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "BFR_API_KEY": "k" * 24},
    )
    (tmp_path / "serve.yaml").write_text(printed.stdout)
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "serve.yaml")],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=(tmp_path / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url, key = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {'k' * 24}"}

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "out.txt").read_text()[-3000:]
        try:
            return bool(httpx2.get(f"{url}/ready", timeout=5).status_code == 200)
        except httpx2.TransportError:
            return False

    try:
        until(ready, 180)
        assert restore(url, face(1), mode="aligned").status_code == 401
        answer = restore(url, face(1), mode="aligned", headers=key)
        assert answer.status_code == 200
        with Restorer.open(preset="fast", backend="onnxruntime-cpu", precision="fp32", threads=1) as restorer:
            [expected] = restorer.restore([decode_image(face(1)).pixels])
        assert np.array_equal(decode_image(answer.content).pixels, expected)
        headers = {**key, "Content-Type": "image/png"}
        job = httpx2.post(f"{url}/jobs?mode=aligned", content=face(1), headers=headers, timeout=60).headers["location"]
        until(lambda: httpx2.get(url + job, headers=key, timeout=60).json()["state"] == "done")
        result = httpx2.get(f"{url}{job}/result", headers=key, timeout=60)
        assert np.array_equal(decode_image(result.content).pixels, expected)
        with pytest.raises(httpx2.ReadTimeout):
            restore(url, face(2), mode="aligned", headers=key, timeout=0.05)
        metrics = httpx2.get(f"{url}/metrics", headers=key, timeout=30).text
        assert 'bfr_requests_total{code="200",reason="",route="/restore"} 1.0' in metrics
        big = httpx2.post(
            f"{url}/restore", content=b"x" * 60_000_000, headers={"Content-Type": "image/png", **key}, timeout=60
        )
        assert big.status_code == 413
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            kill_session(process.pid)
