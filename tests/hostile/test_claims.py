"""Sizes that a few bytes claim: of networks, of parquet pages, of pictures. None is believed before memory is asked."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hostile import mutations
from walloc_data import LatentDataset, encode_dataset, parquet, tables
from walloc_data.adapters import create_latent_model, load_latent_model, save_latent_model
from walloc_data.cli import main
from walloc_data.codec import model as codec_model
from walloc_data.convert import decode
from walloc_data.errors import FormatError, ModelError, SourceError
from walloc_data.sources import open_source
from walloc_data.thrift import thrift_struct

Within = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def model(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train = LatentDataset(whole, cache_folder=folder / "cache")
    return save_latent_model(create_latent_model("vit_tiny_patch16_224", dataset=train, depth=1), folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "claims",
    [
        {"timm_kwargs": {"depth": 200_000}},
        {"timm_kwargs": {"depth": 2, "embed_dim": 3 * 2**14}},
        {"timm_kwargs": {"depth": 1, "mlp_ratio": 2.0**30}},
        {"timm_kwargs": {"depth": 1, "patch_size": 2}, "stem_hidden_channels": 4096, "stem_kernel_cells": 4096},
        {"num_classes": 2**24, "class_names": None},
        {"name": "vit_giant_patch14_224", "timm_kwargs": {}},
        {"timm_kwargs": {"depth": 2**62}},
        {"timm_kwargs": {"depth": 1, "reg_tokens": 2**40}},
    ],
    ids=str,
)
def test_a_model_that_its_weights_do_not_bear_out_takes_no_memory(
    model: Path, tmp_path: Path, within: Within, claims: dict[str, Any]
) -> None:
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | claims
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with within(seconds=30, num_bytes=2**29), pytest.raises(ModelError):
        load_latent_model(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2603, 45), (45, 2603)])
def test_a_picture_of_any_size_is_decoded_in_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Bands give the picture that one piece gives."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    small = Image.fromarray(rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "in" / "a.png")
    encode_dataset(tmp_path / "in", tmp_path / "set", progress=False)
    [whole] = decode.decode_dataset(tmp_path / "set", tmp_path / "whole")
    monkeypatch.setattr(decode, "_MAX_PIXELS_AT_ONCE", 1000)
    monkeypatch.setattr(codec_model, "_WHOLE_CELLS", 64)
    [bands] = decode.decode_dataset(tmp_path / "set", tmp_path / "bands")
    with Image.open(whole) as a, Image.open(bands) as b:
        assert a.size == b.size == size
        assert np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1  # tiles are equal to rounding


@pytest.mark.slow
def test_a_picture_of_60_megapixels_is_decoded_in_little_memory(tmp_path: Path, within: Within) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16_000, 3750), (200, 90, 30)).save(tmp_path / "in" / "a.png")
    encode_dataset(tmp_path / "in", tmp_path / "set", codec="klt-16x", progress=False)
    with within(seconds=200, num_bytes=2**29):
        [path] = decode.decode_dataset(tmp_path / "set", tmp_path / "out")
    with Image.open(path) as image:
        assert image.size == (16_000, 3750)
        colour = np.asarray(image.crop((8000, 3000, 8001, 3001)), np.int16)
        assert np.abs(colour - (200, 90, 30)).max() <= 3  # lossy


# Parquet. A page's header is patched: pyarrow writes none that lies.


def varint(value: int) -> bytes:
    data = b""
    while value >= 128:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def page_that_claims(file: Path, *, column: int, num_bytes: int) -> None:
    """Make the header of a column's first data page say that it unpacks to `num_bytes`, in as many bytes of header."""
    metadata = pq.ParquetFile(file).metadata.row_group(0).column(column)
    data = bytearray(file.read_bytes())
    place = metadata.dictionary_page_offset or metadata.data_page_offset
    while data[place + 1] != 0:  # kind 0: a data page, after the dictionary's
        header, after = thrift_struct(bytes(data[place : place + 2000]), 0)
        place += after + header[3]
    assert data[place + 2] == 0x15  # the next field, a number: its size unpacked
    end = place + 3
    while data[end] & 128:
        end += 1
    new = varint(2 * num_bytes)
    header, after = thrift_struct(bytes(data[place : place + 2000]), 0)
    extra = len(new) - (end + 1 - (place + 3))
    # The header grows into the page's bytes, which nobody comes to unpack.
    packed = header[3] - extra
    rest = data[end + 1 : place + after]
    old = varint(2 * header[3])
    assert rest.startswith(b"\x15" + old)
    assert len(varint(2 * packed)) == len(old)
    rest[1 : 1 + len(old)] = varint(2 * packed)
    data[place + 3 : place + after + extra] = new + rest
    file.write_bytes(data)


