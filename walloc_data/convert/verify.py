"""Verification of a data set: `verify_dataset`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from walloc_data.convert.changes import compare_source
from walloc_data.convert.inspect import open_manifest
from walloc_data.convert.join import timm_info
from walloc_data.convert.journal import plan_name
from walloc_data.convert.progress import Progress, ProgressMeter, ProgressPrinter, counted, format_bytes
from walloc_data.convert.verify_split import SplitCheck
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError, WallocDataError
from walloc_data.format import Manifest, load_json
from walloc_data.sources import open_split
from walloc_data.storage import DatasetLocation, Store, open_store

__all__ = ["Verification", "verify_dataset"]

MAX_PROBLEMS = 100
_CHANGED = (
    "Pictures of the source differ from those that were encoded: restore them, or encode the split again with "
    "--overwrite (overwrite=True)"
)


@dataclass(frozen=True)
class Verification:
    """Result of `verify_dataset`.

    Example:
        >>> from walloc_data.convert import verify_dataset
        >>> verification = verify_dataset("my-latents")
        >>> verification.num_shards, verification.num_samples, verification.problems
        (2, 8, ())
    """

    url: str
    num_splits: int
    num_shards: int
    num_samples: int
    num_failures: int
    num_bytes: int
    problems: tuple[str, ...]  # each with its location; empty: the data set is intact
    remedy: str = ""  # how to repair the problems

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "problems": list(self.problems)}

    def __str__(self) -> str:
        if self.problems:
            more = " or more" if len(self.problems) >= MAX_PROBLEMS else ""
            return "\n".join((*self.problems, f"{self.url}: {len(self.problems)}{more} problems. {self.remedy}"))
        samples, failures = counted(self.num_samples, "sample"), counted(self.num_failures, "failure")
        return (
            f"{self.url}: OK. {samples} and {failures} account for every picture of "
            f"{counted(self.num_splits, 'split')}; {counted(self.num_shards, 'shard')} "
            f"of {format_bytes(self.num_bytes)} match their checksums"
        )


@renamed_arguments(out="dataset")
def verify_dataset(
    dataset: DatasetLocation,
    *,
    split: str | None = None,
    source: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[Progress], None] = True,
) -> Verification:
    """Check every byte of a data set.

    The check covers the manifest; the hash of the codec; length and SHA-256 of each shard; each tar header; WebP, shape
    and padding of each latent; labels, JSON and offsets against the index; the statistics; the failures; the files for
    wids and timm; and that every picture of the source is exactly one sample or failure.

    Args:
        dataset: the data set.
        split: split to check; None: all.
        source: source that `split` was encoded from: an open one, or as for `open_split`. Every picture is
            read and compared with its record.
        storage_options: options of the file systems of `dataset` and of remote tars.
        progress: True writes to stderr; a callable receives a `Progress` several times a second.

    Returns:
        Numbers of checked samples and bytes, and at most 100 problems.

    Raises:
        FormatError: the manifest or the split does not exist, or the split has no records of its source.
        SourceError: the source cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.convert import verify_dataset
        >>> print(verify_dataset("my-latents"))
        my-latents: OK. 8 samples and 0 failures account for every picture of 1 split; 2 shards of ...
        >>> Path("my-latents/index/train.wids.json").unlink()
        >>> print(verify_dataset("my-latents").problems[0])
        my-latents/index/train.wids.json: ...
    """
    store = open_store(dataset, storage_options)
    manifest = open_manifest(store)
    splits = [split] if split is not None else list(manifest.splits)
    records = {name: manifest.split(name, context=store.url) for name in splits}
    if source is not None and (split is None or not store.exists(plan_name(split))):
        raise FormatError(
            f"{store.url}: to compare with a source, name the split that was encoded from it. The comparison needs "
            ".walloc/, which exists only where the data set was encoded"
        )
    opened = None
    if source is not None and split is not None:
        opened = open_split(source, split=split, storage_options=store.storage_options)
    problems = list(_side_files(store, manifest, splits))
    changed: list[str] = []
    printer = ProgressPrinter() if progress is True else None
    callback = printer if printer is not None else (progress if callable(progress) else None)
    try:
        for name, record in records.items():
            meter = ProgressMeter(callback, split=f"verify {name}", num_items=record.num_samples, num_done=0)
            problems.extend(islice(SplitCheck(store, manifest, name, record, meter).check(), MAX_PROBLEMS))
            if opened is not None:
                meter = ProgressMeter(callback, split=f"source of {name}", num_items=opened.num_items, num_done=0)
                changed.extend(islice(compare_source(store, name, opened, meter=meter), MAX_PROBLEMS))
    finally:
        if printer is not None:
            printer.close()
    return Verification(
        url=store.url,
        num_splits=len(records),
        num_shards=sum(len(record.shards) for record in records.values()),
        num_samples=sum(record.num_samples for record in records.values()),
        num_failures=sum(record.num_failures for record in records.values()),
        num_bytes=sum(record.num_bytes for record in records.values()),
        problems=tuple([*problems, *changed][:MAX_PROBLEMS]),
        remedy=" ".join(([_remedy(store, splits)] if problems else []) + ([_CHANGED] if changed else [])),
    )


def _remedy(store: Store, splits: list[str]) -> str:
    if all(store.exists(plan_name(split)) for split in splits):
        return "Run the encode command again with --repair (repair=True) to make damaged and missing files again"
    return "This copy cannot be repaired, because it has no .walloc/: download it again, or repair the original"


def _side_files(store: Store, manifest: Manifest, splits: list[str]) -> Iterator[str]:
    """Check the folder of the codec and the files for other readers."""

    with ExitStack() as stack:
        try:
            import tempfile

            from walloc_data.codec import fetch_codec, load_codec

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walloc_data-")))
            codec, _ = load_codec(fetch_codec(store, scratch=folder))
            if codec.spec != manifest.codec:
                yield f"{store.location('codec')}: {codec.spec} differs from the manifest's {manifest.codec}"
        except WallocDataError as error:
            yield f"{store.location('codec')}: {error}"
    others = {f"{manifest.splits[name].root}index/{name}.wids.json": name for name in splits}
    for path in ("_info.json", *others):
        if path == "_info.json" and any(record.root for record in manifest.splits.values()):
            continue  # it refers to the usual places, to which `recover` will move the files
        try:
            value = load_json(store.read_bytes(path, max_bytes=2**28), context=store.location(path))
        except WallocDataError as error:
            yield str(error)
            continue
        if path == "_info.json":
            if value != timm_info(manifest):
                yield f"{store.location(path)}: does not agree with the manifest"
            continue
        record = manifest.splits[others[path]]
        entries = value.get("shardlist")
        found = [
            (entry.get("url"), entry.get("nsamples"), entry.get("filesize"))
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict)
        ]
        names = [f"../{shard.name.removeprefix(record.root)}" for shard in record.shards]
        if found != [
            (name, shard.num_samples, shard.num_bytes) for name, shard in zip(names, record.shards, strict=True)
        ]:
            yield f"{store.location(path)}: does not agree with the manifest"
