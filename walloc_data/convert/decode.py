"""`decode_dataset`: pictures back from latents."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from walloc_data.convert.inspect import index_rows, local_file, open_manifest
from walloc_data.dataset.index import load_index
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import CodecError, FormatError, StorageError, WallocDataError
from walloc_data.files import whole_file
from walloc_data.format import Manifest, check_key, padding_for
from walloc_data.storage import ShardCache, Store

__all__ = ["decode_dataset"]


def decode_dataset(
    out: str | Path,
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
        out: the data set.
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

    store = Store(out, storage_options=storage_options)
    manifest = open_manifest(store)
    record = manifest.split(split, where=store.url)
    wanted = None if keys is None else {check_key(key, where="keys") for key in keys}
    folder = Path(target)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as name:
        scratch = Path(name)
        loaded, _ = load_codec(fetch_codec(store, scratch=scratch) if codec is None else codec, device=device)
        if loaded.spec.encoder_sha256 != manifest.codec.encoder_sha256:
            raise CodecError(
                f"the codec {loaded.spec.name!r} did not make {store.url}: that was {manifest.codec.name!r}"
            )
        index = load_index(store, split=split, record=record, spec=manifest.codec, folder=scratch)
        largest = max((shard.num_bytes for shard in record.shards), default=1)
        reader = ShardReader(store, record, manifest.codec, index, ShardCache(scratch, max_bytes=largest))
        written: list[Path] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for row, key, height, width in _rows(store, manifest, split):
                if wanted is not None and key not in wanted:
                    continue
                [latent] = reader.read(np.array([row], dtype=np.int64))
                picture = loaded.decode(torch.from_numpy(latent)[None].to(device))[0].cpu()  # (3, H, W)
                path = folder / f"{key}.png"
                _save(picture, height, width, manifest.codec.cell_px, path)
                written.append(path)
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            raise StorageError(
                f"{folder}: the pictures cannot be written ({error.strerror or error}), after {len(written)} of them: "
                "is there room, and may you write there?"
            ) from error
    if wanted is not None and (absent := sorted(wanted - {path.stem for path in written})):
        raise FormatError(f"{store.url}: split {split!r} ({record.num_samples} samples) has no key {absent[0]!r}")
    return written


def _rows(store: Store, manifest: Manifest, split: str) -> Iterator[tuple[int, str, int, int]]:
    """Yield (row, key, height, width) of a split's samples."""
    record = manifest.splits[split]
    where, mirror = store.where(record.index_name(split)), manifest.settings.mirror
    with local_file(store, record.index_name(split)) as file:
        for number, row in enumerate(index_rows(file, mirror=mirror, columns=record.columns, where=where)):
            yield number, check_key(row["key"], where=where), row["height"], row["width"]


def _save(picture: torch.Tensor, height: int, width: int, multiple: int, path: Path) -> None:
    from PIL import Image

    left, top, _, _ = padding_for(height, width, multiple=multiple)
    pixels = ((picture + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)  # (3, H, W)
    cropped = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
    image = Image.fromarray(cropped if cropped.shape[2] == 3 else np.ascontiguousarray(cropped[..., 0]))
    with whole_file(path) as unfinished:
        image.save(unfinished, "PNG")
