"""Ways to damage a data set, each a function of its folder. The corpus is made anew by each run; none of it is kept."""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Mutation = Callable[[Path], None]

MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


# The manifest.


def _set(root: Path, path: tuple[str | int, ...], value: object, *, file: str = "walloc.json") -> None:
    if not (root / file).is_file():  # a pipe, by a change before this one, would be waited for
        raise FileNotFoundError(root / file)
    manifest = json.loads((root / file).read_text())
    target = manifest
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    (root / file).write_text(json.dumps(manifest))


def in_manifest(name: str, path: tuple[str | int, ...], value: object) -> None:
    MUTATIONS[f"manifest_{name}"] = lambda root: _set(root, path, value)


_SPLIT = ("splits", "train")
_SHARD = (*_SPLIT, "shards", 0)
_DEEP: Any = []
for _ in range(500):
    _DEEP = [_DEEP]

in_manifest("written_by_list", ("written_by",), [])
in_manifest("written_by_null", ("written_by",), None)
in_manifest("written_by_number", ("written_by", "walloc_data"), 1)
in_manifest("num_items_2_40", (*_SPLIT, "source", "num_items"), 2**40)
in_manifest("num_items_2_33", (*_SPLIT, "source", "num_items"), 2**33)
in_manifest("num_items_true", (*_SPLIT, "source", "num_items"), True)
in_manifest("num_items_10_400", (*_SPLIT, "source", "num_items"), 10**400)
in_manifest("num_failures_2_62", (*_SPLIT, "num_failures"), 2**62)
in_manifest("num_failures_2_39", (*_SPLIT, "num_failures"), 2**39)
in_manifest("num_bytes_10_400", (*_SHARD, "num_bytes"), 10**400)
in_manifest("num_bytes_2_49", (*_SHARD, "num_bytes"), 2**49)
in_manifest("shard_one_byte_shorter", (*_SHARD, "num_bytes"), 10239)
in_manifest("shards_null", (*_SPLIT, "shards"), None)
in_manifest("shards_of_numbers", (*_SPLIT, "shards"), [1, 2])
in_manifest("shards_none", (*_SPLIT, "shards"), [])
in_manifest("shard_name_a_folder", (*_SHARD, "name"), "data")
in_manifest("shard_name_outside", (*_SHARD, "name"), "../set/walloc.json")
in_manifest("shard_name_half_character", (*_SHARD, "name"), "data/\udce9.tar")
in_manifest("shard_name_escapes", (*_SHARD, "name"), "data/\x1b[2J.tar")
in_manifest("labelled_one", (*_SPLIT, "labelled"), 1)
in_manifest("labelled_false", (*_SPLIT, "labelled"), False)
in_manifest("latent_shape_large", (*_SPLIT, "latent_shape"), [12, 8191, 8191])
in_manifest("latent_shape_two_channels", (*_SPLIT, "latent_shape"), [2, 6, 6])
in_manifest("latent_shape_null", (*_SPLIT, "latent_shape"), None)
in_manifest("latent_shape_text", (*_SPLIT, "latent_shape"), "666")
in_manifest("statistics_null", (*_SPLIT, "statistics"), None)
in_manifest("statistics_text", (*_SPLIT, "statistics"), {"counts": "many"})
in_manifest("statistics_ragged", (*_SPLIT, "statistics", "counts", 0), [1])
in_manifest("statistics_large", (*_SPLIT, "statistics", "counts", 0, 128), 2**62)
in_manifest("source_a_list", (*_SPLIT, "source"), [])
in_manifest("source_deep", (*_SPLIT, "source", "notes"), _DEEP)
in_manifest("notes_of_numbers", (*_SPLIT, "source", "notes"), [1, None, {"a": 1}])
in_manifest("notes_escapes", (*_SPLIT, "source", "notes"), ["\x1b]0;owned\x07 \u202e \x9b31m"])
in_manifest("location_escapes", (*_SPLIT, "source", "location"), "\x1b[31mred")
in_manifest("class_names_escapes", ("class_names",), ["\x1b[31mcat\n", "\x9b2J"])
in_manifest("class_names_half_character", ("class_names",), ["\ud800", "dog"])
in_manifest("class_names_long", ("class_names",), ["c" * 200_000, "d" * 200_000])
in_manifest("class_names_one", ("class_names",), ["cat"])
in_manifest("class_names_none", ("class_names",), [])
in_manifest("class_names_text", ("class_names",), "cat")
in_manifest("index_sha256_absent", (*_SPLIT, "index_sha256"), None)
in_manifest("index_sha256_wrong", (*_SPLIT, "index_sha256"), "0" * 64)
in_manifest("codec_of_4096_channels", ("codec", "latent_dim"), 3 * 36**2)
in_manifest("codec_j_8", ("codec", "J"), 8)
in_manifest("codec_bits_2", ("codec", "latent_bits"), 2)
in_manifest("codec_name_list", ("codec", "name"), ["x"])
in_manifest("codec_null", ("codec",), None)
in_manifest("settings_text", ("settings",), "x")
in_manifest("size_px_10_400", ("settings", "size_px"), 10**400)
in_manifest("mirror_claimed", ("settings", "mirror"), True)
in_manifest("unknown_field", ("surprise",), {"\x1b": 1})
in_manifest("split_name_null", ("splits", ""), None)
in_manifest("splits_a_list", ("splits",), [])
in_manifest("no_splits", ("splits",), {})


