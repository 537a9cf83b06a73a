"""Removal of splits, classes or samples: `remove_split`, `remove_samples`."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from walloc_data.convert.edit import change_split, drop_split, edit_root
from walloc_data.convert.lock import staging_folder
from walloc_data.convert.shard import count_levels
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError
from walloc_data.format import ChannelStatistics, Manifest, ShardRecord
from walloc_data.latents import decode_webp, unpack
from walloc_data.maintain.building import Keep, Part, build_split, locked_dataset
from walloc_data.maintain.index import tables_of
from walloc_data.maintain.shards import Change
from walloc_data.maintain.summary import EditSummary
from walloc_data.storage import DatasetLocation, Store, open_store

__all__ = ["remove_samples", "remove_split"]

_MAX_NAMED = 5


@renamed_arguments(out="dataset")
def remove_split(
    dataset: DatasetLocation, *, split: str, storage_options: Mapping[str, Any] | None = None
) -> EditSummary:
    """Remove a split from a data set.

    One write of the manifest removes it; then its files are deleted. If the process is killed in between, the next
    change or conversion deletes them.

    Args:
        dataset: the data set.
        split: name of the split; not the only one.
        storage_options: options of the file system of `dataset`.

    Raises:
        FormatError: the split does not exist, or is the only one.
        BusyError: a conversion is writing to the data set.

    Example:
        >>> from walloc_data import encode_splits
        >>> from walloc_data.maintain import remove_split
        >>> pictures = ["pictures/cat/0.jpg", "pictures/coffee/0.jpg"]
        >>> _ = encode_splits({"train": pictures, "val": pictures}, "latents-to-change")
        >>> remove_split("latents-to-change", split="val").num_removed
        2
    """
    store = open_store(dataset, storage_options)
    with locked_dataset(store) as manifest:
        record = manifest.split(split, context=store.url)
        drop_split(store, split)
        return EditSummary(store.url, split, 0, num_removed=record.num_samples)


@renamed_arguments(out="dataset")
def remove_samples(
    dataset: DatasetLocation,
    *,
    split: str,
    keys: Collection[str] = (),
    names: Collection[str] = (),
    classes: Collection[str | int] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> EditSummary:
    """Remove samples from a split.

    Shards with removed samples are rewritten without them; only removed samples are decoded, to update the statistics.
    Class names, labels, keys and positions in the source of other samples are unchanged. One write of the manifest
    replaces the split.

    The plan of the split and the records of its shards are deleted, because they describe the removed samples: the
    split can no longer be resumed, repaired or compared with its source.

    Args:
        dataset: the data set.
        split: name of the split.
        keys: keys of samples.
        names: names of pictures in the source (`source_name` in the index).
        classes: names or numbers of classes, all samples of which are removed.
        storage_options: options of the file system of `dataset`.

    Raises:
        FormatError: a split, class, key or name does not exist, or no sample would remain.
        CorruptShardError: a shard that must be rewritten is damaged.
        BusyError: a conversion is writing to the data set.

    Example:
        >>> from walloc_data import encode_dataset
        >>> from walloc_data.maintain import remove_samples
        >>> _ = encode_dataset("pictures", "latents-to-change", size_px=64)
        >>> summary = remove_samples("latents-to-change", split="train", names=["cat/0.jpg", "cat/1.jpg"])
        >>> summary.num_samples, summary.num_removed
        (6, 2)
    """
    store = open_store(dataset, storage_options)
    with locked_dataset(store) as manifest, staging_folder(store, tag="edit") as folder:
        record = manifest.split(split, context=store.url)
        rule = _Rule(store, manifest, split, keys=keys, names=names, classes=classes)
        root = edit_root(split)
        counts = np.array(record.statistics.counts, dtype=np.int64)
        removed = np.zeros_like(counts)

        def dropped(webp: bytes) -> None:
            picture = decode_webp(webp, context=f"{store.url}: a sample to be removed")
            latent = unpack(picture[..., : manifest.codec.channels], latent_dim=manifest.codec.latent_dim)
            count_levels(latent[None], removed)

        built = build_split(
            store,
            split,
            [Part(store, manifest, split, Change())],
            root=root,
            folder=folder,
            touched=rule.touched,
            dropped=dropped,
        )
        made = set(built.made)
        if not made:  # only complete shards were removed; the new index needs at least one shard in its folder
            store.copy(built.shards[0].name, root + built.shards[0].name)
            made = {built.shards[0].name}
        num_samples = sum(shard.num_samples for shard in built.shards)
        before = record.source.get("num_removed", 0)
        changed = replace(
            record,
            source={**record.source, "num_removed": before + rule.num_removed},
            num_samples=num_samples,
            shards=built.shards,
            latent_shape=built.latent_shape,
            statistics=ChannelStatistics(tuple(map(tuple, (counts - removed).tolist()))),
            index_sha256=built.index_sha256,
        )
        change_split(store, split, changed, made, class_names=manifest.class_names)
        return EditSummary(
            store.url,
            split,
            num_samples,
            num_removed=rule.num_removed,
            shards_made=len(built.made),
            shards_kept=len(built.shards) - len(built.made),
        )


class _Rule:
    """Selection of the samples to remove, checked against the index before anything is written.

    Attributes:
        num_removed: number of samples to remove.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        *,
        keys: Collection[str],
        names: Collection[str],
        classes: Collection[str | int],
    ) -> None:
        record = manifest.splits[split]
        if names and record.columns is None:
            raise FormatError(
                f"{store.url}: written by version 1 of the format, whose index has no names: use keys instead"
            )
        self._keys, self._names = set(keys), set(names)
        self._labels = {_label(store, manifest, name) for name in classes}
        if not (self._keys or self._names or self._labels):
            raise FormatError(f"{store.url}: nothing to remove: pass keys, names or classes")
        self.num_removed = 0
        seen: dict[str, set[Any]] = {"key": set(), "source_name": set(), "label": set()}
        wanted: dict[str, set[Any]] = {"key": {*self._keys}, "source_name": {*self._names}, "label": {*self._labels}}
        for _, table in tables_of(store, manifest, split):
            for column, values in wanted.items():
                if values:
                    seen[column] |= values & set(table[column].unique().to_pylist())
            self.num_removed += int(self._is_removed(table).sum())
        for column, values in wanted.items():
            if absent := sorted(values - seen[column], key=str):
                more = f" and {len(absent) - _MAX_NAMED} more" if len(absent) > _MAX_NAMED else ""
                raise FormatError(
                    f"{store.url}: split {split!r} has no sample whose {column} is "
                    f"{', '.join(map(repr, absent[:_MAX_NAMED]))}{more}. Nothing was changed"
                )
        if self.num_removed == record.num_samples:
            raise FormatError(f"{store.url}: these are all samples of split {split!r}: remove the split instead")

    def _is_removed(self, table: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        import pyarrow as pa
        import pyarrow.compute

        found = np.zeros(len(table), dtype=bool)
        for column, values in (("key", self._keys), ("source_name", self._names), ("label", self._labels)):
            if values:
                among = pa.array(sorted(values), table[column].type)
                found |= pa.compute.is_in(table[column], among).to_numpy(zero_copy_only=False)
        return found

    def touched(self, shard: ShardRecord, table: Any) -> Keep | None:
        """Return a function of a row that tells whether its sample is kept; None if all samples of the shard are."""
        goes = self._is_removed(table)
        if not goes.any():
            return None
        leaving = {key for key, gone in zip(table["key"].to_pylist(), goes.tolist(), strict=True) if gone}
        return lambda row: row["key"] not in leaving


def _label(store: Store, manifest: Manifest, name: str | int) -> int:
    names = manifest.class_names
    if isinstance(name, int):
        return name
    if names is not None and name in names:
        if len(same := [label for label, known in enumerate(names) if known == name]) > 1:
            raise FormatError(
                f"{store.url}: {len(same)} classes are named {name!r}: give the keys of the samples to remove, or in "
                f"Python the labels {same}"
            )
        return same[0]
    if names is None and name.isdecimal():
        return int(name)
    raise FormatError(f"{store.url}: no class {name!r}; it has {list(names or ())[:10]}")
