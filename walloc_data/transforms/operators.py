"""Linear maps from latents of a picture to those of the flipped, recoloured or downscaled picture, fitted per codec.

Analysis filters do not commute with mirroring, the encoder mixes colours, and frequencies change with the size of a
picture, so these operations need maps fitted by least squares on pictures, stored with their held-out errors as
`operators.safetensors` in the codec's folder.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from walloc_data.errors import CodecError, StorageError, TransformError
from walloc_data.files import atomic_file
from walloc_data.format import CodecSpec
from walloc_data.latents import expand
from walloc_data.regression import WindowMap, WindowRegression
from walloc_data.storage import DatasetLocation, open_store
from walloc_data.transforms.rescaling import FACTORS, LARGEST_TERM, RescalingMap, RescalingSums, window_cells

__all__ = ["OPERATORS_NAME", "LatentOperators", "fit_operators"]

OPERATORS_NAME = "operators.safetensors"
MAX_OPERATORS_BYTES = 16 * 2**20
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's rgb_to_grayscale
_FITTED = ("flip", "grayscale")
_FLAT = ("grey", "brightness", "mean_luma")


class Encoder(Protocol):
    """Interface of a codec for fitting."""

    @property
    def spec(self) -> CodecSpec: ...

    def encode(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class LatentOperators:
    """Linear maps on the latents of one codec. v is `expand` of the stored integers z.

    Example:
        >>> from walloc_data.transforms import LatentOperators
        >>> operators = LatentOperators.load("my-latents")
        >>> operators.flip.weight.shape, operators.grey.shape
        (torch.Size([12, 12, 3, 5]), torch.Size([12]))
        >>> [str(factor) for factor in operators.factors]
        ['1/2', '3/5', '2/3', '3/4', '4/5', '1']
        >>> errors = operators.held_out_error
        >>> {name: round(errors[name], 2) for name in ("flip", "flip_naive", "rescale 2/3 x 2/3")}
        {'flip': 0.13, 'flip_naive': 0.96, 'rescale 2/3 x 2/3': 0.05}
    """

    encoder_sha256: str
    latent_bits: int
    flip: WindowMap  # z of the mirrored picture from z.flip(-1)
    grayscale: WindowMap  # v of the grey picture from v
    grey: Tensor  # (C,) v of mid-grey, the encoder's offset
    brightness: Tensor  # (C,) change of v for each unit of brightness
    mean_luma: Tensor  # (C,) a picture's mean luma, in [-1/2, 1/2], is mean_luma . (mean v - grey)
    held_out_error: Mapping[str, float] = field(default_factory=dict)  # relative to the variance, mean over channels
    rescalings: tuple[RescalingMap, ...] = ()  # none in files of earlier versions

    def __repr__(self) -> str:
        factors = ", ".join(map(str, self.factors))
        return (
            f"{type(self).__name__}(encoder {self.encoder_sha256[:12]}, {len(self.grey)} channels, factors {factors})"
        )

    @property
    def factors(self) -> tuple[Fraction, ...]:
        """Factors by which a side can be downscaled, including 1."""
        return tuple(sorted({Fraction(1)} | {side for item in self.rescalings for side in (item.rows, item.columns)}))

    def rescaling(self, rows: Fraction, columns: Fraction, *, mirrored: bool = False) -> RescalingMap:
        """Return the map of these factors.

        Raises:
            TransformError: no such map was fitted; the message lists the fitted ones.
        """
        for item in self.rescalings:
            if (item.rows, item.columns, item.mirrored) == (rows, columns, mirrored):
                return item
        known = ", ".join(map(str, self.factors))
        raise TransformError(
            f"these operators have no map for rows by {rows}, columns by {columns}: they shrink sides by {known}"
            + ("; fit them again: walloc-data fit-operators" if not self.rescalings else "")
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `operators.safetensors` into a codec's folder, atomically."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name) for name in _FLAT}
        for name in _FITTED:
            tensors[f"{name}.weight"] = getattr(self, name).weight
            tensors[f"{name}.bias"] = getattr(self, name).bias
        for item in self.rescalings:
            tensors[f"{_tensor_name(item)}.weight"], tensors[f"{_tensor_name(item)}.bias"] = item.weight, item.bias
        metadata = {
            "format": "walloc_data-operators",
            "encoder_sha256": self.encoder_sha256,
            "latent_bits": str(self.latent_bits),
            "held_out_error": json.dumps(dict(self.held_out_error), sort_keys=True),
        }
        target = Path(folder) / OPERATORS_NAME
        with atomic_file(target) as unfinished:
            unfinished.write_bytes(save({name: v.contiguous() for name, v in tensors.items()}, metadata=metadata))
        return target

    @classmethod
    def load(cls, source: DatasetLocation, *, spec: CodecSpec | None = None) -> "LatentOperators":
        """Read a codec's operators.

        Args:
            source: a codec's folder, or an encoded data set (whose `codec/` folder has them): a path or a URL.
            spec: refuse operators that were fitted for another encoder.

        Raises:
            StorageError: there are none; the message says how to fit them.
            CodecError: the file is invalid, or of another codec.
        """
        store = open_store(source)
        for path in (OPERATORS_NAME, f"codec/{OPERATORS_NAME}"):
            if store.exists(path):
                data = store.read_bytes(path, max_bytes=MAX_OPERATORS_BYTES)
                return cls._parse(data, context=store.location(path), spec=spec)
        if store.local_path is not None and not store.local_path.is_dir():
            raise StorageError(f"{store.url}: no such folder, of a codec or of an encoded data set")
        raise StorageError(
            f"{store.url}: no {OPERATORS_NAME} there or in its codec folder: fit it with walloc-data fit-operators"
        )

    @classmethod
    def _parse(cls, data: bytes, *, context: str, spec: CodecSpec | None) -> "LatentOperators":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            _check_shapes(tensors)
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            operators = cls(
                encoder_sha256=metadata["encoder_sha256"],
                latent_bits=int(metadata["latent_bits"]),
                flip=WindowMap(tensors["flip.weight"], tensors["flip.bias"]),
                grayscale=WindowMap(tensors["grayscale.weight"], tensors["grayscale.bias"]),
                held_out_error=json.loads(metadata["held_out_error"]),
                rescalings=_parse_rescalings(tensors),
                **{name: tensors[name] for name in _FLAT},
            )
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise CodecError(f"{context}: not a file of latent operators ({error})") from error
        if spec is not None and operators.encoder_sha256 != spec.encoder_sha256:
            raise CodecError(
                f"{context}: fitted for encoder {operators.encoder_sha256[:12]}, these latents are of {spec.name!r} "
                f"({spec.encoder_sha256[:12]}): fit them for this codec"
            )
        return operators


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    (c,) = tensors["grey"].shape
    for name, shape in {"brightness": (c,), "mean_luma": (c,), "flip.bias": (c,), "grayscale.bias": (c,)}.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name}: of shape {tuple(tensors[name].shape)}, expected {shape}")
    for name in ("flip.weight", "grayscale.weight"):
        if tensors[name].ndim != 4 or tensors[name].shape[:2] != (c, c):
            raise ValueError(f"{name}: of shape {tuple(tensors[name].shape)}, expected ({c}, {c}, rows, columns)")


_TENSOR_NAME = re.compile(r"(rescale|mirrored)\.(\d{1,2})_(\d{1,2})\.(\d{1,2})_(\d{1,2})\.weight")


def _tensor_name(item: RescalingMap) -> str:
    (py, qy), (px, qx) = item.rows.as_integer_ratio(), item.columns.as_integer_ratio()
    return f"{'mirrored' if item.mirrored else 'rescale'}.{py}_{qy}.{px}_{qx}"


def _parse_rescalings(tensors: Mapping[str, Tensor]) -> tuple[RescalingMap, ...]:
    maps = []
    for name in sorted(tensors):
        if (match := _TENSOR_NAME.fullmatch(name)) is None:
            continue
        py, qy, px, qx = map(int, match.groups()[1:])
        # Bounds the size of kernels in untrusted files.
        if not (0 < py <= qy <= LARGEST_TERM and 0 < px <= qx <= LARGEST_TERM):
            raise ValueError(f"{name}: not a factor to shrink by")
        rows, columns = Fraction(py, qy), Fraction(px, qx)
        weight, bias = tensors[name], tensors[name.removesuffix("weight") + "bias"]
        c = tensors["grey"].shape[0]
        windows = (window_cells(rows), window_cells(columns))
        if weight.shape != (rows.numerator, columns.numerator, c, c, *windows) or bias.shape != weight.shape[:3]:
            raise ValueError(f"{name}: of shape {tuple(weight.shape)}")
        maps.append(RescalingMap(rows, columns, weight, bias, match[1] == "mirrored"))
    return tuple(maps)


def _luma(pictures: Tensor) -> Tensor:
    """Convert (N, 3, H, W) uint8 to luma (N, 1, H, W) uint8, rounded as torchvision rounds."""
    weights = torch.tensor(_LUMA)[:, None, None]
    return (pictures.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)


class _Sums:
    """The regressions over one set of pictures."""

    def __init__(self, spec: CodecSpec, *, flip_window_cells: tuple[int, int], factors: Iterable[Fraction]) -> None:
        dim = spec.latent_dim
        self.spec = spec
        self.rescaling = RescalingSums(dim, factors=factors)
        self.flip = WindowRegression(dim, num_targets=dim, window_cells=flip_window_cells)
        self.grayscale = WindowRegression(dim, num_targets=dim, window_cells=(1, 1))

    def update(self, codec: Encoder, pictures: Tensor) -> None:
        bits = self.spec.latent_bits
        grey = _luma(pictures)
        z, mirrored = codec.encode(pictures), codec.encode(pictures.flip(-1))
        self.flip.update(z.flip(-1), mirrored)
        v = expand(z, latent_bits=bits)
        self.grayscale.update(v, expand(codec.encode(grey.expand(-1, 3, -1, -1).contiguous()), latent_bits=bits))
        self.rescaling.update(codec.encode, pictures, cell_px=self.spec.cell_px)

    def errors(self, maps: Mapping[str, WindowMap]) -> dict[str, float]:
        """Return the squared error relative to the variance, averaged over channels."""
        return {name: float(getattr(self, name).relative_error(fitted).mean()) for name, fitted in maps.items()}


def fit_operators(
    codec: Encoder,
    pictures: Iterable[Tensor],
    *,
    held_out: Iterable[Tensor],
    flip_window_cells: tuple[int, int] = (3, 5),
    factors: Iterable[Fraction] = FACTORS,
) -> LatentOperators:
    """Fit a codec's operators in one pass over pictures, without a gradient.

    Args:
        codec: codec returned by `load_codec`; only its encoder is used.
        pictures: batches (N, 3, H, W) uint8, sides multiples of the cell; a few hundred photographs determine the maps.
        held_out: other pictures, for the errors that `held_out_error` reports.
        flip_window_cells: (height, width) of the flip's window.
        factors: to shrink sides by, each less than 1. Every pair of them is fitted, and each with 1. Those that the
            pictures are too few for are left out.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from walloc_data.codec import load_codec, read_pictures
        >>> from walloc_data.transforms import fit_operators
        >>> codec, info = load_codec(decoder=False)
        >>> pictures = torch.from_numpy(np.stack(list(read_pictures("pictures")))).permute(0, 3, 1, 2)  # (8, 3, H, W)
        >>> operators = fit_operators(codec, [pictures[1:]], held_out=[pictures[:1]])
        >>> sorted(operators.held_out_error)[:3]
        ['flip', 'flip_naive', 'grayscale']
    """
    spec, factors = codec.spec, tuple(factors)
    fitted, other = (_Sums(spec, flip_window_cells=flip_window_cells, factors=factors) for _ in range(2))
    for batch in pictures:
        fitted.update(codec, batch)
    for batch in held_out:
        other.update(codec, batch)
    maps = {name: getattr(fitted, name).solve() for name in _FITTED}
    grey, colours = _flat_pictures(codec)
    kernel = torch.zeros_like(maps["flip"].weight)
    kernel[:, :, flip_window_cells[0] // 2, flip_window_cells[1] // 2] = torch.eye(spec.latent_dim)
    naive = WindowMap(kernel, torch.zeros(spec.latent_dim))
    errors = other.errors(maps) | {"flip_naive": other.errors({"flip": naive})["flip"]}
    rescalings = tuple(fitted.rescaling.solve())
    return LatentOperators(
        encoder_sha256=spec.encoder_sha256,
        latent_bits=spec.latent_bits,
        grey=grey.float(),
        brightness=colours.sum(1).float(),
        # High bands of a whole picture average out, so that its mean v is that of a flat picture of its mean colour.
        mean_luma=(torch.tensor(_LUMA, dtype=torch.float64) @ torch.linalg.pinv(colours)).float(),
        held_out_error=errors | other.rescaling.errors(rescalings),
        rescalings=rescalings,
        flip=maps["flip"],
        grayscale=maps["grayscale"],
    )


def _flat_pictures(codec: Encoder) -> tuple[Tensor, Tensor]:
    """Return the plane of flat pictures in v: (C,) its offset at mid-grey, (C, 3) its slope by colour; float64."""
    spec = codec.spec
    levels = torch.linspace(0, 255, 7).round()
    colours = torch.cartesian_prod(levels, levels, levels)  # (343, 3)
    side = 8 * spec.cell_px
    pictures = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, side, side)
    z = codec.encode(pictures.contiguous())[:, :, 0, 0].double()  # (343, C)
    v = expand(z, latent_bits=spec.latent_bits)
    inputs = torch.cat([torch.ones(len(colours), 1), colours / 255 - 0.5], 1).double()
    # The companding curve's ends saturate.
    inside = z.abs() < 2 ** (spec.latent_bits - 1) - 1
    plane = torch.stack(
        [
            torch.linalg.lstsq(inputs[inside[:, c]], v[inside[:, c], c : c + 1]).solution[:, 0]
            for c in range(spec.latent_dim)
        ]
    )  # (C, 4)
    return plane[:, 0], plane[:, 1:]
