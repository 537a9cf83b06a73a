"""Functions for reading shards with webdataset, wids, `datasets` and timm.

The shards are plain WebDataset tars, which these libraries open as they are. They return the packed picture; the
functions here convert it to the same integers that `LatentDataset` returns.

    webdataset   WebDataset(urls, shardshuffle=False).map(unpack_sample)
    wids         ShardListDataset("my-latents/index/train.wids.json", transformations=unpack_sample)
    datasets     load_dataset("my-latents", split="train").with_transform(unpack_rows)
    timm         create_dataset("wds/latents", root="my-latents", split="train", transform=unpack_picture)

A packed picture does not contain its number of channels. The default is 12; for other codecs, pass latent_dim= (in
`walloc.json`), as in `functools.partial(unpack_sample, latent_dim=48)`.

Pass timm's data set to torch's DataLoader. `timm.data.create_loader` is for pictures only: it replaces `unpack_picture`
by its own transform and collates into uint8, which latent models reject.

Take `urls` from the card or from `_info.json`: a shard without any readable picture has no file, so numbers between the
first and the last may be missing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walloc_data.errors import CodecError, CorruptShardError
from walloc_data.latents import decode_webp, unpack

__all__ = ["unpack_picture", "unpack_rows", "unpack_sample"]


_LATENT_DIM, _CELL_PX = 12, 8  # of the bundled codecs


def unpack_picture(picture: Any, *, latent_dim: int = _LATENT_DIM) -> Tensor:
    """Unpack one packed picture to its latent.

    Args:
        picture: PIL image (RGB), WebP bytes or an open file of them, (H, W, 3) uint8 array, or the undecoded
            ``{"bytes": ...}`` of `datasets`. It must come unchanged from the shard: resized, cropped or normalised
            pictures are no latents.
        latent_dim: channels of the codec. A wrong number is not detected and gives wrong latents.

    Returns:
        (latent_dim, h, w) int8.

    Example:
        >>> from timm.data import create_dataset
        >>> from walloc_data.interop import unpack_picture
        >>> dataset = create_dataset("wds/latents", root="my-latents", split="train", transform=unpack_picture)
        >>> samples = list(dataset)
        >>> len(samples), samples[0][0].shape, samples[0][0].dtype
        (8, torch.Size([12, 12, 12]), torch.int8)
    """
    if isinstance(picture, Mapping) and "bytes" in picture:
        picture = picture["bytes"]
    if hasattr(picture, "read"):
        picture = picture.read()
    if isinstance(picture, bytes | bytearray | memoryview):
        pixels = decode_webp(bytes(picture))
    else:
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise CorruptShardError(
                f"a packed latent is an RGB picture of 8 bits, not {pixels.dtype} {pixels.shape}: "
                "unpack it before any other transform"
            )
    return torch.from_numpy(unpack(pixels, latent_dim=latent_dim))


def unpack_sample(sample: Mapping[str, Any], *, latent_dim: int | None = None) -> tuple[Tensor, int]:
    """Unpack one sample of webdataset or wids, decoded or not, to `(latent, label)`; the label is -1 if there is none.

    Keys may have a leading dot, as in wids.

    Args:
        sample: members by extension: `webp`, and `cls` and `json` if present.
        latent_dim: channels of the codec; None: 12, checked against the sample's JSON if there is one.

    Example:
        >>> import webdataset
        >>> from walloc_data.interop import unpack_sample
        >>> shards = webdataset.WebDataset("my-latents/data/train-{00000..00001}.tar", shardshuffle=False)
        >>> sorted(label for latent, label in shards.map(unpack_sample))
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    members = {key.removeprefix("."): value for key, value in sample.items()}
    if "webp" not in members:
        raise CorruptShardError(f"sample {sample.get('__key__')!r} has no .webp: it holds {sorted(members)}")
    label = members.get("cls", -1)
    if hasattr(label, "read"):
        label = label.read()
    if latent_dim is None:
        meta: Any = members.get("json")
        if hasattr(meta, "read"):
            meta = meta.read()
        latent = _twelve_channels(unpack_picture(members["webp"]), meta)
    else:
        latent = unpack_picture(members["webp"], latent_dim=latent_dim)
    return latent, int(label)


def _twelve_channels(latent: Tensor, meta: Any) -> Tensor:
    """Return the latent; raise an error if the picture size in the sample's JSON contradicts 12 channels."""
    try:
        value = json.loads(meta) if isinstance(meta, str | bytes) else meta
        left, top, right, bottom = value["padding"]
        sides = (value["height"] + top + bottom, value["width"] + left + right)
    except (KeyError, TypeError, ValueError):
        return latent  # the reader does not return the JSON
    h, w = latent.shape[1:]
    if sides != (h * _CELL_PX, w * _CELL_PX):
        raise CodecError(
            f"a picture of {sides[0]} x {sides[1]} px, padded, whose packed latent is {2 * h} x {2 * w}: not "
            f"{_LATENT_DIM} channels of {_CELL_PX}-px cells. Pass latent_dim= of the codec in walloc.json, e.g. "
            "functools.partial(unpack_sample, latent_dim=48)"
        )
    return latent


def unpack_rows(rows: Mapping[str, Sequence[Any]], *, latent_dim: int | None = None) -> dict[str, list[Any]]:
    """Unpack a batch of rows of `datasets` to the columns `latent` and, where there are labels, `label`.

    Args:
        rows: columns by name: `webp`, and `cls` and `json` if present.
        latent_dim: channels of the codec; None: 12, checked against the JSON of each row if there is one.

    Example:
        >>> from datasets import load_dataset
        >>> from walloc_data.interop import unpack_rows
        >>> rows = load_dataset("my-latents", split="train").with_transform(unpack_rows)
        >>> rows[0]["latent"].shape, len(rows[:4]["label"])
        (torch.Size([12, 12, 12]), 4)
    """
    if latent_dim is None:
        metas = rows.get("json") or [None] * len(rows["webp"])
        latents = [_twelve_channels(unpack_picture(p), meta) for p, meta in zip(rows["webp"], metas, strict=True)]
    else:
        latents = [unpack_picture(picture, latent_dim=latent_dim) for picture in rows["webp"]]
    columns: dict[str, list[Any]] = {"latent": latents}
    if "cls" in rows:
        columns["label"] = [int(label) for label in rows["cls"]]
    return columns
