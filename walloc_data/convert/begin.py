"""Start of a conversion: codec, plan, inherited settings, and comparison with existing work."""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from walloc_data.convert.changes import check_source
from walloc_data.convert.journal import limit_is_fixed, plan_name, planned_splits, read_manifest, read_plan
from walloc_data.convert.overwrite import Kind, discard, replacement
from walloc_data.convert.plan import (
    SHARDS_VERSION,
    Plan,
    ShardId,
    differences,
    fragments_per_unit,
    version_differences,
)
from walloc_data.errors import CodecError, FormatError, SettingsMismatchError, StorageError
from walloc_data.format import CodecSpec, EncodeSettings, Manifest, dump_json
from walloc_data.sources import Sample, Source
from walloc_data.sources.base import SourceWrapper
from walloc_data.storage import Store
from walloc_data.version import __version__

__all__ = [
    "RelabelledSource",
    "begin",
    "check_versions",
    "classes_of",
    "codec_for",
    "discard_another",
    "plan_for",
    "settings_of",
    "with_classes",
]


def codec_for(store: Store | None, codec: Any, *, staging: Path, device: str, repair: bool = False) -> tuple[Any, Path]:
    """Load a codec without its decoder, and return also a folder with all of its files, for copying into the data set.

    Args:
        store: the data set, whose codec is the default; None: a new data set.
        repair: if the codec of the data set is damaged, use the bundled one. The caller compares it with the plan.
    """
    from walloc_data.codec import codec_folder, fetch_codec, load_codec, save_codec

    written = staging / "codec"
    if codec is not None and not isinstance(codec, str | Path):
        save_codec(codec, written)
        return load_codec(written, decoder=False, device=device)[0], written  # not moved: it belongs to the caller
    own = codec is None and store is not None and store.exists("codec/codec.json")
    if own and store is not None and (not repair or _has_codec(store, staging=staging)):
        codec = fetch_codec(store, scratch=staging)
    loaded, _ = load_codec(codec, decoder=False, device=device)
    folder = codec_folder(codec)
    if folder is None:  # a published checkpoint, whose decoder is not copied
        save_codec(loaded, written)
    return loaded, written if folder is None else folder


def _has_codec(store: Store, *, staging: Path, spec: CodecSpec | None = None) -> bool:
    """Return whether the codec of the data set can be loaded and is the expected one."""
    from walloc_data.codec import fetch_codec, load_codec

    if not store.exists("codec/codec.json"):
        return False
    try:
        with tempfile.TemporaryDirectory(dir=staging) as scratch:
            loaded, _ = load_codec(fetch_codec(store, scratch=Path(scratch), decoders=False), decoder=False)
    except (CodecError, FormatError, StorageError):
        return False
    return spec is None or bool(loaded.spec == spec)


def plan_for(source: Source, split: str, settings: EncodeSettings, codec: Any) -> Plan:
    """Return the plan of a new conversion."""
    import PIL
    from PIL import features

    from walloc_data.webp import WRITER_VERSION

    order: dict[str, Any] = {"shuffled": settings.shuffle_seed is not None}
    if source.num_fragments is not None:
        order["fragments_per_unit"] = fragments_per_unit(source.num_fragments, source.fragment_bytes)
    return Plan(
        split=split,
        source=source.describe() | order,
        settings=settings,
        codec=codec.spec,
        class_names=source.class_names,
        written_by={
            "walloc_data": __version__,
            "shards": SHARDS_VERSION,
            "webp_writer": WRITER_VERSION,
            "pillow": PIL.__version__,
            "libwebp": str(features.version("webp")),
            **({"zlib": str(features.version("zlib"))} if source.pictures else {}),  # which writes PNG
            "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg")),
        },
    )


def discard_another(store: Store, plan: Plan, source: Source, *, kind: Kind) -> None:
    """Delete an unfinished replacement of the split that has another plan, or was made from other pictures."""
    inside = replacement(store, plan.split, kind=kind)
    begun = read_plan(inside, plan.split)
    if begun is None:
        return
    if differences(begun, plan) or version_differences(begun, plan):
        discard(store, plan.split, kind=kind)
        return
    try:  # equal plans have an equal number of pictures, so every position exists
        check_source(inside, plan, source)
    except SettingsMismatchError:
        discard(store, plan.split, kind=kind)


