"""Samples for display: latents with captions, and pictures decoded from them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from walloc_data.codec import CodecInfo, WallocCodec, fetch_codec, load_codec
from walloc_data.dataset.opened import OpenedSplit
from walloc_data.errors import CodecError, FormatError
from walloc_data.pictures import decoded_pixels
from walloc_data.storage import ShardCache, Store

__all__ = ["OpenSplit", "ReportSample", "decode", "drawable_rows", "open_split", "psnr", "spread_rows"]

MAX_DRAWN_PIXELS = 2**25  # decoding takes about 100 bytes per pixel


@dataclass(frozen=True)
class ReportSample:
    """Sample to show."""

    key: str
    source_index: int
    label: int | None
    class_name: str | None
    height: int  # pixels, before padding
    width: int
    num_bytes: int  # of the packed latent
    latent: npt.NDArray[np.int8]  # (latent_dim, h, w)

    @property
    def bits_per_pixel(self) -> float:
        return 8 * self.num_bytes / (self.height * self.width)


class OpenSplit(OpenedSplit):
    """Open split with samples for display, and the codec of the data set."""

    def choose(self, num_samples: int, *, seed: int = 0) -> list[int]:
        """Return `spread_rows` of the samples that are not too large to draw."""
        rows = drawable_rows(self.index)
        return [int(rows[i]) for i in spread_rows(self.index["label"][rows], num_samples, seed=seed)]

    def read(self, rows: Sequence[int]) -> Iterator[ReportSample]:
        """Yield the samples of rows, one at a time."""
        names = self.manifest.class_names
        for row, key in zip(rows, self.keys(rows), strict=True):
            [latent] = self.latents([row])
            entry = self.index[row]
            label = int(entry["label"]) if entry["label"] >= 0 else None
            yield ReportSample(
                key=key,
                source_index=int(entry["source_index"]),
                label=label,
                class_name=names[label] if names is not None and label is not None and label < len(names) else None,
                height=int(entry["height"]),
                width=int(entry["width"]),
                num_bytes=int(entry["length"]),
                latent=latent,
            )

    def load_codec(self) -> tuple[WallocCodec, CodecInfo]:
        """Load the codec in the data set, which must match the manifest."""
        codec, info = load_codec(fetch_codec(self.store, scratch=self.cache.folder))
        if info.encoder_sha256 != self.manifest.codec.encoder_sha256:
            raise CodecError(
                f"{self.store.location('codec')}: this codec ({info.name}, encoder {info.encoder_sha256[:12]}) is not "
                f"the one that made the latents ({self.manifest.codec.name}, {self.manifest.codec.encoder_sha256[:12]})"
            )
        return codec, info


@contextmanager
def open_split(store: Store, *, split: str | None) -> Iterator[OpenSplit]:
    """Open one split; None: "train", else the first by name."""
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
        yield OpenSplit(store, split, cache=ShardCache(Path(scratch)))


def drawable_rows(index: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return the rows of samples of at most `MAX_DRAWN_PIXELS`.

    Args:
        index: rows of a split's index, (n,) of `walloc_data.dataset.index.INDEX_ROW`.
    """
    return np.flatnonzero(index["height"].astype(np.int64) * index["width"] <= MAX_DRAWN_PIXELS)


def spread_rows(labels: npt.NDArray[np.int64], num_samples: int, *, seed: int = 0) -> list[int]:
    """Choose at most `num_samples` rows of as many classes as possible, by a seed; return them sorted by class.

    Args:
        labels: (num_rows,), -1 without a label.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), dtype=np.int64)  # number of earlier rows of the same class
    _, group = np.unique(labels[order], return_inverse=True)
    by_class = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[by_class]) > 0]) if len(labels) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(labels)])
    turn[by_class] = np.arange(len(labels)) - np.repeat(starts, lengths)
    chosen = order[np.argsort(turn, kind="stable")[:num_samples]]
    return [int(row) for row in sorted(chosen, key=lambda row: (labels[row], row))]


def decode(codec: WallocCodec, sample: ReportSample, *, how: Literal["own", "linear"] = "own") -> Image.Image:
    """Decode a latent to its RGB picture, without padding."""
    if sample.height * sample.width > MAX_DRAWN_PIXELS:
        raise FormatError(
            f"sample {sample.key} has {sample.width} x {sample.height} pixels; at most {MAX_DRAWN_PIXELS} are drawn "
            "here: choose others, or decode it with `walloc-data decode`"
        )
    latent = torch.from_numpy(sample.latent)[None]
    picture = codec.decode(latent, linear=how == "linear")[0]  # (3, H, W)
    array = decoded_pixels(picture, height=sample.height, width=sample.width, cell_px=2**codec.J)
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]).convert("RGB")


def psnr(picture: Image.Image, original: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB over all RGB values; infinite where they are equal."""
    a = np.asarray(picture.convert("RGB"), dtype=np.float64)
    b = np.asarray(original.convert("RGB"), dtype=np.float64)
    if a.shape != b.shape:
        raise FormatError(
            f"the original is {b.shape[1]} x {b.shape[0]} pixels, the encoded picture {a.shape[1]} x {a.shape[0]}: "
            "give the source that was encoded, prepared with the same settings"
        )
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
