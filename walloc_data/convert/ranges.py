"""Lists of shards as one short text, as webdataset reads it."""

from collections.abc import Iterable

__all__ = ["shard_urls"]


def shard_urls(names: Iterable[str], *, prefix: str = "") -> str:
    """Write shard names as brace ranges, joined by ``::`` where numbers are missing between them.

    A shard whose pictures are all broken has no file, so its number is missing: a range may only cover numbers that
    are there. webdataset, and `open_source("wds:...")`, read the result back to exactly these names.

    Args:
        names: paths ending in ``-NUMBER.tar``, in order.
        prefix: what to put before each, such as a folder and a slash.

    Example:
        >>> from walloc_data.convert.ranges import shard_urls
        >>> shard_urls(["data/train-00000.tar", "data/train-00001.tar", "data/train-00003.tar"])
        'data/train-{00000..00001}.tar::data/train-00003.tar'
    """
    runs: list[tuple[str, str, str]] = []  # stem, first and last number as text
    for name in names:
        stem, _, digits = name.removesuffix(".tar").rpartition("-")
        if runs and runs[-1][0] == stem and int(runs[-1][2]) + 1 == int(digits) and len(runs[-1][2]) == len(digits):
            runs[-1] = (stem, runs[-1][1], digits)
        else:  # also where the number of digits changes, as a range has one
            runs.append((stem, digits, digits))
    return "::".join(
        f"{prefix}{stem}-{first if first == last else f'{{{first}..{last}}}'}.tar" for stem, first, last in runs
    )
