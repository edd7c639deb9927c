"""The face recognizer of ArcFace, key-compatible with insightface's published backbones.

Deng et al., "ArcFace" (arXiv 1801.07698): a residual network for 112x112 faces that starts at full resolution and whose
blocks are batch norm, convolution, batch norm, PReLU, convolution, batch norm (iResNet). The layout is that of
`arcface_torch`, e.g. `ms1mv3_arcface_r50_fp16.pth`, which PGDiff guides with.

insightface's code is under the MIT licence; its weights are for non-commercial research only, as are the faces that
they were trained on. No weights come with this package.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from bfr.runtime.errors import InvalidOption

DEPTHS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Residual block (B, channels, S, S) -> (B, width, S / stride, S / stride); the second convolution has the stride.

    The first block of a stage projects its input for the sum: `downsample`.
    """

    def __init__(self, channels: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if project else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        h = self.bn3(self.conv2(h))
        return cast(Tensor, h + (x if self.downsample is None else self.downsample(x)))


class IResNet(nn.Module):
    """Recogniser: RGB faces (B, 3, S, S) in [-1, 1] -> embeddings (B, embedding), float32, of any length.

    Faces of one person have embeddings of about one direction: compare them by their cosine. The published networks
    expect eyes, nose and mouth where ArcFace's template has them, see `bfr.models.networks.identity`.

    Args:
        layers: 18, 34, 50 or 100, or the number of blocks of each of the four stages.
        widths: Channels of each stage; the first is also the stem's.
        image_size: S, a multiple of 16; 112 in all published networks.
        embedding: Length of the embeddings.

    Raises:
        InvalidOption: The options do not fit together.
    """

    def __init__(
        self,
        *,
        layers: int | Sequence[int] = 50,
        widths: Sequence[int] = WIDTHS,
        image_size: int = 112,
        embedding: int = 512,
    ) -> None:
        super().__init__()
        blocks = _blocks(layers)
        if len(blocks) != 4 or len(widths) != 4 or min(*blocks, *widths) < 1:
            raise InvalidOption(
                f"layers {layers!r}, widths {list(widths)}: the recognizer has four stages. Name four counts of blocks "
                f"and four widths, all above 0, or leave widths out; layers may be {', '.join(map(str, DEPTHS))}"
            )
        if image_size < 16 or image_size % 16:
            raise InvalidOption(f"image_size {image_size}: choose a multiple of 16; published recognizers take 112")
        self.image_size, self.embedding = image_size, embedding
        channels = widths[0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        stages = []
        for count, width in zip(blocks, widths, strict=True):
            first = Block(channels, width, stride=2, project=True)
            rest = [Block(width, width, stride=1, project=False) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * (image_size // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, x: Tensor) -> Tensor:
        expected = (3, self.image_size, self.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"this recognizer takes faces of shape {expected}, fixed when it is built: resize the face"
            )
        h = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            h = stage(h)
        return cast(Tensor, self.features(self.fc(self.bn2(h).flatten(1))))


def _blocks(layers: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(layers, int):
        return tuple(layers)
    if layers not in DEPTHS:
        raise InvalidOption(
            f"layers {layers}: choose one of {', '.join(map(str, DEPTHS))}, or name the blocks of the four stages"
        )
    return DEPTHS[layers]
