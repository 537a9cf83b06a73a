"""Failures and speeds of past conversions, read as untrusted text."""

import json
import re
from collections import Counter
from typing import TypeGuard

from walloc_data.format import check_name
from walloc_data.format.checks import short_repr
from walloc_data.storage import Store
from walloc_data.text import printable

__all__ = ["read_failures", "read_runs"]

MAX_BYTES = 32 * 2**20
MAX_LISTED = 200
MAX_REASONS = 30


def _lines(store: Store, path: str) -> list[dict[str, object]]:
    """Return the JSON objects in the lines of a file; none if the file is absent or too large."""
    if not store.exists(path) or store.num_bytes(path) > MAX_BYTES:
        return []
    found = []
    for line in store.read_bytes(path, max_bytes=MAX_BYTES).splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _short(value: object) -> str:
    """Return untrusted text in a printable form."""
    return printable(value[:500] if isinstance(value, str) else short_repr(value), newlines=False)


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float) and 0 <= value < 1e12  # type: ignore[operator]


def read_failures(
    store: Store, split: str, *, root: str = ""
) -> tuple[list[tuple[str, str, str]], list[tuple[str, int]]]:
    """Return the first failures as (source index, name, reason), and the number of each reason, most frequent first.

    Args:
        root: `SplitRecord.root`: folder of the split's files while it is being replaced, else "".
    """
    lines = _lines(store, f"{root}failures/{check_name(split, what='split', context=store.url)}.jsonl")
    failures = [
        (_short(line.get("source_index", "")), _short(line.get("name", "")), _short(line.get("reason", "")))
        for line in lines
    ]
    # "truncated (23 bytes not processed)" and "truncated (7 bytes ...)" are one reason.
    reasons = Counter(re.sub(r"\d+", "N", reason) for _, _, reason in failures).most_common(MAX_REASONS)
    return failures[:MAX_LISTED], reasons


def read_runs(store: Store, split: str) -> tuple[list[tuple[int, float]], dict[str, float]]:
    """Return (samples, seconds) of each run that made a split, and the seconds of each stage.

    A downloaded data set has no log.
    """
    runs: list[tuple[int, float]] = []
    stages: dict[str, float] = {}
    for line in _lines(store, f".walloc/{check_name(split, what='split', context=store.url)}/log.jsonl"):
        samples, seconds, parts = line.get("samples"), line.get("seconds"), line.get("stages_s")
        if not (_is_number(samples) and _is_number(seconds)):
            continue
        runs.append((int(samples), float(seconds)))
        for name, value in parts.items() if isinstance(parts, dict) else ():
            if _is_number(value) and (_short(name) in stages or len(stages) < 50):
                stages[_short(name)] = stages.get(_short(name), 0.0) + float(value)
    return runs[-MAX_LISTED:], stages
