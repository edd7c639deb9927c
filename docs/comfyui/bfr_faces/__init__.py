"""A node of ComfyUI that restores faces with bfr. Copy this folder into ComfyUI's `custom_nodes`."""

from typing import Any

import numpy as np

from bfr.runtime import Restorer
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer

LEVELS = 65535.0


class RestoreFaces:
    """Restores the faces of pictures, or pictures that are aligned faces."""

    CATEGORY = "image/restoration"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE",)

    def __init__(self) -> None:
        self.opened: tuple[tuple[str, str, str], Restorer] | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802
        """What the node's widgets offer."""
        return {
            "required": {
                "image": ("IMAGE",),
                "bundle": ("STRING", {"default": "", "tooltip": "Folder or hf://owner/name; empty: mini"}),
                "preset": ("STRING", {"default": "", "tooltip": "Of the bundle, see `bfr info`; empty: its default"}),
                "backend": ("STRING", {"default": "auto"}),
                "upscale": ([1, 2, 4],),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
                "aligned": ("BOOLEAN", {"default": False, "tooltip": "The pictures are aligned faces"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
            }
        }

    def restore(
        self,
        image: Any,
        bundle: str,
        preset: str,
        backend: str,
        upscale: int,
        strength: float,
        aligned: bool,
        seed: int,
    ) -> tuple[Any]:
        """image: (B, H, W, 3) float32 tensor in [0, 1], as every IMAGE of ComfyUI."""
        import torch

        pictures = [np.rint(one * LEVELS).astype(np.uint16) for one in image[..., :3].clamp(0, 1).cpu().numpy()]
        restorer = self._open(bundle, preset, backend)
        if aligned:
            results = restorer.restore(pictures, seed=seed)
        else:
            photos = PhotoRestorer(restorer, PhotoOptions(upscale=upscale, blend=strength))  # type: ignore[arg-type]
            results = [photos.restore(one, seed=seed).pixels for one in pictures]
        return (torch.from_numpy(np.stack(results).astype(np.float32) / LEVELS),)

    def _open(self, bundle: str, preset: str, backend: str) -> Restorer:
        """The networks stay loaded until another bundle, preset or backend is asked for."""
        key = (bundle, preset, backend)
        if self.opened is None or self.opened[0] != key:
            if self.opened:
                self.opened[1].close()
            self.opened = None
            self.opened = key, Restorer.open(bundle or None, preset=preset or None, backend=backend)
        return self.opened[1]


NODE_CLASS_MAPPINGS = {"BfrRestoreFaces": RestoreFaces}
NODE_DISPLAY_NAME_MAPPINGS = {"BfrRestoreFaces": "Restore faces (bfr)"}