@mutation
def manifest_nan(root: Path) -> None:
    text = (root / "walloc.json").read_text()
    (root / "walloc.json").write_text(text.replace('"num_failures": 1', '"num_failures": NaN'))


@mutation
def manifest_infinite(root: Path) -> None:
    text = (root / "walloc.json").read_text()
    (root / "walloc.json").write_text(text.replace('"num_failures": 1', '"num_failures": 1e400'))


@mutation
def manifest_number_of_100_000_digits(root: Path) -> None:
    text = (root / "walloc.json").read_text()
    (root / "walloc.json").write_text(text.replace('"num_failures": 1', f'"num_failures": {"9" * 100_000}'))


@mutation
def manifest_of_many_lists(root: Path) -> None:
    (root / "walloc.json").write_bytes(b'{"format":[' + b"[]," * 2**22 + b"[]]}")


@mutation
def manifest_utf16(root: Path) -> None:
    (root / "walloc.json").write_text((root / "walloc.json").read_text(), encoding="utf-16")


@mutation
def manifest_empty(root: Path) -> None:
    (root / "walloc.json").write_bytes(b"")


# Files that are none, or longer than anybody reads.

FILES = {
    "manifest": "walloc.json",
    "index": "index/train.parquet",
    "shard": "data/train-00001.tar",
    "codec_json": "codec/codec.json",
    "weights": "codec/model.safetensors",
    "decoder": "codec/decoder-2.safetensors",
    "failures": "failures/train.jsonl",
    "card": "codec/README.md",
    "wids": "index/train.wids.json",
    "timm": "_info.json",
    "plan": ".walloc/train/plan.json",
    "done": ".walloc/train/00000.json",
    "log": ".walloc/train/log.jsonl",
}


def _folder(path: Path) -> None:
    path.mkdir()


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**30)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x89garbage\n" * 100)


SPECIAL: dict[str, Mutation] = {
    "fifo": os.mkfifo,
    "folder": _folder,
    "loop": lambda path: path.symlink_to(path.name),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "sparse": _sparse,
    "empty": Path.touch,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "absent": lambda path: None,
    "garbage": _garbage,
}


def replaced(file: str, how: str) -> Mutation:
    def replace(root: Path) -> None:
        path = root / FILES[file]
        path.unlink(missing_ok=True)
        SPECIAL[how](path)

    return replace


for _file in FILES:
    for _how in SPECIAL:
        MUTATIONS[f"{_file}_{_how}"] = replaced(_file, _how)


# The index. The manifest is told its new checksum: whoever writes an index can write that too.


