"""Settings and class numbers that a conversion inherits from its data set."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from walloc_data.convert.journal import planned_splits, read_plan
from walloc_data.convert.plan import Plan
from walloc_data.errors import SettingsMismatchError
from walloc_data.format import EncodeSettings, Manifest
from walloc_data.sources import Sample, Source
from walloc_data.storage import Store

__all__ = ["RelabelledSource", "classes_of", "settings_of", "with_classes"]


def settings_of(store: Store, split: str, manifest: Manifest | None, given: Mapping[str, Any]) -> EncodeSettings:
    """Return the settings of a split: those given, and for the rest the split's own, or else those of the data set."""
    if (plan := read_plan(store, split)) is not None:
        return replace(plan.settings, **given)
    if manifest is not None:
        return replace(manifest.settings, **given)
    return replace(next((other.settings for other in _siblings(store, split)), EncodeSettings()), **given)


def classes_of(store: Store, split: str, manifest: Manifest | None) -> tuple[str, ...] | None:
    """Return the class names by whose positions a data set's labels count; None where there are none yet."""
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


def with_classes(source: Source, names: tuple[str, ...] | None, *, where: str) -> Source:
    """Return a source whose labels count by a data set's class names, whichever of them it has and in whatever order.

    Raises:
        SettingsMismatchError: it has classes that the data set does not have.
    """
    own = source.class_names
    if own is None or names is None or own == names or len(set(own)) < len(own) or len(set(names)) < len(names):
        return source
    if unknown := [name for name in own if name not in set(names)]:
        listed = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise SettingsMismatchError(
            f"{where}: {source.location} has classes that the data set does not have: {listed}. A data set's classes "
            f"are those of its first split ({len(names)} here): leave these out, or begin a new data set with the "
            "split that has all of them"
        )
    return RelabelledSource(source, names)


class RelabelledSource(Source):
    """A source with labels that are positions in another list of class names.

    Args:
        source: with class names, all of which are in `names`.
        names: the other list.
    """

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self._source = source
        position = {name: index for index, name in enumerate(names)}
        self._labels = [position[name] for name in source.class_names or ()]
        self.kind, self.location, self.num_items = source.kind, source.location, source.num_items
        self.labelled, self.columns, self.notes = source.labelled, source.columns, source.notes
        self.column_types, self.column_classes = source.column_types, source.column_classes
        self.num_fragments, self.fragment_bytes = source.num_fragments, source.fragment_bytes
        self.identity, self.class_names = source.identity, names
        self.pictures = source.pictures

    def describe(self) -> dict[str, Any]:
        return self._source.describe()

    def read(self, index: int) -> Sample:
        return self._with_label(self._source.read(index))

    def version(self, index: int) -> str | None:
        return self._source.version(index)

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        return map(self._with_label, self._source.read_fragment(fragment, scratch=scratch))

    def fragment_name(self, fragment: int) -> str:
        return self._source.fragment_name(fragment)

    def fragment_version(self, fragment: int) -> str | None:
        return self._source.fragment_version(fragment)

    def _with_label(self, sample: Sample) -> Sample:
        return sample if sample.label is None else replace(sample, label=self._labels[sample.label])
