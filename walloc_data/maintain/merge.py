"""Merging of data sets: `merge_datasets`, and helpers for joining splits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from walloc_data.convert.edit import publish_manifest
from walloc_data.convert.inspect import open_manifest
from walloc_data.convert.join import clean_partial_files
from walloc_data.convert.lock import conversion_lock, disk_errors, staging_folder
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError, SettingsMismatchError, StorageError
from walloc_data.format import MANIFEST_NAME, Manifest, SplitRecord, dump_json
from walloc_data.maintain.building import Built, Part, build_split
from walloc_data.maintain.shards import Change
from walloc_data.maintain.summary import EditSummary
from walloc_data.sources.base import fingerprint
from walloc_data.storage import DatasetLocation, Store, open_store

__all__ = ["joined_classes", "joined_record", "merge_datasets", "refuse_differences"]

# Settings that do not affect latents and may differ between the parts of a data set.
_FREE = ("samples_per_shard", "shuffle_seed", "webp_effort", "max_pixels", "sample_json")
_MARKER = ".walloc/merge.json"


@renamed_arguments(out="output")
def merge_datasets(
    first: DatasetLocation,
    second: DatasetLocation,
    output: DatasetLocation,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> list[EditSummary]:
    """Merge two data sets with the same codec and settings into a new one, without decoding.

    In a split of both, the samples of the first data set come first and keep their keys; those of the second follow
    with new keys. Classes of the first keep their numbers, and further classes of the second follow.

    The new data set is complete when its manifest is written; if killed before, the same call starts again.

    Args:
        first, second: finished data sets.
        output: new folder or URL.
        storage_options: options of the file systems of all three.

    Returns:
        A summary of each split.

    Raises:
        SettingsMismatchError: the codecs or settings differ; the message names every difference.
        FormatError: only one of two splits of a name has labels, or they have different versions of the format.
        StorageError: `output` is not empty.

    Example:
        >>> from walloc_data import encode_dataset
        >>> from walloc_data.maintain import merge_datasets
        >>> _ = encode_dataset([("pictures/cat/0.jpg", "cat")], "first", size_px=64)
        >>> _ = encode_dataset([("pictures/coffee/0.jpg", "coffee")], "second", size_px=64)
        >>> [summary.num_samples for summary in merge_datasets("first", "second", "both")]
        [2]
    """
    stores = [open_store(dataset, storage_options) for dataset in (first, second)]
    manifests = [open_manifest(store) for store in stores]
    target = open_store(output, storage_options)
    context = f"{stores[0].url} and {stores[1].url}"
    refuse_differences(*manifests, context=context)
    names, labels = joined_classes(manifests[0].class_names, manifests[1].class_names, context=context)
    _check_target(target)
    with disk_errors(target), conversion_lock(target), staging_folder(target, tag="edit") as folder:
        clean_partial_files(target)  # of a merge that was killed
        target.write_bytes(_MARKER, dump_json({"first": stores[0].url, "second": stores[1].url}).encode())
        for place in ("data", "index", "failures", "codec"):
            for path in target.list(place):
                target.delete(path)
        for path in stores[0].list("codec"):
            stores[0].download(path, folder / "codec-file")
            target.publish(folder / "codec-file", path)
        records: dict[str, SplitRecord] = {}
        summaries = []
        for split in sorted({*manifests[0].splits, *manifests[1].splits}):
            parts: list[Part] = []
            for store, manifest, mapping in zip(stores, manifests, (None, labels), strict=True):
                if split in manifest.splits:
                    offset = parts[0].record.source["num_items"] if parts else 0
                    new_keys = bool(parts) or _has_other_keys(manifest, split, manifests[0])
                    change = Change(offset=offset, labels=mapping, new_keys=new_keys)
                    parts.append(Part(store, manifest, split, change))
            built = build_split(target, split, parts, root="", folder=folder)
            records[split] = joined_record(parts, built, context=f"{context}: split {split!r}")
            summaries.append(EditSummary(target.url, split, records[split].num_samples, shards_made=len(built.made)))
        publish_manifest(target, replace(manifests[0], class_names=names, splits=records))
        target.delete(_MARKER)
    return summaries


def _has_other_keys(manifest: Manifest, split: str, first: Manifest) -> bool:
    """Return whether the keys of a split are based on another shard length than that of the merged data set."""
    sources = manifest.splits[split].source.get("parts", [manifest.splits[split].source])
    by_fragment = any(source.get("num_fragments") is not None for source in sources)
    return by_fragment and manifest.settings.samples_per_shard != first.settings.samples_per_shard


def _check_target(target: Store) -> None:
    """Raise an error if a folder is not empty, except for files of an interrupted merge."""
    if target.exists(MANIFEST_NAME):
        target.delete(_MARKER)  # of a completed merge
        raise StorageError(f"{target.url}: contains a data set already: choose a new folder")
    folder = target.local_path
    if folder is None or not folder.exists() or target.exists(_MARKER):
        return
    if not folder.is_dir() or any(entry.name != ".walloc" for entry in folder.iterdir()):
        raise StorageError(f"{target.url}: not an empty folder: choose a new one")


def refuse_differences(first: Manifest, second: Manifest, *, context: str) -> None:
    """Raise SettingsMismatchError if codecs or settings of the latents differ."""
    found = []
    for group in ("codec", "settings"):
        old, new = (getattr(manifest, group).to_dict() for manifest in (first, second))
        for name in sorted(old.keys() | new.keys()):
            if name not in _FREE and old.get(name) != new.get(name):
                found.append(f"{group}.{name}: {old.get(name)!r} and {new.get(name)!r}")
    if found:
        raise SettingsMismatchError(f"{context} differ:\n  " + "\n  ".join(found) + "\nEncode one as the other was")


def joined_classes(
    first: tuple[str, ...] | None, second: tuple[str, ...] | None, *, context: str
) -> tuple[tuple[str, ...] | None, dict[int, int] | None]:
    """Return all class names, and the new numbers of the second's classes; None if they are unchanged.

    Raises:
        FormatError: a class name occurs twice.
    """
    if second is None or first == second:
        return first, None
    if first is None:
        return second, None
    for names in (first, second):
        if len(set(names)) < len(names):
            raise FormatError(f"{context}: a class name occurs twice, so classes cannot be matched by their names")
    every = [*first, *(name for name in second if name not in set(first))]
    position = {name: number for number, name in enumerate(every)}
    labels = {number: position[name] for number, name in enumerate(second)}
    return tuple(every), None if all(old == new for old, new in labels.items()) else labels


def joined_record(parts: list[Part], built: Built, *, context: str) -> SplitRecord:
    """Return the record of a split made of parts."""
    records = [part.record for part in parts]
    first = records[0]
    if len({record.labelled for record in records}) > 1:
        raise FormatError(f"{context}: one part has labels and the other has none")
    if len({tuple(record.source.get("pictures", ())) for record in records}) > 1:
        raise FormatError(f"{context}: second pictures (--keep-picture) of the two parts differ")
    if len(records) == 1 and not parts[0].change.new_keys:
        return replace(
            first,
            shards=built.shards,
            index_sha256=built.index_sha256,
            latent_shape=built.latent_shape,
        )
    sources = [source for record in records for source in record.source.get("parts", [record.source])]
    statistics = first.statistics
    for record in records[1:]:
        statistics = statistics + record.statistics
    source: dict[str, Any] = {
        "kind": "merged",
        "location": " + ".join(str(part.get("location")) for part in sources),
        "num_items": sum(record.source["num_items"] for record in records),
        "identity": fingerprint([part.get("identity") for part in sources]),
        "labelled": first.labelled,
        "columns": sorted({str(name) for part in sources for name in part.get("columns", ())}),
        "notes": list(dict.fromkeys(str(note) for part in sources for note in part.get("notes", ()))),
        "parts": sources,
        "shuffled": any(part.get("shuffled") for part in sources),
    }
    if pictures := first.source.get("pictures"):
        source["pictures"] = pictures
    if removed := sum(record.source.get("num_removed", 0) for record in records):
        source["num_removed"] = removed
    return SplitRecord(
        source=source,
        num_samples=sum(shard.num_samples for shard in built.shards),
        num_failures=built.num_failures,
        shards=built.shards,
        latent_shape=built.latent_shape,
        labelled=first.labelled,
        statistics=statistics,
        index_sha256=built.index_sha256,
        columns=built.columns,
        column_classes=joined_column_classes(records),
    )


def joined_column_classes(records: Sequence[SplitRecord]) -> dict[str, tuple[str, ...]]:
    """Return the class names of columns, if equal in all parts that have the column."""
    found = {}
    for name, names in records[0].column_classes.items():
        others = [record for record in records if name in (record.columns or {})]
        if all(record.column_classes.get(name) == names for record in others):
            found[name] = names
    return found