def tell(root: Path) -> None:
    """Make the manifest's checksum that of the index."""
    data = (root / "index" / "train.parquet").read_bytes()
    _set(root, (*_SPLIT, "index_sha256"), hashlib.sha256(data).hexdigest())


def rewrite_index(root: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    path = root / "index" / "train.parquet"
    pq.write_table(change(pq.read_table(path)), path, **options)
    tell(root)


def in_index(name: str, column: str, value: object, *, rows: slice = slice(1, 2), kind: Any = None) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[rows] = [value] * len(values[rows])
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array(values, kind or table.schema.field(column).type))

    MUTATIONS[f"index_{name}"] = lambda root: rewrite_index(root, change)


for _column in ("key", "shard", "offset", "length", "label", "height", "width", "source_index", "crc32"):
    in_index(f"null_{_column}", _column, None)
in_index("offset_2_62", "offset", 2**62)
in_index("offset_negative", "offset", -1)
in_index("offset_elsewhere", "offset", 1)
in_index("length_2_31", "length", 2**31 - 1)
in_index("length_zero", "length", 0)
in_index("shard_99", "shard", 99)
in_index("shard_negative", "shard", -1)
in_index("height_2_30", "height", 2**30)
in_index("height_zero", "height", 0)
in_index("height_65528", "height", 65528, rows=slice(None))
in_index("label_2_62", "label", 2**62)
in_index("label_negative", "label", -5)
in_index("source_index_2_62", "source_index", 2**62)
in_index("source_index_negative", "source_index", -(2**62))
in_index("key_of_another", "key", "000000000")
in_index("key_path", "key", "../../x")
in_index("key_escapes", "key", "\x1b[2J")
in_index("key_long", "key", "k" * 10_000_000)
in_index("offset_text", "offset", "1", rows=slice(None), kind=pa.string())
in_index("offset_float", "offset", float("nan"), rows=slice(None), kind=pa.float64())
in_index("offset_list", "offset", [1], rows=slice(None), kind=pa.list_(pa.int64()))
in_index("offset_bool", "offset", True, rows=slice(None), kind=pa.bool_())
in_index("crc32_other", "crc32", 1)


@mutation
def index_without_rows(root: Path) -> None:
    rewrite_index(root, lambda table: table.slice(0, 0))


@mutation
def index_without_offset(root: Path) -> None:
    rewrite_index(root, lambda table: table.drop_columns(["offset"]))


@mutation
def index_backwards(root: Path) -> None:
    rewrite_index(root, lambda table: table.take(list(range(table.num_rows - 1, -1, -1))))


@mutation
def index_of_many_equal_rows(root: Path) -> None:
    """A million rows in a few kilobytes, and a manifest that says so."""
    many = 1_000_000
    table = pq.read_table(root / "index" / "train.parquet")

    def repeat(_: pa.Table) -> pa.Table:
        columns = [pa.repeat(table[name][0], many).cast(table.schema.field(name).type) for name in table.column_names]
        return pa.table(columns, schema=table.schema)

    rewrite_index(root, repeat, compression="zstd", use_dictionary=True)
    manifest = json.loads((root / "walloc.json").read_text())
    split = manifest["splits"]["train"]
    split["num_samples"] = many
    split["shards"] = [split["shards"][0] | {"num_samples": many}]
    split["source"]["num_items"] = many + 1
    (root / "walloc.json").write_text(json.dumps(manifest))


@mutation
def index_flipped(root: Path) -> None:
    path = root / "index" / "train.parquet"
    data = bytearray(path.read_bytes())
    for place in range(20, len(data) - 8, 97):
        data[place] ^= 0x55
    path.write_bytes(data)
    _set(root, (*_SPLIT, "index_sha256"), hashlib.sha256(data).hexdigest())


# Shards. Every checksum is told.


def lying_webp(width: int, height: int) -> bytes:
    """34 bytes that are a black picture of any size."""
    bits = (width - 1) | (height - 1) << 14
    # No transform, no colour cache, no meta codes; five prefix codes of one symbol each, 0.
    stream = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08" + b"\0" * 5
    stream += b"\0" * (len(stream) % 2)
    return b"RIFF" + struct.pack("<I", len(stream) + 12) + b"WEBPVP8L" + struct.pack("<I", len(stream)) + stream


