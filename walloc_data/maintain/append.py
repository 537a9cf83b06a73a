"""New pictures to a split that is finished, and those that failed once more."""

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
    """Encode new pictures and add them to a split that is finished, as new shards behind those that are there.

    They are encoded by the data set's own codec and settings, into ``.walloc/{split}.append/``: interrupted, the same
    call goes on there. Then one write of the manifest adds them. Shards that are there are not touched. Classes that
    the data set does not have come after those that it has.

    What a split was encoded from is then two sources, so that its plan goes: the split can no longer be resumed,
    repaired or compared with its source.

    Args:
        source: what `open_source` takes, or what it returns.
        dataset: a finished data set.
        split: the split.
        again: also where these very pictures are in the split already.
        restart: forget what an interrupted append of other pictures left.
        image_column, label_column, keep_pictures: as in `open_source`.
        storage_options: for the file system of `dataset`, and of remote tars.
        options: `encode_dataset`'s: `workers`, `engine`, `device`, `on_error`, `max_failures`, `progress`, ...

    Raises:
        SourceError: the source cannot be read as asked, or was appended before.
        SettingsMismatchError: an append of other pictures was begun and not finished.
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
                f"{error}\nAn append to split {split!r} was begun with these other pictures: finish it by its own "
                "command, or forget it with restart=True (--restart)"
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
                f"{part.get('location')}): again=True (--again) adds them once more"
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
    """Do the pictures listed in ``failures/`` again, and the others of their shards with them.

    A finished split is replaced once all of it is done; until then it stays as it was. The same as `encode_dataset`
    with ``retry_failures=True``, for a split that is there.

    Args:
        source: what the split was encoded from.
        dataset: the data set.
        split: the split.
        storage_options: for the file system of `dataset`, and of remote tars.
        options: `encode_dataset`'s.

    Raises:
        FormatError: there is no such split, or it was changed since it was encoded.

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
            f"{store.url}: split {split!r} was made of several sources, or changed, and has no plan any more: its "
            "failures cannot be done again by themselves. Append the mended pictures"
        )
    return encode_dataset(source, store, split=split, retry_failures=True, **options)