@pytest.fixture
def index(root: Path) -> Path:
    table = pq.read_table(root / "index" / "train.parquet")
    pq.write_table(table, root / "index" / "train.parquet", compression="none")
    return root / "index" / "train.parquet"


def test_a_page_that_claims_2_gigabytes_is_refused_before_they_are_asked_for(
    root: Path, index: Path, within: Within
) -> None:
    names = pq.read_schema(index).names
    page_that_claims(index, column=names.index("offset"), num_bytes=2**31 - 1)
    mutations.tell(root)
    with (
        within(num_bytes=2**28),
        pytest.raises(FormatError, match=r"train.parquet: .*column 'offset': a page of \d+ bytes that unpacks to 2147"),
    ):
        LatentDataset(root)
    with within(num_bytes=2**28):
        assert main(["verify", str(root)]) != 0


def test_a_source_of_parquet_that_claims_2_gigabytes_is_refused_before_they_are_asked_for(
    whole: Path, tmp_path: Path, within: Within
) -> None:
    data = (whole.parent / "pictures" / "cat" / "0.png").read_bytes()
    table = pa.table({"image": [data] * 3, "label": [0, 1, 0]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert open_source(tmp_path / "a.parquet", image_column="image").num_items == 3
    page_that_claims(tmp_path / "a.parquet", column=0, num_bytes=2**31 - 1)
    for streaming in (False, True):
        with within(num_bytes=2**29), pytest.raises(SourceError, match=r"a.parquet: row group 0, .* unpacks to 214748"):
            open_source(tmp_path / "a.parquet", image_column="image", streaming=streaming)


def _text(values: pa.Array, times: int) -> pa.Table:
    """One long text, so many times: a dictionary of one value."""
    return pa.table({"x": pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), values)})


