"""Reading our shards with other people's readers: the one function that each of them needs.

The shards are plain WebDataset tars, so webdataset, wids, `datasets` and timm's reader open them as they are. What they
hand over is the packed picture; these functions turn it into the integers, the same that `LatentDataset` gives.

    webdataset   WebDataset(urls, shardshuffle=False).map(unpack_sample)
    wids         ShardListDataset("OUT/index/train.wids.json", transformations=unpack_sample)
    datasets     load_dataset("OUT", split="train").with_transform(unpack_rows)
    timm         create_dataset("wds/latents", root="OUT", split="train", transform=unpack_picture)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walloc_data.errors import CorruptShardError
from walloc_data.latents import decode_webp, unpack

__all__ = ["unpack_picture", "unpack_rows", "unpack_sample"]


def unpack_picture(picture: Any, *, latent_dim: int = 12) -> Tensor:
    """One packed picture to its latent.

    Args:
        picture: PIL image (RGB), WebP bytes or an open file of them, (H, W, 3) uint8 array, or the undecoded
            ``{"bytes": ...}`` of `datasets`. It must come straight from the shard: resized, cropped or normalised
            pictures are not latents any more.
        latent_dim: channels of the codec.

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
                "hand it over before any other transform"
            )
    return torch.from_numpy(unpack(pixels, latent_dim=latent_dim))


def unpack_sample(sample: Mapping[str, Any], *, latent_dim: int = 12) -> tuple[Tensor, int]:
    """One sample of webdataset or wids, decoded by it or not, to `(latent, label)`; the label is -1 if there is none.

    Keys may carry a leading dot, as in wids.

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
    return unpack_picture(members["webp"], latent_dim=latent_dim), int(label)


def unpack_rows(rows: Mapping[str, Sequence[Any]], *, latent_dim: int = 12) -> dict[str, list[Any]]:
    """A batch of rows of `datasets` to the columns `latent` and, where there are labels, `label`.

    Example:
        >>> from datasets import load_dataset
        >>> from walloc_data.interop import unpack_rows
        >>> rows = load_dataset("my-latents", split="train").with_transform(unpack_rows)
        >>> rows[0]["latent"].shape, len(rows[:4]["label"])
        (torch.Size([12, 12, 12]), 4)
    """
    columns: dict[str, list[Any]] = {
        "latent": [unpack_picture(picture, latent_dim=latent_dim) for picture in rows["webp"]]
    }
    if "cls" in rows:
        columns["label"] = [int(label) for label in rows["cls"]]
    return columns
