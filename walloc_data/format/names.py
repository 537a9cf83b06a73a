"""Names and paths in the format on disk, and their checks."""

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from walloc_data.errors import FormatError

FORMAT_VERSION = 2  # version 1, whose source columns are in the JSON of samples instead of the index, is still read
MANIFEST_NAME = "walloc.json"

# (name, parquet type, meaning). `offset` and `length` locate the .webp payload inside the shard's file.
INDEX_COLUMNS = (
    ("key", "string", "the sample's key, unique in the split"),
    ("shard", "int32", "position in the split's list of shards"),
    ("offset", "int64", "first byte of the packed latent in the shard's file"),
    ("length", "int32", "bytes of the packed latent"),
    ("label", "int64", "class index, null without a label"),
    ("height", "int32", "pixels, before padding"),
    ("width", "int32", "pixels, before padding"),
    ("source_index", "int64", "position in the source"),
    ("crc32", "uint32", "CRC-32 of the packed latent's bytes, as zlib computes it"),
)
# Additional columns if mirrored latents are stored.
MIRROR_INDEX_COLUMNS = (
    ("mirror_offset", "int64", "first byte of the packed latent of the mirrored picture"),
    ("mirror_length", "int32", "its bytes"),
    ("mirror_crc32", "uint32", "their CRC-32"),
)
# Additional columns since version 2 of the format, between the others and the columns of the source.
SOURCE_INDEX_COLUMNS = (
    ("source_name", "string", "the picture's path or id in the source"),
    ("source_height", "int32", "pixels of the picture in the source, upright"),
    ("source_width", "int32", "pixels of the picture in the source, upright"),
    ("crop_left", "int32", "first encoded column of the source picture"),
    ("crop_top", "int32", "first row"),
    ("crop_right", "int32", "the column after the last"),
    ("crop_bottom", "int32", "the row after the last"),
)
# Names that columns of the source cannot have in the index: those of the index, of the converter's records, and of the
# parts of samples and batches of `LatentDataset`.
RESERVED_COLUMNS = frozenset(
    [name for name, _, _ in (*INDEX_COLUMNS, *MIRROR_INDEX_COLUMNS, *SOURCE_INDEX_COLUMNS)]
    + ["source_version", "source_crc32", "crop", "latent", "mirrored", "valid"]
)
# Absent from data sets of early versions without checksums; null in shards of such versions.
OPTIONAL_INDEX_COLUMNS = frozenset({"crc32", "mirror_crc32"})

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_name(name: str, *, what: str, context: str) -> str:
    """Check a split, codec or key: lower case, digits, '_' and '-', at most 100 characters (ustar and Hub rules).

    Example:
        >>> from walloc_data.format import check_name
        >>> check_name("validation", what="split", context="encode")
        'validation'
        >>> check_name("Validation", what="split", context="encode")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: encode: split 'Validation' must be lower-case letters, digits, '_' or '-', ...
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FormatError(
            f"{context}: {what} {name!r} must be lower-case letters, digits, '_' or '-', at most 100 characters, "
            "starting with a letter or digit"
        )
    return name


def check_key(key: str, *, context: str) -> str:
    """Check the key of a sample. WebDataset readers end keys at dots, and Hugging Face's reader needs lower case.

    Example:
        >>> from walloc_data.format import check_key
        >>> check_key("000000042", context="train.csv")
        '000000042'
        >>> check_key("IMG_1.jpg", context="train.csv")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: train.csv: key 'IMG_1.jpg' must be lower-case letters, digits, '_' or '-', ...
    """
    return check_name(key, what="key", context=context)


def check_relative_path(path: str, *, context: str) -> str:
    """Check a path inside a data set: relative, '/'-separated, without '..', so that it cannot lead outside.

    Example:
        >>> from walloc_data.format import check_relative_path
        >>> check_relative_path("data/train-00000.tar", context="walloc.json")
        'data/train-00000.tar'
        >>> check_relative_path("../secrets", context="walloc.json")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: walloc.json: '../secrets' is not a relative path inside the data set
    """
    parts = [part for part in path.split("/") if part not in ("", ".")] if isinstance(path, str) else []
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or ":" in parts[0]:
        raise FormatError(f"{context}: {path!r} is not a relative path inside the data set")
    return path


def sample_key(source_index: int) -> str:
    """Return the key of the sample at a position in its source: nine digits or more.

    Example:
        >>> from walloc_data.format import sample_key
        >>> sample_key(42)
        '000000042'
    """
    return f"{source_index:09d}"


def fragment_key(unit: int, position: int) -> str:
    """Return the key of a sample of a source that is read in fragments: unit of work, and position in the unit.

    Example:
        >>> from walloc_data.format import fragment_key
        >>> fragment_key(3, 42)
        '00003-0000042'
    """
    return f"{unit:05d}-{position:07d}"


def shard_name(split: str, unit: int, number: int | None = None) -> str:
    """Return a shard's path inside its data set, e.g. ``data/train-00000.tar``.

    Args:
        split: name of the split.
        unit: unit of work of the shard.
        number: number of the shard in the unit, if the source is read in fragments; None: the unit has one shard.

    Example:
        >>> from walloc_data.format import shard_name
        >>> shard_name("train", 7), shard_name("train", 7, 2)
        ('data/train-00007.tar', 'data/train-00007-002.tar')
    """
    return f"data/{split}-{unit:05d}.tar" if number is None else f"data/{split}-{unit:05d}-{number:03d}.tar"


def index_name(split: str) -> str:
    """Return the path of a split's index, e.g. ``index/train.parquet``.

    Example:
        >>> from walloc_data.format import index_name
        >>> index_name("train")
        'index/train.parquet'
    """
    return f"index/{split}.parquet"


def shards_name(split: str) -> str:
    """Return the path of a split's list of shards, if not in the manifest, e.g. ``index/train.shards.parquet``.

    Example:
        >>> from walloc_data.format import shards_name
        >>> shards_name("train")
        'index/train.shards.parquet'
    """
    return f"index/{split}.shards.parquet"


def padding_for(height: int, width: int, *, multiple: int) -> tuple[int, int, int, int]:
    """Return the padding (left, top, right, bottom) in pixels that makes the sides multiples of `multiple`.

    It is split evenly, with the odd pixel at the right and bottom, as by `walloc.compute_padding`.

    Example:
        >>> from walloc_data.format import padding_for
        >>> padding_for(height=500, width=375, multiple=8)  # to 504 x 376
        (0, 2, 1, 2)
    """
    x, y = -width % multiple, -height % multiple
    return (x // 2, y // 2, x - x // 2, y - y // 2)


def encoder_sha256(spec: Mapping[str, Any], weight: Sequence[float], bias: Sequence[float]) -> str:
    """Return the hash that identifies a linear encoder; it covers everything that affects latents.

    `spec` has channels, J, latent_dim, latent_bits and wavelet; `weight` is the (latent_dim, channels * 4^J) matrix in
    row-major order and `bias` (latent_dim,), both rounded to float32.

    Example:
        >>> from walloc_data.codec import load_codec
        >>> from walloc_data.format import encoder_sha256
        >>> codec, info = load_codec(decoder=False)
        >>> encoder = codec.linear_encoder()
        >>> found = encoder_sha256(info.spec.to_dict(), encoder.weight.flatten().tolist(), encoder.bias.tolist())
        >>> found == info.encoder_sha256
        True
    """
    names = ("J", "channels", "latent_bits", "latent_dim", "wavelet")
    digest = hashlib.sha256(json.dumps([spec[name] for name in names]).encode())
    for values in (weight, bias):
        digest.update(struct.pack(f"<q{len(values)}f", len(values), *values))
    return digest.hexdigest()


def check_sha256(name: str, value: Any) -> None:
    """Check a hexadecimal SHA-256 digest; `name` is the field in error messages."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise FormatError(f"{name} must be 64 lower-case hexadecimal digits, not {value!r}")
