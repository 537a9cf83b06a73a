"""The contract on disk: what an encoded data set is, in frozen dataclasses that round-trip through JSON.

Standard library only, so that a data set can be inspected where nothing else is installed. Everything read from
disk is untrusted: `from_dict` checks types, ranges and names, and says which field of which file is wrong.

    my-latents/
      walloc.json               Manifest
      data/train-00000.tar      shards: {key}.webp [{key}.mirror.webp] [{key}.cls] [{key}.json], adjacent
      index/train.parquet       one row a sample, in shard order (INDEX_COLUMNS, SOURCE_INDEX_COLUMNS, the source's)
      index/train.shards.parquet  the split's shards, where they are more than a few thousand (else in walloc.json)
      failures/train.jsonl      one line a picture that could not be encoded
      codec/                    the codec that made the latents, so the folder explains itself
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
