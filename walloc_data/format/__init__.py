"""The format of data sets on disk, as frozen dataclasses with JSON representations.

It uses the standard library only, so that data sets can be inspected without other packages. Everything read from disk
is untrusted: `from_dict` checks types, ranges and names, and errors name the field and the file.

    my-latents/
      walloc.json               Manifest
      data/train-00000.tar      shards: {key}.webp [{key}.mirror.webp] [{key}.cls] [{key}.json], adjacent
      index/train.parquet       one row per sample, in shard order (INDEX_COLUMNS, SOURCE_INDEX_COLUMNS, source columns)
      index/train.shards.parquet  the shards of the split, if more than a few thousand (else in walloc.json)
      failures/train.jsonl      one line per picture that could not be encoded
      codec/                    the codec of the latents, so that the folder is self-contained
      .walloc/                  the converter's plan, lock and per-shard records (the done marks)
"""

from walloc_data.format.checks import check_json, check_text, check_texts
from walloc_data.format.columns import (
    MAX_INDEX_VALUE_BYTES,
    MAX_TYPE_DEPTH,
    ColumnType,
    check_columns,
    column_name,
    infer_type,
    join_types,
    tighten_lists,
)
from walloc_data.format.json_text import MAX_JSON_BYTES, dump_json, finite_json, load_json
from walloc_data.format.manifest import Manifest, ReadShards, ShardRecord, ShardsFile, SplitRecord
from walloc_data.format.names import (
    FORMAT_VERSION,
    INDEX_COLUMNS,
    MANIFEST_NAME,
    MIRROR_INDEX_COLUMNS,
    OPTIONAL_INDEX_COLUMNS,
    RESERVED_COLUMNS,
    SOURCE_INDEX_COLUMNS,
    check_key,
    check_name,
    check_relative_path,
    encoder_sha256,
    fragment_key,
    index_name,
    padding_for,
    sample_key,
    shard_name,
    shards_name,
)
from walloc_data.format.spec import CodecSpec, EncodeSettings, SettingFields
from walloc_data.format.statistics import ChannelStatistics

__all__ = [
    "FORMAT_VERSION",
    "INDEX_COLUMNS",
    "MANIFEST_NAME",
    "MAX_INDEX_VALUE_BYTES",
    "MAX_JSON_BYTES",
    "MAX_TYPE_DEPTH",
    "MIRROR_INDEX_COLUMNS",
    "OPTIONAL_INDEX_COLUMNS",
    "RESERVED_COLUMNS",
    "SOURCE_INDEX_COLUMNS",
    "ChannelStatistics",
    "CodecSpec",
    "ColumnType",
    "EncodeSettings",
    "Manifest",
    "ReadShards",
    "SettingFields",
    "ShardRecord",
    "ShardsFile",
    "SplitRecord",
    "check_columns",
    "check_json",
    "check_key",
    "check_name",
    "check_relative_path",
    "check_text",
    "check_texts",
    "column_name",
    "dump_json",
    "encoder_sha256",
    "finite_json",
    "fragment_key",
    "index_name",
    "infer_type",
    "join_types",
    "load_json",
    "padding_for",
    "sample_key",
    "shard_name",
    "shards_name",
    "tighten_lists",
]
