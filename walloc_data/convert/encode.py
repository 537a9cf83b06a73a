"""Encoding of a source as one split, with resume: `encode_dataset`."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, Unpack, get_args

from walloc_data.convert.begin import (
    begin,
    check_versions,
    classes_of,
    codec_for,
    discard_another,
    plan_for,
    settings_of,
    with_classes,
)
from walloc_data.convert.changes import (
    check_source,
    damaged_shards,
    drop_broken_manifest,
    join_complete_splits,
    shards_with_failures,
)
from walloc_data.convert.executors.serial import WorkSetup
from walloc_data.convert.join import clean_leftovers, join_split
from walloc_data.convert.journal import check_siblings, finished_shards, read_manifest, read_plan
from walloc_data.convert.lock import conversion_lock, disk_errors, plan_lock, staging_folder
from walloc_data.convert.overwrite import (
    Kind,
    copy_kept_shards,
    discard,
    is_begun,
    is_only_split,
    publish_replacement,
    recover,
    refuse_interrupted,
    replacement,
)
from walloc_data.convert.plan import ShardId, parse_part
from walloc_data.convert.progress import ConversionSummary, Progress, ProgressMeter, ProgressPrinter
from walloc_data.convert.run import Run
from walloc_data.convert.units import OnError
from walloc_data.deprecated import renamed_arguments
from walloc_data.devices import usable_device
from walloc_data.errors import FormatError, SettingsMismatchError, StorageError
from walloc_data.files import real_path
from walloc_data.format import MANIFEST_NAME, EncodeSettings, SettingFields, check_name
from walloc_data.sources import Source, open_source
from walloc_data.sources.folder import FolderSource
from walloc_data.storage import DatasetLocation, Store, open_store

__all__ = ["encode_dataset"]


@renamed_arguments(out="dataset")
def encode_dataset(
    source: Any,
    dataset: DatasetLocation,
    *,
    split: str = "train",
    codec: Any = None,
    settings: EncodeSettings | None = None,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    device: str = "cpu",
    on_error: OnError = "record",
    max_failures: int | None = None,
    overwrite: bool = False,
    repair: bool = False,
    retry_failures: bool = False,
    part: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[Progress], None] = True,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_pictures: Sequence[str] = (),
    **fields: Unpack[SettingFields],
) -> ConversionSummary:
    """Encode a source of pictures as one split of a data set of latents.

    Call it again after an interruption to resume: finished shards are kept, and the result has the same bytes as that
    of an uninterrupted call, for any number of workers and any engine.

    Args:
        source: source of pictures, as for `open_source` or returned by it.
        dataset: a local folder or ``s3://bucket/prefix``.
        split: name of the split.
        codec: a codec, or a codec's name or location as for `load_codec`; None: the codec of the data set if it exists,
            else the bundled one.
        settings: an `EncodeSettings`; its fields can also be passed by name (``size_px=256``). If the data set has a
            split already, its settings are the defaults.
        workers: number of processes; 1 works in this process. With Ray, number of tasks at a time.
        engine: "local", or "ray" for a Ray cluster at `address`.
        device: "cpu" or "cuda"; the latents are identical. Workers share one GPU, or use those that Ray assigns.
        on_error: "record" lists broken pictures in ``failures/``; "stop" raises an error at the first one. A picture
            that the disk or store fails to deliver stops the conversion in both cases, so that an outage is not
            recorded as damage; "record-unreadable" lists these, too: use it with `max_failures`.
        max_failures: stop when more than this number of pictures cannot be encoded.
        overwrite: encode this split again from its first shard. The existing split is replaced when the new one is
            complete; until then both take disk space.
        repair: verify every byte of the finished shards and encode damaged ones again. Otherwise only the lengths of
            files are checked.
        retry_failures: encode the pictures listed in ``failures/`` again, and the other pictures of their shards. A
            finished split is replaced when all of it is done, as with `overwrite`.
        part: ``"I/N"`` encodes the I-th of N parts, for schedulers; call `finish_dataset` afterwards.
        storage_options: options of the file systems of `dataset` and of remote tars.
        progress: True writes to stderr; a callable receives a `Progress` several times a second.
        image_column: as for `open_source`, if `source` is not open yet.
        label_column: as for `open_source`; ``none`` encodes without labels.
        keep_pictures: columns of second pictures to store, such as masks, as for `open_source`.
        fields: fields of `EncodeSettings` by name, which take precedence over `settings`. `size_px` alone implies
            ``resize="crop"``.

    Raises:
        SourceError: the source cannot be read.
        SettingsMismatchError: the settings, codec or source differ from those of the existing data set.
        BusyError: another conversion writes to `dataset`.
        ConversionError: the conversion stopped before its end; the same call resumes it.

    Example:
        >>> from walloc_data import encode_dataset
        >>> summary = encode_dataset("pictures", "latents", split="validation", size_px=64)
        >>> summary.new_samples, summary.num_failures
        (8, 0)
        >>> encode_dataset("pictures", "latents", split="validation", size_px=64).new_samples  # all is done
        0
    """
    check_name(split, what="split", context="encode")
    given = _given(settings, fields)
    part_of = parse_part(part) if part is not None else (0, 1)
    if workers < 1:
        raise FormatError(f"workers must be 1 or more, not {workers}")
    if overwrite and (repair or retry_failures):
        raise FormatError("overwrite encodes everything again: leave out repair and retry_failures")
    if overwrite and part is not None:
        raise FormatError("overwrite and part cannot be combined: overwrite the split in one conversion")
    if engine == "local":
        usable_device(device)
    if on_error not in get_args(OnError):
        raise FormatError(f"on_error must be one of {list(get_args(OnError))}, not {on_error!r}")
    if engine not in ("local", "ray"):
        raise FormatError(f"engine must be 'local' or 'ray', not {engine!r}")
    store = open_store(dataset, storage_options)
    opened: Source = open_source(
        source,
        split=split,
        image_column=image_column,
        label_column=label_column,
        keep_pictures=keep_pictures,
        storage_options=store.storage_options,
    )
    _check_folder(store, opened)
    printer = ProgressPrinter() if progress is True else None
    callback = printer if printer is not None else (progress if callable(progress) else None)
    with ExitStack() as stack:
        if printer is not None:
            stack.callback(printer.close)
        stack.enter_context(disk_errors(store))
        locks = stack.enter_context(conversion_lock(store, part=_part_tag(split, part_of) if part else None))
        staging = stack.enter_context(staging_folder(store, tag=_part_tag(split, part_of)))
        if part is None:
            if repair:
                drop_broken_manifest(store)
            recover(store)
            clean_leftovers(store, split)
        afresh = overwrite and is_only_split(store, split)
        # The existing split stays in place until the new one is complete: see `walloc_data.convert.overwrite`.
        failed = shards_with_failures(store, split) if retry_failures else set()
        kind = _kind_of_replacement(store, split, overwrite=overwrite, failed=failed, part=part)
        target = store if kind is None else replacement(store, split, kind=kind)
        here = device if engine == "local" and workers == 1 else "cpu"  # else each worker loads its own
        manifest = read_manifest(store)
        if afresh:
            settings = EncodeSettings(**given)
        else:
            settings = settings_of(store, split, manifest, given)
            opened = with_classes(opened, classes_of(store, split, manifest), context=store.url)
        loaded, codec_files = codec_for(None if afresh else store, codec, staging=staging, device=here, repair=repair)
        if not overwrite:
            _check_pictures(store, split, opened, part=part_of)  # names single pictures; `begin` compares hashes only
        with plan_lock(store):  # several parts may start at once
            plan = now = plan_for(opened, split, settings, loaded)
            refuse_interrupted(store, split, manifest)
            check_siblings(store, plan, manifest)
            if kind == "retry":
                check_versions(store, begin(store, plan, codec_files, staging=staging, redo=failed), now)
            if kind is not None:
                clean_leftovers(target, split)
                discard_another(store, plan, opened, kind=kind)
            plan = begin(target, plan, codec_files, staging=staging, repair=repair, redo=failed)
        if kind == "retry":
            copy_kept_shards(store, split, finished_shards(store, split) - failed, kind=kind)
        if printer is not None:
            for note in opened.notes:
                printer.note(f"{opened.location}: {note}")
            if opened.num_fragments is not None and settings.shuffle_seed is not None:
                printer.note(
                    f"{opened.location}: read in fragments, which are shuffled; pictures keep their order within each, "
                    "so train with shuffle=True"
                )
        setup = WorkSetup(plan, opened, target, staging, device=device, on_error=on_error)
        redo = dict.fromkeys(failed, "") if kind is None else {}
        if kind is not None:
            _check_pictures(target, split, opened, part=part_of)
        if repair:
            meter = ProgressMeter(callback, split=f"check {split}", num_items=None, num_done=0)
            redo |= damaged_shards(target, split, _finished_of_part(target, split, part_of), meter=meter)
        run = Run(setup, part=part_of, max_failures=max_failures, callback=callback, redo=redo)
        if printer is not None:
            for note in filter(None, (*redo.values(), *run.notes)):
                printer.note(note)
        if run.has_work():
            check_versions(store, plan, now)
        started = time.perf_counter()
        try:
            run.go(workers=workers, engine=engine, address=address, locks=locks, codec=loaded)
        except SettingsMismatchError:
            if kind is not None:  # pictures of a fragment have changed: the next attempt starts at the first shard
                discard(store, split, kind=kind)
            raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{run.progress_text()}; run the same command to resume") from None
        finally:
            seconds = time.perf_counter() - started
            run.write_log(seconds=seconds)
        if part is not None:
            return run.summary(store, seconds=seconds, part=part)
        summary = join_split(target, split)
        if kind is not None:
            publish_replacement(store, split, kind=kind)
        if repair:
            join_complete_splits(store)
        return replace(summary, url=store.url, new_samples=run.new_samples, seconds=seconds)


def _given(settings: EncodeSettings | None, fields: SettingFields) -> dict[str, Any]:
    """Return the settings that the caller gave, checked before the source is opened."""
    known = sorted(EncodeSettings().to_dict())
    if unknown := sorted(fields.keys() - set(known)):
        raise TypeError(f"encode_dataset: unknown settings {unknown}; its settings are {known}")
    size = fields.get("size_px")
    if size is not None and ":" in (how := str(fields.get("resize", ""))) and how.partition(":")[2] != str(size):
        raise FormatError(
            f"resize {how!r} and size_px {size} (--resize, --size) contradict each other: use one of them"
        )
    if size is not None and settings is None and "resize" not in fields:
        fields = {**fields, "resize": "crop"}
    checked = replace(settings if settings is not None else EncodeSettings(), **fields)
    names = set(known if settings is not None else fields)
    if "resize" in names:  # "shorter:288" sets both fields
        names |= {"size_px"} if ":" in str(fields.get("resize", "")) else set()
    return {name: getattr(checked, name) for name in sorted(names)}


def _kind_of_replacement(
    store: Store, split: str, *, overwrite: bool, failed: set[ShardId], part: str | None
) -> Kind | None:
    """Return how an existing split must be replaced; None: its shards are written in place."""
    if overwrite:
        return "new" if is_begun(store, split) else None
    manifest = read_manifest(store)
    if not failed or manifest is None or split not in manifest.splits:
        return None  # readers do not see an unfinished split
    if part is not None:
        raise FormatError(f"split {split!r} is finished: retry its failures without part")
    return "retry"


def _finished_of_part(store: Store, split: str, part: tuple[int, int]) -> list[ShardId]:
    """Return the finished shards of this part; concurrent parts check their own."""
    return [shard for shard in sorted(finished_shards(store, split)) if shard.unit % part[1] == part[0]]


def _check_pictures(store: Store, split: str, source: Source, *, part: tuple[int, int]) -> None:
    """Raise an error if encoded pictures have changed. If their number differs, `begin` raises one."""
    begun = read_plan(store, split)
    if begun is None or begun.is_old_stream:
        return
    if (begun.num_items, begun.num_fragments) == (source.num_items, source.num_fragments):
        check_source(store, begun, source, part=part)


def _part_tag(split: str, part: tuple[int, int]) -> str:
    return f"{split}-{part[0] + 1}-of-{part[1]}"


def _check_folder(store: Store, source: Source) -> None:
    """Raise an error if the folder has other files in it, or is inside the source."""
    folder = store.local_path
    if folder is None:
        return
    if isinstance(source, FolderSource) and real_path(folder).is_relative_to(real_path(source.root)):
        raise StorageError(f"{folder}: inside the source {source.root}; choose a folder elsewhere")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(f"{folder}: not a folder")
    if any((folder / name).exists() for name in (MANIFEST_NAME, ".walloc")):
        return
    others = sorted(entry.name for entry in folder.iterdir())
    if others:
        raise StorageError(
            f"{folder}: not empty, and not a data set of latents (it holds {others[0]!r}): choose a new folder"
        )