def rewrite_sample(root: Path, row: int, data: bytes, *, height: int | None = None, width: int | None = None) -> None:
    """Put other bytes in place of a packed latent, and tell everybody."""
    path = root / "index" / "train.parquet"
    table = pq.read_table(path)
    entry = table.to_pylist()[row]
    shard = root / f"data/train-{entry['shard']:05d}.tar"
    whole = bytearray(shard.read_bytes())
    start = entry["offset"]
    assert len(data) <= entry["length"]
    whole[start : start + len(data)] = data
    header = bytearray(whole[start - 512 : start])
    header[124:136] = b"%011o\0" % len(data)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole[start - 512 : start] = header
    shard.write_bytes(whole)

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row] |= {"length": len(data), "crc32": zlib.crc32(data)}
        if height is not None and width is not None:
            rows[row] |= {"height": height, "width": width}
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite_index(root, change)
    manifest = json.loads((root / "walloc.json").read_text())
    split = manifest["splits"]["train"]
    split["shards"][entry["shard"]]["sha256"] = hashlib.sha256(whole).hexdigest()
    if height is not None:
        split["latent_shape"] = None
        manifest["settings"]["size_px"] = None
    (root / "walloc.json").write_text(json.dumps(manifest))


@mutation
def sample_of_65528_black_pixels(root: Path) -> None:
    rewrite_sample(root, 3, lying_webp(16382, 16382), height=65528, width=65528)


@mutation
def sample_that_claims_16383(root: Path) -> None:
    rewrite_sample(root, 3, lying_webp(16383, 16383))


@mutation
def sample_of_20000_by_16(root: Path) -> None:
    rewrite_sample(root, 3, lying_webp(5000, 4), height=16, width=20000)


@mutation
def sample_of_16_by_20000(root: Path) -> None:
    rewrite_sample(root, 3, lying_webp(4, 5000), height=20000, width=16)


@mutation
def sample_that_is_a_png(root: Path) -> None:
    rewrite_sample(root, 3, b"\x89PNG\r\n\x1a\n" + b"\0" * 30)


@mutation
def shard_cut(root: Path) -> None:
    path = root / "data" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:5000])


@mutation
def shard_flipped(root: Path) -> None:
    path = root / "data" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    for place in range(1000, len(data), 1000):
        data[place] ^= 1
    path.write_bytes(data)


# Failures, the codec, and what lies beside.


def in_failures(name: str, line: object) -> None:
    def append(root: Path) -> None:
        (root / "failures" / "train.jsonl").write_text(json.dumps(line) + "\n")

    MUTATIONS[f"failures_{name}"] = append


in_failures("source_index_true", {"key": "000000001", "name": "x", "source_index": True, "reason": "y"})
in_failures("source_index_10_400", {"key": "000000001", "name": "x", "source_index": 10**400, "reason": "y"})
in_failures("source_index_negative", {"key": "000000001", "name": "x", "source_index": -(2**70), "reason": "y"})
in_failures("of_numbers", {"key": 1, "name": 2, "source_index": 7, "reason": 3})
in_failures("half_character", {"key": "000000007", "name": "caf\udce9", "source_index": 7, "reason": "\ud800"})
in_failures("escapes", {"key": "000000007", "name": "\x1b[2J", "source_index": 7, "reason": "\x9b2J\u202e"})
in_failures("a_list", [1])


@mutation
def failures_one_long_line(root: Path) -> None:
    (root / "failures" / "train.jsonl").write_bytes(b"[" * 3_000_000)


@mutation
def failures_number_of_100_000_digits(root: Path) -> None:
    (root / "failures" / "train.jsonl").write_text(f'{{"source_index": {"9" * 100_000}, "name": "", "reason": ""}}\n')


