"""Trouble of the machine, told from damage of a picture: the one stops a conversion, the other is a failure."""

from walloc_data.errors import ConversionError

__all__ = ["trouble"]

_GO_ON = "What is published stays, and the same command goes on from there"


def trouble(what: str, error: BaseException) -> ConversionError:
    """The error that stops a conversion, for a picture or a shard."""
    if isinstance(error, MemoryError | RuntimeError) or "out of memory" in str(error):
        return ConversionError(
            f"{what}: memory ran out. {_GO_ON}: with fewer workers, more memory, or a smaller max_pixels "
            "(--max-pixels), which makes larger pictures failures"
        )
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return ConversionError(f"{what}: {reason}. This is trouble of the machine, not of the picture. {_GO_ON}")
