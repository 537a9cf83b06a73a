"""Names of hidden and system files, which operating systems, disks and file servers create between pictures.

Left out of folders and of tars, with everything below:

    names that begin with a dot             hidden files; ._NAME of macOS among them
    __MACOSX                                macOS's archives
    @eaDir, @Recycle, #recycle, #snapshot   network disks
    lost+found                              Linux disks
    $RECYCLE.BIN, System Volume Information, Thumbs.db, desktop.ini   Windows
"""

from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["are_splits", "is_stray", "listed", "names_listed", "stray_note"]

_STRAY_NAMES = frozenset(
    name.lower()
    for name in (
        *("__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "lost+found"),
        *("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"),
    )
)
_SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
MAX_LISTED = 10


def is_stray(name: str) -> bool:
    """Return whether one part of a path is the name of a hidden or system file or folder."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _STRAY_NAMES


def are_splits(folders: Iterable[str]) -> bool:
    """Return whether folders are named like splits instead of classes."""
    names = {name.lower() for name in folders}
    return bool(names) and names <= _SPLIT_NAMES


def stray_note(strays: Counter[str]) -> tuple[str, ...]:
    """Return a note on the hidden and system files that were left out, if any.

    Args:
        strays: number of occurrences of each name.

    Example:
        >>> from collections import Counter
        >>> from walloc_data.sources.stray import stray_note
        >>> stray_note(Counter({"@eaDir": 12, "._a.jpg": 1, "._b.jpg": 1}))
        ('left out: hidden and system files and folders: 12 @eaDir, 2 ._*',)
    """
    if not strays:
        return ()
    together: Counter[str] = Counter()
    for name, number in strays.items():
        together["._*" if name.startswith("._") else name] += number
    return (f"left out: hidden and system files and folders: {listed(together)}",)


def listed(numbers: Mapping[str, int]) -> str:
    """Return numbers and names, most frequent first, at most ten of them: ``"12 .txt, 2 .json"``."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - MAX_LISTED} other names" if len(ordered) > MAX_LISTED else ""
    return ", ".join(f"{number} {_printable(name)}" for name, number in ordered[:MAX_LISTED]) + more


def names_listed(names: Iterable[str]) -> str:
    """Return names in the order given, at most ten of them."""
    every = list(names)
    more = f" and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else ""
    return ", ".join(map(_printable, every[:MAX_LISTED])) + more


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