def in_codec(name: str, path: tuple[str | int, ...], value: object) -> None:
    MUTATIONS[f"codec_{name}"] = lambda root: _set(root, path, value, file="codec/codec.json")


_LARGE = {"kind": "unet", "width": 2048, "blocks": 64, "groups": 1, "half_blocks": 64, "quarter_blocks": 64}
in_codec("of_64_blocks_of_2048", ("decoder",), _LARGE)
in_codec("of_64_plain_blocks_of_2048", ("decoder",), {"kind": "conv", "width": 2048, "blocks": 64, "groups": 1})
in_codec("of_j_8", ("J",), 8)
in_codec("of_4096_channels", ("latent_dim",), 3 * 36**2)
in_codec("decoder_null", ("decoder",), None)
in_codec("decoder_width_true", ("decoder",), {"kind": "conv", "width": True, "blocks": 1, "groups": 1})
in_codec("statistics_text", ("statistics",), "x")
in_codec("statistics_of_10_400", ("statistics", "mean", 0), 10**400)
in_codec("statistics_true", ("statistics", "mean", 0), True)
in_codec("decoder_files_outside", ("decoder_files",), {"2": "../../x.safetensors"})
in_codec("decoder_files_absent", ("decoder_files",), {"3": "decoder-3.safetensors"})
in_codec("decoder_files_null", ("decoder_files",), None)
in_codec("name_escapes", ("name",), "\x1b[2J")


@mutation
def codec_of_j_8_and_4096_channels(root: Path) -> None:
    _set(root, ("J",), 8, file="codec/codec.json")
    _set(root, ("latent_dim",), 3 * 36**2, file="codec/codec.json")


@mutation
def codec_of_another(root: Path) -> None:
    _set(root, ("encoder_sha256",), "0" * 64, file="codec/codec.json")


@mutation
def weights_that_claim_2_gib(root: Path) -> None:
    """A sparse file whose header names one tensor of 2 GiB."""
    header = json.dumps(
        {"encoder.weight": {"dtype": "F32", "shape": [2**29 - 1024], "data_offsets": [0, 2**31 - 4096]}}
    ).encode()
    with (root / "codec" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**31 - 4096)


def in_plan(name: str, path: tuple[str | int, ...], value: object) -> None:
    MUTATIONS[f"plan_{name}"] = lambda root: _set(root, path, value, file=".walloc/train/plan.json")


in_plan("written_by_null", ("written_by",), None)
in_plan("class_names_number", ("class_names",), 1)
in_plan("settings_list", ("settings",), [])
in_plan("source_null", ("source",), None)
in_plan("num_items_2_62", ("source", "num_items"), 2**62)
in_plan("columns_of_numbers", ("source", "columns"), [1, None])


@mutation
def done_marks_of_nonsense(root: Path) -> None:
    for path in (root / ".walloc" / "train").glob("0*.json"):
        path.write_text('{"shard": [], "failures": 3}')


@mutation
def unfinished_with_a_damaged_plan(root: Path) -> None:
    """No manifest: what is read is the plan."""
    (root / "walloc.json").unlink()
    _set(root, ("written_by",), None, file=".walloc/train/plan.json")


@mutation
def unfinished_with_2_62_pictures(root: Path) -> None:
    (root / "walloc.json").unlink()
    _set(root, ("source", "num_items"), 2**62, file=".walloc/train/plan.json")


@mutation
def log_of_nonsense(root: Path) -> None:
    lines = [
        '{"samples": 1e400, "seconds": NaN}',
        '{"samples": 3, "seconds": 1e308, "stages_s": {"\\u001b[2J": 1}}',
        f'{{"samples": {"9" * 100_000}, "seconds": 1}}',
        '{"samples": true, "seconds": true, "stages_s": {"a": true}}',
        f'{{"samples": {10**400}, "seconds": 0.001}}',
        f'{{"samples": 1, "seconds": {10**400}}}',
        '{"samples": 1, "seconds": 1, "stages_s": {"\\ud800": 1}}',
        "[[[",
    ]
    (root / ".walloc" / "train" / "log.jsonl").write_text("\n".join(lines))
