"""Encoding of further pictures for a finished split, and of its failures: `append_dataset`, `retry_failures`."""

from collections.abc import Mapping, Sequence
from typing import Any

from walloc_data.convert.edit import change_split, edit_root
from walloc_data.convert.encode import encode_dataset
from walloc_data.convert.inspect import open_manifest
from walloc_data.convert.journal import plan_name
from walloc_data.convert.lock import staging_folder
from walloc_data.convert.progress import ConversionSummary
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError, SettingsMismatchError, SourceError
from walloc_data.format import SplitRecord
from walloc_data.maintain.building import (
    Part,
    append_root,
    build_split,
    discard_append,
    locked_dataset,
)
from walloc_data.maintain.merge import joined_classes, joined_record
from walloc_data.maintain.shards import Change
from walloc_data.maintain.summary import EditSummary
from walloc_data.sources import open_source
from walloc_data.storage import DatasetLocation, Store, open_store

__all__ = ["append_dataset", "retry_failures"]


@renamed_arguments(out="dataset")
def append_dataset(
    source: Any,
    dataset: DatasetLocation,
    *,
    split: str = "train",
    again: bool = False,
    restart: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_pictures: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> EditSummary:
    """Encode pictures with the codec and settings of a data set, and add them to a finished split as new shards.

    They are encoded into ``.walloc/{split}.append/``; the same call resumes an interrupted one. Then one write of the
    manifest adds them. Existing shards are unchanged. New classes follow the existing ones.

    The plan of the split no longer describes it and is deleted: the split can no longer be resumed, repaired or
    compared with its source.

    Args:
        source: source of pictures, as for `open_source` or returned by it.
        dataset: a finished data set.
        split: name of the split.
        again: append even if the split has the same pictures already.
        restart: discard an interrupted append of other pictures.
        image_column, label_column, keep_pictures: as in `open_source`.
        storage_options: options of the file systems of `dataset` and of remote tars.
        options: other arguments of `encode_dataset`: `workers`, `engine`, `device`, `on_error`, `max_failures`, ...

    Raises:
        SourceError: the source cannot be read, or was appended before.
        SettingsMismatchError: an append of other pictures is unfinished.
        FormatError: only one of the two has labels.

    Example:
        >>> from walloc_data import encode_dataset
        >>> from walloc_data.maintain import append_dataset
        >>> _ = encode_dataset([("pictures/cat/0.jpg", "cat")], "latents-to-change", size_px=64)
        >>> summary = append_dataset([("pictures/coffee/0.jpg", "coffee")], "latents-to-change")
        >>> summary.num_samples, summary.num_added, summary.shards_kept
        (2, 1, 1)
    """
    store = open_store(dataset, storage_options)
    opened = open_source(
        source,
        split=split,
        image_column=image_column,
        label_column=label_column,
        keep_pictures=keep_pictures,
        storage_options=store.storage_options,
    )
    with locked_dataset(store) as manifest, staging_folder(store, tag="edit") as folder:
        from walloc_data.codec import fetch_codec

        record = manifest.split(split, context=store.url)
        if not again:
            _refuse_twice(store, split, record, opened.identity)
        if opened.labelled != record.labelled:
            raise FormatError(
                f"{store.url}: split {split!r} has {'labels' if record.labelled else 'no labels'}, and "
                f"{opened.location} has {'them' if opened.labelled else 'none'}"
            )
        inner = store.inside(append_root(split))
        if restart:
            discard_append(store, split)
        codec = fetch_codec(store, scratch=folder)
        settings = manifest.settings
        try:
            encode_dataset(
                opened,
                inner,
                split=split,
                codec=codec,
                settings=settings,
                **options,
            )
        except SettingsMismatchError as error:
            raise SettingsMismatchError(
                f"{error}\nAn append of other pictures to split {split!r} is unfinished: finish it with its own "
                "command, or discard it with restart=True (--restart)"
            ) from error
        new = open_manifest(inner)
        names, labels = joined_classes(manifest.class_names, new.class_names, context=f"{store.url}, {opened.location}")
        offset = record.source["num_items"]
        parts = [
            Part(store, manifest, split, Change()),
            Part(inner, new, split, Change(offset=offset, labels=labels, new_keys=True)),
        ]
        built = build_split(store, split, parts, root=edit_root(split), folder=folder)
        joined = joined_record(parts, built, context=f"{store.url}: split {split!r}")
        change_split(store, split, joined, built.made, class_names=names)
        discard_append(store, split)
        return EditSummary(
            store.url,
            split,
            joined.num_samples,
            num_added=joined.num_samples - record.num_samples,
            shards_made=len(built.made),
            shards_kept=len(built.shards) - len(built.made),
        )


def _refuse_twice(store: Store, split: str, record: SplitRecord, identity: str) -> None:
    for part in record.source.get("parts", [record.source]):
        if identity and part.get("identity") == identity:
            raise SourceError(
                f"{store.url}: split {split!r} has these pictures already (names and lengths are those of "
                f"{part.get('location')}): to append them again, use again=True (--again)"
            )


@renamed_arguments(out="dataset")
def retry_failures(
    source: Any,
    dataset: DatasetLocation,
    *,
    split: str = "train",
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ConversionSummary:
    """Encode the pictures listed in ``failures/`` again, and the other pictures of their shards.

    A finished split is replaced when all of it is done. Same as `encode_dataset` with ``retry_failures=True``, for an
    existing split.

    Args:
        source: source that the split was encoded from.
        dataset: the data set.
        split: name of the split.
        storage_options: options of the file systems of `dataset` and of remote tars.
        options: other arguments of `encode_dataset`.

    Raises:
        FormatError: the split does not exist, or was changed after it was encoded.

    Example:
        >>> from walloc_data import encode_dataset
        >>> from walloc_data.maintain import retry_failures
        >>> _ = encode_dataset("pictures", "latents", size_px=64)
        >>> retry_failures("pictures", "latents").new_samples  # nothing had failed
        0
    """
    store = open_store(dataset, storage_options)
    if not store.exists(plan_name(split)):
        open_manifest(store).split(split, context=store.url)
        raise FormatError(
            f"{store.url}: split {split!r} was made from several sources, or changed, and has no plan: its failures "
            "cannot be encoded again. Append the repaired pictures instead"
        )
    return encode_dataset(source, store, split=split, retry_failures=True, **options)
