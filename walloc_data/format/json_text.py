"""Deterministic writing of JSON, and reading of untrusted JSON with limits.

Small JSON texts can be expensive: integers of a million digits, deep nesting, or `[[],[],...` with twenty times its
length in memory. `load_json` rejects them.
"""

import json
import math
import re
from typing import Any

from walloc_data.errors import FormatError

__all__ = ["MAX_JSON_BYTES", "MAX_JSON_VALUES", "dump_json", "finite_json", "load_json"]

MAX_JSON_BYTES = 2**27  # the manifest of 1.2e9 pictures in shards of 2048
MAX_JSON_VALUES = 2**22  # a value takes at most 120 bytes in memory
_MAX_DEPTH = 32
_MAX_NUMBER_DIGITS = 400  # of a float as text; the longest exact one has 327

_NUMBERS = re.compile(r"\[\n[\s\d.,e+-]+\]")
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def dump_json(value: Any) -> str:
    """Return JSON with sorted keys and a final newline: equal values give equal bytes. NaN and infinity are errors.

    Example:
        >>> from walloc_data.format import dump_json
        >>> print(dump_json({"std": [9.5, 4.25], "mean": [0, 1]}), end="")
        {
         "mean": [0, 1],
         "std": [9.5, 4.25]
        }
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # Put lists of numbers on one line (a histogram has 3072). Strings are not affected: they have no raw newlines.
    return _NUMBERS.sub(lambda match: "[" + ", ".join(match[0][1:-1].replace(",", " ").split()) + "]", text) + "\n"


def finite_json(value: Any) -> Any:
    """Return a value with NaN and infinities, which JSON does not have, replaced by null.

    Example:
        >>> from walloc_data.format import finite_json
        >>> finite_json({"mean": [0.5, float("nan")], "max": float("inf")})
        {'mean': [0.5, None], 'max': None}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite_json(item) for name, item in value.items()}
    return [finite_json(item) for item in value] if isinstance(value, list | tuple) else value


def load_json(data: bytes | str, *, context: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Parse one JSON object; `context` begins error messages.

    Integers must be in [-2^63, 2^64), floats finite, text valid UTF-8 without lone surrogates, and nesting at most 32
    levels deep.

    Args:
        data: UTF-8 text.
        max_bytes: largest accepted length.

    Raises:
        FormatError: the text is not such an object.

    Example:
        >>> from walloc_data.format import load_json
        >>> load_json(b'{"size_px": 256}', context="settings.json")
        {'size_px': 256}
        >>> load_json(b'{"size_px": 256', context="settings.json")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: settings.json: not valid JSON (...)
    """
    if len(data) > max_bytes:
        raise FormatError(f"{context}: {len(data)} bytes of JSON; at most {max_bytes} are read")
    try:
        raw = data if isinstance(data, bytes) else data.encode()
        if (values := raw.count(b",") + raw.count(b"[") + raw.count(b"{")) > MAX_JSON_VALUES:
            raise FormatError(f"{context}: {values} values of JSON; at most {MAX_JSON_VALUES} are read")
        text = data if isinstance(data, str) else str(data, "utf-8")
        value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_no_number)
        _check_depth(value)
        if _HALF_CHARACTER.search(raw):
            _check_characters(value)
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{context}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{context}: expected a JSON object, found {type(value).__name__}")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**64
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"an integer of {len(text)} digits; the largest is 2^64 - 1")
    return value


def _float(text: str) -> float:
    value = float(text) if len(text) <= _MAX_NUMBER_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"a number beyond the range of floats ({text[:20]})")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not valid in JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, list | dict)
        ]
        if not level:
            return
    raise ValueError(f"more than {_MAX_DEPTH} lists and objects inside each other")


def _check_characters(value: Any) -> None:
    """Raise an error for lone surrogates, which are not valid in UTF-8."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for name, item in value.items():
            name.encode()
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)
