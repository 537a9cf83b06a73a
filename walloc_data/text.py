"""Text that came from outside, made fit for a terminal."""

import unicodedata

__all__ = ["printable"]

# Marks that turn the direction of what follows: a line could end in other words than it was written with.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, *, newlines: bool = True) -> str:
    """Return `text` with every character that could steer a terminal written as its escape.

    Names of files, of classes and of tar members may hold anything: colours, cursor movements, a new window title,
    or, where they are no UTF-8, halves of characters that no stream can write.

    Args:
        text: of any length.
        newlines: keep line breaks and tabs, for text of several lines.

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
