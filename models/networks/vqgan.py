"""The vector-quantised autoencoder of VQGAN, key-compatible with the first stages of latent diffusion.

Esser et al., "Taming Transformers" (arXiv 2012.09841), section 3.1, in the layout that latent diffusion (arXiv
2112.10752) kept for its VQ-regularised first stages: `encoder.*`, `decoder.*`, `quantize.embedding.weight`,
`quant_conv.*`, `post_quant_conv.*`. Both codes are under the MIT licence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.runtime.errors import InvalidOption

Parts = Literal["both", "encoder", "decoder"]

GROUPS = 32
EPS = 1e-6
CODES_AT_ONCE = 2048  # 16,384 positions (a 512 image, quarter size) x 2,048 float32 distances are 128 MiB


def normalize(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm as the published networks have it: epsilon 1e-6, not torch's 1e-5."""
    return nn.GroupNorm(groups, channels, eps=EPS)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): a strided 3x3 convolution, padded at right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        # Not F.interpolate: it reads the batch as a number, which would become a constant of a recorded gradient.
        x = torch.ops.aten.upsample_nearest2d.default(x, [2 * height, 2 * width])
        return cast(Tensor, self.conv(x))


class ResnetBlock(nn.Module):
    """Residual block (B, channels, H, W) -> (B, width, H, W), without time embedding."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = normalize(channels, groups)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = normalize(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if channels != width:
            self.nin_shortcut = nn.Conv2d(channels, width, 1)
        self.projects = channels != width

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, h + (self.nin_shortcut(x) if self.projects else x))


class AttnBlock(nn.Module):
    """Residual self-attention of one head over the H*W positions.

    The weights are an (H*W)^2 matrix an image: 1 GiB at 128x128 positions, as in the published code.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = normalize(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (conv(h).reshape(-1, channels, height * width) for conv in (self.q, self.k, self.v))
        weight = torch.softmax(q.transpose(1, 2) @ k * channels**-0.5, dim=-1)  # (B, of q, of k)
        h = (v @ weight.transpose(1, 2)).reshape(-1, channels, height, width)
        return cast(Tensor, x + self.proj_out(h))


Attention = Callable[[int, int], nn.Module]
"""Makes self-attention of so many channels, normalized in so many groups."""


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: Attention = AttnBlock) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = attention(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


@dataclass(frozen=True, slots=True)
class Levels:
    """What encoder and decoder share, by the names of the published configurations (`ddconfig`).

    Raises InvalidOption for options that do not fit together.

    Attributes:
        ch: Channels of the first level.
        ch_mult: Each level's channels as multiples of `ch`; a level has half the side of the one before.
        num_res_blocks: Residual blocks of a level.
        attn_resolutions: Sides at which every block is followed by an attention, counted from `resolution`.
        resolution: Side of images, S; that of latents is s = S / 2^(levels - 1).
        z_channels: Of what the encoder makes and the decoder reads.
        groups: Of GroupNorm; ours, fewer than 32 for small networks.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    groups: int = GROUPS

    def __post_init__(self) -> None:
        halvings = len(self.ch_mult) - 1
        if self.resolution % 2**halvings:
            raise InvalidOption(
                f"resolution {self.resolution} cannot be halved {halvings} times: choose a multiple of {2**halvings}, "
                "or fewer levels in ch_mult"
            )
        if any(self.ch * mult % self.groups for mult in (1, *self.ch_mult)):
            raise InvalidOption(
                f"ch {self.ch} times ch_mult {list(self.ch_mult)} must divide into {self.groups} groups: choose "
                "another ch, or groups"
            )


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by an attention where there is one, then a resampling.

    Args:
        levels: What all levels share.
        index: Of the level, the finest is 0.
        channels: That the first block reads; `width` are those that the level makes.
        count: Number of residual blocks.
        attention: Makes the attentions.
    """

    def __init__(self, levels: Levels, index: int, channels: int, count: int, attention: Attention = AttnBlock) -> None:
        super().__init__()
        width = self.width = levels.ch * levels.ch_mult[index]
        inputs = [channels, *[width] * (count - 1)]
        self.block = nn.ModuleList(ResnetBlock(read, width, levels.groups) for read in inputs)
        attends = levels.resolution >> index in levels.attn_resolutions
        self.attn = nn.ModuleList(attention(width, levels.groups) for _ in inputs if attends)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip_longest(self.block, self.attn):
            x = block(x) if attention is None else attention(block(x))
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Encoder(nn.Module):
    """(B, in_channels, S, S) -> (B, z_channels, s, s)."""

    def __init__(self, levels: Levels, in_channels: int = 3, attention: Attention = AttnBlock) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, levels.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels, last = levels.ch, len(levels.ch_mult) - 1
        for index in range(last + 1):
            level = Level(levels, index, channels, levels.num_res_blocks, attention)
            channels = level.width
            level.downsample = Downsample(channels) if index < last else None
            self.down.append(level)
        self.mid = Middle(channels, levels.groups, attention)
        self.norm_out = normalize(channels, levels.groups)
        self.conv_out = nn.Conv2d(channels, levels.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(h)))))


class Decoder(nn.Module):
    """(B, z_channels, s, s) -> (B, out_ch, S, S)."""

    def __init__(self, levels: Levels, out_ch: int = 3) -> None:
        super().__init__()
        channels = levels.ch * levels.ch_mult[-1]
        self.conv_in = nn.Conv2d(levels.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, levels.groups)
        up = []
        for index in reversed(range(len(levels.ch_mult))):
            level = Level(levels, index, channels, levels.num_res_blocks + 1)
            channels = level.width
            level.upsample = Upsample(channels) if index else None
            up.append(level)
        self.up = nn.ModuleList(reversed(up))  # finest first, as the encoder's
        self.norm_out = normalize(channels, levels.groups)
        self.conv_out = nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(h))))


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

    def decode(self, z: Tensor, *, quantize: bool = True) -> Tensor:
        """Latent (B, embed_dim, s, s) -> (B, out_ch, S, S), not clipped; quantised first, as latent diffusion does."""
        z = self.quantize(z) if quantize else z
        return cast(Tensor, self.decoder(self.post_quant_conv(z)))

    def forward(self, x: Tensor) -> Tensor:
        """An image, encoded, quantised and decoded."""
        return self.decode(self.encode(x))


ARCHITECTURES = {"vqmodel": VQModel}
