"""The vector-quantised autoencoder of VQGAN, key-compatible with the first stages of latent diffusion.

Esser et al., "Taming Transformers" (arXiv 2012.09841), section 3.1, in the layout that latent diffusion (arXiv
2112.10752) kept for its VQ-regularised first stages: `encoder.*`, `decoder.*`, `quantize.embedding.weight`,
`quant_conv.*`, `post_quant_conv.*`. Both codes are under the MIT licence.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bfr.models.networks.autoencoder import Decoder, Encoder, Levels
from bfr.runtime.errors import InvalidOption

Parts = Literal["both", "encoder", "decoder"]

CODES_AT_ONCE = 2048  # 16,384 positions (a 512 image, quarter size) x 2,048 float32 distances are 128 MiB


class VectorQuantizer(nn.Module):
    """The nearest of `n_embed` codes at each position: z (B, embed_dim, h, w) -> codes of the same shape.

    Its gradient is the identity ("straight-through", section 3.1), which leaves codes rounded as z + (code - z).
    """

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def indices(self, z: Tensor) -> Tensor:
        """(B, embed_dim, h, w) -> (B, h, w) int64, of the nearest code, of equally near ones the first.

        |z - e|^2 less |z|^2, which no code changes: left out, it does not round the differences away. Parts of the
        codebook take turns, so that the distances of all positions to all codes need not lie side by side.
        """
        _, channels, height, width = z.shape
        points = z.detach().permute(0, 2, 3, 1).reshape(-1, channels)
        nearest = least = None
        for start in range(0, self.embedding.num_embeddings, CODES_AT_ONCE):
            codes = self.embedding.weight[start : start + CODES_AT_ONCE]
            distance = (codes * codes).sum(1) - 2.0 * (points @ codes.T)
            index, smallest = distance.argmin(-1) + start, distance.amin(-1)
            if nearest is None or least is None:
                nearest, least = index, smallest
            else:
                nearest = torch.where(smallest < least, index, nearest)
                least = torch.minimum(smallest, least)
        return cast(Tensor, nearest).reshape(-1, height, width)

    def forward(self, z: Tensor) -> Tensor:
        codes = self.embedding(self.indices(z)).permute(0, 3, 1, 2)
        return cast(Tensor, z + (codes - z).detach())


class VQModel(nn.Module):
    """The autoencoder: RGB images (B, 3, S, S) in [-1, 1] <-> latents z (B, embed_dim, s, s), about of unit size.

    The parameters carry the names of the published configurations (`ddconfig`, `n_embed`, `embed_dim`), except `parts`.
    A latent may be of any scale before quantisation.

    Args:
        n_embed: Number of codes.
        embed_dim: Channels of a latent.
        in_channels: Channels of the encoder's images.
        out_ch: Channels of the decoder's images.
        parts: What is built: "encoder", "decoder" (with the codes), or "both".
        **levels: The fields of `Levels`.

    Raises:
        InvalidOption: The options do not fit together.
    """

    def __init__(
        self,
        *,
        n_embed: int,
        embed_dim: int,
        in_channels: int = 3,
        out_ch: int = 3,
        parts: Parts = "both",
        **levels: Any,
    ) -> None:
        super().__init__()
        if parts not in ("both", "encoder", "decoder"):
            raise InvalidOption(f"parts {parts!r}: choose both, encoder or decoder")
        shared = Levels(**levels)
        self.resolution, self.embed_dim = shared.resolution, embed_dim
        self.latent_size = shared.resolution >> (len(shared.ch_mult) - 1)
        if parts != "decoder":
            self.encoder = Encoder(shared, in_channels)
            self.quant_conv = nn.Conv2d(shared.z_channels, embed_dim, 1)
        if parts != "encoder":
            self.quantize = VectorQuantizer(n_embed, embed_dim)
            self.post_quant_conv = nn.Conv2d(embed_dim, shared.z_channels, 1)
            self.decoder = Decoder(shared, out_ch)

    def own_weights(self, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a published checkpoint is this module's: without the parts that it was built without, and `loss.*`.

        The checkpoints also hold the discriminator and the perceptual network that they were trained with.
        """
        own = {name.split(".", 1)[0] for name in self.state_dict()}
        return {name: value for name, value in checkpoint.items() if name.split(".", 1)[0] in own}

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, in_channels, S, S) -> z (B, embed_dim, s, s), not quantised: what latent diffusion works on."""
        return cast(Tensor, self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, embed_dim, s, s) -> (B, out_ch, S, S), not clipped; quantised first, as latent diffusion does."""
        return cast(Tensor, self.decoder(self.post_quant_conv(self.quantize(z))))

    def forward(self, x: Tensor) -> Tensor:
        """An image, encoded, quantised and decoded."""
        return self.decode(self.encode(x))


ARCHITECTURES = {"vqmodel": VQModel}
