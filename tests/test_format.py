import dataclasses
import json
import math
import statistics
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walloc_data.errors import FormatError
from walloc_data.format import (
    ChannelStatistics,
    CodecSpec,
    EncodeSettings,
    Manifest,
    SettingFields,
    ShardRecord,
    SplitRecord,
    check_key,
    check_relative_path,
    dump_json,
    encoder_sha256,
    load_json,
    padding_for,
    sample_key,
    shard_name,
)

SPEC = CodecSpec("klt-16x", 3, 3, 12, 8, "bior4.4", "0" * 64)


def manifest() -> Manifest:
    shards = (
        ShardRecord(shard_name("train", 0), 3, 1000, "a" * 64),
        ShardRecord(shard_name("train", 1), 1, 500, "b" * 64),
    )
    split = SplitRecord(
        {"kind": "folder", "num_items": 5}, 4, 1, shards, (12, 20, 20), True, ChannelStatistics.zero(SPEC)
    )
    return Manifest(SPEC, EncodeSettings(size_px=160), ("cat", "dog"), {"train": split}, {"walloc_data": "0.1.0"})


def test_a_manifest_survives_the_round_trip_byte_for_byte() -> None:
    text = manifest().to_json()
    again = Manifest.from_json(text, context="walloc.json")
    assert again == manifest()
    assert again.to_json() == text


def test_equal_values_give_equal_json_whatever_their_order() -> None:
    assert dump_json({"b": [1, 2.5, -3], "a": "x"}) == dump_json({"a": "x", "b": [1, 2.5, -3]})
    assert json.loads(dump_json({"b": [1, 2.5, -3e-7]})) == {"b": [1, 2.5, -3e-7]}


JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("[]1, .\n", max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


def test_the_keywords_of_settings_are_their_fields() -> None:
    assert get_type_hints(SettingFields) == get_type_hints(EncodeSettings)


@given(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4))
def test_json_is_written_without_loss(value: dict[str, object]) -> None:
    assert json.loads(dump_json(value)) == value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 3, "format version 3; this walloc_data reads up to 2"),
        (("splits", "train", "columns"), {"key": "string"}, "a column cannot have the name 'key'"),
        (("splits", "train", "columns"), {"box": {"list": "pixels"}}, "column 'box': 'pixels' is not the type"),
        (("splits", "train", "columns"), ["box"], "columns must be an object"),
        (("splits", "train", "column_classes"), {"box": ["a"]}, "column_classes must be an object of columns"),
        (("format",), "other", "not a walloc_data manifest"),
        (("codec", "latent_dim"), 13, "cannot be packed"),
        (("codec", "encoder_sha256"), "A" * 64, "64 lower-case hexadecimal"),
        (("codec", "latent_bits"), True, "latent_bits must be an integer"),
        (("settings", "webp_effort"), "slow", "webp_effort must be"),
        (("splits", "train", "num_samples"), 5, "num_samples is 5 but the shards have 4"),
        (("splits", "train", "shards", 0, "name"), "../../etc/passwd", "not a relative path"),
        (("splits", "train", "shards", 0, "name"), "/etc/passwd", "not a relative path"),
        (("splits", "train", "shards", 1, "name"), "data/train-00000.tar", "listed twice"),
        (("splits", "train", "shards", 1, "num_bytes"), -1, "num_bytes must be an integer"),
        (("splits", "train", "latent_shape"), [12, 0, 20], "latent_shape must be an integer"),
        (("splits", "train", "statistics", "counts"), [[1] * 256], "do not match the codec's 12 channels"),
        (("class_names",), [1, 2], "class_names must be a list of strings"),
        (("surprise",), 1, "unknown fields"),
    ],
)
def test_a_broken_manifest_is_refused_by_naming_the_field(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    broken = json.loads(manifest().to_json())
    target = broken
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(FormatError, match=message) as caught:
        Manifest.from_json(json.dumps(broken), context="here/walloc.json")
    assert str(caught.value).startswith("here/walloc.json")


@pytest.mark.parametrize("field", ["codec", "settings", "splits", "written_by"])
def test_a_manifest_without_a_required_part_is_refused(field: str) -> None:
    broken = json.loads(manifest().to_json())
    del broken[field]
    if field == "settings":  # every setting has a default
        assert Manifest.from_json(json.dumps(broken), context="x").settings == EncodeSettings()
    else:
        with pytest.raises(FormatError):
            Manifest.from_json(json.dumps(broken), context="x")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.from_json(data, context="x")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["codec", "settings", "splits", "train", "shards", "statistics", "counts", "name"]),
                inner,
            )
        ),
    )
)
def test_no_json_raises_anything_but_a_format_error(value: object) -> None:
    whole = {"format": "walloc_data", "format_version": 1, "codec": value, "settings": value, "splits": value}
    with pytest.raises(FormatError):
        Manifest.from_json(json.dumps(whole), context="x")


