"""Decoding of a data set to pictures: `decode_dataset`."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from walloc_data.dataset.opened import OpenedSplit
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CodecError, StorageError, WallocDataError
from walloc_data.files import atomic_file
from walloc_data.format import padding_for
from walloc_data.pictures.png import write_png
from walloc_data.storage import DatasetLocation, ShardCache, open_store

__all__ = ["decode_dataset"]

KEYS_AT_ONCE = 4096
_MAX_PIXELS_AT_ONCE = 2**24  # of a picture that Pillow writes, whose files are smaller; larger ones go by bands


@renamed_arguments(out="dataset")
def decode_dataset(
    dataset: DatasetLocation,
    target: str | Path,
    *,
    split: str = "train",
    keys: Collection[str] | None = None,
    codec: Any = None,
    device: str = "cpu",
    storage_options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Decode latents to PNG pictures of the size they were encoded at, ``target/{key}.png``.

    Args:
        dataset: the data set.
        target: folder for the pictures, created if absent.
        split: name of the split.
        keys: keys of the samples to decode; None decodes all of the split.
        codec: codec to decode with, as for `load_codec`; None: the codec of the data set.
        device: device of the decoder, such as "cpu" or "cuda".
        storage_options: options of the file system of `dataset`.

    Returns:
        Paths of the pictures, in the order of the split.

    Raises:
        FormatError: a split or key does not exist.
        CodecError: the codec is not the one of these latents, or has no decoder.
        StorageError: a picture cannot be written, or a shard cannot be read.

    Example:
        >>> from walloc_data.convert import decode_dataset
        >>> decode_dataset("my-latents", "decoded", keys=["000000004"])
        [PosixPath('decoded/000000004.png')]
    """
    from walloc_data.codec import fetch_codec, load_codec

    store = open_store(dataset, storage_options)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
        opened = OpenedSplit(store, split, cache=ShardCache(Path(scratch)))
        opened.cache.max_bytes = max((shard.num_bytes for shard in opened.record.shards), default=1)  # one at a time
        spec = opened.manifest.codec
        rows = range(opened.record.num_samples) if keys is None else sorted(set(opened.rows_of(keys)))
        if codec is None:
            codec = fetch_codec(store, scratch=Path(scratch))
        loaded, _ = load_codec(codec, device=device)
        if loaded.spec.encoder_sha256 != spec.encoder_sha256:
            raise CodecError(f"{store.url}: encoded by codec {spec.name!r}, not {loaded.spec.name!r}")
        folder, written = Path(target), list[Path]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(rows), KEYS_AT_ONCE):
                some = rows[start : start + KEYS_AT_ONCE]
                for row, key in zip(some, opened.keys(some), strict=True):
                    [latent] = opened.latents([row])
                    size = (int(opened.index[row]["height"]), int(opened.index[row]["width"]))
                    bands = _bands(loaded, torch.from_numpy(latent).to(device), size)
                    _save(bands, folder / f"{key}.png", size=size, channels=spec.channels)
                    written.append(folder / f"{key}.png")
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise StorageError(f"{folder}: a file, or below a file; choose a folder for the pictures") from error
            raise StorageError(
                f"{folder}: cannot write pictures ({error.strerror or error}) after {len(written)} of them: check the "
                "free space and the permissions"
            ) from error
    return written


def _bands(codec: Any, latent: torch.Tensor, size: tuple[int, int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a latent's picture of (height, width) pixels without its padding, (rows, width, C) at a time."""
    left, top, _, _ = padding_for(*size, multiple=2**codec.J)
    first = -top
    for band in codec.decode_bands(latent):
        rows = band[:, max(0, -first) : size[0] - first, left : left + size[1]]
        first += band.shape[1]
        if rows.shape[1]:
            yield rows.permute(1, 2, 0).numpy()


def _save(bands: Iterator[npt.NDArray[np.uint8]], path: Path, *, size: tuple[int, int], channels: int) -> None:
    from PIL import Image

    with atomic_file(path) as unfinished:
        if size[0] * size[1] > _MAX_PIXELS_AT_ONCE:
            with unfinished.open("wb") as file:
                write_png(file, bands, height=size[0], width=size[1], channels=channels)
            return
        pixels = np.concatenate(list(bands))
        image = Image.fromarray(pixels if channels == 3 else np.ascontiguousarray(pixels[..., 0]))
        image.save(unfinished, "PNG")
