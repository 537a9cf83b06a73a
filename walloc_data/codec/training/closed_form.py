"""Codecs without iterations: the Karhunen-Loeve encoder, the least-squares decoder, and a codec's statistics.

All are running sums over training pictures, in float64.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from walloc_data.codec.model import WallocCodec
from walloc_data.codec.training.picture_sets import Pixels
from walloc_data.codec.wavelets import wavelet_analysis
from walloc_data.errors import CodecError
from walloc_data.latents import expand

__all__ = ["fit_klt", "fit_linear_decoder", "latent_statistics", "whole_cells"]


def whole_cells(pictures: Iterable[Pixels], *, J: int) -> Iterator[Tensor]:
    """Yield pictures as (1, 3, H, W) uint8, cropped at the right and bottom to whole cells; smaller ones are
    skipped.
    """
    size = 2**J
    for picture in pictures:
        height, width = picture.shape[0] // size * size, picture.shape[1] // size * size
        if height and width:
            yield torch.from_numpy(np.array(picture[:height, :width])).permute(2, 0, 1)[None]


def centred(images: Tensor) -> Tensor:
    """Convert uint8 pictures to float32 in [-1/2, 1/2]."""
    return images.float() / 255 - 0.5


class _Moments:
    """Running means and second moments of vectors."""

    def __init__(self, rows: int, columns: int) -> None:
        self.count = 0
        self.sum = torch.zeros(rows, dtype=torch.float64)
        self.other_sum = torch.zeros(columns, dtype=torch.float64)
        self.product = torch.zeros(rows, columns, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add the products of a (rows, n) and b (columns, n)."""
        a, b = a.double(), b.double()
        self.count += a.shape[1]
        self.sum += a.sum(1)
        self.other_sum += b.sum(1)
        self.product += a @ b.t()

    def covariance(self) -> Tensor:
        """Return the (rows, columns) covariance of the vectors added so far, float64."""
        if not self.count:
            raise CodecError("no picture is as large as one latent cell: use larger pictures")
        return self.product / self.count - torch.outer(self.sum, self.other_sum) / self.count**2


def fit_klt(pictures: Iterable[Pixels], *, J: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Return the encoder of largest variance: (weight (latent_dim, 3 * 4^J) of unit rows, mean (3 * 4^J,)), float64.

    Rows are ordered so that the colours of one tile of the packed picture hold neighbours in variance: WebP chooses
    its predictor for the three together.
    """
    bands = 3 * 4**J
    if latent_dim > bands or latent_dim % 3:
        raise CodecError(
            f"latent_dim must be a multiple of 3 up to the {bands} coefficients of J={J}, not {latent_dim}"
        )
    moments = _Moments(bands, bands)
    for images in whole_cells(pictures, J=J):
        X = wavelet_analysis(centred(images), J)[0].flatten(1)
        moments.add(X, X)
    if moments.count < bands:
        raise CodecError(f"{moments.count} cells are too few to fit {bands} coefficients: give more pictures")
    vectors = torch.linalg.eigh(moments.covariance())[1].flip(1)[:, :latent_dim].t()  # by falling variance
    # The sign of an eigenvector is arbitrary: make its largest entry positive, for reproducibility.
    largest = vectors.abs().argmax(1, keepdim=True)
    vectors = vectors * vectors.gather(1, largest).sign()
    tiles = latent_dim // 3
    rank = [3 * tile + colour for colour in range(3) for tile in range(tiles)]
    return vectors[rank], moments.sum / moments.count


def fit_linear_decoder(codec: WallocCodec, pictures: Iterable[Pixels]) -> nn.Conv2d:
    """Return the least-squares 1x1 convolution from expanded latents to coefficients, for the codec's encoder."""
    bands, dim = codec.channels * 4**codec.J, codec.latent_dim
    cross, auto = _Moments(bands, dim), _Moments(dim, dim)
    for images in whole_cells(pictures, J=codec.J):
        X = wavelet_analysis(centred(images), codec.J)[0].flatten(1)
        v = expand(codec.encode(images).float(), latent_bits=codec.latent_bits)[0].flatten(1)
        cross.add(X, v)
        auto.add(v, v)
    # The small diagonal keeps the solution finite for constant channels.
    within = auto.covariance() + 1e-9 * torch.eye(dim, dtype=torch.float64)
    weight = torch.linalg.solve(within, cross.covariance().t()).t()  # (bands, dim)
    bias = cross.sum / cross.count - weight @ (auto.sum / auto.count)
    linear = nn.Conv2d(dim, bands, 1)
    linear.load_state_dict({"weight": weight[:, :, None, None].float(), "bias": bias.float()})
    return linear.requires_grad_(False)


def latent_statistics(codec: WallocCodec, pictures: Iterable[Pixels]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, standard deviation) of every latent channel's integers."""
    moments = _Moments(codec.latent_dim, codec.latent_dim)
    for images in whole_cells(pictures, J=codec.J):
        z = codec.encode(images)[0].flatten(1)
        moments.add(z, z)
    deviation = moments.covariance().diagonal().clamp(min=0).sqrt()
    mean = moments.sum / moments.count
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in deviation)