@pytest.mark.parametrize("key", ["Upper", "with.dot", "a/b", "", "x" * 101, "-dash", "ünicode", "a\n"])
def test_keys_that_break_other_readers_are_refused(key: str) -> None:
    with pytest.raises(FormatError, match="key"):
        check_key(key, context="shard")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\\b", "C:/x", "s3://x/y", "a\0b"])
def test_paths_that_leave_the_data_set_are_refused(path: str) -> None:
    with pytest.raises(FormatError, match="not a relative path"):
        check_relative_path(path, context="manifest")


def test_sample_keys_sort_as_their_positions() -> None:
    assert [sample_key(i) for i in (0, 7, 123_456_789, 1_000_000_000)] == [
        "000000000", "000000007", "123456789", "1000000000",
    ]  # fmt: skip


@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from([2, 4, 8, 16]))
def test_padding_reaches_the_next_multiple_and_no_further(height: int, width: int, multiple: int) -> None:
    left, top, right, bottom = padding_for(height, width, multiple=multiple)
    assert (width + left + right) % multiple == (height + top + bottom) % multiple == 0
    assert 0 <= left <= right <= left + 1
    assert 0 <= top <= bottom <= top + 1
    assert left + right < multiple > top + bottom


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=50))
def test_statistics_are_those_of_the_values_counted(values: list[int]) -> None:
    row = tuple(values.count(value) for value in range(-128, 128))
    found = ChannelStatistics((row,))
    assert found.mean[0] == pytest.approx(statistics.fmean(values))
    assert found.std[0] == pytest.approx(statistics.pstdev(values), abs=1e-9)
    assert found.bounds == ((min(values), max(values)),)
    assert 0 <= found.entropy_bits[0] <= math.log2(len(values)) + 1e-9


def test_statistics_add_up_over_shards() -> None:
    one = dataclasses.replace(ChannelStatistics.zero(SPEC), counts=((1,) * 256,) * 12)
    assert (one + one).counts == ((2,) * 256,) * 12
    assert (one + ChannelStatistics.zero(SPEC)) == one


def test_the_encoder_hash_depends_on_all_that_changes_a_latent() -> None:
    spec = dataclasses.asdict(SPEC)
    base = encoder_sha256(spec, [0.5, 0.25], [1.0])
    assert base == encoder_sha256(spec | {"name": "other"}, [0.5, 0.25], [1.0])
    assert base != encoder_sha256(spec | {"latent_bits": 6}, [0.5, 0.25], [1.0])
    assert base != encoder_sha256(spec, [0.5, 0.2500001], [1.0])
    assert base != encoder_sha256(spec, [0.5], [0.25, 1.0])  # the same numbers, cut elsewhere


def test_json_bombs_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(FormatError, match="at most"):
        load_json(b" " * (128 * 2**20 + 1), context="x")
    with pytest.raises(FormatError, match="values of JSON; at most"):
        load_json(b"[" + b"[]," * 2**22 + b"[]]", context="x")
    with pytest.raises(FormatError, match="not valid JSON"):
        load_json(b"[" * 100_000, context="x")


def test_geometry_of_a_spec() -> None:
    assert (SPEC.cell_px, SPEC.tiles, SPEC.dimensionality_reduction) == (8, 4, 16.0)
    assert SPEC.latent_shape(161, 8) == (12, 21, 1)
