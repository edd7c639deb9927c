"""How far the face of an image is from an identity, as a face recognizer measures it.

Yang et al., "PGDiff" (arXiv 2309.10810), guide a diffusion model with the gradient of this distance for an image; Suin
and Chellappa, "CLR-Face" (arXiv 2402.06106), for the image that a latent decodes to. Crop and resize are a product with
two constant matrices: its gradient is one too, and an exported graph has no resampling.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bfr.models.networks.resize import resize_matrix
from bfr.models.networks.vqgan import VQModel
from bfr.runtime.errors import InvalidOption

Metric = Literal["cosine", "mse"]
Crop = Literal["arcface", "whole"]

# Pixel coordinates (x, y) of left eye, right eye, nose, left and right corner of the mouth: of faces aligned as FFHQ's
# at 512x512, and of the 112x112 faces that ArcFace was trained on.
FFHQ_512 = ((192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15))
ARCFACE_112 = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
EPS = 1e-12  # below it an embedding's squared length counts as it


def arcface_box(size: int) -> tuple[float, float, float, float]:
    """Where ArcFace's crop lies in an FFHQ-aligned image of side `size`: left, top, right, bottom, in pixels.

    The scale and shift that bring FFHQ's landmarks nearest to ArcFace's in the least squares sense; both stand upright:
    there is no rotation. Landmarks count pixels by their centres, boxes by their edges.
    """
    source = torch.tensor(FFHQ_512, dtype=torch.float64) + 0.5
    target = torch.tensor(ARCFACE_112, dtype=torch.float64) + 0.5
    a, b = source - source.mean(0), target - target.mean(0)
    scale = float((a * a).sum() / (a * b).sum())  # of source pixels in one of the target
    left, top = (source.mean(0) - scale * target.mean(0)).tolist()
    side = 112.0 * scale
    left, top, right, bottom = (size / 512.0 * edge for edge in (left, top, left + side, top + side))
    return left, top, right, bottom


class LatentMask(nn.Module):
    """A learnable mask over latents, (1, C, h, w), that starts at 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class IdentityDistance(nn.Module):
    """`x0 (B, C, h, w), target (B, E) -> (B,)`: how far the identity of each image is from its target embedding.

    Args:
        recognizer: Faces (B, 3, R, R) in [-1, 1] -> embeddings (B, E); its attributes `image_size` and `embedding` are
            R and E.
        image_size: Side S of the images, RGB in [-1, 1].
        autoencoder: What decodes x0 to the image; None if x0 is the image.
        metric: "cosine", 1 - cos, from 0 to 2, and 1 for a target of zeros, towards which it has no gradient; "mse",
            the squared length of the difference, PGDiff's, which depends on the lengths of embeddings too.
        crop: "arcface", its crop of an FFHQ-aligned face, or "whole", as PGDiff resizes the image.
        mask_shape: (1, C, h, w) of `latent_mask`, which starts at 1: where, and how much, a gradient may change x0.

    Raises:
        InvalidOption: The metric or the crop is unknown.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        recognizer: nn.Module,
        *,
        image_size: int,
        autoencoder: VQModel | None = None,
        metric: Metric = "cosine",
        crop: Crop = "arcface",
        mask_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (("metric", metric, get_args(Metric)), ("crop", crop, get_args(Crop))):
            if value not in choices:
                raise InvalidOption(f"{name} {value!r}: choose one of {', '.join(choices)}")
        self.recognizer, self.autoencoder = recognizer, autoencoder
        self.image_size, self.metric = image_size, metric
        self.size, self.embedding = int(recognizer.image_size), int(recognizer.embedding)  # type: ignore[arg-type]
        whole = (0.0, 0.0, image_size, image_size)
        left, top, right, bottom = arcface_box(image_size) if crop == "arcface" else whole
        # (S, R) each: resize the columns of pixels by their product with the one, the rows by that with the other
        for name, start, stop in (("columns", left, right), ("rows", top, bottom)):
            matrix = torch.from_numpy(resize_matrix(image_size, self.size, start, stop, filter="bilinear"))
            self.register_buffer(name, matrix.T.float().contiguous(), persistent=False)
        self.latent_mask = None if mask_shape is None else LatentMask(mask_shape)

    @property
    def mask(self) -> Tensor | None:
        """(1, C, h, w), or None if there is none."""
        return None if self.latent_mask is None else self.latent_mask.weight

    def image(self, x0: Tensor) -> Tensor:
        """(B, C, h, w) -> RGB (B, 3, S, S), about in [-1, 1], not clipped: clipping would stop gradients."""
        return x0 if self.autoencoder is None else self.autoencoder.decode(x0)

    def face(self, image: Tensor) -> Tensor:
        """RGB (B, 3, S, S) -> the recognizer's input, (B, 3, R, R)."""
        narrow = _along(image, self.columns)
        return _along(narrow.transpose(2, 3), self.rows).transpose(2, 3)

    def embed(self, image: Tensor) -> Tensor:
        """RGB (B, 3, S, S) in [-1, 1] -> (B, E), as long as the recognizer makes it."""
        embedding: Tensor = self.recognizer(self.face(image))
        return embedding

    def forward(self, x0: Tensor, target: Tensor) -> Tensor:
        embedding = self.embed(self.image(x0))
        if self.metric == "mse":
            return ((embedding - target) ** 2).sum(1)
        return 1.0 - (_unit(embedding) * _unit(target)).sum(1)


def _along(images: Tensor, matrix: Tensor) -> Tensor:
    """(B, C, H, W), (W, R) -> (B, C, H, R): one product of two matrices, whatever the batch."""
    _, channels, height, width = images.shape
    return (images.reshape(-1, width) @ matrix).reshape(-1, channels, height, matrix.shape[1])


def _unit(embedding: Tensor) -> Tensor:
    return embedding * torch.rsqrt((embedding * embedding).sum(1, keepdim=True).clamp(min=EPS))
