"""Checks of a data set before it is uploaded."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from walloc_data.codec import load_codec
from walloc_data.dataset.index import load_index
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import CodecError, FormatError
from walloc_data.format import Manifest
from walloc_data.storage import ShardCache, Store

__all__ = ["check_readable"]


@contextmanager
def check_readable(store: Store, manifest: Manifest) -> Iterator[None]:
    """Context: check the data set by reading it.

    Before the block: the codec and all indices, which takes seconds. After the block, in which shards are compared with
    their records: a sample of every shard.

    Raises:
        CodecError, FormatError: the error that readers would get.
    """
    folder = f"{store.local_path or store.url}/codec"
    _, info = load_codec(folder)
    if info.spec != manifest.codec:
        raise CodecError(
            f"{folder}: this codec ({info.name}, encoder {info.encoder_sha256[:12]}) is not the one that made "
            f"the latents ({manifest.codec.name}, {manifest.codec.encoder_sha256[:12]})"
        )
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as name:
        scratch = Path(name)
        indices = {}
        for split, record in manifest.splits.items():
            if not store.exists(record.index_name(split)):
                raise FormatError(
                    f"{store.url}: the index {record.index_name(split)} is missing; finish the conversion first"
                )
            indices[split] = load_index(store, split=split, record=record, spec=manifest.codec, folder=scratch)
            failures = f"{record.root}failures/{split}.jsonl"
            if (record.num_failures > 0) != (store.exists(failures) and store.num_bytes(failures) > 0):
                raise FormatError(
                    f"{store.location(failures)}: does not list the {record.num_failures} failures of the manifest"
                )
        yield
        for split, record in manifest.splits.items():
            reader = ShardReader(store, record, manifest.codec, indices[split], ShardCache(scratch))
            first = 0
            for shard in record.shards:
                reader.read(np.array([first], dtype=np.int64))
                first += shard.num_samples
