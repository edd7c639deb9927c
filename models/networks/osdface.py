"""OSDFace's visual representation embedder: a degraded face -> the tokens that Stable Diffusion attends to.

Wang et al., "OSDFace: One-Step Diffusion Model for Face Restoration" (arXiv 2411.17163), section 3.2: the face is
encoded and quantised as in VQGAN (arXiv 2012.09841), and the 77 nearest distinct codes take the place of a text. The
names of weights are those of the published files: `associate_2.ckpt` without its prefix `vqvae_LQ.` and its decoder,
and `embedding_change_weights.pth`.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.networks.autoencoder import Encoder, Levels, normalize

VISUAL_EMBEDDER: dict[str, Any] = {
    "ch": 64,
    "ch_mult": [1, 2, 2, 2, 4, 8],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "resolution": 512,
    "z_channels": 512,
    "n_embed": 1024,
    "embed_dim": 512,
    "tokens": 77,
    "context_dim": 1024,
}
"""Parameters of the published embedder."""


class Attention(nn.Module):
    """Residual self-attention of one head over the positions of (B, channels, H, W).

    The published block has a second norm for attention to another feature map, which only its decoder does.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = normalize(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm1(x)
        q, k, v = (conv(h).reshape(-1, channels, height * width) for conv in (self.q, self.k, self.v))
        weight = torch.softmax((q * channels**-0.5).transpose(1, 2) @ k, dim=-1)  # (B, of q, of k)
        h = (weight @ v.transpose(1, 2)).transpose(1, 2).reshape(-1, channels, height, width)
        return cast(Tensor, x + self.proj_out(h))


def first_of_each(distance: Tensor, code: Tensor, count: int) -> Tensor:
    """Which positions hold the `count` nearest distinct codes: (B, count, N) float32 of 0 and 1.

    distance, code: (B, N), each position's distance to its code, and that code. Positions are ordered by distance,
    equally distant ones as they stand; each code counts where it comes first in that order. Row k has its 1 at the
    k-th of them, and none where there are not that many.

    The published code sorts on the device and picks in a loop on the host, which waits for every number and takes one
    image only. Here every position is compared with every other, so nothing depends on how a library's sort or TopK
    orders equal numbers: N is 256. Sums are of zeros and ones, exact in float32.
    """
    index = torch.arange(code.shape[1], device=code.device)
    nearer, tied = distance[:, None, :] < distance[:, :, None], distance[:, None, :] == distance[:, :, None]
    before = nearer | (tied & (index[None, :] < index[:, None]))  # (B, i, j): j comes before i
    same = code[:, None, :] == code[:, :, None]
    first = (before & same).float().sum(-1) == 0  # (B, N)
    rank = (before & first[:, None, :]).float().sum(-1)
    rows = torch.arange(count, device=code.device, dtype=torch.float32)
    return ((rank[:, None, :] == rows[:, None]) & first[:, None, :]).float()


class Codebook(nn.Module):
    """z (B, embed_dim, r, r) -> the nearest distinct codes (B, tokens, embed_dim), nearest first, then zeros."""

    def __init__(self, n_embed: int, embed_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def forward(self, z: Tensor) -> Tensor:
        points, codes = z.flatten(2).transpose(1, 2), self.embedding.weight
        # The published sum, in its order: distances that differ by a rounding could take each other's places.
        distance = (points**2).sum(2, keepdim=True) + (codes**2).sum(1) - 2 * torch.matmul(points, codes.t())
        nearest = distance.argmin(-1)  # of equally near codes the first
        chosen = first_of_each(distance.amin(-1), nearest, self.tokens)
        return torch.matmul(chosen, self.embedding(nearest))  # one term of each sum is not zero: exact


class Projection(nn.Module):
    """Codes (B, tokens, embed_dim) -> context (B, tokens, context_dim): each on its own, SiLU after both layers."""

    def __init__(self, embed_dim: int, context_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(embed_dim, embed_dim // 2, 1)
        self.conv2 = nn.Conv1d(embed_dim // 2, context_dim, 1)

    def forward(self, codes: Tensor) -> Tensor:
        return F.silu(self.conv2(F.silu(self.conv1(codes.transpose(1, 2))))).transpose(1, 2)


class VisualEmbedder(nn.Module):
    """image (B, 3, H, W) float32 in [-1, 1] -> context (B, tokens, context_dim), float32.

    Two properties of the published code are kept. The image is mapped by (x - 0.5) / 0.5 although it lies in [-1, 1]
    already: the encoder was trained on [-3, 1]. And where there are fewer distinct codes than tokens, the other codes
    are zero; their context is not, since the projection has biases.

    Choosing codes is not continuous: where codes are nearly equally near, other rounding may choose others. The order
    of the tokens does not matter to attention, but half precision would change the choice: keep this network in
    float32.

    The parameters carry the published names, see `VISUAL_EMBEDDER`.

    Args:
        n_embed: Number of codes.
        embed_dim: Length of a code.
        tokens: Length of the context.
        context_dim: Width of the context.
        **levels: The fields of `Levels`; images are resized to its resolution, bilinear.

    Raises:
        InvalidOption: The options do not fit together.
    """

    def __init__(self, *, n_embed: int, embed_dim: int, tokens: int, context_dim: int, **levels: Any) -> None:
        super().__init__()
        shared = Levels(**levels)
        self.resolution = shared.resolution
        self.encoder = Encoder(shared, attention=Attention)
        self.quantize = Codebook(n_embed, embed_dim, tokens)
        self.quant_conv = nn.Conv2d(shared.z_channels, embed_dim, 1)
        self.embedding_change = Projection(embed_dim, context_dim)

    def forward(self, image: Tensor) -> Tensor:
        side = self.resolution
        if tuple(image.shape[2:]) != (side, side):
            image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
        z = self.quant_conv(self.encoder((image - 0.5) / 0.5))
        return cast(Tensor, self.embedding_change(self.quantize(z)))


ARCHITECTURES = {"visual-embedder": VisualEmbedder}
