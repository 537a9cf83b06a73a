"""Escaping of untrusted text for terminals."""

import unicodedata

__all__ = ["printable"]

# Characters that change the direction of the text after them, so that a line can be displayed in another order.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, *, newlines: bool = True) -> str:
    """Return text with terminal control characters replaced by their escape sequences.

    Names of files, classes and tar members are untrusted: they may contain colours, cursor movements, a window title,
    or, if they are not UTF-8, surrogates that cannot be printed.

    Args:
        text: any text.
        newlines: keep line breaks and tabs.

    Example:
        >>> from walloc_data.text import printable
        >>> print(printable("\\x1b[2Jcat.jpg"))
        \\x1b[2Jcat.jpg
    """
    if text.isprintable():
        return text
    kept = "\n\t" if newlines else ""
    return "".join(c if c in kept or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def _steers(character: str) -> bool:
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
