"""The restoration loop as a model of Triton's Python backend, which calls the networks as other models of the server.

`bfr export-triton` writes the repository, whose `model.py` imports `TritonPythonModel` from here. The loop is that of
`Restorer`: its device lays out NumPy arrays, and each call of a network is an inference request inside the server.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bfr.runtime.backends.device import BoundCall, Buffer
from bfr.runtime.backends.host import HostDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BfrError, RestorationFailed
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer

IMAGE, RESTORED, SEED, PRESET = "image", "restored", "seed", "preset"
BATCH = "BATCH"  # parameter of the loop's model: the largest batch of the networks


def model_name(system: str, network: str) -> str:
    """The name of a network's model in the repository."""
    return f"{system}_{network}"


class TritonDevice(HostDevice):
    """The host, with networks that other models of the same server run."""

    name = "triton"

    def __init__(self, system: str, backend: Any) -> None:
        """Note where the networks are.

        Args:
            system: Name of the bundle in the repository.
            backend: The module `triton_python_backend_utils`, which exists inside the server alone.
        """
        super().__init__()
        self.system, self.backend = system, backend

    def load(self, _bundle: Bundle, name: str, _precision: Precision) -> "TritonNetwork":
        """Return the server's model of a network."""
        return TritonNetwork(model_name(self.system, name), self.backend)


class TritonNetwork:
    """A model of the server."""

    def __init__(self, model: str, backend: Any) -> None:
        self.model, self.backend = model, backend

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """Return a call that sends the inputs to the server's model and fills the outputs."""
        return lambda: self._call(inputs, outputs)

    def _call(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        utils = self.backend
        request = utils.InferenceRequest(
            model_name=self.model,
            inputs=[utils.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()],
            requested_output_names=list(outputs),
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise RestorationFailed(f"model {self.model} failed: {response.error().message()}")
        for name, buffer in outputs.items():
            buffer[...] = utils.get_output_tensor_by_name(response, name).as_numpy()


class TritonPythonModel:
    """The class that Triton's Python backend looks for; it creates one object for each instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle.

        Args:
            args: The server's; model_config, model_name, model_repository and model_version are read.
        """
        import triton_python_backend_utils as utils

        self.utils = utils
        self.bundle = Bundle.open(Path(args["model_repository"]) / args["model_version"])
        self.device = TritonDevice(args["model_name"], utils)
        parameters = json.loads(args["model_config"])["parameters"]
        self.batch = int(parameters[BATCH]["string_value"])
        self.restorers: dict[str | None, Restorer] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order. Requests of one preset and seed go through the networks together."""
        responses: dict[int, Any] = {}
        groups: dict[tuple[str | None, int], list[int]] = {}
        for i, request in enumerate(requests):
            preset, seed = self._scalar(request, PRESET), self._scalar(request, SEED)
            key = (
                preset.decode(errors="backslashreplace") if preset else None,
                DEFAULT_SEED if seed is None else int(seed),
            )
            groups.setdefault(key, []).append(i)
        for (preset, seed), members in groups.items():
            images = [self.utils.get_input_tensor_by_name(requests[i], IMAGE).as_numpy() for i in members]
            found = self._restore(preset, seed, images)
            responses |= {i: self._response(one) for i, one in zip(members, found, strict=True)}
        return [responses[i] for i in range(len(requests))]

    def finalize(self) -> None:
        """Called by the server at its end."""
        for restorer in self.restorers.values():
            restorer.close()

    def _restore(self, preset: str | None, seed: int, images: list[Any]) -> list[Any]:
        """An array, or what was wrong, for each image. One bad image spoils no other's result."""
        try:
            if preset not in self.restorers:
                sampler = self.bundle.preset(preset)
                self.restorers[preset] = Restorer(self.bundle, self.device, sampler, batch=self.batch)
            results = self.restorers[preset].run(images, seed=seed)
        except BfrError as error:
            if len(images) == 1:
                return [error]
            return [one for image in images for one in self._restore(preset, seed, [image])]
        return [RestorationFailed(str(one.error)) if one.pixels is None else one.pixels for one in results]

    def _response(self, outcome: Any) -> Any:
        if isinstance(outcome, BfrError):
            return self.utils.InferenceResponse(output_tensors=[], error=self.utils.TritonError(str(outcome)))
        return self.utils.InferenceResponse(output_tensors=[self.utils.Tensor(RESTORED, outcome)])

    def _scalar(self, request: Any, name: str) -> Any:
        tensor = self.utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]
