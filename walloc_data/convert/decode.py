"""`decode_dataset`: pictures back from latents."""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from walloc_data.dataset.opened import OpenedSplit
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CodecError, StorageError, WallocDataError
from walloc_data.files import atomic_file
from walloc_data.pictures import decoded_pixels
from walloc_data.storage import DatasetLocation, ShardCache, open_store

__all__ = ["decode_dataset"]

KEYS_AT_ONCE = 4096


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
        target: a folder, made if absent.
        keys: which samples; None decodes the whole split.
        codec: what `load_codec` takes; None is the data set's own.

    Returns:
        The pictures' paths, in the order of the split.

    Raises:
        FormatError: no such split or key.
        CodecError: the codec did not make these latents, or has no decoder.

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
            raise CodecError(f"the codec {loaded.spec.name!r} did not make {store.url}: that was {spec.name!r}")
        folder, written = Path(target), list[Path]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(rows), KEYS_AT_ONCE):
                some = rows[start : start + KEYS_AT_ONCE]
                for row, key in zip(some, opened.keys(some), strict=True):
                    [latent] = opened.latents([row])
                    decoded = loaded.decode(torch.from_numpy(latent)[None].to(device))[0]
                    height, width = (int(opened.index[row][side]) for side in ("height", "width"))
                    pixels = decoded_pixels(decoded, height=height, width=width, cell_px=spec.cell_px)
                    _save(pixels, folder / f"{key}.png")
                    written.append(folder / f"{key}.png")
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            raise StorageError(
                f"{folder}: the pictures cannot be written ({error.strerror or error}), after {len(written)} of them: "
                "is there room, and may you write there?"
            ) from error
    return written


def _save(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[..., 0]))
    with atomic_file(path) as unfinished:
        image.save(unfinished, "PNG")