def begin(
    store: Store,
    plan: Plan,
    codec_files: Path,
    *,
    staging: Path,
    repair: bool = False,
    redo: Collection[ShardId] = (),
) -> Plan:
    """Return the existing plan if the new one agrees with it; without an existing plan, write the new one.

    `max_pixels` may change if no finished shard, except those of `redo`, would change.
    """
    begun = read_plan(store, plan.split)
    manifest = read_manifest(store)
    before = begun
    if begun is not None:
        if begun.is_old_stream:
            _ = begun.num_units  # raises an error if it cannot be resumed
        reason = limit_is_fixed(store, plan.split, begun.settings, plan.settings, redo=redo)
        if reason is None:
            begun = replace(begun, settings=replace(begun.settings, max_pixels=plan.settings.max_pixels))
        found = differences(begun, plan) + ([reason] if reason else [])
        if manifest is None or plan.split not in manifest.splits:  # a finished split keeps its plan
            found += version_differences(begun, plan)
        if found:
            names = {line.partition(":")[0] for line in found}
            if "source.identity" in names and "source.num_items" not in names:  # changed samples are named elsewhere
                found.append("(a hash of the names and lengths of all pictures of the source)")
            raise SettingsMismatchError(
                f"{store.url}: split {plan.split!r} was begun differently:\n  "
                + "\n  ".join(found)
                + "\nUse the earlier settings, write to another folder, or overwrite the split (--overwrite)"
            )
    if manifest is not None and plan.split in manifest.splits and begun is None:
        raise SettingsMismatchError(
            f"{store.url}: split {plan.split!r} exists already and has no plan to resume: overwrite it "
            "(--overwrite), or choose another name for the split"
        )
    is_there = _has_codec(store, staging=staging, spec=plan.codec) if repair else store.exists("codec/codec.json")
    if not is_there:
        from walloc_data.codec.checkpoints import codec_files as names_of

        # codec.json last: its presence means that the other files are complete.
        for name in names_of(codec_files):
            shutil.copyfile(codec_files / name, staging / name)
            store.publish(staging / name, f"codec/{name}")
    if begun is not None:
        if begun != before:
            store.write_bytes(plan_name(plan.split), dump_json(begun.to_dict()).encode())
        return begun
    store.write_bytes(plan_name(plan.split), dump_json(plan.to_dict()).encode())
    return plan


def check_versions(store: Store, before: Plan, now: Plan) -> None:
    """Refuse to make shards of a split with other versions of libraries than its existing shards.

    Raises:
        SettingsMismatchError: names the libraries and versions.
    """
    if found := version_differences(before, now):
        raise SettingsMismatchError(
            f"{store.url}: shards of split {now.split!r} are missing, and were made by other versions:\n  "
            + "\n  ".join(found)
            + "\nInstall those versions, or overwrite the split (--overwrite)"
        )


def settings_of(store: Store, split: str, manifest: Manifest | None, given: Mapping[str, Any]) -> EncodeSettings:
    """Return the settings of a split: given fields, else those of the split, else those of the data set."""
    if (plan := read_plan(store, split)) is not None:
        return replace(plan.settings, **given)
    if manifest is not None:
        return replace(manifest.settings, **given)
    return replace(next((other.settings for other in _siblings(store, split)), EncodeSettings()), **given)


def classes_of(store: Store, split: str, manifest: Manifest | None) -> tuple[str, ...] | None:
    """Return the class names that the labels of the data set refer to; None if there are none yet."""
    plan = read_plan(store, split)
    names = [
        plan.class_names if plan is not None else None,
        manifest.class_names if manifest is not None else None,
        *(other.class_names for other in _siblings(store, split)),
    ]
    return next((found for found in names if found is not None), None)


def _siblings(store: Store, split: str) -> Iterator[Plan]:
    for name in planned_splits(store):
        if name != split and (plan := read_plan(store, name)) is not None:
            yield plan


def with_classes(source: Source, names: tuple[str, ...] | None, *, context: str) -> Source:
    """Return a source whose labels refer to the class names of the data set, by matching the names.

    Raises:
        SettingsMismatchError: the source has classes that the data set does not have.
    """
    own = source.class_names
    if own is None or names is None or own == names or len(set(own)) < len(own) or len(set(names)) < len(names):
        return source
    if unknown := [name for name in own if name not in set(names)]:
        listed = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise SettingsMismatchError(
            f"{context}: {source.location} has classes that the data set does not have: {listed}. A data set's classes "
            f"are those of its first split ({len(names)} here): leave these out, or start a new data set with the "
            "split that has all classes"
        )
    return RelabelledSource(source, names)


class RelabelledSource(SourceWrapper):
    """Source whose labels are mapped to positions in another list of class names.

    Args:
        source: source with class names, all of which are in `names`.
        names: the other list.
    """

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        super().__init__(source)
        position = {name: index for index, name in enumerate(names)}
        self._labels = [position[name] for name in source.class_names or ()]
        self.class_names = names

    def read(self, index: int) -> Sample:
        return self._with_label(self._source.read(index))

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        return map(self._with_label, self._source.read_fragment(fragment, scratch=scratch))

    def _with_label(self, sample: Sample) -> Sample:
        return sample if sample.label is None else replace(sample, label=self._labels[sample.label])
