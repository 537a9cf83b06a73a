"""A shard's raw samples in a local file: how a stream, which only one process can read, reaches the workers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from walloc_data.sources import Sample

__all__ = ["read_spool", "write_spool"]


def write_spool(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples one after another and return how many there were."""
    number = 0
    with path.open("wb") as file:
        for sample in samples:
            left_out = list(sample.left_out)
            head = [sample.name, len(sample.data), sample.label, dict(sample.columns), sample.problem, left_out]
            head.append(sample.version)
            file.write(json.dumps(head).encode() + b"\n")
            file.write(sample.data)
            number += 1
    return number


def read_spool(path: Path, *, first: int) -> Iterator[tuple[int, Sample]]:
    """(source index, sample) pairs; the first sample's index is `first`."""
    with path.open("rb") as file:
        while line := file.readline():
            name, num_bytes, label, columns, problem, left_out, version = json.loads(line)
            yield first, Sample(name, file.read(num_bytes), label, columns, problem, tuple(left_out), version)
            first += 1
