"""The two networks of `mini`: one UNet on the 4x pixel-unshuffled image, with and without time."""

from typing import Any

from bfr.models.networks.unet import UNet

IMAGE_SIZE = 256

_SHARED: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (16,),
    "channel_mult": (2, 3, 4),
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "unshuffle": 4,
    "residual": True,
}
ESTIMATOR: dict[str, Any] = {
    **_SHARED,
    "time_conditioned": False,
    "channel_mult": (2, 3, 4, 4),  # a level of 8x8 more than the denoiser, for faces of which little is left
    "attention_resolutions": (16, 8),
}
DENOISER: dict[str, Any] = {**_SHARED, "time_conditioned": True}
PARAMETERS = {"estimator": ESTIMATOR, "denoiser": DENOISER}


def build(role: str) -> UNet:
    """A new `estimator` or `denoiser` whose last layers are zero: it starts as the identity, or from no noise."""
    network = UNet(**PARAMETERS[role])
    last = [network.out[2], network.gain] if network.time_conditioned else [network.out[2]]
    for layer in last:
        for parameter in layer.parameters():
            parameter.detach().zero_()
    return network
