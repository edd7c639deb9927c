"""The networks of identity guidance, built from the plain parameters that a bundle's manifest keeps.

Pixel space, after PGDiff (arXiv 2309.10810): `identity_guide`. Latent space, after CLR-Face (arXiv 2402.06106), which
restores in the latents of a VQ autoencoder: `clrface_guide` and `clrface_recoverer`. CLR-Face published neither code
nor weights: what its abstract says is here, a recovery network whose output's identity guides the loop, and a learnable
mask over the latent through which the recognizer's gradient passes. All sizes are parameters.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bfr.models.networks.arcface import IResNet
from bfr.models.networks.identity import Crop, IdentityDistance, Metric
from bfr.models.networks.unet import UNet
from bfr.models.networks.vqgan import VQModel
from bfr.runtime.errors import InvalidOption

Options = Mapping[str, Any]


def identity_guide(
    *, recognizer: Options, image_size: int, metric: Metric = "mse", crop: Crop = "arcface"
) -> IdentityDistance:
    """Build the identity distance of RGB images (B, 3, S, S) in [-1, 1].

    Args:
        recognizer: Options of IResNet.
        image_size: S.
        metric: The distance between embeddings.
        crop: The part of the image that the recognizer sees.
    """
    return IdentityDistance(IResNet(**recognizer), image_size=image_size, metric=metric, crop=crop)


def clrface_guide(
    *,
    recognizer: Options,
    autoencoder: Options,
    metric: Metric = "cosine",
    crop: Crop = "arcface",
) -> IdentityDistance:
    """Build the identity distance of latents (B, C, h, w), that is, of the images that they decode to.

    Args:
        recognizer: Options of IResNet.
        autoencoder: Options of VQModel, of which only the decoder is built.
        metric: The distance between embeddings.
        crop: The part of the image that the recognizer sees.
    """
    decoder = VQModel(**{**autoencoder, "parts": "decoder"})
    return IdentityDistance(
        IResNet(**recognizer),
        image_size=decoder.resolution,
        autoencoder=decoder,
        metric=metric,
        crop=crop,
        mask_shape=(1, decoder.embed_dim, decoder.latent_size, decoder.latent_size),
    )


class IdentityRecovery(nn.Module):
    """CLR-Face's identity recovery: latent (B, C, h, w) of a degraded image -> the embedding and image it stands for.

    The outputs are the recognizer's embedding (B, E) of the decoded image, and the image, RGB (B, 3, S, S), about in
    [-1, 1].

    Args:
        irn: latent -> latent, the identity recovery network.
        distance: Decodes and embeds; its mask, if any, is not used.
    """

    def __init__(self, irn: nn.Module, distance: IdentityDistance) -> None:
        super().__init__()
        self.irn, self.distance = irn, distance
        self.channels = distance.autoencoder.embed_dim if distance.autoencoder else 3

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        image = self.distance.image(self.irn(latent))
        return self.distance.embed(image), image


def clrface_recoverer(
    *, irn: Options, recognizer: Options, autoencoder: Options, crop: Crop = "arcface"
) -> IdentityRecovery:
    """Build the network of identity recovery.

    We could not verify the architecture of the paper's recovery network; a UNet, latent to latent, takes its place.

    Args:
        irn: Options of a UNet without time.
        recognizer: Options of IResNet.
        autoencoder: Options of VQModel, of which only the decoder is built.
        crop: The part of the image that the recognizer sees.
    """
    decoder = VQModel(**{**autoencoder, "parts": "decoder"})
    channels, size = decoder.embed_dim, decoder.latent_size
    given = {"in_channels": channels, "out_channels": channels, "image_size": size, "time_conditioned": False}
    wrong = [name for name, value in given.items() if irn.get(name, value) != value]
    if wrong:
        raise InvalidOption(
            f"irn: {', '.join(wrong)} must fit the latents: leave them out, or choose "
            + ", ".join(f"{name} {given[name]}" for name in wrong)
        )
    distance = IdentityDistance(IResNet(**recognizer), image_size=decoder.resolution, autoencoder=decoder, crop=crop)
    return IdentityRecovery(UNet(**{**irn, **given}), distance)


ARCHITECTURES = {"identity": identity_guide, "clrface-guide": clrface_guide, "clrface-recoverer": clrface_recoverer}
