"""Class folders inside tars, whose labels are in the names of members."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from walloc_data.errors import SourceError
from walloc_data.sources.stray import are_splits, names_listed

__all__ = ["ClassFolders", "class_folders", "folder_of"]


@dataclass(frozen=True)
class ClassFolders:
    """Classes of an archive, and their position in paths."""

    depth: int  # folders above the class folders, the same in all paths
    names: tuple[str, ...]  # class i is the i-th, as `FolderSource` numbers them once the archive is unpacked
    num_populated: int  # classes that have pictures

    def label(self, key: str) -> int:
        """Return the class of a sample's key."""
        return self._numbers[folder_of(key)[self.depth]]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def folder_of(key: str) -> tuple[str, ...]:
    """Return the folders of a member's name or a sample's key, without ``.``."""
    return tuple(part for part in key.split("/")[:-1] if part not in ("", "."))


def class_folders(
    keys: Iterable[str], folders: Iterable[str], *, context: str, names: Sequence[str] | None
) -> ClassFolders | None:
    """Find the class folders of samples with these keys; None if all samples are in one folder.

    The class is the first folder below those that all paths share. Folders without pictures are classes, too.

    Args:
        keys: keys of the samples.
        folders: members that are folders.
        names: class names from a file next to the tars; used if they include all folders.

    Raises:
        SourceError: there are pictures next to the folders, or the folders are named like splits.
    """
    found = {folder_of(key) for key in keys}
    depth = 0
    first = next(iter(found), ())
    while depth < len(first) and all(len(path) > depth and path[depth] == first[depth] for path in found):
        depth += 1
    if not any(len(path) > depth for path in found):
        return None
    populated = {path[depth] for path in found if len(path) > depth}
    if len(found) != sum(len(path) > depth for path in found):
        raise SourceError(
            f"{context}: some pictures lie beside the folders {names_listed(sorted(populated))}: is each a class? "
            "label_column='none' (--label-column none) encodes all of it without labels"
        )
    if are_splits(populated):
        raise SourceError(
            f"{context}: its folders {names_listed(sorted(populated))} are named like splits, not classes: unpack it "
            "and name one of them, or encode without labels with label_column='none' (--label-column none)"
        )
    below = {tuple(part for part in folder.split("/") if part) for folder in folders}
    every = populated | {path[depth] for path in below if len(path) > depth and path[:depth] == first[:depth]}
    if names is not None and every <= set(names) and len(set(names)) == len(names):
        return ClassFolders(depth, tuple(names), len(populated))
    ordered = tuple(sorted(every, key=lambda name: name.encode("utf-8", "surrogateescape")))
    return ClassFolders(depth, ordered, len(populated))
