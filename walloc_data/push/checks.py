"""What must be true of a data set before others get it."""

import tempfile
from pathlib import Path

import numpy as np

from walloc_data.codec import load_codec
from walloc_data.dataset.index import load_index
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import CodecError, FormatError
from walloc_data.format import Manifest
from walloc_data.storage import ShardCache, Store

__all__ = ["check_readable"]


def check_readable(root: Path, manifest: Manifest) -> None:
    """Read the data set as others will: its codec and every index whole, and a sample of every shard."""
    _, info = load_codec(root / "codec")
    if info.spec != manifest.codec:
        raise CodecError(
            f"{root / 'codec'}: this codec ({info.name}, encoder {info.encoder_sha256[:12]}) is not the one that made "
            f"the latents ({manifest.codec.name}, {manifest.codec.encoder_sha256[:12]})"
        )
    store = Store(root)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as name:
        scratch = Path(name)
        for split, record in manifest.splits.items():
            index = load_index(store, split=split, record=record, spec=manifest.codec, folder=scratch)
            reader = ShardReader(store, record, manifest.codec, index, ShardCache(scratch))
            first = 0
            for shard in record.shards:
                reader.read(np.array([first], dtype=np.int64))
                first += shard.num_samples
            failures = f"{record.root}failures/{split}.jsonl"
            if (record.num_failures > 0) != (store.exists(failures) and store.num_bytes(failures) > 0):
                raise FormatError(
                    f"{store.where(failures)}: does not list the {record.num_failures} failures of the manifest"
                )
