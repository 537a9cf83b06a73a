"""Columns in the cache folder: whole pieces, few rows, missing values; nothing of an index is believed unchecked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from walloc_data import LatentDataset
from walloc_data.dataset import checksummed
from walloc_data.dataset.columns import ArrayColumn, ListColumn, write_column
from walloc_data.errors import FormatError
from walloc_data.format import SOURCE_INDEX_COLUMNS, ColumnType, Manifest
from walloc_data.tables import arrow_type, column_array

NUM = 2500  # rows: three pieces of 1024, the last one short


def made(tmp_path: Path, values: list[Any], kind: ColumnType) -> ArrayColumn | ListColumn:
    """A column of an index whose row groups are of another length than the pieces."""
    path = tmp_path / "index.parquet"
    table = pa.table({"x": column_array(values, kind)})
    pq.write_table(table, path, row_group_size=700)
    target = tmp_path / ("x.npy" if kind.is_array else "x.arrow")
    with path.open("rb") as file:
        checksummed.checksummed_file(
            target,
            lambda out: write_column(file, "x", kind, num_rows=len(values), file=out),
            what="column",
            max_bytes=2**30,
        )
    return ArrayColumn(target, "x") if kind.is_array else ListColumn(target, "x", kind)


VALUES: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "text": ("string", lambda i: None if i % 11 == 0 else f"text {i % 70} ü"),
    "json": ("json", lambda i: None if i % 7 == 0 else {"a": [i, "b"]}),
    "ragged": ({"list": "int64"}, lambda i: None if i % 5 == 0 else list(range(i % 4))),
    "struct": ({"struct": {"a": "int8", "b": "string"}}, lambda i: {"a": i % 100, "b": None}),
    "nothing": ("null", lambda i: None),
}


@pytest.mark.parametrize("name", list(VALUES))
def test_rows_of_a_list_column_are_those_that_were_asked_for(tmp_path: Path, name: str) -> None:
    described, value = VALUES[name]
    values = [value(i) for i in range(NUM)]
    column = made(tmp_path, values, ColumnType.from_json(described))
    rng = np.random.default_rng(0)
    for rows in (np.arange(NUM), rng.integers(0, NUM, 64), rng.permutation(NUM), np.array([NUM - 1, 0, 1023, 1024])):
        assert column.take(rows) == [values[row] for row in rows.tolist()]


@pytest.mark.parametrize(
    ("described", "value", "dtype"),
    [
        ("int16", lambda i: i % 999, "int16"),
        ("bool", lambda i: i % 3 == 0, "bool"),
        ("float32", lambda i: i / 8, "float32"),
        ({"list": "uint8", "length": 3}, lambda i: [i % 256, 0, 255], "uint8"),
        ({"list": {"list": "int64", "length": 2}, "length": 2}, lambda i: [[i, 0], [0, -i]], "int64"),
        ("int16", lambda i: None if i == 2000 else i % 999, "float64"),
        ("bool", lambda i: None if i == 2000 else i % 3 == 0, "float64"),
        ({"list": "int32", "length": 2}, lambda i: None if i == 2000 else [i, i + 1], "float64"),
        ({"list": "float32", "length": 2}, lambda i: [None, 1.5] if i == 2000 else [0.5, 1.5], "float64"),
    ],
)
def test_arrays_keep_their_dtype_and_are_floats_with_nan_where_a_value_is_missing(
    tmp_path: Path, described: Any, value: Callable[[int], Any], dtype: str
) -> None:
    values = [value(i) for i in range(NUM)]
    kind = ColumnType.from_json(described)
    column = made(tmp_path, values, kind)
    assert isinstance(column, ArrayColumn)
    assert column.form == (dtype, kind.shape)
    filled = [np.full(kind.shape, np.nan) if v is None else np.array(v, dtype=float) for v in values]
    rows = np.random.default_rng(0).permutation(NUM)
    assert np.array_equal(column.take(rows).astype(float), np.stack(filled)[rows], equal_nan=True)


@pytest.fixture
def root(make_dataset: Callable[..., Manifest], tmp_path: Path) -> Path:
    make_dataset(tmp_path / "data", num_samples=20)
    return tmp_path / "data"


def put(root: Path, columns: dict[str, Any], **arrays: Any) -> None:
    """Add columns to an index, and what a manifest says of them, with the right checksum."""
    path = root / "index" / "train.parquet"
    table = pq.read_table(path)
    for name, kind, _ in SOURCE_INDEX_COLUMNS:
        table = table.append_column(name, pa.nulls(20, arrow_type(ColumnType(kind))))
    for name, array in arrays.items():
        table = table.append_column(name, array)
    pq.write_table(table, path)
    value = json.loads((root / "walloc.json").read_text())
    value["splits"]["train"] |= {"columns": columns, "index_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (root / "walloc.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("columns", "array", "message"),
    [
        ({"x": "string"}, pa.array(["a" * 2**21] * 20), "column 'x' has a text of 2097152 bytes; at most 1048576"),
        ({"x": "string"}, pa.array([b"\xff"] * 20).view(pa.string()), "column 'x' is not text"),
        ({"x": "int64"}, pa.array(["1"] * 20), "column 'x' holds string; the manifest says int64"),
        (
            {"x": {"list": "int64", "length": 2}},
            pa.array([[1]] * 20),
            "column 'x' holds list<.*; the manifest says list",
        ),
        ({"y": "int64", "x": "int64"}, pa.array([1] * 20), "no column 'y', which the manifest lists"),
    ],
)
def test_a_column_that_is_not_what_the_manifest_says_is_refused(
    root: Path, columns: dict[str, Any], array: Any, message: str
) -> None:
    put(root, columns, x=array)
    with pytest.raises(FormatError, match=rf"train\.parquet: {message}"):
        LatentDataset(root, columns=list(columns))
    assert len(LatentDataset(root)) == 20  # whoever does not ask for it is not concerned


def test_a_damaged_column_in_the_cache_is_made_anew_and_a_changed_index_is_another_column(root: Path) -> None:
    put(root, {"x": "string"}, x=pa.array([f"text {i}" for i in range(20)]))
    cache = root / "cache"
    expected = [f"text {i}" for i in range(20)]
    assert [sample[2] for sample in LatentDataset(root, columns=["x"], cache_folder=cache)] == expected
    [path] = cache.glob("index/*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [sample[2] for sample in LatentDataset(root, columns=["x"], cache_folder=cache)] == expected
    index = root / "index" / "train.parquet"
    table = pq.read_table(index)
    place = table.schema.get_field_index("x")
    pq.write_table(table.set_column(place, "x", pa.array([f"other {i}" for i in range(20)])), index)
    value = json.loads((root / "walloc.json").read_text())
    value["splits"]["train"]["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    (root / "walloc.json").write_text(json.dumps(value))
    assert LatentDataset(root, columns=["x"], cache_folder=cache)[3][2] == "other 3"
