"""`decode_dataset`: pictures back from latents."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from walloc_data.convert.inspect import index_rows, local_file, open_manifest
from walloc_data.errors import CodecError, CorruptShardError, FormatError
from walloc_data.files import whole_file
from walloc_data.format import Manifest, check_key, padding_for
from walloc_data.latents import decode_webp, unpack
from walloc_data.storage import Store

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
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if codec is None:
            import tempfile

            codec = fetch_codec(
                store, scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walloc_data-")))
            )
        loaded, _ = load_codec(codec, device=device)
        if loaded.spec.encoder_sha256 != manifest.codec.encoder_sha256:
            raise CodecError(
                f"the codec {loaded.spec.name!r} did not make {store.url}: that was {manifest.codec.name!r}"
            )
        written = []
        for key, height, width, data in _packed(store, manifest, split, wanted):
            picture = decode_webp(data, where=f"{store.url}: sample {key}")
            latent = torch.from_numpy(
                unpack(picture[..., : manifest.codec.channels], latent_dim=manifest.codec.latent_dim)
            )
            if tuple(latent.shape) != manifest.codec.latent_shape(height, width):
                raise CorruptShardError(
                    f"{store.url}: sample {key}: a latent {tuple(latent.shape)} for {height} x {width}"
                )
            path = folder / f"{key}.png"
            _save(loaded.decode(latent[None].to(device))[0].cpu(), height, width, manifest.codec.cell_px, path)
            written.append(path)
    if wanted is not None and (absent := sorted(wanted - {path.stem for path in written})):
        raise FormatError(f"{store.url}: split {split!r} ({record.num_samples} samples) has no key {absent[0]!r}")
    return written


def _packed(
    store: Store, manifest: Manifest, split: str, wanted: set[str] | None
) -> Iterator[tuple[str, int, int, bytes]]:
    """(key, height, width, WebP) of the wanted samples, each shard opened once."""
    record = manifest.splits[split]
    shards, where = record.shards, store.where(record.index_name(split))
    with ExitStack() as outer, ExitStack() as opened:
        index = outer.enter_context(local_file(store, record.index_name(split)))
        position, file = -1, Path()
        rows = index_rows(index, mirror=manifest.settings.mirror, columns=record.columns, where=where)
        for row in rows:
            if wanted is not None and row["key"] not in wanted:
                continue
            check_key(row["key"], where=where)
            if not 0 <= row["shard"] < len(shards) or row["offset"] < 0 or not 0 < row["length"] < 2**31:
                raise FormatError(f"{where}: sample {row['key']} lies in no shard")
            if row["shard"] != position:
                opened.close()
                position = row["shard"]
                file = opened.enter_context(local_file(store, shards[position].name))
            with file.open("rb") as tar:
                tar.seek(row["offset"])
                data = tar.read(min(row["length"], shards[position].num_bytes))
            yield row["key"], row["height"], row["width"], data


def _save(picture: torch.Tensor, height: int, width: int, multiple: int, path: Path) -> None:
    from PIL import Image

    left, top, _, _ = padding_for(height, width, multiple=multiple)
    pixels = ((picture + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)  # (3, H, W)
    cropped = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
    image = Image.fromarray(cropped if cropped.shape[2] == 3 else np.ascontiguousarray(cropped[..., 0]))
    with whole_file(path) as unfinished:
        image.save(unfinished, "PNG")