LONG = pa.array(["x" * (2**20 - 1)])
BOMBS: dict[str, tuple[pa.Table, str]] = {
    "a text of 4 GiB in all": (_text(LONG, 4096), r"column 'x' has \d+ bytes of text in 1024 rows"),
    "a text of 2 MiB": (_text(pa.array(["x" * 2**21]), 3), "column 'x' has a text of 2097152 bytes"),
    "lists of one long text": (
        pa.table({"x": pa.ListArray.from_arrays([0, 4096], _text(LONG, 4096)["x"].combine_chunks())}),
        r"column 'x' has \d+ bytes of text in 1 rows",
    ),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bombs")
    paths = {name: folder / f"{i}.parquet" for i, name in enumerate(BOMBS)}
    for name, path in paths.items():
        pq.write_table(BOMBS[name][0], path, compression="zstd", store_schema=False)
        assert path.stat().st_size < 2**18
    return paths


@pytest.mark.parametrize("name", BOMBS)
def test_parquet_that_stands_for_gigabytes_is_refused(bombs: dict[str, Path], name: str, within: Within) -> None:
    with within(num_bytes=2**29), pytest.raises(FormatError, match=BOMBS[name][1]):
        tables.read_parquet(bombs[name].read_bytes())


def test_what_a_footer_claims_is_compared_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"x": [1, 2, 3], "words": [["a"], [], ["b", "c"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with parquet.open_parquet(tmp_path / "a.parquet") as opened:
        rows = [tables.text_of_batch(batch).to_pylist() for batch in parquet.batches(opened, num_rows=2)]
        assert [row for part in rows for row in part] == table.to_pylist()
    whole = (tmp_path / "a.parquet").read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    cut = whole[: -8 - length - 20] + whole[-8 - length :]
    with pytest.raises(FormatError, match=r"a.parquet: row group 0, column 'words.*': \d+ bytes from byte \d+ on; its"):
        parquet.check_parquet(cut, context="a.parquet")
    monkeypatch.setattr(parquet, "MAX_LIST_BYTES", 8)
    monkeypatch.setattr(parquet, "MAX_RATIO", 0)
    with pytest.raises(FormatError, match=r"column 'words.list.element': 4 values in \d+ bytes; refused"):
        parquet.check_parquet(whole)


def _small() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": [1, 2, 3] * 9, "words": [["a"], [], ["b", "c"]] * 9}), file, compression="none")
    return file.getvalue()


PARQUET = _small()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (bytes([0x19, 0xF7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]), FormatError),  # 2^41 doubles in no bytes
        (bytes([0x19, 0xF8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]), FormatError),  # as many texts
        (bytes([0x19, 0xF7, 0x90, 0x4E]), IndexError),  # ten thousand doubles in no bytes
        (bytes([0x19]) * 5000, FormatError),  # lists of lists
        (bytes([0x1C]) * 5000, FormatError),  # structs of structs
    ],
)
def test_lists_and_depth_end_with_the_bytes_of_a_footer(data: bytes, error: type[Exception], within: Within) -> None:
    with within(seconds=5, num_bytes=2**28), pytest.raises(error):
        thrift_struct(data, 0)


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_no_parquet_are_named(tail: bytes, place: int, value: int) -> None:
    data = bytearray(PARQUET)
    data[place % len(data)] = value
    for mutated in (bytes(data), bytes(data[: len(data) // 2]) + tail + bytes(data[len(data) // 2 :]), tail):
        with suppress(FormatError, pa.ArrowException, OSError, ValueError):
            tables.read_parquet(mutated)


def _table(values: pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": values}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [pa.large_list(pa.string()), pa.map_(pa.string(), pa.string()), pa.list_(pa.large_list(pa.string()))],
    ids=str,
)
def test_text_in_types_that_nothing_writes_is_refused_before_it_is_unpacked(kind: pa.DataType, within: Within) -> None:
    texts: list[Any] = ["a" * 2**20] * 64
    rows = [[(str(i), text) for i, text in enumerate(texts)]] if pa.types.is_map(kind) else [texts]
    data = _table(pa.array([rows] if pa.types.is_list(kind) else rows, kind))
    assert len(data) < 4 * 2**20
    with within(seconds=5, num_bytes=2**28), pytest.raises(FormatError, match=r"is of the type .*, which is not read"):
        tables.read_parquet(data)


def test_a_place_in_a_footer_that_is_no_number_is_named() -> None:
    data = bytearray(_table(pa.array(["a", "b"])))
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(start, len(data) - 8):  # every field becomes text, a list, a struct
        for kind in (8, 9, 12):
            mutated = bytes(data[:place]) + bytes([data[place] & 0xF0 | kind]) + bytes(data[place + 1 :])
            with suppress(FormatError):
                parquet._check(io.BytesIO(mutated), None)


def test_a_footer_of_a_hundred_megabytes_is_not_read(tmp_path: Path, within: Within) -> None:
    with (tmp_path / "long.parquet").open("wb") as file:
        file.truncate(2**27)
        file.seek(0, 2)
        file.write((2**27 - 12).to_bytes(4, "little") + b"PAR1")
    with (
        (tmp_path / "long.parquet").open("rb") as file,
        within(seconds=5, num_bytes=2**26),
        pytest.raises(FormatError, match="a footer of 134217716 bytes; at most 67108864 are read"),
    ):
        tables.read_parquet(file)
