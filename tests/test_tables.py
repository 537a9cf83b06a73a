"""Columns of whatever values become arrays of one type, shard by shard and joined, and lose nothing on the way."""

import io
import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walloc_data.errors import FormatError
from walloc_data.format import ColumnType, check_columns, column_name, infer_type, join_types
from walloc_data.tables import cast_column, column_array, read_parquet, typed_columns

SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b.c", "é"]), inner, max_size=3),
    max_leaves=6,
)


def comes_back(found: Any, value: Any, kind: ColumnType) -> bool:
    """Return whether a value of a column came back: numbers by value, absent fields as None, JSON as text."""
    if value is None:
        return found is None
    if kind.kind == "json":
        return comes_back_json(json.loads(found), value)
    if kind.item is not None:
        return len(found) == len(value) and all(comes_back(a, b, kind.item) for a, b in zip(found, value, strict=True))
    if kind.kind == "struct":
        return all(comes_back(found[name], value.get(name), inner) for name, inner in kind.fields)
    if isinstance(value, float):
        return math.isclose(found, value, rel_tol=0, abs_tol=0)
    return bool(found == value)


def comes_back_json(found: Any, value: Any) -> bool:
    if isinstance(value, list):
        return len(found) == len(value) and all(map(comes_back_json, found, value))
    if isinstance(value, dict):
        return all(comes_back_json(found.get(name), value.get(name)) for name in {*found, *value})
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
def test_any_values_come_back_from_parquet_of_two_shards(first: list[Any], second: list[Any]) -> None:
    shards = []
    for values in (first, second):
        arrays, types = typed_columns({"x": values}, {})
        sink = io.BytesIO()
        pq.write_table(pa.table(arrays), sink)
        shards.append((pq.read_table(io.BytesIO(sink.getvalue()))["x"], ColumnType.from_json(types["x"])))
    kind = join_types(shards[0][1], shards[1][1])
    assert kind == join_types(shards[1][1], shards[0][1])
    check_columns({"x": kind.to_json()})
    for (column, own), values in zip(shards, (first, second), strict=True):
        found = cast_column(column, own, kind).to_pylist()
        assert len(found) == len(values)
        assert all(comes_back(a, b, kind) for a, b in zip(found, values, strict=True)), (found, values, kind)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], "null"),
        ([True, None], "bool"),
        ([1, 2.5], "float64"),
        ([True, 1], "json"),
        ([2**70, 1], "json"),
        (["a", 1], "json"),
        ([[1, 2], [3, 4]], "list<int64>[2]"),
        ([[1, 2], [3]], "list<int64>"),
        ([[1], [2]], "list<int64>"),  # one item each: a list that happens to be short
        ([["a", "b"], ["c", "d"]], "list<string>"),
        ([[[0, 0, 1, 1]], []], "list<list<int64>[4]>"),
        ([{"a": 1}, {"b": "x"}], "struct<a: int64, b: string>"),
        ([{}, {}], "json"),
    ],
)
def test_types_follow_from_values(values: list[Any], kind: str) -> None:
    assert str(ColumnType.from_json(typed_columns({"x": values}, {})[1]["x"])) == kind


def test_what_is_declared_wins_unless_a_value_contradicts_it() -> None:
    arrays, types = typed_columns(
        {"x": [1, None], "y": ["2020-01-01T00:00:00.5", None]}, {"x": "float32", "y": "timestamp"}
    )
    assert types == {"x": "float32", "y": "timestamp"}
    assert arrays["x"].type == pa.float32()
    assert arrays["y"].cast(pa.int64()).to_pylist() == [1577836800_500000, None]
    moved = column_array(["2020-01-01T01:00:00+01:00"], ColumnType("timestamp_utc")).cast(pa.int64())
    assert moved.to_pylist() == [1577836800_000000]
    for declared, values in (
        ("int8", [300]),
        ("date", ["tomorrow"]),
        ({"struct": {"a": "int8"}}, [[1]]),
        ("int8", ["x"]),
    ):
        assert typed_columns({"x": values}, {"x": declared})[1]["x"] == infer_type(values).to_json()


def test_integers_of_other_widths_and_fractions_are_joined_without_loss() -> None:
    narrow, wide, real = (ColumnType(kind) for kind in ("uint8", "int32", "float32"))
    assert join_types(narrow, wide) == ColumnType("int64")
    assert join_types(ColumnType("uint64"), wide) == ColumnType("json")
    column = cast_column(pa.chunked_array([pa.array([0.5, None], pa.float32())]), real, join_types(real, wide))
    assert column.to_pylist() == [0.5, None]


def test_names_that_the_index_uses_are_put_apart_and_never_meet() -> None:
    names = ["key", "source.key", "source.source.key", "caption", "crop", "latent"]
    stored = [column_name(name) for name in names]
    assert stored == [
        "source.key",
        "source.source.key",
        "source.source.source.key",
        "caption",
        "source.crop",
        "source.latent",
    ]
    check_columns(dict.fromkeys(stored, "string"))


@pytest.mark.parametrize(
    "kind",
    ["picture", 3, {}, {"list": "int64", "length": 0}, {"list": "int64", "length": True}, {"list": "int64", "size": 2},
     {"struct": {}}, {"struct": ["a"]}, {"list": {"list": {"list": {"list": {"list": {"list": {"list": "int8"}}}}}}}],
)  # fmt: skip
def test_descriptions_of_no_type_are_refused(kind: Any) -> None:
    with pytest.raises(FormatError, match="is not the type of a column"):
        ColumnType.from_json(kind)


def test_a_time_without_a_zone_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = column_array(["2020-01-01T00:00:00", "2020-01-01T09:00:00+09:00"], ColumnType("timestamp_utc"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found.to_pylist() == [datetime(2020, 1, 1, tzinfo=UTC)] * 2


@pytest.mark.parametrize(("value", "kind"), [(1, {"struct": {"a": "int8"}}), (2**70, "int64"), ("x", "int8")])
def test_values_of_another_type_are_refused(value: Any, kind: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        column_array([value], ColumnType.from_json(kind))


def test_a_column_that_is_not_there_is_named() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": [1], "y": [2]}), file)
    assert read_parquet(file.getvalue(), columns=["y"]).to_pydict() == {"y": [2]}
    with pytest.raises(FormatError, match=r"^has no column 'z'; its columns are x, y$"):
        read_parquet(file.getvalue(), columns=["y", "z"])
