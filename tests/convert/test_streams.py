"""Streams: read once, in order, by the parent; the same bytes for any number of workers, resumed or not."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from tests.convert.conftest import as_bytes, hashes, picture
from walloc_data import encode_dataset
from walloc_data.convert import dataset_info, finish_dataset, verify_dataset
from walloc_data.errors import ConversionError, SourceError
from walloc_data.sources import Sample, Source, open_source

NUM = 11


def make(num: int = NUM) -> datasets.Dataset:
    values = {
        "image": [{"bytes": as_bytes(picture(number)), "path": None} for number in range(num)],
        "label": [number % 2 for number in range(num)],
        "text": [f"caption {number}" for number in range(num)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(values, features=features)


def test_a_stream_and_its_data_set_in_order_have_the_same_shards(tmp_path: Path) -> None:
    encode_dataset(make(), tmp_path / "map", samples_per_shard=4, shuffle_seed=None, progress=False)
    summary = encode_dataset(make().to_iterable_dataset(), tmp_path / "stream", samples_per_shard=4, progress=False)
    assert (summary.num_samples, summary.num_shards) == (NUM, 3)
    for number in range(3):
        name = f"data/train-{number:05d}.tar"
        assert (tmp_path / "map" / name).read_bytes() == (tmp_path / "stream" / name).read_bytes()
    assert verify_dataset(tmp_path / "stream", progress=False).problems == ()


def test_a_stream_that_broke_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    encode_dataset(make().to_iterable_dataset(), whole, samples_per_shard=2, progress=False)

    class Breaking(Source):
        kind, num_items = "hf-stream", None

        def __init__(self, source: Source) -> None:
            self._source = source
            self.__dict__.update({k: v for k, v in vars(source).items() if not k.startswith("_")})

        def read(self, index: int) -> Sample:
            raise NotImplementedError

        def stream(self) -> Iterator[Sample]:
            for number, sample in enumerate(self._source.stream()):
                if number == 7:
                    raise SourceError("the network went away")
                yield sample

    with pytest.raises(SourceError, match="the network went away"):
        encode_dataset(Breaking(open_source(make().to_iterable_dataset())), broken, samples_per_shard=2, progress=False)
    assert len(list(broken.glob("data/*.tar"))) == 3
    assert dataset_info(broken).unfinished == {"train": (3, None)}
    with pytest.raises(ConversionError, match="the end of the stream has not been reached yet"):
        finish_dataset(broken)
    encode_dataset(make().to_iterable_dataset(), broken, samples_per_shard=2, workers=2, progress=False)
    assert hashes(whole) == hashes(broken)
    assert encode_dataset(make().to_iterable_dataset(), broken, samples_per_shard=2, progress=False).new_samples == 0


def test_parts_of_a_stream_join(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # As many as fill the last shard exactly.
    encode_dataset(make(8).to_iterable_dataset(), whole, samples_per_shard=2, progress=False)
    for part in ("2/2", "1/2"):
        encode_dataset(make(8).to_iterable_dataset(), parts, samples_per_shard=2, part=part, progress=False)
    finish_dataset(parts)
    assert hashes(whole) == hashes(parts)


def test_an_empty_stream_is_an_error(tmp_path: Path) -> None:
    empty = make().to_iterable_dataset().take(0)
    with pytest.raises(ConversionError, match="the stream is empty"):
        encode_dataset(empty, tmp_path / "out", progress=False)
