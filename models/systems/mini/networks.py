"""The two networks of `mini`: a UNet on 4x4 patches that estimates, and a small one on 2x2 patches that denoises."""

from typing import Any

from bfr.models.networks.unet import UNet

IMAGE_SIZE = 256

_SHARED: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "use_scale_shift_norm": True,
    "residual": True,
}
ESTIMATOR: dict[str, Any] = {
    **_SHARED,
    "num_res_blocks": 1,
    "attention_resolutions": (16, 8),
    "channel_mult": (2, 3, 4, 4),
    "num_head_channels": 64,
    "time_conditioned": False,
    "unshuffle": 4,
}
DENOISER: dict[str, Any] = {  # weak noise needs few channels, but all pixels: 32 for the 12 values of a 2x2 patch
    **_SHARED,
    "num_res_blocks": 0,
    "attention_resolutions": (),
    "channel_mult": (1, 1, 1, 1),
    "num_head_channels": 32,
    "time_conditioned": True,
    "unshuffle": 2,
}
PARAMETERS = {"estimator": ESTIMATOR, "denoiser": DENOISER}


def build(role: str) -> UNet:
    """A new `estimator` or `denoiser` whose last layers are zero: it starts as the identity, or from no noise."""
    network = UNet(**PARAMETERS[role])
    last = [network.out[2], network.gain] if network.time_conditioned else [network.out[2]]
    for layer in last:
        for parameter in layer.parameters():
            parameter.detach().zero_()
    return network
